"""How good are samples of a toy, whose distribution is known in closed form? No detector stands
between a sample and the truth: the features are the samples themselves."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.distributions import MultivariateNormal

from guidex.errors import GuidexError, UsageError
from guidex.features.features import FeatureSet
from guidex.metrics.metric import Column, Metric, Numbers, check_share
from guidex.models.denoiser import ExactDenoiser
from guidex.models.mixture import GaussianMixture

# Floats that a table of fakes x components x dimensions may hold: 32 MiB of float64.
_TABLE = 2**22

# Fakes [B, *shape], float64, of each class; of all under None where there are no classes.
Classes = dict[int | None, Tensor]


@dataclass(frozen=True)
class ToyQuality(Metric):
    """Outliers, lost modes and log density of fakes under the truth, all at sigma = 0.

    outliers: share of fakes less likely than the `quantile` quantile of true draws, so that a
    perfect sampler scores `quantile`, and one that contracts towards the modes less.
    mode_coverage, where the truth is a GaussianMixture: share of the modes that receive at least
    `share` of the fakes expected of them. A mode expects (fakes of its class) x (its weight within
    the class), and receives those for which one of its components is the most responsible.
    log_density: mean log density of the fakes, in nats.

    Each fake is judged by the class that it was asked for; those without labels, and of truths
    without classes, by the mixture of all classes.

    Attributes:
        quantile: of the log density of true draws below which a sample is an outlier, in (0, 1).
        draws: true draws per class that the quantile is taken from; at least 10 / quantile.
        share: of its expected fakes that makes a mode covered, in (0, 1).
        min_expected: smallest expected number of fakes that a mode is judged by, 1 or more: of
            fewer, a perfect sampler would miss some by chance.
        seed: of the true draws.
    """

    quantile: float = 0.01
    draws: int = 20_000
    share: float = 0.1
    min_expected: int = 10
    seed: int = 0

    columns = (
        Column("outliers", "Outliers", "lower", digits=3, is_share=True),
        Column("mode_coverage", "Mode coverage", "higher", digits=3, is_share=True),
        Column("log_density", "Log density", "higher", digits=3),
    )
    least = {"draws": 1, "min_expected": 1, "seed": 0}
    needs_values = False
    needs_truth = True

    def __post_init__(self) -> None:
        super().__post_init__()
        check_share("quantile", self.quantile)
        check_share("share", self.share)
        if self.draws * self.quantile < 10 - 1e-9:
            raise UsageError(
                f"{self.draws} draws hold fewer than 10 below their quantile {self.quantile}; "
                f"use at least {10 / self.quantile:.0f} draws."
            )

    def caption(self, *, real: int | None, recorded: int | None) -> dict[str, str]:
        return {"outliers": f"below the {self.quantile} quantile"}

    @torch.no_grad()
    def compute(self, real: FeatureSet, fake: FeatureSet) -> Numbers:
        """mode_coverage only where there are modes.

        Raises:
            UsageError: features that are not the truth's samples, labels it does not have, or too
                few fakes to judge any mode.
            GuidexError: a log density beyond the range of float64.
        """
        truth = real.truth
        densities, outliers = [], []
        classes = _by_class(truth, fake)
        for label, x in classes.items():
            density = truth.log_density(x, 0.0, _labels(label, x))
            if not density.isfinite().all():
                raise GuidexError("ToyQuality: some fakes are so far out that they have no density")
            densities.append(density.double())
            outliers.append(density < self._threshold(truth, label, x))
        numbers = {"outliers": torch.cat(outliers)}
        if isinstance(truth, GaussianMixture):
            numbers["mode_coverage"] = self._mode_coverage(truth, classes)
        return numbers | {"log_density": torch.cat(densities)}

    def _threshold(self, truth: ExactDenoiser, label: int | None, x: Tensor) -> Tensor:
        """The quantile of the log density of true draws; independent of the other classes."""
        generator = torch.Generator(device=x.device).manual_seed(self.seed)
        labels = _labels(label, x[:1].expand(self.draws, *x.shape[1:]))
        drawn = truth.sample(labels, self.draws, generator).double()
        return truth.log_density(drawn, 0.0, labels).quantile(self.quantile)

    def _mode_coverage(self, truth: GaussianMixture, classes: Classes) -> float:
        # A mode's number may occur again in another class, and is another mode there.
        pairs = torch.stack([truth.classes, truth.modes], dim=1)
        modes, mode_of = pairs.unique(dim=0, return_inverse=True)
        expected = torch.zeros(len(modes), dtype=torch.float64, device=mode_of.device)
        received = torch.zeros_like(expected)
        for label, x in classes.items():
            among = torch.ones_like(mode_of) if label is None else truth.classes == label
            members = among.nonzero()[:, 0]
            weights = truth.weights[members].double()
            expected.index_add_(0, mode_of[members], len(x) * weights / weights.sum())
            chosen = mode_of[members][_most_responsible(truth, members, x)]
            received += chosen.bincount(minlength=len(modes))
        judged = expected >= self.min_expected
        if not judged.any():
            raise UsageError(
                f"ToyQuality: no mode expects {self.min_expected} fakes (the largest expects "
                f"{float(expected.max()):.1f} of {sum(map(len, classes.values()))}); "
                "make more samples or lower min_expected."
            )
        covered = received[judged] >= self.share * expected[judged]
        return covered.double().mean().item()


def _by_class(truth: ExactDenoiser, fake: FeatureSet) -> Classes:
    if fake.dim != math.prod(truth.shape):
        raise UsageError(
            f"ToyQuality judges the samples themselves, {list(truth.shape)} each, but "
            f"{fake.detector} gives {fake.dim} features. Use a detector that leaves samples as "
            "they are."
        )
    x = fake.values.double().reshape(fake.count, *truth.shape)
    if fake.labels is None or truth.num_classes == 0:
        return {None: x}
    labels = fake.labels.to(x.device)
    return {label: x[labels == label] for label in labels.unique().tolist()}


def _labels(label: int | None, x: Tensor) -> Tensor | None:
    """The class of each x [B, *shape], int64 [B], or None."""
    return None if label is None else torch.full((len(x),), label, device=x.device)


def _most_responsible(truth: GaussianMixture, members: Tensor, x: Tensor) -> Tensor:
    """Which of the members has the largest w_k N(x; mu_k, Sigma_k), [B], from 0."""
    means, log_weights = truth.means[members], truth.weights[members].log()
    log_prob = MultivariateNormal(means, truth.covariances[members]).log_prob
    parts = x[:, None, :].split(max(_TABLE // means.numel(), 1))
    return torch.cat([(log_prob(part) + log_weights).argmax(dim=1) for part in parts])
