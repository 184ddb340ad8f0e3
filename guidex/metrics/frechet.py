"""The Fréchet distance of two Gaussians fitted to features: FID, FD_DINOv2 and their relatives.

|mu_r - mu_f|^2 + tr(S_r + S_f - 2 (S_r S_f)^(1/2))   (Dowson and Landau 1982; Heusel et al. 2017,
arXiv 1706.08500, equation 6), with N - 1 covariances and in float64.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from guidex.errors import UsageError
from guidex.features.features import FeatureSet
from guidex.features.statistics import GaussianStatistics
from guidex.metrics.metric import PUBLISHED_IMAGES, Column, Fewest, Metric, check_share

JACKKNIFE_BLOCKS = 20
FEWEST_BLOCKS = 5  # of balanced classes, which a block holds one image of each of

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
    if count is None:
        return []
    if count <= dim:
        return [
            f"{count:,} {side} images and {dim:,} features: a covariance of no more images than "
            "features is singular, and bias rules the distance."
        ]
    same = count == PUBLISHED_IMAGES or (side == "real" and count > PUBLISHED_IMAGES)
    if same or not published:
        return []
    return [
        f"{count:,} {side} images: published distances are of {PUBLISHED_IMAGES:,}; with fewer "
        "they come out larger, with more they come out smaller."
    ]


@dataclass(frozen=True)
class Frechet(Metric):
    """The Fréchet distance as a metric, with an interval for what it is without sampling noise.

    The distance from N fakes is biased upward by about c / N (Chong and Forsyth 2020, arXiv
    1911.07023), and keeps its bias in order to compare with published numbers of equal N. The
    interval is for the distance to the *distribution* that the fakes come from, without bias, so
    that at small N it may lie wholly below the distance.

    jackknife: delete one of 20 random blocks (with unequal block sizes as in Busing, Meijer and van
    der Leeden 1999); bias-corrected mean of the pseudo-values and Student's t. Costs 20 distances.
    Where the fakes' labels are balanced, so are the 5 ... 20 blocks: the chance of random ones
    would pass for bias and noise.

    With fewer than 2 images per feature, intervals miss the truth and are refused; with 2, those of
    level 0.9 have held it in 0.83 ... 0.86 of the cases, with 5 in 0.87 ... 0.92.
    """

    confidence: Literal["none", "jackknife"] = "none"
    level: float = 0.95  # probability that the interval holds the truth, between 0 and 1
    seed: int = 0  # of the blocks

    columns = (Column("fd", "FD", "lower", is_chief=True),)
    least = {"seed": 0}
    needs_values = False

    def __post_init__(self) -> None:
        super().__post_init__()
        check_share("level", self.level)

    @property
    def needs_fake_values(self) -> bool:
        return self.confidence != "none"

    def fewest(self, dim: int) -> Fewest:
        if self.confidence == "none":
            return Fewest(2, 2)
        least = max(IMAGES_PER_FEATURE * dim, 2 * JACKKNIFE_BLOCKS)
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
        distance_to_real = DistanceTo(real.statistics)
        distance = distance_to_real(fake.statistics)
        if self.confidence == "none":
            return {"fd": distance}
        lo, centre, hi = self._jackknife(distance_to_real, fake, distance)
        numbers = {"fd": distance, "fd_unbiased": centre, "fd_lo": lo, "fd_hi": hi}
        # A distance is never negative, so this cuts no true value off.
        return {name: max(value, 0.0) for name, value in numbers.items()}

    def _jackknife(
        self, distance_to_real: DistanceTo, fake: FeatureSet, distance: float
    ) -> tuple[float, float, float]:
        from scipy.special import stdtrit  # half a second, for the few who ask for an interval

        values, whole = fake.values, fake.statistics
        blocks = [rows.to(values.device) for rows in _blocks(fake.count, fake.labels, self.seed)]
        count = sum(map(len, blocks))
        if count < fake.count:  # some of each class are left over
            whole = GaussianStatistics.from_features(values[torch.cat(blocks)])
            distance = distance_to_real(whole)
        left_out = [
            distance_to_real(whole.without(GaussianStatistics.from_features(values[block])))
            for block in blocks
        ]
        ratios = torch.tensor([count / len(block) for block in blocks], dtype=torch.float64)
        pseudo = ratios * distance - (ratios - 1) * torch.tensor(left_out, dtype=torch.float64)
        estimate = float((pseudo / ratios).sum())
        variance = ((pseudo - estimate).square() / (ratios - 1)).mean()
        quantile = float(stdtrit(len(blocks) - 1, (1 + self.level) / 2))
        reach = quantile * float(variance.sqrt())
        return estimate - reach, estimate, estimate + reach


def _blocks(count: int, labels: Tensor | None, seed: int) -> Sequence[Tensor]:
    """Rows of the blocks of a jackknife, on the CPU: at random, since images often come sorted by
    class and a block must look like the whole. Of labels [N] with equal numbers of several classes,
    give or take one, each block has as many of each."""
    order = torch.randperm(count, generator=torch.Generator().manual_seed(seed))
    labels = torch.zeros(count) if labels is None else labels.cpu()
    found, numbers = labels.unique(return_counts=True)
    least = int(numbers.min())
    if len(found) == 1 or numbers.max() - least > 1:
        return order.tensor_split(JACKKNIFE_BLOCKS)
    classes = [order[labels[order] == label] for label in found]
    if least < FEWEST_BLOCKS:
        raise UsageError(
            f"the fakes have {least} images of every class, and an interval needs at least "
            f"{FEWEST_BLOCKS}; use more images or confidence=none."
        )
    # As few left over as possible.
    choices = range(min(least, JACKKNIFE_BLOCKS // 2), min(least, JACKKNIFE_BLOCKS) + 1)
    blocks = max(choices, key=lambda number: (least // number * number, number))
    each = least // blocks
    cut = [rows[: each * blocks].split(each) for rows in classes]
    return [torch.cat(rows_of_block) for rows_of_block in zip(*cut, strict=True)]
