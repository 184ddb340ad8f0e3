"""Sampler grids against printed tables and closed forms."""

import math

import numpy as np
import pytest
from helpers import concrete

from guidex.errors import UsageError
from guidex.sampling.grids import DDPM, IDDPM, VP, Grid, Karras, Linear, Log

# EDM's 32 steps (sigma 0.002 ... 80, rho 7), to four decimals.
EDM = [
    *(80, 66.9309, 55.7362, 46.1864, 38.0749, 31.2164, 25.4454, 20.6141),
    *(16.5914, 13.2612, 10.5212, 8.2816, 6.4637, 4.9991, 3.8287, 2.9015),
    *(2.1739, 1.6086, 1.1743, 0.8446, 0.5977, 0.4154, 0.2830, 0.1886),
    *(0.1226, 0.0774, 0.0474, 0.0279, 0.0158, 0.0085, 0.0043, 0.0020, 0),
]


@pytest.mark.parametrize("grid", list(concrete(Grid)))
def test_every_grid_decreases_to_0(grid):
    for steps in (1, 2, 7, 32):
        sigmas = grid(steps=steps).sigmas()
        assert sigmas.shape == (steps + 1,) and sigmas.dtype == np.float64
        assert (np.diff(sigmas) < 0).all() and sigmas[-1] == 0
        # All start at the same noise level, whatever the number of steps.
        assert sigmas[0] == grid(steps=5).sigmas()[0]
    for steps in (0, -3, 100_000_000):
        with pytest.raises(UsageError, match=f"at least one step and at most 10000, .*{steps}"):
            grid(steps=steps)


def test_karras():
    np.testing.assert_allclose(Karras().sigmas(), EDM, atol=5.1e-5)
    sdxl = Karras(sigma_min=0.03, sigma_max=14.61, rho=3.0).sigmas()
    printed = {6: 8.386, 10: 5.417, 12: 4.241, 13: 3.722, 16: 2.424, 18: 1.752, 21: 0.997}
    for i, sigma in {**printed, 26: 0.281, 0: 14.61, 31: 0.03, 32: 0}.items():
        assert sdxl[i] == pytest.approx(sigma, abs=5.1e-4)


def test_linear_and_log():
    linear = Linear(steps=5, sigma_min=1.0, sigma_max=9.0).sigmas()
    np.testing.assert_allclose(linear, [9, 7, 5, 3, 1, 0])
    log = Log(steps=4, sigma_min=0.01, sigma_max=10.0).sigmas()
    np.testing.assert_allclose(log, [10, 1, 0.1, 0.01, 0])


def test_vp_is_even_in_the_time_of_its_sde():
    """1 + sigma(t)^2 = 1 / abar(t) = exp(int_0^t beta), with beta = 0.1 + 19.9 t."""
    sigmas = VP(steps=11, epsilon=0.1).sigmas()
    for i in range(11):
        t = 1 - 0.09 * i
        beta = 0.1 + 19.9 * np.linspace(0, t, 2001)
        integral = ((beta[1:] + beta[:-1]) / 2).sum() * t / 2000
        assert 1 + sigmas[i] ** 2 == pytest.approx(math.exp(integral), rel=1e-6)
    assert VP().sigmas()[0] == pytest.approx(152.166, rel=1e-5)


def test_ddpm_with_linear_beta():
    sigmas = DDPM(steps=1000).sigmas()[-2::-1]  # by timestep
    abar = np.cumprod(1 - np.linspace(1e-4, 0.02, 1000))
    np.testing.assert_allclose(sigmas, np.sqrt((1 - abar) / abar), rtol=1e-9)
    # What the interval paper's timesteps of DiT are in noise levels.
    assert sigmas[502] == pytest.approx(3.48, abs=0.005)
    assert sigmas[205] == pytest.approx(0.745, abs=0.0005)
    for steps, first, timesteps in (
        (5, 0, [999, 749, 500, 250, 0]),  # 749.25, 499.5 and 249.75, rounded
        (50, 19, list(range(999, 0, -20))),  # trailing
        (1, 0, [999]),
    ):
        assert np.array_equal(DDPM(steps=steps, first=first).sigmas()[:-1], sigmas[timesteps])


def test_iddpm():
    """The interval paper's labels for DiT: steps 124 ... 198 are (0.34, 1.02]."""
    sigmas = IDDPM().sigmas()
    assert sigmas[124] == pytest.approx(1.0219, abs=5e-5)
    assert sigmas[199] == pytest.approx(0.3392, abs=5e-5)
    # Two levels of the full process are related by equation 1 - abar of the cosine.
    u = IDDPM(steps=1000).sigmas()
    abar = np.sin(np.pi / 2 * np.arange(1001) / 1008) ** 2
    ratios = (u[1:-1] ** 2 + 1) / (u[2:] ** 2 + 1)
    np.testing.assert_allclose(ratios, abar[2:] / abar[1:-1], rtol=1e-9)
    assert (u[0] ** 2 + 1) / (u[1] ** 2 + 1) == pytest.approx(1000)  # limited by c1


@pytest.mark.parametrize(
    ("grid", "settings", "match"),
    [
        (Karras, {"sigma_min": 80.0, "sigma_max": 80.0}, "0 < sigma_min < sigma_max"),
        (Karras, {"sigma_min": 0.0}, "0 < sigma_min < sigma_max"),
        (Linear, {"sigma_max": math.inf}, "0 < sigma_min < sigma_max"),
        (Log, {"sigma_min": math.nan}, "0 < sigma_min < sigma_max"),
        (Karras, {"rho": 0.0}, "rho must be positive"),
        (DDPM, {"steps": 1001}, "do not fit in 1000 timesteps"),
        (DDPM, {"first": -1}, "do not fit"),
        (IDDPM, {"steps": 1001}, "do not fit in 1000 levels"),
        (VP, {"epsilon": 0.0}, "do not decrease from step to step"),
        (VP, {"beta_d": 1e9}, "do not decrease from step to step"),
        (DDPM, {"beta_first": 1.0}, "do not decrease from step to step"),
        (IDDPM, {"c1": 2.0}, "do not decrease from step to step"),
    ],
)
def test_impossible_grids_are_refused(grid, settings, match):
    with pytest.raises(UsageError, match=match):
        grid(**settings).sigmas()
