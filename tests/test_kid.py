"""The kernel Inception distance against plain sums, expectations and torch-fidelity."""

import itertools

import pytest
import torch
from torch import Tensor

from guidex.features.features import FeatureSet
from guidex.metrics.kid import KID, kernel_distances, squared_mmd


def normal(*shape: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def feature_set(values: Tensor, detector: str = "d") -> FeatureSet:
    return FeatureSet.from_values(detector=detector, values=values)


def test_the_estimate_is_the_sum_over_pairs() -> None:
    real, fake = normal(7, 3), normal(5, 3, seed=1) + 1

    def kernel(x: Tensor, y: Tensor) -> float:
        return float((x @ y / 3 + 1) ** 3)

    def within(values: Tensor) -> float:
        pairs = [kernel(x, y) for x, y in itertools.permutations(values, 2)]
        return sum(pairs) / len(pairs)

    across = [kernel(x, y) for x, y in itertools.product(real, fake)]
    expected = within(real) + within(fake) - 2 * sum(across) / len(across)
    assert float(squared_mmd(real, fake)) == pytest.approx(expected, rel=1e-12)


def test_a_shifted_gaussian_has_its_known_distance() -> None:
    # For x ~ N(0, 1) and y ~ N(m, 1) in one dimension, E (xy + 1)^3 over pairs of independent
    # draws is a + b + c with moments 1, mu, 1 + mu^2, 3 mu + mu^3:
    #   within reals 1 + 3 * 1 = 4; within fakes 1 + 3 m^2 + 3 (1 + m^2)^2 + (3 m + m^3)^2;
    #   across 1 + 3 (1 + m^2).
    m = 0.5
    within = 1 + 3 * m**2 + 3 * (1 + m**2) ** 2 + (3 * m + m**3) ** 2
    expected = 4 + within - 2 * (1 + 3 * (1 + m**2))
    real, fake = normal(60_000, 1), normal(60_000, 1, seed=1) + m
    estimates = kernel_distances(real=real, fake=fake, subsets=20, subset_size=1000, seed=0)
    error = float(estimates.std()) / 20**0.5
    assert error < 0.1 * expected
    assert abs(float(estimates.mean()) - expected) < 4 * error


def test_unbiased_for_equal_distributions() -> None:
    real, fake = normal(4000, 4), normal(4000, 4, seed=1)
    estimates = kernel_distances(real=real, fake=fake, subsets=400, subset_size=50, seed=0)
    assert bool((estimates < 0).any())
    assert abs(float(estimates.mean())) < 4 * float(estimates.std()) / 400**0.5


def test_the_metric_names_its_columns_and_is_reproducible() -> None:
    real, fake = feature_set(normal(60, 4)), feature_set(normal(50, 4, seed=1) + 1)
    found = KID(subsets=10, subset_size=40)(real=real, fake=fake)
    assert list(found) == ["kid_d", "kid_std_d"]
    assert found["kid_d"] > 0
    assert found == KID(subsets=10, subset_size=40)(real=real, fake=fake)
    other = KID(subsets=10, subset_size=40, seed=1)(real=real, fake=fake)
    assert found["kid_d"] != other["kid_d"]


def test_one_subset_of_everything_has_no_deviation() -> None:
    real, fake = normal(20, 4), normal(20, 4, seed=1)
    found = KID(subsets=3, subset_size=20)(real=feature_set(real), fake=feature_set(fake))
    assert found["kid_d"] == pytest.approx(float(squared_mmd(real, fake)), rel=1e-12)
    assert found["kid_std_d"] < 1e-12


def test_float32_features_give_the_numbers_of_float64() -> None:
    real, fake = normal(60, 4).float(), normal(50, 4, seed=1).float()
    metric = KID(subsets=10, subset_size=40)
    found = metric(real=feature_set(real), fake=feature_set(fake))
    assert found == metric(real=feature_set(real.double()), fake=feature_set(fake.double()))
