"""Precision and recall (Kynkäänniemi et al. 2019, arXiv 1904.06991), density and coverage (Naeem et
al. 2020, arXiv 2002.09797), and the tiled nearest-neighbour search behind them.

Digits. A distance as |a|^2 + |b|^2 - 2ab is one matrix product, but loses the digits that cancel:
near-identical images get a distance of rounding noise, and copies do not get zero. So features are
centred (distances do not change, the cancelling terms shrink), and every comparison closer than the
product's error bound is decided again from sum (a - b)^2 in float64, which loses nothing. Distances
that still agree to rounding are equal: inside under "<=", outside under "<".

Speed. So the products of float32 features may be of float32 and the results are still exact; where
their bound leaves too much to be decided again, they are of float64.

Memory. Features stay as they are; beside them there are a few tiles of `tile` x D and of `tile` x
`tile` numbers, and 2 k numbers per image, whatever the number of images: for 50,000 x 50,000 images
with 2048 features about 150 MB on a CPU, and 1 GB on a GPU, where tiles are larger.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import torch
from torch import Tensor

from guidex.errors import UsageError
from guidex.features.features import FeatureSet
from guidex.features.networks import full_float32
from guidex.metrics.metric import PUBLISHED_IMAGES, Column, Fewest, Metric, check_whole

# Rows of a tile: on a CPU, tiles stay in its cache; on a GPU, they keep all of it busy.
CPU_TILE, GPU_TILE = 1024, 4096

# Numbers that pairs being decided again may hold at a time: 32 MiB of float64 on each side.
_PAIRS = 2**22

# Where float32 leaves more than this share of the pairs of two tiles to be decided again, a product
# in float64 costs less than deciding them.
_DOUBTS = 1 / 4096

# Neighbours beyond the k-th that a search in float32 looks at, to be sure that it has missed none.
_SPARE = 8

# Squares of larger features might overflow in float32.
_LARGEST = 1e15

_EPS = torch.finfo(torch.float64).eps


def prdc(
    *,
    real: Tensor,
    fake: Tensor,
    k: int,
    rule: Literal["<", "<="] = "<",
    arithmetic: Literal["exact", "adm"] = "exact",
    tile: int | None = None,
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
        arithmetic: see `PRDC`.
        tile: rows of each set that are compared at a time, or None for what suits the device; no
            effect on the result.

    Returns:
        precision, recall and coverage in 0 ... 1 and density >= 0, in the order of the name.
    """
    tile = _tile_on(real.device) if tile is None else tile
    pair_of, radii_of = (
        (_TilePair, _squared_radii) if arithmetic == "exact" else (_RoundedPair, _rounded_radii)
    )
    real_radii, fake_radii = (radii_of(values, k, tile) for values in (real, fake))

    precise = torch.zeros(len(fake), dtype=torch.bool, device=fake.device)
    recalled = torch.zeros(len(real), dtype=torch.bool, device=real.device)
    covered = torch.zeros_like(recalled)
    memberships = torch.zeros((), dtype=torch.int64, device=real.device)
    centre, dtype = _centre(real), _working_dtype(real, fake)
    for rows in _slices(len(real), tile):
        for cols in _slices(len(fake), tile):
            pair = pair_of(real[rows], fake[cols], centre, dtype)
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
    *, queries: Tensor | None, points: Tensor, k: int, tile: int | None = None
) -> tuple[Tensor, Tensor]:
    """The k points nearest to each query, nearest first.

    Arguments:
        queries: features [Q, D], or None for each of the points among the others.
        points: features [P, D], same device; at least k of them (k + 1 where queries is None).
        k: 1 or more.
        tile: rows that are compared at a time, or None for what suits the device; no effect on
            the result.

    Returns:
        Squared distances [Q, k], float64, free of cancellation, and row numbers [Q, k], int64.
    """
    starts = points if queries is None else queries
    tile = _tile_on(points.device) if tile is None else tile
    centre, dtype = _centre(points), _working_dtype(starts, points)
    distances = torch.empty(len(starts), k, dtype=torch.float64, device=starts.device)
    indices = torch.empty(len(starts), k, dtype=torch.int64, device=starts.device)
    for rows in _slices(len(starts), tile):
        search = _Search(starts[rows], points, k, tile, centre, rows if queries is None else None)
        near, near_indices, certain = search.run(dtype)
        if not certain:
            near, near_indices, _ = search.run(torch.float64)
        distances[rows], indices[rows] = near, near_indices
    return distances, indices


@dataclass(frozen=True, eq=False)
class _Search:
    """The nearest neighbours of one tile of queries.

    Attributes:
        queries: features [T, D].
        points: features [P, D].
        k: number of neighbours.
        tile: of the points.
        centre: amid the points, [D].
        query_rows: rows of the points that the queries are, and that do not count as their own
            neighbours; None where they are others.
    """

    queries: Tensor
    points: Tensor
    k: int
    tile: int
    centre: Tensor
    query_rows: slice | None

    def run(self, dtype: torch.dtype) -> tuple[Tensor, Tensor, bool]:
        """Squared distances [T, k], float64, row numbers [T, k], and whether it is certain that no
        point is nearer; products are in `dtype`."""
        there = len(self.points) - (self.query_rows is not None)
        wanted = self.k if dtype == torch.float64 else min(self.k + _SPARE, there)
        near = torch.empty(len(self.queries), 0, dtype=dtype, device=self.queries.device)
        indices = near.long()
        slack = near.new_zeros(len(near), 1)
        for cols in _slices(len(self.points), self.tile):
            pair = _TilePair(self.queries, self.points[cols], self.centre, dtype)
            if self.query_rows == cols:
                pair.squared.fill_diagonal_(torch.inf)
            part, part_indices = _smallest(pair.squared, wanted)
            near, order = _smallest(torch.cat([near, part], dim=1), wanted)
            indices = torch.cat([indices, part_indices + cols.start], dim=1).gather(1, order)
            slack = torch.maximum(slack, pair.slack_a)
        exact, order = _exact_columns(self.queries, self.points, indices).sort(dim=1, stable=True)
        # Of the points that were passed over, none is nearer than the last that was not.
        certain = wanted == there or bool(
            (exact[:, self.k - 1 : self.k] <= near[:, -1:] - slack).all()
        )
        return exact[:, : self.k], indices.gather(1, order)[:, : self.k], certain


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
        squared: [Ta, Tb], as the matrix product in `dtype` gives them.
        slack_a, slack_b: [Ta, 1] and [1, Tb]; by row or by column, squared is wrong by less.
    """

    def __init__(self, a: Tensor, b: Tensor, centre: Tensor, dtype: torch.dtype) -> None:
        self._a, self._b, self._centre, self._dtype = a, b, centre, dtype
        a, b = (values.to(dtype) - centre.to(dtype) for values in (a, b))
        norms_a = a.square().sum(dim=1)[:, None]
        norms_b = b.square().sum(dim=1)[None, :]
        with full_float32():
            self.squared = torch.addmm(norms_b, a, b.T, alpha=-2).add_(norms_a)
        # A sum of D products is wrong by at most D eps sum |products| (Higham 2002, eq. 3.5): here
        # 2 (D + 12) eps (|a|^2 + |b|^2) for the three terms and what centring has rounded, and as
        # much of float64's eps, thrice, for the ties below. What is too small for the dtype is
        # lost besides.
        dim, numbers = a.shape[1], torch.finfo(dtype)
        bound, lost = 2 * (dim + 12) * (numbers.eps + 3 * _EPS), dim * numbers.tiny
        self.slack_a = bound * (norms_a + norms_b.max()) + lost
        self.slack_b = bound * (norms_b + norms_a.max()) + lost

    def inside(self, squared_radii: Tensor, rule: Literal["<", "<="]) -> Tensor:
        """Which pairs lie within a radius: [Ta, Tb], bool, for radii [Ta, 1] or [1, Tb]."""
        slack = self.slack_a if squared_radii.shape[1] == 1 else self.slack_b
        inside = self.squared < (squared_radii - slack).to(self._dtype)
        doubtful = (self.squared <= (squared_radii + slack).to(self._dtype)).logical_xor_(inside)
        pairs = doubtful.nonzero()
        if self._dtype == torch.float32 and len(pairs) > _DOUBTS * doubtful.numel():
            return self._in_float64.inside(squared_radii, rule)
        radii = squared_radii.expand_as(inside)
        for some in pairs.split(max(_PAIRS // self._a.shape[1], 1)):
            i, j = some.unbind(1)
            exact = _exact_squared(self._a[i].double(), self._b[j].double())
            tie = 2 * (self._a.shape[1] + 2) * _EPS * radii[i, j]
            if rule == "<":
                inside[i, j] = exact < radii[i, j] - tie
            else:
                inside[i, j] = exact <= radii[i, j] + tie
        return inside

    @cached_property
    def _in_float64(self) -> "_TilePair":
        return _TilePair(self._a, self._b, self._centre, torch.float64)


class _RoundedPair:
    """Squared distances from one tile of rows to another as ADM's evaluator has them: float16 from
    float16 features, sums in float32; float32 throughout where float16 overflows.

    Attributes:
        squared: [Ta, Tb], float32.
    """

    def __init__(
        self, a: Tensor, b: Tensor, centre: Tensor | None = None, dtype: torch.dtype | None = None
    ) -> None:
        self.squared = _rounded(a.half(), b.half()).float()
        if not torch.isfinite(self.squared).all():
            self.squared = _rounded(a.float(), b.float())

    def inside(self, squared_radii: Tensor, rule: Literal["<", "<="]) -> Tensor:
        """As `_TilePair.inside`."""
        return self.squared < squared_radii if rule == "<" else self.squared <= squared_radii


def _rounded(a: Tensor, b: Tensor) -> Tensor:
    """|a|^2 - 2 a b + |b|^2, not below 0, each term and each difference in the dtype of a and b."""
    norms = [values.square().sum(dim=1, dtype=torch.float32).to(a.dtype) for values in (a, b)]
    with full_float32():
        products = (a.float() @ b.float().T).to(a.dtype)
    return (norms[0][:, None] - 2 * products + norms[1]).clamp_(min=0)


def _rounded_radii(values: Tensor, k: int, tile: int) -> Tensor:
    """Squared distances to the k-th neighbour; what is nearest counts as the image itself."""
    radii = []
    for rows in _slices(len(values), tile):
        near = values.new_empty(rows.stop - rows.start, 0, dtype=torch.float32)
        for cols in _slices(len(values), tile):
            squared = _RoundedPair(values[rows], values[cols]).squared
            near, _ = _smallest(torch.cat([near, squared], dim=1), k + 1)
        radii.append(near.amax(dim=1))
    return torch.cat(radii)


def _centre(values: Tensor) -> Tensor:
    """Any point amid the values, [D]; it need not be exact, since distances do not depend on it."""
    return values.mean(dim=0)


def _working_dtype(*sets: Tensor) -> torch.dtype:
    """That of the products: float32 where all features are, and small enough to be squared."""
    if all(values.dtype == torch.float32 for values in sets):
        largest = max(float(torch.linalg.vector_norm(values, torch.inf)) for values in sets)
        if largest < _LARGEST:
            return torch.float32
    return torch.float64


def _tile_on(device: torch.device) -> int:
    return CPU_TILE if device.type == "cpu" else GPU_TILE


def _slices(count: int, tile: int) -> Iterator[slice]:
    for start in range(0, count, tile):
        yield slice(start, min(start + tile, count))


class PRDC(Metric):
    """The four numbers as a metric.

    Published values differ in k, rule, detector and image counts, and do not compare across them:
    k = 3 on 50,000 images (the paper), k = 3 and "<=" (torch-fidelity), k = 5 and "<" on 10,000
    (dgm-eval).

    Arguments:
        k: neighbour that sets the radius of a ball, 1 or more.
        rule: whether the surface of a ball is outside ("<") or inside ("<=").
        reals, fakes: at most as many images of each side, chosen at random; None for all.
        equal: as many of each side as there are of the smaller one (dgm-eval).
        seed: of the choice.
        arithmetic: "exact", or "adm": squared distances rounded to float16, as ADM's evaluator
            compares them, in which many are equal.
    """

    columns = (
        Column("precision", "Precision", "higher", digits=3, is_share=True, against="recall"),
        Column("recall", "Recall", "higher", digits=3, is_share=True),
        Column("density", "Density", "higher", digits=3),
        Column("coverage", "Coverage", "higher", digits=3, is_share=True),
    )

    def __init__(
        self,
        k: int = 3,
        rule: Literal["<", "<="] = "<",
        reals: int | None = None,
        fakes: int | None = None,
        equal: bool = False,
        seed: int = 0,
        arithmetic: Literal["exact", "adm"] = "exact",
    ) -> None:
        check_whole("k", k, least=1)
        if rule not in ("<", "<="):
            raise UsageError(f'rule is {rule!r}; it must be "<" or "<=".')
        if arithmetic not in ("exact", "adm"):
            raise UsageError(f"arithmetic is {arithmetic!r}; it must be exact or adm.")
        for name, value in (("reals", reals), ("fakes", fakes)):
            if value is not None:
                check_whole(name, value, least=k + 1)
        check_whole("seed", seed, least=0)
        self.k, self.rule, self.arithmetic = k, rule, arithmetic
        self.reals, self.fakes = reals, fakes
        self.equal, self.seed = equal, seed

    def fewest(self, dim: int) -> list[Fewest]:
        return [Fewest(self.k + 1, self.k + 1, f"k={self.k}", "a smaller k")]

    def doubts(
        self, *, real: int | None, fake: int, detector: str, dim: int, network: bool
    ) -> list[str]:
        """Other numbers of images than those of the protocol: `reals` and `fakes`, or 50,000."""
        if not network:
            return []
        return [
            f"{count:,} {side} images: published precision and recall are of {wanted:,}, and "
            "depend on their number."
            for side, count, most in (("real", real, self.reals), ("fake", fake, self.fakes))
            for wanted in [PUBLISHED_IMAGES if most is None else most]
            if count is not None and (count < wanted or (most is None and count > wanted))
        ]

    def caption(self, *, real: int | None, recorded: int | None) -> dict[str, str]:
        text = f"k={self.k}, {self.rule}"
        used = min(real, self.reals or real)
        if used != recorded:
            text += f", {used} real"
        if self.fakes is not None:
            text += f", at most {self.fakes} fake"
        text += ", as many of each side" if self.equal else ""
        text += ", float16 distances" if self.arithmetic == "adm" else ""
        return {"precision/recall": text}

    def compute(self, real: FeatureSet, fake: FeatureSet) -> dict[str, float]:
        most = [self.reals or real.count, self.fakes or fake.count]
        if self.equal:
            most = [min(*most, real.count, fake.count)] * 2
        return prdc(
            real=real.at_most(most[0], self.seed).values,
            fake=fake.at_most(most[1], self.seed).values,
            k=self.k,
            rule=self.rule,
            arithmetic=self.arithmetic,
        )
