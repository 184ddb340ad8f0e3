"""The kernel Inception distance against plain sums and expectations (test_torch_fidelity.py: and
against torch-fidelity)."""

import itertools

import pytest
from helpers import feature_set, normal
from torch import Tensor

from guidex.metrics.kid import KID, squared_mmd


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


@pytest.mark.parametrize("m", [0.0, 0.5])
def test_a_shifted_gaussian_has_its_known_distance(m: float) -> None:
    # For x ~ N(0, 1) and y ~ N(m, 1) in one dimension, E (xy + 1)^3 over pairs of independent
    # draws is a + b + c with moments 1, mu, 1 + mu^2, 3 mu + mu^3:
    #   within reals 1 + 3 * 1 = 4; within fakes 1 + 3 m^2 + 3 (1 + m^2)^2 + (3 m + m^3)^2;
    #   across 1 + 3 (1 + m^2).
    within = 1 + 3 * m**2 + 3 * (1 + m**2) ** 2 + (3 * m + m**3) ** 2
    expected = 4 + within - 2 * (1 + 3 * (1 + m**2))
    real, fake = feature_set(normal(20_000, 1)), feature_set(normal(20_000, 1, seed=1) + m)
    found = KID(subsets=40, subset_size=300)(real=real, fake=fake)
    error = found["kid_std_d"] / 40**0.5
    assert error < 0.15 * max(expected, 1)
    assert abs(found["kid_d"] - expected) < 4 * error


def test_subsets_depend_on_the_seed_and_one_of_everything_has_no_deviation() -> None:
    real, fake = normal(20, 4), normal(20, 4, seed=1).float()
    sets = {"real": feature_set(real), "fake": feature_set(fake)}
    found = KID(subsets=3, subset_size=20)(**sets)
    assert found["kid_d"] == pytest.approx(float(squared_mmd(real, fake.double())), rel=1e-12)
    assert found["kid_std_d"] < 1e-12
    some = KID(subsets=10, subset_size=12)
    assert some(**sets) == some(**sets) != KID(subsets=10, subset_size=12, seed=1)(**sets)
    # float32 features are computed with in float64.
    assert some(real=sets["real"], fake=feature_set(fake.double())) == some(**sets)
