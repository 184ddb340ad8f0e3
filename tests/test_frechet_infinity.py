"""Extrapolation of the Fréchet distance against distances that are known."""

import pytest
import torch
from helpers import feature_set, normal

from guidex.errors import UsageError
from guidex.features.features import FeatureSet
from guidex.features.statistics import GaussianStatistics
from guidex.metrics.frechet import frechet_distance
from guidex.metrics.frechet_infinity import FrechetInfinity, limit

DIM = 8


def exact_real() -> FeatureSet:
    """N(0, 1), of which mean and covariance are known exactly."""
    statistics = GaussianStatistics.from_moments(
        count=10**6, mean=torch.zeros(DIM), covariance=torch.eye(DIM)
    )
    return FeatureSet("d", given_statistics=statistics)


def test_a_line_in_one_over_n_is_found() -> None:
    counts = [100, 150, 400, 1000]
    assert limit(counts, [3 + 50 / n for n in counts]) == pytest.approx(3, rel=1e-12)
    assert limit([10, 20], [-1.0, -1.0]) == -1


def test_the_bias_of_few_images_is_gone() -> None:
    # The true distance of N(0.1, 1) is 8 * 0.1^2 = 0.08; over 30 seeds, 400 fakes show about 0.13.
    real, true = exact_real(), DIM * 0.1**2
    plain, extrapolated, of_equals = [], [], []
    for seed in range(30):
        metric = FrechetInfinity(sizes=8, smallest=50, seed=seed)
        fake = feature_set(normal(400, DIM, seed=seed) + 0.1)
        plain.append(frechet_distance(real=real.statistics, fake=fake.statistics))
        extrapolated.append(metric(real=real, fake=fake)["fd_infinity_d"])
        equal = feature_set(normal(400, DIM, seed=seed))
        of_equals.append(metric(real=real, fake=equal)["fd_infinity_d"])
    error = torch.tensor(extrapolated).std().item() / 30**0.5
    assert error < 0.01
    assert abs(sum(extrapolated) / 30 - true) < 3.5 * error
    assert sum(plain) / 30 - true > 0.02
    assert min(of_equals) < 0 < max(of_equals)


def test_reproducible_and_by_seed_and_the_real_side_is_decomposed_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    decomposed, eigh = [], torch.linalg.eigh
    monkeypatch.setattr(torch.linalg, "eigh", lambda a: decomposed.append(a) or eigh(a))
    fake = feature_set(normal(100, DIM))
    numbers = [
        FrechetInfinity(sizes=4, smallest=30, seed=seed)(real=exact_real(), fake=fake)
        for seed in (0, 0, 1)
    ]
    assert numbers[0] == numbers[1] != numbers[2]
    assert len(decomposed) == 3


def test_dgm_eval_begins_with_a_tenth() -> None:
    fake = feature_set(normal(200, DIM))
    found = FrechetInfinity(sizes=4, tenth=True)(real=exact_real(), fake=fake)
    assert found == FrechetInfinity(sizes=4, smallest=20)(real=exact_real(), fake=fake)


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"smallest": 15}, "8 features need at least 16 images"),
        ({}, "at least 5015 fake images, and has 100.*16 or more"),
        ({"sizes": 15, "smallest": 90}, "at least 105 fake images"),
    ],
)
def test_refusals(options: dict[str, int], text: str) -> None:
    with pytest.raises(UsageError, match=text):
        FrechetInfinity(**options)(real=exact_real(), fake=feature_set(normal(100, DIM)))
