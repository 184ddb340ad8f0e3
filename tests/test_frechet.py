"""Statistics of features and the Fréchet distance against closed forms and a reference number."""

import numpy as np
import pytest
import torch
from helpers import feature_set, golden, normal
from torch import Tensor

from guidex.errors import UsageError
from guidex.features.features import FeatureSet
from guidex.features.statistics import GaussianStatistics, gram
from guidex.metrics.differences import blocks_of
from guidex.metrics.frechet import Frechet, frechet_distance


def moments(mean: Tensor, covariance: Tensor) -> GaussianStatistics:
    return GaussianStatistics.from_moments(count=10**6, mean=mean, covariance=covariance)


def of(values: Tensor) -> GaussianStatistics:
    return GaussianStatistics.from_features(values)


def known(statistics: GaussianStatistics) -> FeatureSet:
    return FeatureSet("d", given_statistics=statistics)


# Statistics


def test_more_rows_than_are_converted_at_a_time_and_far_from_zero() -> None:
    # Sorted, so that the first rows have another mean than the last.
    values = normal(9000, 3).sort(dim=0).values.float()
    expected = torch.from_numpy(np.cov(values.double().numpy().T))
    torch.testing.assert_close(of(values).mean, values.double().mean(0), rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(of(values).covariance, expected, rtol=1e-10, atol=1e-12)
    shifted = of(values.double() + 2.0**27)
    torch.testing.assert_close(shifted.covariance, expected, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("shape", [(0, 3), (1, 4), (200, 70), (70, 200)])
def test_products_of_a_matrix_with_itself(shape: tuple[int, int]) -> None:
    for values in (normal(*shape), normal(*shape[::-1]).T, normal(2 * shape[0], shape[1])[::2]):
        found = gram(values)
        torch.testing.assert_close(found, values.T @ values)
        assert torch.equal(found, found.T)


def test_statistics_without_a_part_are_those_of_the_rest() -> None:
    values = normal(50, 4) + 3
    rest = of(values).without(of(values[::3]))
    expected = of(values[[i for i in range(50) if i % 3 != 0]])
    assert rest.count == expected.count
    torch.testing.assert_close(rest.mean, expected.mean, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(rest.scatter, expected.scatter, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_features_that_are_not_finite_are_refused_by_row(bad: float) -> None:
    values = normal(5000, 2)
    values[4321, 1] = bad
    with pytest.raises(UsageError, match="row 4321 "):
        feature_set(values)


def test_a_reference_that_is_no_covariance_is_refused() -> None:
    mean, eye = torch.zeros(3), torch.eye(3)
    with pytest.raises(UsageError, match="not symmetric"):
        moments(mean, torch.tensor([[1.0, 0.5, 0], [0, 1, 0], [0, 0, 1]]))
    with pytest.raises(UsageError, match="do not fit"):
        moments(torch.zeros(4), eye)
    with pytest.raises(UsageError, match="NaN"):
        moments(mean, eye * float("nan"))
    with pytest.raises(UsageError, match="negative eigenvalues, down to -1"):
        frechet_distance(real=moments(mean, eye - 2 * torch.diag(eye[0])), fake=moments(mean, eye))


# Distance


def test_the_reference_number() -> None:
    numbers = golden("frechet.npz")
    a, b = (of(torch.from_numpy(numbers[name])) for name in "ab")
    assert frechet_distance(real=a, fake=b) == pytest.approx(float(numbers["fd"]), abs=1e-6)
    assert frechet_distance(real=b, fake=a) == pytest.approx(float(numbers["fd"]), abs=1e-6)


def test_commuting_covariances() -> None:
    axes = torch.linalg.qr(normal(30, 30))[0]
    a, b = torch.logspace(0, -6, 30).double(), torch.logspace(-3, 1, 30).double()
    real, fake = (moments(torch.zeros(30), (axes * each) @ axes.T) for each in (a, b))
    expected = float((a.sqrt() - b.sqrt()).square().sum())
    assert frechet_distance(real=real, fake=fake) == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize(("count_a", "count_b"), [(30, 50), (50, 30), (2, 400), (400, 2)])
def test_fewer_images_than_features(count_a: int, count_b: int) -> None:
    a, b = normal(count_a, 200), 0.5 + normal(count_b, 200, seed=1)
    # With S = A^T A, tr (S_a S_b)^(1/2) is the sum of the singular values of A B^T.
    root_a = (a - a.mean(0)) / (count_a - 1) ** 0.5
    root_b = (b - b.mean(0)) / (count_b - 1) ** 0.5
    expected = (a.mean(0) - b.mean(0)).square().sum() + root_a.square().sum()
    expected += root_b.square().sum() - 2 * torch.linalg.svdvals(root_a @ root_b.T).sum()
    assert frechet_distance(real=of(a), fake=of(b)) == pytest.approx(float(expected), rel=1e-9)


@pytest.mark.parametrize("count", [20, 1000])
def test_a_set_against_itself_is_zero_also_when_gathered_otherwise(count: int) -> None:
    values = 50 + normal(count, 100) * torch.logspace(0, -3, 100)
    assert 0 <= frechet_distance(real=of(values), fake=of(values)) < 1e-9
    assert 0 <= frechet_distance(real=of(values), fake=of(values.flip(0))) < 1e-9


def test_collapsed_sets() -> None:
    same, spread = of(torch.ones(10, 6)), of(normal(500, 6))
    assert frechet_distance(real=same, fake=same) == 0
    expected = float((spread.mean - 1).square().sum() + spread.covariance.trace())
    assert frechet_distance(real=spread, fake=same) == pytest.approx(expected, rel=1e-12)
    assert frechet_distance(real=same, fake=spread) == pytest.approx(expected, rel=1e-12)


# Metric


def test_statistics_alone_are_enough_of_a_reference() -> None:
    values = normal(100, 4)
    real, fake = known(of(values)), feature_set(values + 2)
    assert Frechet()(real=real, fake=fake) == {"fd_d": pytest.approx(16.0, rel=1e-9)}
    assert Frechet("jackknife")(real=real, fake=fake)["fd_d"] == pytest.approx(16.0, rel=1e-9)
    with pytest.raises(UsageError, match="not statistics alone"):
        Frechet("jackknife")(real=fake, fake=real)


def test_intervals_hold_the_true_distance_and_take_out_the_bias() -> None:
    dim, count, sets = 6, 150, 80
    scale, shift = torch.linspace(0.7, 1.3, dim), 0.3
    truth = float(((scale - 1).square() + shift**2).sum())
    real, metric = known(moments(torch.zeros(dim), torch.eye(dim))), Frechet("jackknife", 0.9)
    rows = [
        metric(real=real, fake=feature_set(shift + scale * normal(count, dim, seed=seed)))
        for seed in range(sets)
    ]
    assert list(rows[0]) == ["fd_d", "fd_d_unbiased", "fd_d_lo", "fd_d_hi"]
    numbers = torch.tensor([list(row.values()) for row in rows], dtype=torch.float64)
    distance, centre, lo, hi = numbers.T

    # The distances are biased by about as much as they scatter, which a percentile interval would
    # double and an interval around the distance would keep.
    error = float(distance.std()) / sets**0.5
    assert float(distance.mean()) - truth > 5 * error
    assert abs(float((lo + hi).mean()) / 2 - truth) < 3 * error
    assert abs(float(centre.mean()) - truth) < 3 * error
    assert 0.82 <= float(((lo <= truth) & (truth <= hi)).double().mean()) <= 0.98


@pytest.mark.parametrize("per_class", [23, 7])
def test_intervals_of_balanced_classes_that_lie_far_apart(per_class: int) -> None:
    dim, sets, classes = 4, 60, 6
    means, labels = 5 * normal(classes, dim), torch.arange(classes).repeat_interleave(per_class)
    centred = means - means.mean(0)
    covariance = torch.eye(dim) + centred.T @ centred / classes
    real = known(moments(means.mean(0) + 0.3, 1.2 * covariance))
    truth = frechet_distance(real=real.statistics, fake=moments(means.mean(0), covariance))
    covered, centres = [], []
    for seed in range(sets):
        values = means[labels] + normal(len(labels), dim, seed=100 + seed)
        row = Frechet("jackknife", level=0.9)(real=real, fake=feature_set(values, labels))
        covered.append(row["fd_d_lo"] <= truth <= row["fd_d_hi"])
        centres.append(row["fd_d_unbiased"])
    assert 0.8 <= sum(covered) / sets <= 0.99  # without labels: 0.4 and 0.1
    error = float(torch.tensor(centres).std()) / sets**0.5
    assert abs(sum(centres) / sets - truth) < 3 * error


def test_balanced_classes_need_blocks_that_keep_their_shares() -> None:
    values, jackknife = normal(60, 2), Frechet("jackknife")
    blocks = blocks_of(53, torch.arange(53) % 4, seed=0)
    labels = [(torch.arange(53) % 4)[block].bincount().tolist() for block in blocks]
    assert labels == [[1, 1, 1, 1]] * 13
    assert len(torch.cat(list(blocks)).unique()) == 52
    real = feature_set(values)
    with pytest.raises(UsageError, match="4 images of every class, and an interval needs at least"):
        jackknife(real=real, fake=feature_set(values, torch.arange(60) % 15))
    unequal = feature_set(values + 1, (torch.arange(60) >= 20).long())
    plain = jackknife(real=real, fake=feature_set(values + 1))
    assert jackknife(real=real, fake=unequal) == plain
    other = Frechet("jackknife", seed=1)(real=real, fake=unequal)
    assert other["fd_d"] == plain["fd_d"] and other["fd_d_lo"] != plain["fd_d_lo"]


def test_a_jackknife_of_a_statistic_linear_in_the_images_is_the_standard_error() -> None:
    # From 1e6 away the distance is (1e6 + mean)^2 + ..., whose slope in the mean is 2e6.
    real = known(moments(torch.tensor([-1e6]), torch.tensor([[1.0]])))
    values = normal(2000, 1)
    row = Frechet("jackknife", level=0.6827)(real=real, fake=feature_set(values))
    half = (row["fd_d_hi"] - row["fd_d_lo"]) / 2
    # 20 blocks know a standard error to about 1 / sqrt(2 * 19) = 16 %.
    assert half == pytest.approx(2e6 * float(values.std()) / 2000**0.5, rel=0.35)


# Feature sets


def test_feature_sets_refuse_what_does_not_fit() -> None:
    values = normal(5, 3)
    for wrong, message in (
        (values.half(), "float16"),
        (values[0], r"\[N, D\]"),
        (values[:0], "at least 1"),
    ):
        with pytest.raises(UsageError, match=message):
            feature_set(wrong)
    for labels, message in ((torch.zeros(4).long(), "labels"), (torch.zeros(5), "int64")):
        with pytest.raises(UsageError, match=message):
            feature_set(values, labels)
