"""Metrics against a known distribution: perfect, contracted, shifted and collapsed samplers."""

import math

import pytest
import torch
from helpers import feature_set
from torch import Tensor

from guidex.errors import GuidexError, UsageError
from guidex.features.features import FeatureSet
from guidex.metrics.toy_quality import ToyQuality
from guidex.models.denoiser import ExactDenoiser
from guidex.models.mixture import GaussianMixture

MEANS = torch.tensor([[0.0, 0], [10, 0], [20, 0], [0, 50], [10, 50]]).double()


def mixture(conditional: bool = True) -> GaussianMixture:
    """Class 0: mode 0 (two components, 0.5), mode 1 (0.5). Class 1: modes 0 and 1, 0.9 and 0.1."""
    return GaussianMixture(
        weights=torch.tensor([0.1, 0.15, 0.25, 0.45, 0.05]),
        means=MEANS,
        covariances=torch.eye(2).repeat(5, 1, 1),
        classes=torch.tensor([0, 0, 0, 1, 1]),
        modes=torch.tensor([0, 0, 1, 0, 1]),
        conditional=conditional,
    )


def draws(truth: ExactDenoiser, labels: Tensor | None, count: int, seed: int = 1) -> Tensor:
    return truth.sample(labels, count, torch.Generator().manual_seed(seed))


def judge(
    truth: ExactDenoiser, values: Tensor, labels: Tensor | None, metric: ToyQuality | None = None
) -> dict[str, float]:
    real = FeatureSet("points", values[:2], truth=truth)
    row = (metric or ToyQuality())(real=real, fake=feature_set(values, labels, "points"))
    return {name.removesuffix("_points"): value for name, value in row.items()}


def test_a_perfect_sampler() -> None:
    truth, labels = mixture(), torch.arange(10_000) % 2
    row = judge(truth, draws(truth, labels, 10_000), labels)
    assert list(row) == ["outliers", "mode_coverage", "log_density"]
    # Binomial errors of 10,000 fakes and of the quantile from 20,000 draws, four of each together.
    assert row["outliers"] == pytest.approx(0.01, abs=4 * 0.0012)
    assert row["mode_coverage"] == 1.0
    # Far apart, the entropy of a mixture is that of its weights plus that of a component.
    weights = torch.tensor([[0.2, 0.3, 0.5], [0.9, 0.1, 0]])
    entropy = math.log(2 * math.pi * math.e) - float(weights.xlogy(weights).sum()) / 2
    assert row["log_density"] == pytest.approx(-entropy, abs=0.05)


def test_contraction_raises_density_and_leaves_no_outliers() -> None:
    truth, labels = mixture(), torch.zeros(2000).long()
    x = draws(truth, labels, 2000)
    plain = judge(truth, x, labels)
    nearest = MEANS[torch.cdist(x, MEANS).argmin(1)]
    contracted = judge(truth, nearest + 0.5 * (x - nearest), labels)
    assert contracted["outliers"] == 0.0
    assert contracted["mode_coverage"] == 1.0
    # Half the deviation leaves a quarter of the mean of |x - mu|^2 / 2, which is 1.
    assert contracted["log_density"] - plain["log_density"] == pytest.approx(0.75, abs=0.1)


def test_outliers_are_judged_by_the_class_that_was_asked_for() -> None:
    truth, labels = mixture(), torch.zeros(1000).long()
    x = draws(truth, labels, 1000)
    assert judge(truth, x, labels)["outliers"] < 0.02
    assert judge(truth, x, 1 - labels)["outliers"] == 1.0
    half = torch.arange(1000) % 2
    assert judge(truth, x, half)["outliers"] == pytest.approx(0.5, abs=0.02)
    assert judge(truth, x, None)["outliers"] < 0.02
    assert judge(mixture(conditional=False), x, labels + 7) == judge(truth, x, None)


def test_a_class_is_judged_alike_whatever_other_classes_there_are() -> None:
    truth, labels = mixture(), torch.arange(400) % 2
    x = draws(truth, labels, 400)
    both = judge(truth, x, labels)
    alone = [judge(truth, x[labels == label], labels[labels == label]) for label in (0, 1)]
    for name in ("outliers", "log_density"):
        assert both[name] == pytest.approx((alone[0][name] + alone[1][name]) / 2)


def test_a_mode_needs_its_share_of_the_expected_fakes() -> None:
    # 100 fakes of class 0 expect 50 in mode 1, of which a tenth makes it covered; all of mode 0 are
    # in one of its two components.
    for kept, coverage in ((0, 0.5), (4, 0.5), (5, 1.0), (50, 1.0)):
        x = MEANS[1].repeat(100, 1)
        x[:kept] = MEANS[2]
        assert judge(mixture(), x, torch.zeros(100).long())["mode_coverage"] == coverage


def test_modes_of_classes_are_counted_apart() -> None:
    # Class 0 whole, class 1 without its mode 1, which has the number of one of class 0.
    x = torch.cat([MEANS[[0, 2]].repeat(100, 1), MEANS[3].repeat(200, 1)])
    labels = torch.arange(2).repeat_interleave(200)
    assert judge(mixture(), x, labels)["mode_coverage"] == 3 / 4
    assert judge(mixture(), x[:200], labels[:200])["mode_coverage"] == 1.0
    # Without labels the four modes are those of the whole mixture, with half the weight each class.
    assert judge(mixture(), x, None)["mode_coverage"] == 3 / 4


def test_modes_that_expect_too_few_fakes_are_left_out() -> None:
    x, labels = MEANS[3].repeat(99, 1), torch.ones(99).long()
    assert judge(mixture(), x, labels)["mode_coverage"] == 1.0  # mode 1 expects 9.9
    assert judge(mixture(), x, labels, ToyQuality(min_expected=9))["mode_coverage"] == 0.5
    with pytest.raises(UsageError, match="largest expects 9.9 of 11"):
        judge(mixture(), x[:11], labels[:11])


def two_modes(weights: list[float], means: list[float], variances: list[float]) -> GaussianMixture:
    return GaussianMixture(
        weights,
        [[mean] for mean in means],
        [[[variance]] for variance in variances],
        [0, 0],
        [0, 1],
        conditional=False,
    )


def test_a_fake_belongs_to_the_most_responsible_component_not_the_nearest_mean() -> None:
    wide = two_modes([0.5, 0.5], [0, 10], [0.01, 25])
    x = torch.full((40, 1), 2.0)
    assert judge(wide, x, None)["mode_coverage"] == 0.5
    x[::2] = 0.0
    assert judge(wide, x, None)["mode_coverage"] == 1.0
    # Weights are part of it: only mode 0 expects enough, and 0.6 is nearer to the mean of mode 1.
    rare, x = two_modes([0.9, 0.1], [0, 1], [1, 1]), torch.full((100, 1), 0.6).double()
    assert judge(rare, x, None, ToyQuality(min_expected=50))["mode_coverage"] == 1.0


class StandardNormal(ExactDenoiser):
    """The smallest exact distribution: it has neither classes nor modes."""

    shape = (3, 1, 2)
    num_classes = 0

    def forward(self, x: Tensor, sigma: float, labels: Tensor | None = None) -> Tensor:
        return x / (1 + sigma**2)

    def log_density(self, x: Tensor, sigma: float, labels: Tensor | None = None) -> Tensor:
        variance = 1 + sigma**2
        squared = x.flatten(1).square().sum(1) / variance
        return -0.5 * squared - 3 * math.log(2 * math.pi * variance)

    def sample(self, labels: Tensor | None, count: int, generator: torch.Generator) -> Tensor:
        return torch.randn(count, *self.shape, generator=generator, dtype=torch.float64)

    def reference(self, count: int, seed: int) -> tuple[Tensor, Tensor | None]:
        return self.sample(None, count, torch.Generator().manual_seed(seed)), None


def test_a_truth_without_modes_has_no_mode_coverage() -> None:
    truth = StandardNormal()
    row = judge(truth, draws(truth, None, 4000).flatten(1), None)
    assert list(row) == ["outliers", "log_density"]
    assert row["outliers"] == pytest.approx(0.01, abs=4 * 0.0018)
    entropy = 3 * math.log(2 * math.pi * math.e)
    assert row["log_density"] == pytest.approx(-entropy, abs=4 * (3 / 4000) ** 0.5)


def test_the_quantile_and_the_seed_are_options() -> None:
    truth, labels = mixture(), torch.zeros(4000).long()
    x = draws(truth, labels, 4000)
    median, again, other = (
        judge(truth, x, labels, ToyQuality(quantile=0.5, draws=5000, seed=seed))
        for seed in (0, 0, 1)
    )
    assert median["outliers"] == pytest.approx(0.5, abs=4 * 0.011)
    assert median == again and median["outliers"] != other["outliers"]


def test_impossible_input_is_refused() -> None:
    x, labels = MEANS.repeat(20, 1), torch.zeros(100).long()
    with pytest.raises(UsageError, match="2"):
        judge(mixture(), x, labels + 2)
    with pytest.raises(UsageError, match="2 features"):
        judge(StandardNormal(), x, None)
    with pytest.raises(GuidexError, match="far out"):
        judge(mixture(), x * 1e200, labels)
