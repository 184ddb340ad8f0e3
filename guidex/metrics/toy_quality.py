"""How good are samples of a toy, whose distribution is known in closed form? No detector stands
between a sample and the truth: the features are the samples themselves."""

import functools
import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.distributions import MultivariateNormal

from guidex.errors import GuidexError, UsageError
from guidex.features.features import FeatureSet
from guidex.metrics.metric import Column, Metric, Numbers
from guidex.models.denoiser import ExactDenoiser
from guidex.models.mixture import GaussianMixture

# Floats that a table of fakes x components x dimensions may hold: 32 MiB of float64.
_TABLE = 2**22


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
    """

    quantile: float = 0.01  # of the log density of true draws that an outlier is below, in (0, 1)
    draws: int = 20_000  # true draws per class that the quantile is of; at least 10 / quantile
    share: float = 0.1  # of its expected fakes that makes a mode covered, in (0, 1)
    min_expected: int = 10  # of fewer, a perfect sampler would miss some by chance
    seed: int = 0  # of the true draws

    columns = (
        Column("outliers", "Outliers", "lower", digits=3, is_share=True),
        Column("mode_coverage", "Mode coverage", "higher", digits=3, is_share=True),
        Column("log_density", "Log density", "higher", digits=3),
    )
    least = {"draws": 1, "min_expected": 1, "seed": 0}
    shares = ("quantile", "share")
    needs_values = False
    needs_truth = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.draws * self.quantile < 10 - 1e-9:
            raise UsageError(
                f"{self.draws} draws hold fewer than 10 below their quantile {self.quantile}; "
                f"use at least {10 / self.quantile:.0f} draws."
            )

    def caption(self, *, real: int | None, recorded: int | None) -> dict[str, str]:
        return {"outliers": f"below the {self.quantile} quantile"}

    @torch.no_grad()
    def compute(self, real: FeatureSet, fake: FeatureSet) -> Numbers:
        """mode_coverage only where there are modes. Raises UsageError: features that are not the
        truth's samples, or too few fakes; GuidexError: a log density beyond float64."""
        truth = real.truth
        if fake.dim != math.prod(truth.shape):
            raise UsageError(
                f"ToyQuality judges the samples themselves, {list(truth.shape)} each, but "
                f"{fake.detector} gives {fake.dim} features; use detector=coordinates."
            )
        x = fake.values.double().reshape(fake.count, *truth.shape)
        labels = fake.labels if truth.num_classes > 0 else None
        density = truth.log_density(x, 0.0, labels)
        if not density.isfinite().all():
            raise GuidexError("ToyQuality: some fakes are so far out that they have no density")
        threshold = functools.partial(self._threshold, truth)
        numbers = {"outliers": density < truth.by_class(threshold, x, labels)}
        if isinstance(truth, GaussianMixture):
            numbers["mode_coverage"] = self._mode_coverage(truth, x, labels)
        return numbers | {"log_density": density}

    def _threshold(self, truth: ExactDenoiser, x: Tensor, label: int | None) -> Tensor:
        """The quantile of the log density of true draws, for each x [B, *shape] of a class;
        independent of the other classes."""
        generator = torch.Generator(device=x.device).manual_seed(self.seed)
        labels = None if label is None else torch.full((self.draws,), label, device=x.device)
        drawn = truth.sample(labels, self.draws, generator).double()
        return truth.log_density(drawn, 0.0, labels).quantile(self.quantile).expand(len(x))

    def _mode_coverage(self, truth: GaussianMixture, x: Tensor, labels: Tensor | None) -> float:
        # A mode's number may occur again in another class, and is another mode there.
        pairs = torch.stack([truth.classes, truth.modes], dim=1)
        modes, mode_of = pairs.unique(dim=0, return_inverse=True)
        expected = torch.zeros(len(modes), dtype=torch.float64, device=mode_of.device)

        def receiving(x: Tensor, label: int | None) -> Tensor:
            """The mode of each x; adds what the modes expect of so many."""
            among = torch.ones_like(mode_of) if label is None else truth.classes == label
            members = among.nonzero()[:, 0]
            weights = truth.weights[members].double()
            expected.index_add_(0, mode_of[members], len(x) * weights / weights.sum())
            return mode_of[members][_most_responsible(truth, members, x)]

        received = truth.by_class(receiving, x, labels).bincount(minlength=len(modes))
        judged = expected >= self.min_expected
        if not judged.any():
            raise UsageError(
                f"ToyQuality: no mode expects {self.min_expected} fakes (the largest expects "
                f"{float(expected.max()):.1f} of {len(x)}); make more samples, or lower it."
            )
        covered = received[judged] >= self.share * expected[judged]
        return covered.double().mean().item()


def _most_responsible(truth: GaussianMixture, members: Tensor, x: Tensor) -> Tensor:
    """Which of the members has the largest w_k N(x; mu_k, Sigma_k), [B], from 0."""
    means, log_weights = truth.means[members], truth.weights[members].log()
    log_prob = MultivariateNormal(means, truth.covariances[members]).log_prob
    parts = x[:, None, :].split(max(_TABLE // means.numel(), 1))
    return torch.cat([(log_prob(part) + log_weights).argmax(dim=1) for part in parts])
