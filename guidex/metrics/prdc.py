"""Precision and recall (Kynkäänniemi et al. 2019, arXiv 1904.06991), density and coverage (Naeem et
al. 2020, arXiv 2002.09797), and the tiled nearest-neighbour search behind them.

Digits. A distance as |a|^2 + |b|^2 - 2ab is one matrix product, but loses the digits that cancel.
So features are centred, and comparisons closer than the product's error bound are decided again
from sum (a - b)^2 in float64; distances that still agree to rounding are equal. Products are of
float32 first, and of float64 where too much is left to decide, or where float32 overflows.

Memory. Beside the features there are a few tiles, and 2 k numbers per image: for 50,000 x 50,000
images with 2048 features about 150 MB on a CPU, and 1 GB on a GPU, where tiles are larger.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Literal

import torch
from torch import Tensor

from guidex.features.features import FeatureSet
from guidex.features.networks import full_float32
from guidex.metrics.metric import (
    PUBLISHED_IMAGES,
    Column,
    Fewest,
    Metric,
    Numbers,
    doubts_of_count,
)

Rule = Literal["<", "<="]

# How a distance compares with a radius, and on which side of it ties lie.
_RULES = {"<": (torch.lt, -1), "<=": (torch.le, 1)}

# Rows of a tile: on a CPU, tiles stay in its cache; on a GPU, they keep all of it busy.
CPU_TILE, GPU_TILE = 1024, 4096

# Numbers that pairs being decided again may hold at a time: 32 MiB of float64 on each side.
_PAIRS = 2**22

# Where float32 leaves more than this share of the pairs of two tiles to be decided again, a product
# in float64 costs less than deciding them.
_DOUBTS = 1 / 4096

# Neighbours beyond the k-th that a search in float32 looks at, to be sure that it has missed none.
_SPARE = 8

_EPS = torch.finfo(torch.float64).eps


@dataclass(frozen=True)
class PRDC(Metric):
    """Around each image lies a ball that reaches to its k-th nearest neighbour in its own set,
    itself not counted. precision: share of fakes inside some real ball. recall: share of reals
    inside some fake ball. density: mean number of real balls that hold a fake, over k (may exceed
    1). coverage: share of real balls that hold a fake.

    Published values differ in k, rule, detector and image counts, and do not compare across them.
    """

    k: int = 3  # neighbour that sets the radius of a ball, 1 or more
    rule: Rule = "<"  # a distance equal to the radius is outside (prdc, dgm-eval); "<=": inside
    reals: int | None = None  # at most as many images, chosen at random; None for all
    fakes: int | None = None
    equal: bool = False  # as many of each side as there are of the smaller one (dgm-eval)
    seed: int = 0  # of the choice
    # "adm": squared distances rounded to float16, as ADM's evaluator has them; many are equal.
    arithmetic: Literal["exact", "adm"] = "exact"

    columns = (
        Column("precision", "Precision", "higher", digits=3, is_share=True, against="recall"),
        Column("recall", "Recall", "higher", digits=3, is_share=True),
        Column("density", "Density", "higher", digits=3),
        Column("coverage", "Coverage", "higher", digits=3, is_share=True),
    )

    @property
    def least(self) -> dict[str, int]:
        return {"k": 1, "reals": self.k + 1, "fakes": self.k + 1, "seed": 0}

    def fewest(self, dim: int) -> Fewest:
        return Fewest(self.k + 1, self.k + 1, f"k={self.k}", "a smaller k")

    def doubts(self, *, real: int | None, fake: int, dim: int, network: bool) -> list[str]:
        doubts = []
        for side, count, most in (("real", real, self.reals), ("fake", fake, self.fakes)):
            if network and count is not None:
                used = count if most is None else min(count, most)
                wanted = most or PUBLISHED_IMAGES
                doubts += doubts_of_count(side, used, "precision and recall", wanted)
        return doubts

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

    def compute(self, real: FeatureSet, fake: FeatureSet) -> Numbers:
        most = [self.reals or real.count, self.fakes or fake.count]
        if self.equal:
            most = [min(*most, real.count, fake.count)] * 2
        reals = real.at_most(most[0], self.seed).values
        fakes = fake.at_most(most[1], self.seed).values
        if self.arithmetic == "adm":
            pair_of, radii_of = _RoundedPair, _rounded_radii
        else:
            pair_of, radii_of = partial(_Pair, centre=reals.mean(dim=0)), _radii
        real_radii, fake_radii = radii_of(reals, self.k), radii_of(fakes, self.k)

        precise = torch.zeros(len(fakes), dtype=torch.bool, device=fakes.device)
        recalled = torch.zeros(len(reals), dtype=torch.bool, device=reals.device)
        covered = torch.zeros_like(recalled)
        memberships = torch.zeros(len(fakes), dtype=torch.int64, device=reals.device)
        for rows in _tiles(reals):
            for cols in _tiles(fakes):
                pair = pair_of(reals[rows], fakes[cols])
                in_real_ball = pair.inside(real_radii[rows, None], self.rule)
                in_fake_ball = pair.inside(fake_radii[None, cols], self.rule)
                precise[cols] |= in_real_ball.any(dim=0)
                covered[rows] |= in_real_ball.any(dim=1)
                recalled[rows] |= in_fake_ball.any(dim=1)
                memberships[cols] += in_real_ball.sum(dim=0)
        return {
            "precision": precise,
            "recall": recalled.double().mean().item(),
            "density": memberships.double() / self.k,
            "coverage": covered.double().mean().item(),
        }


def nearest_neighbours(*, queries: Tensor | None, points: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Of the k points [P, D], P >= k, nearest to each query [Q, D], nearest first: squared
    distances [Q, k], float64, free of cancellation, and row numbers [Q, k], int64. Without queries,
    of the points nearest to each of the points among the others."""
    starts = points if queries is None else queries
    centre, found = points.mean(dim=0), []
    for rows in _tiles(starts):
        own = rows if queries is None else None
        found.append(_search(starts[rows], points, own, k, centre))
    return torch.cat([near for near, _ in found]), torch.cat([indices for _, indices in found])


def _search(
    queries: Tensor,
    points: Tensor,
    own: slice | None,
    k: int,
    centre: Tensor,
    dtype: torch.dtype = torch.float32,
) -> tuple[Tensor, Tensor]:
    """As `nearest_neighbours` for one tile of queries, which may be the points in the rows `own`;
    products are in `dtype`, and in float64 where it is not certain that none is nearer."""
    there = len(points) - (own is not None)
    wanted = k if dtype == torch.float64 else min(k + _SPARE, there)
    near = torch.empty(len(queries), 0, dtype=dtype, device=queries.device)
    indices = near.long()
    slack = near.new_zeros(len(near), 1)
    for cols in _tiles(points):
        pair = _Pair(queries, points[cols], centre, dtype)
        if own == cols:
            pair.squared.fill_diagonal_(torch.inf)
        part, part_indices = _smallest(pair.squared, wanted)
        near, order = _smallest(torch.cat([near, part], dim=1), wanted)
        indices = torch.cat([indices, part_indices + cols.start], dim=1).gather(1, order)
        slack = torch.maximum(slack, pair.slack_a)
    doubles = queries.double()
    offsets = (doubles - points[column].double() for column in indices.unbind(1))
    exact = torch.stack([offset.square_().sum(dim=1) for offset in offsets], dim=1)
    exact, order = exact.sort(dim=1, stable=True)
    # Of the points that were passed over, none is nearer than the last that was not.
    if dtype == torch.float32 and not (exact[:, k - 1 : k] <= near[:, -1:] - slack).all():
        return _search(queries, points, own, k, centre, torch.float64)
    return exact[:, :k], indices.gather(1, order)[:, :k]


def _smallest(squared: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The k smallest values of each row, all of them where there are fewer, and their columns."""
    return squared.topk(min(k, squared.shape[1]), dim=1, largest=False)


def _radii(values: Tensor, k: int) -> Tensor:
    """Squared distances [N] to the k-th neighbour."""
    return nearest_neighbours(queries=None, points=values, k=k)[0][:, -1]


class _Pair:
    """Squared distances [Ta, Tb] from one tile of rows to another, as the matrix product in `dtype`
    gives them; by row or by column, they are wrong by less than slack [Ta, 1] or [1, Tb]."""

    def __init__(
        self, a: Tensor, b: Tensor, centre: Tensor, dtype: torch.dtype = torch.float32
    ) -> None:
        self._a, self._b, self._centre, self._dtype = a, b, centre, dtype
        wide = torch.promote_types(a.dtype, dtype)
        a, b = ((values.to(wide) - centre).to(dtype) for values in (a, b))
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

    def inside(self, squared_radii: Tensor, rule: Rule) -> Tensor:
        """Which pairs lie within a radius: [Ta, Tb], bool, for radii [Ta, 1] or [1, Tb]."""
        slack = self.slack_a if squared_radii.shape[1] == 1 else self.slack_b
        inside = self.squared < (squared_radii - slack).to(self._dtype)
        outside = self.squared > (squared_radii + slack).to(self._dtype)
        pairs = (inside | outside).logical_not_().nonzero()  # to be decided; NaN among them
        if self._dtype == torch.float32 and len(pairs) > _DOUBTS * inside.numel():
            return self._in_float64.inside(squared_radii, rule)
        compare, side = _RULES[rule]
        radii = squared_radii.expand_as(inside)
        for some in pairs.split(max(_PAIRS // self._a.shape[1], 1)):
            i, j = some.unbind(1)
            exact = (self._a[i].double() - self._b[j].double()).square_().sum(dim=1)
            tie = 2 * (self._a.shape[1] + 2) * _EPS * radii[i, j]
            inside[i, j] = compare(exact, radii[i, j] + side * tie)
        return inside

    @cached_property
    def _in_float64(self) -> "_Pair":
        return _Pair(self._a, self._b, self._centre, torch.float64)


class _RoundedPair:
    """Squared distances [Ta, Tb], float32, from one tile of rows to another as ADM's evaluator has
    them: each term and each difference of |a|^2 - 2 a b + |b|^2 in float16, with sums in float32;
    all in float32 where float16 overflows."""

    def __init__(self, a: Tensor, b: Tensor) -> None:
        for dtype in (torch.float16, torch.float32):
            tiles = [values.to(dtype).float() for values in (a, b)]
            norms = [values.to(dtype).square().sum(1, dtype=torch.float32) for values in (a, b)]
            with full_float32():
                products = (tiles[0] @ tiles[1].T).to(dtype)
            norm_a, norm_b = (norm.to(dtype) for norm in norms)
            self.squared = (norm_a[:, None] - 2 * products + norm_b).clamp_(min=0).float()
            if self.squared.isfinite().all():
                break

    def inside(self, squared_radii: Tensor, rule: Rule) -> Tensor:
        """As `_Pair.inside`."""
        return _RULES[rule][0](self.squared, squared_radii)


def _rounded_radii(values: Tensor, k: int) -> Tensor:
    """As `_radii`; what is nearest counts as the image itself."""
    radii = []
    for rows in _tiles(values):
        near = values.new_empty(rows.stop - rows.start, 0, dtype=torch.float32)
        for cols in _tiles(values):
            squared = _RoundedPair(values[rows], values[cols]).squared
            near, _ = _smallest(torch.cat([near, squared], dim=1), k + 1)
        radii.append(near.amax(dim=1))
    return torch.cat(radii)


def _tiles(values: Tensor) -> Iterator[slice]:
    """The rows of its tiles."""
    tile = CPU_TILE if values.device.type == "cpu" else GPU_TILE
    for start in range(0, len(values), tile):
        yield slice(start, min(start + tile, len(values)))
