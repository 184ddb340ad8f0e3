"""The Monge Inception distance against closed forms and torch-fidelity's numbers."""

import numpy as np
import pytest
import torch
from torch import Tensor

from guidex.features.features import FeatureSet
from guidex.metrics import mind
from guidex.metrics.mind import MIND, monge_distance


def normal(*shape: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def feature_set(values: Tensor, detector: str = "d") -> FeatureSet:
    return FeatureSet.from_values(detector=detector, values=values)


@pytest.mark.parametrize(
    ("reals", "fakes", "expected"),
    [(300, 300, 8.47322940826416), (300, 200, 9.832671165466309), (200, 300, 10.369050025939941)],
)
def test_the_numbers_of_torch_fidelity(reals: int, fakes: int, expected: float) -> None:
    # By torch-fidelity at a51aa64 (MIND is not in 0.4.0), in float32.
    real = torch.from_numpy(np.random.RandomState(0).randn(reals, 16)).float()
    fake = torch.from_numpy(np.random.RandomState(1).randn(fakes, 16) * 1.2 + 0.3).float()
    found = monge_distance(real=real, fake=fake, projections=100, seed=2020)
    assert found == pytest.approx(expected, rel=1e-6)


def test_in_one_dimension_it_is_three_times_the_squared_wasserstein_distance() -> None:
    real, fake = torch.tensor([[5.0], [1.0], [2.0]]), torch.tensor([[2.0], [8.0], [0.0]])
    expected = 3 * ((0 - 1) ** 2 + (2 - 2) ** 2 + (8 - 5) ** 2) / 3
    found = monge_distance(real=real, fake=fake, projections=4, seed=0)
    assert found == pytest.approx(expected, rel=1e-12)


def test_a_shift_has_three_times_its_squared_length() -> None:
    real = normal(500, 12)
    shift = torch.linspace(0, 1, 12, dtype=torch.float64)
    found = monge_distance(real=real, fake=real + shift, projections=20_000, seed=0)
    assert found == pytest.approx(3 * float(shift @ shift), rel=0.03)


def test_order_and_chunks_do_not_matter(monkeypatch: pytest.MonkeyPatch) -> None:
    real, fake = normal(40, 5), normal(40, 5, seed=1)
    found = monge_distance(real=real, fake=fake, projections=30, seed=0)
    assert monge_distance(real=fake, fake=real, projections=30, seed=0) == found
    assert monge_distance(real=real.flip(0), fake=fake, projections=30, seed=0) == pytest.approx(
        found, rel=1e-12
    )
    monkeypatch.setattr(mind, "_CHUNK", 7)
    monkeypatch.setattr(mind, "_ROWS", 3)
    assert monge_distance(real=real, fake=fake, projections=30, seed=0) == pytest.approx(
        found, rel=1e-12
    )
    assert monge_distance(real=real, fake=real.clone(), projections=30, seed=0) == 0


def test_the_metric() -> None:
    real, fake = feature_set(normal(40, 5)), feature_set(normal(30, 5, seed=1))
    found = MIND(projections=20)(real=real, fake=fake)
    assert list(found) == ["mind_d"]
    assert found == MIND(projections=20)(real=real, fake=fake)
    assert found != MIND(projections=20, seed=1)(real=real, fake=fake)
