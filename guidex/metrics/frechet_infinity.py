"""The Fréchet distance extrapolated to infinitely many fakes (Chong and Forsyth 2020, arXiv
1911.07023): FID-infinity, FD_DINOv2-infinity."""

from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor

from guidex.errors import UsageError
from guidex.features.features import FeatureSet
from guidex.features.statistics import GaussianStatistics
from guidex.metrics.frechet import IMAGES_PER_FEATURE, frechet_distances, singular, too_few
from guidex.metrics.metric import Column, Fewest, Metric, check_whole


def limit(counts: Sequence[int], distances: Sequence[float]) -> float:
    """d of the least-squares line d + c / n through distances at counts n, at least two of them."""
    inverse = 1 / torch.tensor(counts, dtype=torch.float64)
    values = torch.tensor(distances, dtype=torch.float64)
    centred = inverse - inverse.mean()
    slope = (centred @ (values - values.mean())) / (centred @ centred)
    return (values.mean() - slope * inverse.mean()).item()


def _drawn(values: Tensor, count: int, generator: torch.Generator) -> GaussianStatistics:
    order = torch.randperm(len(values), generator=generator)[:count]
    return GaussianStatistics.from_features(values[order.to(values.device)])


class FrechetInfinity(Metric):
    """The distance d in d(n) = d + c / n, fitted to distances of random subsets of n fakes.

    The bias of the fakes' number is gone, that of the reals' is not. Since it is an estimate, it
    may be slightly negative. As in the paper and in dgm-eval: subsets of evenly spaced sizes up to
    all fakes, each drawn anew without replacement, and a line through them by least squares.

    Costs `sizes` distances: with 2048 features about 10 s, and the covariances of 50,000 images at
    least twice as much again, on two cores.

    Arguments:
        sizes: number of subset sizes, 2 or more.
        smallest: fakes in the smallest subset. With fewer than 2 per feature, the bias is not c / n
            yet, and the option is refused.
        tenth: begin with a tenth of the fakes where that is less than `smallest`, however few it
            is, as dgm-eval does.
        seed: of the subsets.
    """

    columns = (Column("fd_infinity", "FD∞", "lower"),)
    needs_values: ClassVar[bool] = False

    def __init__(
        self, sizes: int = 15, smallest: int = 5000, tenth: bool = False, seed: int = 0
    ) -> None:
        check_whole("sizes", sizes, least=2)
        check_whole("smallest", smallest, least=2)
        check_whole("seed", seed, least=0)
        self.sizes, self.smallest, self.tenth, self.seed = sizes, smallest, tenth, seed

    def fewest(self, dim: int) -> list[Fewest]:
        if self.tenth:
            return [Fewest(2, 20)]
        needed = IMAGES_PER_FEATURE * dim
        if self.smallest < needed:
            raise UsageError(
                f"FrechetInfinity: smallest is {self.smallest}, and {dim} features need at "
                f"least {needed} images for the bias to fall as 1 / n."
            )
        options = f"smallest={self.smallest} and sizes={self.sizes}"
        least, instead = self.smallest + self.sizes, f"a lower smallest ({needed} or more)"
        return [Fewest(real=2), Fewest(fake=least, options=options, instead=instead)]

    def doubts(
        self, *, real: int | None, fake: int, detector: str, dim: int, network: bool
    ) -> list[str]:
        first = self._first(fake)
        doubts = singular(real=real, fake=first, detector=detector, dim=dim)
        if not doubts and first < IMAGES_PER_FEATURE * dim:
            doubts = [
                f"FD∞ begins with {first:,} fakes for {dim:,} features of {detector}: below "
                f"{IMAGES_PER_FEATURE} per feature the bias does not fall as 1 / n yet."
            ]
        return doubts + (too_few(real=real, dim=dim) if network else [])

    def _first(self, fake: int) -> int:
        """Fakes in the smallest subset."""
        return min(self.smallest, fake // 10) if self.tenth else self.smallest

    def compute(self, real: FeatureSet, fake: FeatureSet) -> dict[str, float]:
        values = fake.values
        spaced = torch.linspace(
            self._first(len(values)), len(values), self.sizes, dtype=torch.float64
        )
        generator = torch.Generator().manual_seed(self.seed)
        counts = spaced.long().tolist()
        distances = frechet_distances(
            real=real.statistics, fakes=(_drawn(values, count, generator) for count in counts)
        )
        return {"fd_infinity": limit(counts, distances)}
