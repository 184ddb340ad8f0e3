"""Agreement with torch-fidelity 0.4 on the same float64 features; it loses digits of float32."""

import pytest
import torch
from torch import Tensor

from guidex.features.features import FeatureSet
from guidex.metrics.frechet import Frechet
from guidex.metrics.inception_score import InceptionScore
from guidex.metrics.kid import KID
from guidex.metrics.metric import Metric
from guidex.metrics.prdc import PRDC

pytest.importorskip("torch_fidelity", reason="torch-fidelity is not installed")

from torch_fidelity import metric_fid, metric_isc, metric_kid, metric_prc


def features(count: int, dim: int, seed: int, dtype: torch.dtype = torch.float64) -> Tensor:
    """Like activations: positive, correlated, of different sizes."""
    generator = torch.Generator().manual_seed(seed)
    mix = torch.randn(dim, dim, generator=torch.Generator().manual_seed(99)) / dim**0.5
    values = torch.randn(count, dim, generator=generator) @ mix + 0.2 * (seed + 1)
    return (values.clamp(min=0) * torch.linspace(0.1, 2, dim)).to(dtype)


@pytest.fixture(scope="module")
def real() -> Tensor:
    return features(700, 64, 0)


@pytest.fixture(scope="module")
def fake() -> Tensor:
    return features(500, 64, 1)


def measured(metric: Metric, real: Tensor, fake: Tensor) -> dict[str, float]:
    real_set, fake_set = (FeatureSet("d", v) for v in (real, fake))
    return metric(real=real_set, fake=fake_set)


def test_fid(real: Tensor, fake: Tensor) -> None:
    statistics = [metric_fid.fid_features_to_statistics(values) for values in (fake, real)]
    theirs = metric_fid.fid_statistics_to_metric(*statistics, verbose=False)
    ours = measured(Frechet(), real, fake)
    assert ours["fd_d"] == pytest.approx(theirs["frechet_inception_distance"], rel=1e-9)


def test_kid(real: Tensor, fake: Tensor) -> None:
    theirs = metric_kid.kid_features_to_metric(
        fake, real, kid_subsets=20, kid_subset_size=300, rng_seed=2020, verbose=False
    )
    ours = measured(KID(subsets=20, subset_size=300), real, fake)
    assert ours["kid_d"] == pytest.approx(theirs["kernel_inception_distance_mean"], rel=1e-9)
    assert ours["kid_std_d"] == pytest.approx(theirs["kernel_inception_distance_std"], rel=1e-9)


@pytest.mark.parametrize("shuffle", [True, False])
def test_inception_score(shuffle: bool) -> None:
    logits = 3 * features(503, 1008, 2, torch.float32)
    theirs = metric_isc.isc_features_to_metric(logits, splits=10, shuffle=shuffle, rng_seed=2020)
    fake = FeatureSet("inception_logits", logits)
    ours = InceptionScore(shuffle=shuffle)(real=fake, fake=fake)
    assert ours["is_inception_logits"] == pytest.approx(theirs["inception_score_mean"], rel=1e-9)
    assert ours["is_std_inception_logits"] == pytest.approx(theirs["inception_score_std"], rel=1e-9)
    assert theirs["inception_score_mean"] > 1.5


def test_precision_and_recall(real: Tensor, fake: Tensor) -> None:
    theirs = metric_prc.prc_features_to_metric(fake, real, prc_neighborhood=3, verbose=False)
    ours = measured(PRDC(k=3, rule="<="), real, fake)
    assert ours["precision_d"] == pytest.approx(theirs["precision"], rel=1e-6)
    assert ours["recall_d"] == pytest.approx(theirs["recall"], rel=1e-6)
    assert 0 < theirs["recall"] != theirs["precision"] < 1
