"""How good are samples of a toy, whose distribution is known in closed form?

On toys no detector stands between a sample and the truth: the features are the samples themselves.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torch.distributions import MultivariateNormal

from guidex.errors import GuidexError, UsageError
from guidex.features.features import FeatureSet
from guidex.metrics.metric import Column, Metric, check_share, check_whole
from guidex.models.denoiser import ExactDenoiser
from guidex.models.mixture import GaussianMixture

# Floats that a table of fakes x components x dimensions may hold: 32 MiB of float64.
_TABLE = 2**22


@dataclass(frozen=True, eq=False)
class _Group:
    """Fakes x [B, *shape], float64, of one class, or of all where label is None."""

    label: int | None
    x: Tensor

    @property
    def labels(self) -> Tensor | None:
        return None if self.label is None else _constant(self.label, len(self.x), self.x)


def _by_class(truth: ExactDenoiser, fake: FeatureSet) -> Iterator[_Group]:
    values = fake.values
    if values.shape[1] != math.prod(truth.shape):
        raise UsageError(
            f"ToyQuality judges the samples themselves, {list(truth.shape)} each, but "
            f"{fake.detector} gives {values.shape[1]} features. Use a detector that leaves samples "
            "as they are."
        )
    x = values.double().reshape(len(values), *truth.shape)
    if fake.labels is None or truth.num_classes == 0:
        yield _Group(None, x)
        return
    for label in fake.labels.unique().tolist():
        if not 0 <= label < truth.num_classes:
            raise UsageError(
                f"ToyQuality: a fake has label {label}; the truth's are 0 to "
                f"{truth.num_classes - 1}."
            )
        yield _Group(label, x[fake.labels.to(x.device) == label])


def _constant(label: int, count: int, like: Tensor) -> Tensor:
    return torch.full((count,), label, dtype=torch.int64, device=like.device)


def _members(truth: GaussianMixture, label: int | None) -> Tensor:
    """Indices of the components of a class, or of all."""
    if label is None:
        return torch.arange(len(truth.classes), device=truth.classes.device)
    return (truth.classes == label).nonzero()[:, 0]


def _most_responsible(truth: GaussianMixture, members: Tensor, x: Tensor) -> Tensor:
    """Which of the members has the largest w_k N(x; mu_k, Sigma_k), [B], from 0."""
    components = MultivariateNormal(truth.means[members], truth.covariances[members])
    log_weights = truth.weights[members].log()
    rows = max(_TABLE // truth.means[members].numel(), 1)
    parts = [
        (components.log_prob(part[:, None, :]) + log_weights).argmax(dim=1)
        for part in x.split(rows)
    ]
    return torch.cat(parts)


class ToyQuality(Metric):
    """Outliers, lost modes and log density of fakes under the truth, all at sigma = 0.

    outliers: share of fakes less likely than the `quantile` quantile of true draws, each judged by
    the density of the class that it was asked for. A perfect sampler scores `quantile`, a sampler
    that contracts towards the modes less.
    mode_coverage: share of the modes that receive at least `share` of the fakes expected of them. A
    mode expects (fakes of its class) x (its weight within the class), and receives the fakes for
    which one of its components is the most responsible of the class. Modes that expect fewer than
    `min_expected` are left out: there, a perfect sampler would miss some by chance. Only for truths
    that have modes (GaussianMixture); there is no such column otherwise.
    log_density: mean log density of the fakes, in nats.

    Fakes without labels, and truths without classes, are judged by the mixture of all classes.

    Arguments:
        quantile: of the log density of true draws below which a sample is an outlier, in (0, 1).
        draws: true draws per class that the quantile is taken from; its sampling error is
            sqrt(quantile (1 - quantile) / draws), 0.0007 by default. At least 10 / quantile.
        share: of its expected fakes that makes a mode covered, in (0, 1).
        min_expected: smallest expected number of fakes that a mode is judged by, 1 or more.
        seed: of the true draws.
    """

    columns = (
        Column("outliers", "Outliers", "lower", digits=3, is_share=True),
        Column("mode_coverage", "Mode coverage", "higher", digits=3, is_share=True),
        Column("log_density", "Log density", "higher", digits=3),
    )
    needs_values: ClassVar[bool] = False
    needs_truth: ClassVar[bool] = True

    def __init__(
        self,
        quantile: float = 0.01,
        draws: int = 20_000,
        share: float = 0.1,
        min_expected: int = 10,
        seed: int = 0,
    ) -> None:
        check_share("quantile", quantile)
        check_share("share", share)
        check_whole("draws", draws, least=1)
        check_whole("min_expected", min_expected, least=1)
        check_whole("seed", seed, least=0)
        if draws * quantile < 10 - 1e-9:
            raise UsageError(
                f"{draws} draws hold fewer than 10 below their quantile {quantile}; "
                f"use at least {10 / quantile:.0f} draws."
            )
        self.quantile, self.draws, self.seed = quantile, draws, seed
        self.share, self.min_expected = share, min_expected

    def caption(self, *, real: int | None, recorded: int | None) -> dict[str, str]:
        return {"outliers": f"below the {self.quantile} quantile"}

    @torch.no_grad()
    def compute(self, real: FeatureSet, fake: FeatureSet) -> dict[str, float]:
        """mode_coverage only where there are modes.

        Raises:
            UsageError: features that are not the truth's samples, labels it does not have, or too
                few fakes to judge any mode.
            GuidexError: a log density beyond the range of float64.
        """
        truth = real.truth
        groups = list(_by_class(truth, fake))
        densities = [truth.log_density(group.x, 0.0, group.labels) for group in groups]
        log_density = torch.cat(densities).double()
        if not bool(log_density.isfinite().all()):
            raise GuidexError(
                "ToyQuality: some fakes are so far out that their density underflows."
            )
        outliers = torch.cat(
            [
                density < self._threshold(truth, group)
                for density, group in zip(densities, groups, strict=True)
            ]
        )
        numbers = {"outliers": outliers.double().mean().item()}
        if isinstance(truth, GaussianMixture):
            numbers["mode_coverage"] = self._mode_coverage(truth, groups)
        return numbers | {"log_density": log_density.mean().item()}

    def _threshold(self, truth: ExactDenoiser, group: "_Group") -> Tensor:
        """The quantile of the log density of true draws; independent of the other classes."""
        generator = torch.Generator(device=group.x.device).manual_seed(self.seed)
        labels = None if group.label is None else _constant(group.label, self.draws, group.x)
        drawn = truth.sample(labels, self.draws, generator).double()
        return truth.log_density(drawn, 0.0, labels).quantile(self.quantile)

    def _mode_coverage(self, truth: GaussianMixture, groups: list["_Group"]) -> float:
        # A mode's number may occur again in another class, and is another mode there.
        pairs = torch.stack([truth.classes, truth.modes], dim=1)
        modes, mode_of = pairs.unique(dim=0, return_inverse=True)
        expected = torch.zeros(len(modes), dtype=torch.float64, device=mode_of.device)
        received = torch.zeros_like(expected)
        for group in groups:
            members = _members(truth, group.label)
            weights = truth.weights[members].double()
            expected.index_add_(0, mode_of[members], len(group.x) * weights / weights.sum())
            chosen = mode_of[members][_most_responsible(truth, members, group.x)]
            received += chosen.bincount(minlength=len(modes))
        judged = expected >= self.min_expected
        if not bool(judged.any()):
            raise UsageError(
                f"ToyQuality: no mode expects {self.min_expected} fakes (the largest expects "
                f"{float(expected.max()):.1f} of {sum(len(group.x) for group in groups)}); "
                "make more samples or lower min_expected."
            )
        covered = received[judged] >= self.share * expected[judged]
        return covered.double().mean().item()
