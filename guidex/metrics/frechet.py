"""The Fréchet distance of two Gaussians fitted to features: FID, FD_DINOv2 and their relatives.

|mu_r - mu_f|^2 + tr(S_r + S_f - 2 (S_r S_f)^(1/2))   (Dowson and Landau 1982; Heusel et al. 2017,
arXiv 1706.08500, equation 6), with N - 1 covariances and in float64.
"""

import functools
from dataclasses import dataclass
from typing import Literal

import torch

from guidex.errors import UsageError
from guidex.features.features import FeatureSet
from guidex.features.statistics import GaussianStatistics
from guidex.metrics.differences import FEWEST_BLOCKS, FEWEST_FAKES, blocks_of, difference
from guidex.metrics.metric import PUBLISHED_IMAGES, Column, Fewest, Metric, Numbers, doubts_of_count

# With fewer fakes per feature the bias no longer falls as 1 / N, and intervals miss the truth.
IMAGES_PER_FEATURE = 2

# Negative eigenvalues down to this share of the largest are rounding (of a float32 file, at worst).
_NEGATIVE = 1e-4

_EPS = torch.finfo(torch.float64).eps


def frechet_distance(*, real: GaussianStatistics, fake: GaussianStatistics) -> float:
    """The (squared) Fréchet distance, >= 0, in squared units of the features.

    Exact also where images are fewer than features. Rounding leaves less than 1e-9 of the largest
    variance, 1e-6 where variances span eight decades or more; below zero it is returned as zero.
    Raises UsageError: fewer than 2 images, or a matrix that is no covariance.
    """
    return DistanceTo(real)(fake)


class DistanceTo:
    """As `frechet_distance`, from one real side, prepared once, to many fake sides."""

    def __init__(self, real: GaussianStatistics) -> None:
        self._mean, covariance = real.mean, real.covariance
        self._trace = float(covariance.trace())
        eigenvalues, vectors = torch.linalg.eigh(covariance)
        largest = eigenvalues.abs().max()
        if eigenvalues[0] < -_NEGATIVE * largest:
            raise UsageError(
                "the covariance of the real set has negative eigenvalues, down to "
                f"{float(eigenvalues[0]):.3g} (largest {float(eigenvalues[-1]):.3g}). Is the "
                "reference file damaged, or does it hold another matrix?"
            )
        # Rounding leaves eps where the rank ends, but its square root, 1e-8, times D directions
        # would be seen in the result.
        significant = eigenvalues > real.dim * _EPS * largest
        # R [D, rank] with R R^T = S_r.
        self._root = vectors[:, significant] * eigenvalues[significant].sqrt()

    def __call__(self, fake: GaussianStatistics) -> float:
        fake = fake.to(self._mean.device)
        covariance = fake.covariance
        # S_r S_f has the eigenvalues of the symmetric R^T S_f R, besides zeros.
        eigenvalues = torch.linalg.eigvalsh(self._root.mT @ covariance @ self._root)
        # N images span N - 1 directions at most; what lies beyond is rounding, as above.
        rank = min(len(eigenvalues), fake.count - 1)
        overlap = eigenvalues[len(eigenvalues) - rank :].clamp(min=0).sqrt().sum()
        between = (self._mean - fake.mean).square().sum()
        return max(float(between + self._trace + covariance.trace() - 2 * overlap), 0.0)


def doubts_of_fit(side: str, count: int | None, dim: int, published: bool) -> list[str]:
    """What to doubt of a Gaussian fit to so many images: that it is singular, or, where it is
    compared with published distances, of another number than those (more reals do no harm)."""
    if count is not None and count <= dim:
        return [
            f"{count:,} {side} images and {dim:,} features: a covariance of no more images than "
            "features is singular, and bias rules the distance."
        ]
    enough = side == "real" and count is not None and count > PUBLISHED_IMAGES
    return doubts_of_count(side, count, "distances") if published and not enough else []


@dataclass(frozen=True)
class Frechet(Metric):
    """The Fréchet distance as a metric, with an interval for what it is without sampling noise.

    The distance from N fakes is biased upward by about c / N (Chong and Forsyth 2020, arXiv
    1911.07023), and keeps its bias in order to compare with published numbers of equal N. The
    interval is for the distance to the *distribution* that the fakes come from, without bias, so
    that at small N it may lie wholly below the distance.

    jackknife: delete one of 20 random blocks (`metrics.differences`); bias-corrected mean of the
    pseudo-values and Student's t. Costs 20 distances.
    Where the fakes' labels are balanced, so are the 5 ... 20 blocks: the chance of random ones
    would pass for bias and noise.

    With fewer than 2 images per feature, intervals miss the truth and are refused; with 2, those of
    level 0.9 have held it in 0.83 ... 0.86 of the cases, with 5 in 0.87 ... 0.92.
    """

    confidence: Literal["none", "jackknife"] = "none"
    level: float = 0.95  # probability that the interval holds the truth, between 0 and 1
    seed: int = 0  # of the blocks

    columns = (Column("fd", "FD", "lower", is_chief=True),)
    least, shares = {"seed": 0}, ("level",)
    needs_values = False

    @property
    def needs_fake_values(self) -> bool:
        return self.confidence != "none"

    def fewest(self, dim: int) -> Fewest:
        if self.confidence == "none":
            return Fewest(2, 2)
        least = max(IMAGES_PER_FEATURE * dim, FEWEST_FAKES)
        return Fewest(2, least, f"confidence=jackknife and {dim} features", "confidence=none")

    def doubts(self, *, real: int | None, fake: int, dim: int, network: bool) -> list[str]:
        doubts = doubts_of_fit("real", real, dim, network)
        return doubts + doubts_of_fit("fake", fake, dim, network)

    def caption(self, *, real: int | None, recorded: int | None) -> dict[str, str]:
        if self.confidence == "none":
            return {}
        return {"FD interval without finite-sample bias": f"{self.confidence} {self.level}"}

    def compute(self, real: FeatureSet, fake: FeatureSet) -> dict[str, float]:
        """fd, and where an interval is asked for fd_unbiased, its centre, the distance without the
        bias of the number of fakes, and fd_lo and fd_hi."""
        distance = _distance_to(real.statistics)(fake.statistics)
        if self.confidence == "none":
            return {"fd": distance}
        pseudo = self.pseudovalues(real, fake, {"fd": distance}).get("fd", [])
        if len(pseudo) == 0:
            least = int(fake.labels.unique(return_counts=True)[1].min())
            raise UsageError(
                f"the fakes have {least} images of every class, and an interval needs at least "
                f"{FEWEST_BLOCKS}; use more images or confidence=none."
            )
        centre, low, high = difference(pseudo, [0.0] * len(pseudo), self.level)
        numbers = {"fd": distance, "fd_unbiased": centre, "fd_lo": low, "fd_hi": high}
        # A distance is never negative, so this cuts no true value off.
        return {name: max(value, 0.0) for name, value in numbers.items()}

    def pseudovalues(
        self, real: FeatureSet, fake: FeatureSet, numbers: Numbers
    ) -> dict[str, list[float]]:
        if fake.values is None or fake.count < max(IMAGES_PER_FEATURE * fake.dim, FEWEST_FAKES):
            return {}
        distance_to_real, distance = _distance_to(real.statistics), numbers["fd"]
        values, whole = fake.values, fake.statistics
        blocks = blocks_of(fake.count, fake.labels, self.seed)
        blocks = [rows.to(values.device) for rows in blocks]
        count = sum(map(len, blocks))
        if 0 < count < fake.count:  # some of each class are left over
            whole = GaussianStatistics.from_features(values[torch.cat(blocks)])
            distance = distance_to_real(whole)
        pseudo = []
        for block in blocks:
            rest = whole.without(GaussianStatistics.from_features(values[block]))
            ratio = count / len(block)
            pseudo.append(ratio * distance - (ratio - 1) * distance_to_real(rest))
        return {"fd": pseudo}


# All points of a table are measured from one real side.
_distance_to = functools.lru_cache(maxsize=2)(DistanceTo)
