"""CMMD against direct sums, a closed form and properties that a distance has."""

import math

import pytest
import torch
from torch import Tensor

from guidex.features.features import FeatureSet
from guidex.metrics.cmmd import CMMD, biased_distance


def normal(*shape: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def feature_set(values: Tensor, detector: str = "clip") -> FeatureSet:
    return FeatureSet.from_values(detector=detector, values=values)


def direct(real: Tensor, fake: Tensor, sigma: float) -> float:
    def mean(x: Tensor, y: Tensor) -> Tensor:
        squared = (x.double()[:, None] - y.double()[None]).square().sum(dim=2)
        return (-squared / (2 * sigma**2)).exp().mean()

    return float(mean(real, real) + mean(fake, fake) - 2 * mean(real, fake))


@pytest.mark.parametrize("tile", [3, 10, 2048])
@pytest.mark.parametrize("sigma", [0.5, 10])
def test_the_sum_over_all_pairs(tile: int, sigma: float) -> None:
    real, fake = normal(13, 5), normal(10, 5, seed=1) + 0.5
    found = biased_distance(real=real, fake=fake, sigma=sigma, tile=tile)
    assert found == pytest.approx(direct(real, fake, sigma), rel=1e-9)
    assert found > 1e-3


def test_embeddings_of_length_one_in_float32_keep_their_digits() -> None:
    # As CLIP's: distances of at most 2 against sigma = 10, so that all kernels are nearly 1.
    real, fake = (
        torch.nn.functional.normalize(normal(300, 64, seed=seed).float() + 0.05 * seed)
        for seed in (0, 1)
    )
    found = CMMD()(real=feature_set(real), fake=feature_set(fake))
    assert list(found) == ["cmmd_clip"]
    assert found["cmmd_clip"] == pytest.approx(1000 * direct(real, fake, 10), rel=1e-9)
    assert 0.01 < found["cmmd_clip"] < 10


def test_two_points() -> None:
    # Of single images, MMD^2 = 1 + 1 - 2 k(x, y).
    real, fake = torch.zeros(1, 2), torch.tensor([[6.0, 8.0]])
    expected = 2 - 2 * math.exp(-100 / (2 * 25))
    assert biased_distance(real=real, fake=fake, sigma=5) == pytest.approx(expected, rel=1e-12)


def test_a_shifted_gaussian_has_its_known_distance() -> None:
    # For x ~ N(0, 1) and y ~ N(m, 1): E k = sigma / sqrt(sigma^2 + 2) exp(-d^2 / (2 sigma^2 + 4))
    # with d = 0 within a set and d = m across; a set's own pairs add at most 1 / n.
    m, sigma, count = 1.0, 1.0, 6000
    across = math.exp(-(m**2) / (2 * sigma**2 + 4))
    expected = 2 * sigma / math.sqrt(sigma**2 + 2) * (1 - across)
    found = biased_distance(real=normal(count, 1), fake=normal(count, 1, seed=1) + m, sigma=sigma)
    assert expected == pytest.approx(0.177, abs=1e-3)
    assert found == pytest.approx(expected, rel=0.1)


def test_a_set_against_itself_has_no_distance() -> None:
    values = normal(50, 7).float()
    metric = CMMD(sigma=2)
    assert metric(real=feature_set(values), fake=feature_set(values))["cmmd_clip"] < 1e-9
    mixed = values[torch.randperm(50, generator=torch.Generator().manual_seed(0))]
    assert 0 <= metric(real=feature_set(values), fake=feature_set(mixed))["cmmd_clip"] < 1e-9
