"""Agreement with torch-fidelity 0.4 on the same features.

It computes from float32 features in float32 at several places, and loses digits there; it is given
float64 here, and what float32 costs it is stated beside.
"""

import pytest
import torch
from torch import Tensor

from guidex.features.features import FeatureSet
from guidex.metrics.frechet import Frechet
from guidex.metrics.inception_score import InceptionScore
from guidex.metrics.kid import KID
from guidex.metrics.prdc import PRDC

pytest.importorskip("torch_fidelity", reason="torch-fidelity is not installed")

from torch_fidelity import metric_fid, metric_isc, metric_kid, metric_prc


def features(count: int, dim: int, seed: int, dtype: torch.dtype = torch.float64) -> Tensor:
    """Like activations: positive, correlated, of different sizes."""
    generator = torch.Generator().manual_seed(seed)
    mix = torch.randn(dim, dim, generator=torch.Generator().manual_seed(99)) / dim**0.5
    values = torch.randn(count, dim, generator=generator) @ mix + 0.2 * (seed + 1)
    return (values.clamp(min=0) * torch.linspace(0.1, 2, dim)).to(dtype)


def sets(dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor, FeatureSet, FeatureSet]:
    real, fake = features(700, 64, 0, dtype), features(500, 64, 1, dtype)
    return (
        real,
        fake,
        FeatureSet.from_values(detector="d", values=real),
        FeatureSet.from_values(detector="d", values=fake),
    )


@pytest.mark.parametrize(("dtype", "rel"), [(torch.float64, 1e-9), (torch.float32, 1e-6)])
def test_fid(dtype: torch.dtype, rel: float) -> None:
    real, fake, real_set, fake_set = sets(dtype)
    # In float32 it takes the means of the features in float32.
    statistics = [metric_fid.fid_features_to_statistics(values) for values in (fake, real)]
    theirs = metric_fid.fid_statistics_to_metric(*statistics, verbose=False)
    ours = Frechet()(real=real_set, fake=fake_set)
    assert ours["fd_d"] == pytest.approx(theirs["frechet_inception_distance"], rel=rel)


@pytest.mark.parametrize(("dtype", "rel"), [(torch.float64, 1e-9), (torch.float32, 1e-4)])
def test_kid(dtype: torch.dtype, rel: float) -> None:
    # In float32 it sums a million kernels of about 1 in float32, whose differences are the result.
    real, fake, real_set, fake_set = sets(dtype)
    theirs = metric_kid.kid_features_to_metric(
        fake, real, kid_subsets=20, kid_subset_size=300, rng_seed=2020, verbose=False
    )
    ours = KID(subsets=20, subset_size=300)(real=real_set, fake=fake_set)
    assert ours["kid_d"] == pytest.approx(theirs["kernel_inception_distance_mean"], rel=rel)
    assert ours["kid_std_d"] == pytest.approx(theirs["kernel_inception_distance_std"], rel=rel)


@pytest.mark.parametrize("shuffle", [True, False])
def test_inception_score(shuffle: bool) -> None:
    logits = 3 * features(503, 1008, 2, torch.float32)
    theirs = metric_isc.isc_features_to_metric(logits, splits=10, shuffle=shuffle, rng_seed=2020)
    fake = FeatureSet.from_values(detector="inception_logits", values=logits)
    ours = InceptionScore(shuffle=shuffle)(real=fake, fake=fake)
    assert ours["is_inception_logits"] == pytest.approx(theirs["inception_score_mean"], rel=1e-9)
    assert ours["is_std_inception_logits"] == pytest.approx(theirs["inception_score_std"], rel=1e-9)
    assert theirs["inception_score_mean"] > 1.5


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_precision_and_recall(dtype: torch.dtype) -> None:
    real, fake, real_set, fake_set = sets(dtype)
    theirs = metric_prc.prc_features_to_metric(fake, real, prc_neighborhood=3, verbose=False)
    ours = PRDC(k=3, rule="<=")(real=real_set, fake=fake_set)
    assert ours["precision_d"] == pytest.approx(theirs["precision"], rel=1e-6)
    assert ours["recall_d"] == pytest.approx(theirs["recall"], rel=1e-6)
    assert 0 < theirs["recall"] != theirs["precision"] < 1
