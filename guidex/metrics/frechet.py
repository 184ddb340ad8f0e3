"""The Fréchet distance of two Gaussians fitted to features: FID, FD_DINOv2 and their relatives.

|mu_r - mu_f|^2 + tr(S_r + S_f - 2 (S_r S_f)^(1/2))   (Dowson and Landau 1982; Heusel et al. 2017,
arXiv 1706.08500, equation 6), with N - 1 covariances and in float64.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import ClassVar, Literal

import torch
from torch import Tensor

from guidex.errors import UsageError
from guidex.features.features import FeatureSet
from guidex.features.statistics import GaussianStatistics, gram
from guidex.metrics.metric import (
    PUBLISHED_IMAGES,
    Column,
    Fewest,
    Metric,
    check_share,
    check_whole,
)

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

    Raises:
        UsageError: fewer than 2 images, different D, or a matrix that is no covariance.
    """
    (distance,) = frechet_distances(real=real, fakes=[fake])
    return distance


def frechet_distances(
    *, real: GaussianStatistics, fakes: Iterable[GaussianStatistics]
) -> list[float]:
    """As `frechet_distance`, for each of the fakes, which need not be in memory together; what
    depends on the real side alone is computed once."""
    target = _Target.of(real)
    return [target.distance(fake) for fake in fakes]


@dataclass(frozen=True, eq=False)
class _Target:
    """The real side of a distance, prepared once for many fake sides.

    Attributes:
        mean: [D].
        trace: of the covariance S_r.
        root: R [D, r] with R R^T = S_r, r the rank.
    """

    mean: Tensor
    trace: float
    root: Tensor

    @classmethod
    def of(cls, real: GaussianStatistics) -> "_Target":
        covariance = real.covariance
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
        return cls(
            real.mean,
            float(covariance.trace()),
            vectors[:, significant] * eigenvalues[significant].sqrt(),
        )

    def distance(self, fake: GaussianStatistics) -> float:
        if fake.dim != len(self.mean):
            raise UsageError(f"real has {len(self.mean)} features, fake {fake.dim}.")
        fake = fake.to(self.mean.device)
        covariance = fake.covariance
        # S_r S_f has the eigenvalues of the symmetric R^T S_f R, besides zeros.
        eigenvalues = torch.linalg.eigvalsh(self.root.mT @ covariance @ self.root)
        # N images span N - 1 directions at most; what lies beyond is rounding, as above.
        rank = min(len(eigenvalues), fake.count - 1)
        overlap = eigenvalues[len(eigenvalues) - rank :].clamp(min=0).sqrt().sum()
        between = (self.mean - fake.mean).square().sum()
        return max(float(between + self.trace + covariance.trace() - 2 * overlap), 0.0)


def _redraws(
    values: Tensor, mean: Tensor, resamples: int, seed: int
) -> Iterator[GaussianStatistics]:
    """Statistics of as many draws with replacement from values [N, D], on the values' device.

    A redraw is a vector of multiplicities, so it costs one weighted matrix product and no copy of
    the features but one, centred in float64.
    """
    count = len(values)
    generator = torch.Generator().manual_seed(seed)
    mean = mean.to(values.device)
    centred = values.double() - mean
    for _ in range(resamples):
        drawn = torch.randint(count, (count,), generator=generator)
        times = drawn.bincount(minlength=count).to(centred)
        shift = times @ centred / count
        scatter = gram(centred * times.sqrt()[:, None]) - count * torch.outer(shift, shift)
        yield GaussianStatistics(count, mean + shift, scatter)


def _balanced(labels: Tensor | None) -> Tensor | None:
    """Labels [N], on the CPU, if all of several classes have equal numbers of images, give or take
    one; else None."""
    if labels is None:
        return None
    _, counts = labels.unique(return_counts=True)
    return labels.cpu() if len(counts) > 1 and counts.max() - counts.min() <= 1 else None


def _blocks(count: int, labels: Tensor | None, seed: int) -> Sequence[Tensor]:
    """Rows of the blocks of a jackknife, on the CPU: at random, since images often come sorted by
    class and a block must look like the whole; with labels [N] as many of each class."""
    order = torch.randperm(count, generator=torch.Generator().manual_seed(seed))
    if labels is None:
        return order.tensor_split(JACKKNIFE_BLOCKS)
    classes = [order[labels[order] == label] for label in labels.unique()]
    least = min(map(len, classes))
    if least < FEWEST_BLOCKS:
        raise UsageError(
            f"the fakes have {least} images of every class, and an interval needs at least "
            f"{FEWEST_BLOCKS}; use more images or confidence=none."
        )
    # As few left over as possible.
    numbers = range(min(least, JACKKNIFE_BLOCKS // 2), min(least, JACKKNIFE_BLOCKS) + 1)
    blocks = max(numbers, key=lambda number: (least // number * number, number))
    each = least // blocks
    return [
        torch.cat([rows[each * block : each * (block + 1)] for rows in classes])
        for block in range(blocks)
    ]


def student_quantile(probability: float, freedom: int) -> float:
    """Quantile of Student's t (Abramowitz and Stegun 26.7.5), to 1e-3 from 15 degrees of freedom
    up and for probabilities of 0.001 ... 0.999."""
    z = NormalDist().inv_cdf(probability)
    terms = (
        (z**3 + z) / 4,
        (5 * z**5 + 16 * z**3 + 3 * z) / 96,
        (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384,
        (79 * z**9 + 776 * z**7 + 1482 * z**5 - 1920 * z**3 - 945 * z) / 92160,
    )
    return z + sum(term / freedom**power for power, term in enumerate(terms, start=1))


def singular(*, real: int | None, fake: int, detector: str, dim: int) -> list[str]:
    """Doubts of Gaussian fits to no more images than features."""
    return [
        f"{count:,} {side} images and {dim:,} features of {detector}: a covariance of no more "
        "images than features is singular, and bias rules the distance."
        for side, count in (("real", real), ("fake", fake))
        if count is not None and count <= dim
    ]


def too_few(*, real: int | None = None, fake: int | None = None, dim: int) -> list[str]:
    """Doubts of Gaussian fits to fewer images than those of published distances, where they are
    not singular."""
    return [
        f"{count:,} {side} images: published distances are of {PUBLISHED_IMAGES:,}, and with fewer "
        "they come out larger."
        for side, count in (("real", real), ("fake", fake))
        if count is not None and dim < count < PUBLISHED_IMAGES
    ]


class Frechet(Metric):
    """The Fréchet distance as a metric, with an interval for what it is without sampling noise.

    The distance from N fakes is noisy and biased upward by about c / N (Chong and Forsyth 2020,
    arXiv 1911.07023), so the mean of resampled distances lies above it by the same bias again, and
    a percentile interval would lie above the truth twice over. Both intervals here take the bias
    out: they are for the distance between the real statistics as given and the *distribution* that
    the fakes come from (infinitely many fakes). So at small N they may lie wholly below the
    distance itself, which keeps its bias in order to compare with published numbers of equal N.

    Where the fakes have labels, and as many images of every class, this is no accident, and blocks
    have as many of every class, too: the chance of random blocks would pass for bias and noise, and
    with classes far apart, intervals would hold the truth in as few as a tenth of the cases. Images
    that are balanced so without labels cannot be told from others.

    jackknife: delete one of 20 random blocks, or of 5 ... 20 where classes are balanced (with
    unequal block sizes as in Busing, Meijer and van der Leeden 1999); bias-corrected mean of the
    pseudo-values and Student's t. Costs 20 distances.
    bootstrap: the basic (pivotal) interval [2d - q_hi, 2d - q_lo] (Davison and Hinkley 1997, eq.
    5.6) from `resamples` redraws of the fakes. Costs a covariance of all fakes per redraw.

    Measured on Gaussians of D = 32 features with flat to fast decaying variances, intervals of
    level 0.9 hold the true distance in 0.83 ... 0.86 (jackknife) and 0.81 ... 0.99 (bootstrap) of
    the cases at N = 2 D, and in 0.87 ... 0.92 and 0.81 ... 0.93 from 5 D up. Below 2 D they fail
    and are refused.

    Arguments:
        confidence: "none", "jackknife" or "bootstrap".
        level: probability that the interval holds the truth, between 0 and 1.
        resamples: redraws of the bootstrap; enough that (1 - level) / 2 of them is at least one.
        seed: of the blocks and redraws.
    """

    columns = (Column("fd", "FD", "lower", is_chief=True),)
    needs_values: ClassVar[bool] = False

    def __init__(
        self,
        confidence: Literal["none", "bootstrap", "jackknife"] = "none",
        level: float = 0.95,
        resamples: int = 200,
        seed: int = 0,
    ) -> None:
        if confidence not in ("none", "bootstrap", "jackknife"):
            raise UsageError(
                f"confidence is {confidence!r}; it must be none, bootstrap or jackknife."
            )
        check_share("level", level)
        check_whole("resamples", resamples, least=1)
        check_whole("seed", seed, least=0)
        if confidence == "bootstrap" and resamples * (1 - level) < 2 - 1e-9:
            raise UsageError(
                f"{resamples} resamples do not reach the tails at level {level}; "
                f"use at least {2 / (1 - level):.0f}, or a lower level."
            )
        self.confidence, self.level = confidence, level
        self.resamples, self.seed = resamples, seed
        self.needs_fake_values = confidence != "none"

    def fewest(self, dim: int) -> list[Fewest]:
        fewest = [Fewest(2, 2)]
        if self.confidence != "none":
            least = max(IMAGES_PER_FEATURE * dim, 2 * JACKKNIFE_BLOCKS)
            options = f"confidence={self.confidence} and {dim} features"
            fewest.append(Fewest(fake=least, options=options, instead="confidence=none"))
        return fewest

    def doubts(
        self, *, real: int | None, fake: int, detector: str, dim: int, network: bool
    ) -> list[str]:
        """Singular covariances, and numbers of images that move the bias."""
        doubts = singular(real=real, fake=fake, detector=detector, dim=dim)
        if network:
            doubts += too_few(real=real, fake=fake, dim=dim)
            if fake > PUBLISHED_IMAGES:
                doubts.append(
                    f"{fake:,} fake images: published distances are of {PUBLISHED_IMAGES:,}, and "
                    "with more they come out smaller."
                )
        return doubts

    def caption(self, *, real: int | None, recorded: int | None) -> dict[str, str]:
        if self.confidence == "none":
            return {}
        return {"FD interval without finite-sample bias": f"{self.confidence} {self.level}"}

    def compute(self, real: FeatureSet, fake: FeatureSet) -> dict[str, float]:
        """fd, and where an interval is asked for fd_unbiased, its centre, the distance without the
        bias of the number of fakes, and fd_lo and fd_hi."""
        if self.confidence == "none":
            return {"fd": frechet_distance(real=real.statistics, fake=fake.statistics)}
        if fake.statistics.count != fake.count:
            raise UsageError(
                f"{self.confidence}: the fake statistics are of {fake.statistics.count} images, "
                f"but features are there of {fake.count}; leave the statistics out."
            )
        target, whole = _Target.of(real.statistics), fake.statistics
        distance = target.distance(whole)
        interval = self._jackknife if self.confidence == "jackknife" else self._bootstrap
        lo, centre, hi = interval(target, fake.values, _balanced(fake.labels), whole, distance)
        numbers = {"fd": distance, "fd_unbiased": centre, "fd_lo": lo, "fd_hi": hi}
        # A distance is never negative, so this cuts no true value off.
        return {name: max(value, 0.0) for name, value in numbers.items()}

    def _jackknife(
        self,
        target: "_Target",
        values: Tensor,
        labels: Tensor | None,
        whole: GaussianStatistics,
        distance: float,
    ) -> tuple[float, float, float]:
        blocks = [block.to(values.device) for block in _blocks(len(values), labels, self.seed)]
        count = sum(map(len, blocks))
        if count < len(values):  # some of each class are left over
            whole = GaussianStatistics.from_features(values[torch.cat(blocks)])
            distance = target.distance(whole)
        left_out = [
            target.distance(whole.without(GaussianStatistics.from_features(values[block])))
            for block in blocks
        ]
        ratios = torch.tensor([count / len(block) for block in blocks], dtype=torch.float64)
        pseudo = ratios * distance - (ratios - 1) * torch.tensor(left_out, dtype=torch.float64)
        estimate = (pseudo / ratios).sum()
        variance = ((pseudo - estimate).square() / (ratios - 1)).mean()
        reach = student_quantile((1 + self.level) / 2, len(blocks) - 1) * variance.sqrt()
        return float(estimate - reach), float(estimate), float(estimate + reach)

    def _bootstrap(
        self,
        target: "_Target",
        values: Tensor,
        labels: Tensor | None,
        whole: GaussianStatistics,
        distance: float,
    ) -> tuple[float, float, float]:
        if labels is not None:
            raise UsageError(
                "the fakes have equal numbers of all classes, which the redraws of a bootstrap do "
                "not keep; use confidence=jackknife."
            )
        redrawn = torch.tensor(
            [
                target.distance(statistics)
                for statistics in _redraws(values, whole.mean, self.resamples, self.seed)
            ],
            dtype=torch.float64,
        )
        tail = (1 - self.level) / 2
        low, high = redrawn.quantile(torch.tensor([tail, 1 - tail], dtype=torch.float64)).tolist()
        return 2 * distance - high, 2 * distance - float(redrawn.mean()), 2 * distance - low
