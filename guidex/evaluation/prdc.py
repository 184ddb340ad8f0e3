"""Precision and recall (Kynkäänniemi et al. 2019, arXiv 1904.06991), density and coverage (Naeem et
al. 2020, arXiv 2002.09797), and the tiled nearest-neighbour search behind them.

Digits. A distance as |a|^2 + |b|^2 - 2ab is one matrix product, but loses the digits that cancel:
near-identical images get a distance of rounding noise, and copies do not get zero. So features are
centred (distances do not change, the cancelling terms shrink), products are in float64, and every
comparison closer than the product's error bound is decided again from sum (a - b)^2, which loses
nothing. Distances that still agree to rounding are equal: inside under "<=", outside under "<".

Memory. Features stay as they are; beside them there are a few tiles of `tile` x D and of `tile` x
`tile` float64 numbers, and 2 k numbers per image, whatever the number of images: about 110 MB for
50,000 x 50,000 images with 2048 features at the default tile.
"""

from collections.abc import Iterator
from typing import ClassVar, Literal

import torch
from torch import Tensor

from guidex.errors import UsageError
from guidex.evaluation.features import FeatureSet, check_comparable, check_whole, require_values
from guidex.evaluation.statistics import refuse_nonfinite

TILE = 1024

# Numbers that pairs being decided again may hold at a time: 32 MiB of float64 on each side.
_PAIRS = 2**22

_EPS = torch.finfo(torch.float64).eps


class PRDC:
    """The four numbers as a metric.

    Published values differ in k, rule, detector and image counts, and do not compare across them:
    k = 3 on 50,000 images (the paper), k = 3 and "<=" (torch-fidelity), k = 5 and "<" on 10,000
    (dgm-eval).

    Arguments:
        k: neighbour that sets the radius of a ball, 1 or more.
        rule: whether the surface of a ball is outside ("<") or inside ("<=").
    """

    needs_values: ClassVar[bool] = True
    needs_labels: ClassVar[bool] = False
    needs_truth: ClassVar[bool] = False

    def __init__(self, k: int = 3, rule: Literal["<", "<="] = "<") -> None:
        _check_options(k, rule)
        self.k = k
        self.rule = rule

    def __call__(self, *, real: FeatureSet, fake: FeatureSet) -> dict[str, float]:
        """precision_, recall_, density_ and coverage_<detector>.

        Raises:
            UsageError: sets of different detectors, no features, or no more than k images.
        """
        check_comparable(real=real, fake=fake)
        results = prdc(
            real=require_values(real, side="real", metric="PRDC"),
            fake=require_values(fake, side="fake", metric="PRDC"),
            k=self.k,
            rule=self.rule,
        )
        return {f"{name}_{real.detector}": value for name, value in results.items()}


def prdc(
    *, real: Tensor, fake: Tensor, k: int, rule: Literal["<", "<="] = "<", tile: int = TILE
) -> dict[str, float]:
    """Precision, recall, density, coverage.

    Around each image lies a ball that reaches to its k-th nearest neighbour in its own set, itself
    not counted. precision: share of fakes inside some real ball. recall: share of reals inside some
    fake ball. density: mean number of real balls that hold a fake, over k (may exceed 1).
    coverage: share of real balls that hold a fake.

    Arguments:
        real: features [N, D], float32 or float64, on a CPU or CUDA device.
        fake: features [M, D], on the same device.
        k: 1 or more, less than N and M.
        rule: "<": a distance equal to the radius is outside (prdc, dgm-eval); "<=": inside.
        tile: rows of each set in memory as float64 at a time; no effect on the result.

    Returns:
        precision, recall and coverage in 0 ... 1 and density >= 0, in the order of the name.

    Raises:
        UsageError: N or M not above k, different D, NaN or infinity.
    """
    _check_options(k, rule)
    for side, values in (("real", real), ("fake", fake)):
        refuse_nonfinite(values)
        if len(values) <= k:
            raise UsageError(
                f"k = {k} needs more than {k} {side} images, but there are {len(values)}. "
                "Use more images or a smaller k."
            )
    if real.shape[1] != fake.shape[1]:
        raise UsageError(
            f"real features have {real.shape[1]} dimensions, fake ones {fake.shape[1]}."
        )
    real_radii = _squared_radii(real, k, tile)
    fake_radii = _squared_radii(fake, k, tile)

    precise = torch.zeros(len(fake), dtype=torch.bool, device=fake.device)
    recalled = torch.zeros(len(real), dtype=torch.bool, device=real.device)
    covered = torch.zeros_like(recalled)
    memberships = torch.zeros((), dtype=torch.int64, device=real.device)
    centre = _centre(real)
    for rows in _slices(len(real), tile):
        for cols in _slices(len(fake), tile):
            pair = _TilePair(real[rows], fake[cols], centre)
            in_real_ball = pair.inside(real_radii[rows, None], rule)
            in_fake_ball = pair.inside(fake_radii[None, cols], rule)
            precise[cols] |= in_real_ball.any(dim=0)
            covered[rows] |= in_real_ball.any(dim=1)
            recalled[rows] |= in_fake_ball.any(dim=1)
            memberships += in_real_ball.sum()
    return {
        "precision": precise.double().mean().item(),
        "recall": recalled.double().mean().item(),
        "density": memberships.item() / (k * len(fake)),
        "coverage": covered.double().mean().item(),
    }


def nearest_neighbours(
    *, queries: Tensor | None, points: Tensor, k: int, tile: int = TILE
) -> tuple[Tensor, Tensor]:
    """The k points nearest to each query, nearest first.

    Arguments:
        queries: features [Q, D], or None for each of the points among the others.
        points: features [P, D], same device; at least k of them (k + 1 where queries is None).
        k: 1 or more.
        tile: rows in memory as float64 at a time; no effect on the result.

    Returns:
        Squared distances [Q, k], float64, free of cancellation, and row numbers [Q, k], int64.
    """
    starts = points if queries is None else queries
    centre = _centre(points)
    distances = torch.empty(len(starts), k, dtype=torch.float64, device=starts.device)
    indices = torch.empty(len(starts), k, dtype=torch.int64, device=starts.device)
    for rows in _slices(len(starts), tile):
        near, near_indices = distances[rows, :0], indices[rows, :0]
        for cols in _slices(len(points), tile):
            squared = _TilePair(starts[rows], points[cols], centre).squared
            if queries is None and rows == cols:
                squared.fill_diagonal_(torch.inf)
            part, part_indices = _smallest(squared, k)
            near, order = _smallest(torch.cat([near, part], dim=1), k)
            near_indices = torch.cat([near_indices, part_indices + cols.start], dim=1)
            near_indices = near_indices.gather(1, order)
        exact = _exact_columns(starts[rows], points, near_indices)
        distances[rows], order = exact.sort(dim=1, stable=True)
        indices[rows] = near_indices.gather(1, order)
    return distances, indices


def _smallest(squared: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The k smallest values of each row, all of them where there are fewer, and their columns."""
    return squared.topk(min(k, squared.shape[1]), dim=1, largest=False)


def _squared_radii(values: Tensor, k: int, tile: int) -> Tensor:
    distances, _ = nearest_neighbours(queries=None, points=values, k=k, tile=tile)
    return distances[:, -1]


def _exact_columns(queries: Tensor, points: Tensor, indices: Tensor) -> Tensor:
    """Squared distances [Q, k] from each query to its own k points, one column at a time."""
    queries = queries.double()
    columns = [_exact_squared(queries, points[column].double()) for column in indices.unbind(1)]
    return torch.stack(columns, dim=1)


def _exact_squared(a: Tensor, b: Tensor) -> Tensor:
    return (a - b).square_().sum(dim=1)


class _TilePair:
    """Squared distances from one tile of rows to another, with their error bound.

    Attributes:
        squared: [Ta, Tb], float64, as the matrix product gives them.
        slack_a, slack_b: [Ta, 1] and [1, Tb]; by row or by column, squared is wrong by less.
    """

    def __init__(self, a: Tensor, b: Tensor, centre: Tensor) -> None:
        self._a, self._b = a, b
        a, b = a.double() - centre, b.double() - centre
        norms_a = a.square().sum(dim=1)[:, None]
        norms_b = b.square().sum(dim=1)[None, :]
        self.squared = torch.addmm(norms_b, a, b.T, alpha=-2).add_(norms_a)
        # A sum of D products is wrong by at most D eps sum |products| (Higham 2002, eq. 3.5): here
        # 2 (D + 8) eps (|a|^2 + |b|^2) for the three terms, and twice that for the ties below.
        bound = 8 * (a.shape[1] + 4) * _EPS
        self.slack_a = bound * (norms_a + norms_b.max())
        self.slack_b = bound * (norms_b + norms_a.max())

    def inside(self, squared_radii: Tensor, rule: Literal["<", "<="]) -> Tensor:
        """Which pairs lie within a radius: [Ta, Tb], bool, for radii [Ta, 1] or [1, Tb]."""
        slack = self.slack_a if squared_radii.shape[1] == 1 else self.slack_b
        inside = self.squared < squared_radii - slack
        doubtful = (self.squared <= squared_radii + slack).logical_xor_(inside)
        radii = squared_radii.expand_as(inside)
        for pairs in doubtful.nonzero().split(max(_PAIRS // self._a.shape[1], 1)):
            i, j = pairs.unbind(1)
            exact = _exact_squared(self._a[i].double(), self._b[j].double())
            tie = 2 * (self._a.shape[1] + 2) * _EPS * radii[i, j]
            if rule == "<":
                inside[i, j] = exact < radii[i, j] - tie
            else:
                inside[i, j] = exact <= radii[i, j] + tie
        return inside


def _centre(values: Tensor) -> Tensor:
    """Any point amid the values, [D]; it need not be exact, since distances do not depend on it."""
    return values.mean(dim=0).double()


def _slices(count: int, tile: int) -> Iterator[slice]:
    for start in range(0, count, tile):
        yield slice(start, min(start + tile, count))


def _check_options(k: int, rule: str) -> None:
    check_whole("k", k, least=1)
    if rule not in ("<", "<="):
        raise UsageError(f'rule is {rule!r}; it must be "<" or "<=".')
