"""CMMD against direct sums, a closed form and properties that a distance has."""

import math

import pytest
import torch
from helpers import feature_set, normal
from torch import Tensor

from guidex.metrics import cmmd
from guidex.metrics.cmmd import CMMD


def distance(real: Tensor, fake: Tensor, sigma: float) -> float:
    return CMMD(sigma)(real=feature_set(real), fake=feature_set(fake))["cmmd_d"] / 1000


def direct(real: Tensor, fake: Tensor, sigma: float) -> float:
    def mean(x: Tensor, y: Tensor) -> Tensor:
        squared = (x.double()[:, None] - y.double()[None]).square().sum(dim=2)
        return (-squared / (2 * sigma**2)).exp().mean()

    return float(mean(real, real) + mean(fake, fake) - 2 * mean(real, fake))


@pytest.mark.parametrize("tile", [3, 10, 2048])
def test_the_sum_over_all_pairs(tile: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cmmd, "TILE", tile)
    real, fake = normal(13, 5), normal(10, 5, seed=1) + 0.5
    for sigma in (0.5, 10):
        expected = direct(real, fake, sigma)
        assert 1e-3 < distance(real, fake, sigma) == pytest.approx(expected, rel=1e-9)


def test_embeddings_of_length_one_in_float32_keep_their_digits() -> None:
    # As CLIP's: distances of at most 2 against sigma = 10, so that all kernels are nearly 1.
    real, fake = (
        torch.nn.functional.normalize(normal(300, 64, seed=seed).float() + 0.05 * seed)
        for seed in (0, 1)
    )
    found = distance(real, fake, 10)
    assert 1e-5 < found < 1e-2 and found == pytest.approx(direct(real, fake, 10), rel=1e-9)


def test_two_points() -> None:
    # MMD^2 = 1 + 1 - 2 k(x, y).
    real, fake = torch.zeros(2, 2), torch.tensor([[6.0, 8.0]] * 2)
    expected = 2 - 2 * math.exp(-100 / (2 * 25))
    assert distance(real, fake, 5) == pytest.approx(expected, rel=1e-12)


def test_a_shifted_gaussian_has_its_known_distance() -> None:
    # For x ~ N(0, 1) and y ~ N(m, 1): E k = sigma / sqrt(sigma^2 + 2) exp(-d^2 / (2 sigma^2 + 4))
    # with d = 0 within a set and d = m across; a set's own pairs add at most 1 / n.
    m, sigma, count = 1.0, 1.0, 2500
    across = math.exp(-(m**2) / (2 * sigma**2 + 4))
    expected = 2 * sigma / math.sqrt(sigma**2 + 2) * (1 - across)
    assert expected == pytest.approx(0.177, abs=1e-3)
    found = distance(normal(count, 1), normal(count, 1, seed=1) + m, sigma)
    assert found == pytest.approx(expected, rel=0.15)


def test_a_set_against_itself_has_no_distance() -> None:
    values = normal(50, 7).float()
    assert 0 <= distance(values, values, 2) < 1e-12
    assert 0 <= distance(values, values.flip(0), 2) < 1e-12
