"""The power-function EMA against the golden numbers, closed forms and a simulated training run."""

import numpy as np
import pytest
from helpers import golden

from guidex.errors import UsageError
from guidex.models.edm2.posthoc_ema import (
    gamma_of_sigma_rel,
    images_of,
    profile_product,
    reconstruction,
    sigma_rel_of_gamma,
)


def decay(gamma, t, dt=1.0):
    """beta of one update, theta_gamma(t) = beta theta_gamma(t - dt) + (1 - beta) theta(t)."""
    return (1 - dt / t) ** (gamma + 1)


def test_the_golden_numbers():
    expected = golden("phema.npz")
    gamma = gamma_of_sigma_rel(expected["stds"])
    np.testing.assert_allclose(gamma, expected["exps"], rtol=1e-12)
    np.testing.assert_allclose(decay(gamma, t=100, dt=4), expected["beta_t100_d4"], rtol=1e-12)
    stored, time = (expected["in_ofs"], expected["in_std"]), expected["out_ofs"].item()
    for length, wanted in zip(expected["out_std"], expected["coefs"].T, strict=True):
        weights, _ = reconstruction(*stored, time, length)
        np.testing.assert_allclose(weights, wanted, rtol=1e-6, atol=1e-12)


@pytest.mark.parametrize("gamma", [0.0, 0.5, 6.94, 1000.0])
def test_sigma_rel_is_the_relative_width_of_the_profile(gamma):
    quantiles = ((np.arange(1_000_000) + 0.5) / 1_000_000) ** (1 / (gamma + 1))
    assert sigma_rel_of_gamma(gamma) == pytest.approx(np.std(quantiles), rel=1e-4)
    assert gamma_of_sigma_rel(sigma_rel_of_gamma(gamma)) == pytest.approx(gamma, rel=1e-9)


@pytest.mark.parametrize("length", [0.0, -0.1, 0.3, float("nan")])
def test_lengths_out_of_range_are_refused(length):
    with pytest.raises(UsageError, match="at most 0.2887"):
        gamma_of_sigma_rel([0.1, length])


@pytest.mark.parametrize(("t_a", "t_b"), [(1.0, 1.0), (0.25, 1.0), (1.0, 0.6)])
def test_profile_product_is_the_integral_of_the_product(t_a, t_b):
    tau = (np.arange(200_000) + 0.5) / 200_000

    def profile(t, gamma):
        return np.where(tau <= t, (gamma + 1) * tau**gamma / t ** (gamma + 1), 0.0)

    integral = np.mean(profile(t_a, 3.5) * profile(t_b, 17.0))
    assert profile_product(t_a, 3.5, t_b, 17.0) == pytest.approx(integral, rel=2e-4)


def test_reconstruction_of_a_simulated_training_run():
    steps, period, lengths, target = 4096, 128, (0.05, 0.1), 0.075
    weights = np.sin(np.arange(1, steps + 1) / 400.0) + np.arange(1, steps + 1) / steps
    gammas = gamma_of_sigma_rel([*lengths, target])
    average, snapshots = np.zeros(3), []
    for t, weight in enumerate(weights, start=1):
        beta = decay(gammas, t)
        average = beta * average + (1 - beta) * weight
        if t % period == 0:
            snapshots += [
                (t, length, value) for length, value in zip(lengths, average[:2], strict=True)
            ]
    times, stored, values = map(np.array, zip(*snapshots, strict=True))
    coefficients, _ = reconstruction(times, stored, steps, target)
    error = abs(values @ coefficients - average[2])
    assert error < 1e-3 * abs(average[0] - average[1])


@pytest.mark.parametrize("times", [[0, 2], [2, 2]])
def test_impossible_reconstructions_are_refused(times):
    with pytest.raises(UsageError, match="differ in time or length, and be of times above 0"):
        reconstruction(times, [0.1, 0.1], 2, 0.1)


@pytest.mark.parametrize(
    ("kimg", "images"),
    [
        (2147483, 2**31),  # of the published networks, the last
        (134217, 2**27),
        (8, 8192),
        (1, 1024),
        (41, 41_984),
        (42, 42_000),  # no multiple of 1024 lies between 42,000 and 42,999
        (0, 0),
    ],
)
def test_times_in_images_are_told_by_their_thousands(kimg, images):
    assert images_of(kimg) == images
    assert all(images_of(n // 1000) == n for n in range(1024, 1024 * 500, 1024))
