"""The Monge Inception distance against closed forms and torch-fidelity's numbers."""

import numpy as np
import pytest
import torch
from helpers import feature_set, normal
from torch import Tensor

from guidex.metrics import mind
from guidex.metrics.mind import MIND


def distance(real: Tensor, fake: Tensor, projections: int, seed: int = 0) -> float:
    metric = MIND(projections, seed)
    return metric(real=feature_set(real), fake=feature_set(fake))["mind_d"]


@pytest.mark.parametrize(
    ("reals", "fakes", "expected"),
    [(300, 300, 8.47322940826416), (300, 200, 9.832671165466309), (200, 300, 10.369050025939941)],
)
def test_the_numbers_of_torch_fidelity(reals: int, fakes: int, expected: float) -> None:
    # By torch-fidelity at a51aa64 (MIND is not in 0.4.0), in float32.
    real = torch.from_numpy(np.random.RandomState(0).randn(reals, 16)).float()
    fake = torch.from_numpy(np.random.RandomState(1).randn(fakes, 16) * 1.2 + 0.3).float()
    assert distance(real, fake, 100, seed=2020) == pytest.approx(expected, rel=1e-6)
    assert distance(real, fake, 100) != pytest.approx(expected, rel=1e-6)


def test_in_one_dimension_it_is_three_times_the_squared_wasserstein_distance() -> None:
    real, fake = torch.tensor([[5.0], [1.0], [2.0]]), torch.tensor([[2.0], [8.0], [0.0]])
    expected = 3 * ((0 - 1) ** 2 + (2 - 2) ** 2 + (8 - 5) ** 2) / 3
    assert distance(real, fake, 4) == pytest.approx(expected, rel=1e-12)


def test_a_shift_has_three_times_its_squared_length() -> None:
    shift = torch.linspace(0, 1, 12, dtype=torch.float64)
    real = normal(50, 12)
    found = distance(real, real + shift, 20_000)
    assert found == pytest.approx(3 * float(shift @ shift), rel=0.03)


def test_order_and_chunks_do_not_matter(monkeypatch: pytest.MonkeyPatch) -> None:
    real, fake = normal(40, 5), normal(40, 5, seed=1)
    found = distance(real, fake, 30)
    assert distance(fake, real, 30) == found
    assert distance(real.flip(0), fake, 30) == pytest.approx(found, rel=1e-12)
    monkeypatch.setattr(mind, "_CHUNK", 7)
    monkeypatch.setattr(mind, "_ROWS", 3)
    assert distance(real, fake, 30) == pytest.approx(found, rel=1e-12)
    assert distance(real, real.clone(), 30) == 0
