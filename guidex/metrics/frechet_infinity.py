"""The Fréchet distance extrapolated to infinitely many fakes (Chong and Forsyth 2020, arXiv
1911.07023): FID-infinity, FD_DINOv2-infinity."""

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import linear_regression

import torch

from guidex.errors import UsageError
from guidex.features.features import FeatureSet
from guidex.features.statistics import GaussianStatistics
from guidex.metrics.frechet import IMAGES_PER_FEATURE, DistanceTo, doubts_of_fit
from guidex.metrics.metric import Column, Fewest, Metric


def limit(counts: Sequence[int], distances: Sequence[float]) -> float:
    """d of the least-squares line d + c / n through distances at counts n, at least two of them."""
    return linear_regression([1 / count for count in counts], distances).intercept


@dataclass(frozen=True)
class FrechetInfinity(Metric):
    """The distance d in d(n) = d + c / n, fitted to distances of random subsets of n fakes.

    The bias of the fakes' number is gone, that of the reals' is not; an estimate may be slightly
    negative. As in the paper and in dgm-eval: subsets of evenly spaced sizes up to all fakes, each
    drawn anew without replacement, and a line through them by least squares.
    """

    sizes: int = 15  # number of subset sizes, 2 or more
    smallest: int = 5000  # fakes in the smallest subset, at least 2 per feature
    tenth: bool = False  # begin with a tenth of the fakes where that is less, as dgm-eval does
    seed: int = 0  # of the subsets

    columns = (Column("fd_infinity", "FD∞", "lower"),)
    least = {"sizes": 2, "smallest": 2, "seed": 0}
    needs_values = False

    def fewest(self, dim: int) -> Fewest:
        if self.tenth:
            return Fewest(2, 20)
        needed = IMAGES_PER_FEATURE * dim
        if self.smallest < needed:
            raise UsageError(
                f"FrechetInfinity: smallest is {self.smallest}, and {dim} features need at "
                f"least {needed} images for the bias to fall as 1 / n."
            )
        options = f"smallest={self.smallest} and sizes={self.sizes}"
        instead = f"a lower smallest ({needed} or more)"
        return Fewest(2, self.smallest + self.sizes, options, instead)

    def doubts(self, *, real: int | None, fake: int, dim: int, network: bool) -> list[str]:
        doubts, first = doubts_of_fit("real", real, dim, network), self._first(fake)
        if first < IMAGES_PER_FEATURE * dim:
            doubts.append(
                f"FD∞ begins with {first:,} fakes for {dim:,} features: below "
                f"{IMAGES_PER_FEATURE} per feature the bias does not fall as 1 / n yet."
            )
        return doubts

    def compute(self, real: FeatureSet, fake: FeatureSet) -> dict[str, float]:
        distance_to_real, values = DistanceTo(real.statistics), fake.values
        generator = torch.Generator().manual_seed(self.seed)
        first = self._first(fake.count)
        counts = torch.linspace(first, fake.count, self.sizes, dtype=torch.float64).long().tolist()
        distances = []
        for count in counts:
            drawn = torch.randperm(fake.count, generator=generator)[:count].to(values.device)
            distances.append(distance_to_real(GaussianStatistics.from_features(values[drawn])))
        return {"fd_infinity": limit(counts, distances)}

    def _first(self, fake: int) -> int:
        """Fakes in the smallest subset."""
        return min(self.smallest, fake // 10) if self.tenth else self.smallest
