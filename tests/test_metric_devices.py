"""Metrics of features on a GPU: the numbers of the CPU, and no operation that mixes devices.

Where there is no GPU, a device is pretended: tensors that say that they are elsewhere, compute on
the CPU, and refuse to meet tensors that are there.
"""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

from guidex.features.features import FeatureSet
from guidex.features.statistics import GaussianStatistics
from guidex.metrics.accuracy import KNNAccuracy
from guidex.metrics.cmmd import CMMD
from guidex.metrics.frechet import Frechet
from guidex.metrics.frechet_infinity import FrechetInfinity
from guidex.metrics.inception_score import InceptionScore
from guidex.metrics.kid import KID
from guidex.metrics.metric import Metric
from guidex.metrics.mind import MIND
from guidex.metrics.prdc import PRDC

ELSEWHERE = torch.device("lazy", 0)  # the only type that torch lets be without a driver


class Elsewhere(Tensor):
    """A tensor on the pretended device."""

    @staticmethod
    def __new__(cls, here: Tensor) -> "Elsewhere":
        made = Tensor._make_wrapper_subclass(
            cls, here.shape, strides=here.stride(), dtype=here.dtype, device=ELSEWHERE
        )
        made.here = here
        return made

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _dispatch(func, args, kwargs or {})


class Pretended(TorchDispatchMode):
    """Where operations know the pretended device."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _dispatch(func, args, kwargs or {})


def _dispatch(func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    tensors = [value for value in tree_leaves((args, kwargs)) if isinstance(value, Tensor)]
    away = any(isinstance(value, Elsewhere) for value in tensors)
    name, device = func.overloadpacket.__name__, kwargs.pop("device", None)
    if away and name != "_to_copy":
        # As on a GPU, numbers may be on the CPU, and indices into tensors that are elsewhere.
        indexed = name in ("index", "index_put_")
        for value in args[:1] if indexed else tensors:
            assert isinstance(value, Elsewhere) or value.ndim == 0, f"{func} mixes devices"
    if device is not None:
        away = torch.device(device) == ELSEWHERE
        kwargs["device"] = "cpu"
    result = func(*tree_map(_here, args), **tree_map(_here, kwargs))
    if not away:
        return result
    if name.endswith("_") and not name.endswith("__"):
        return args[0]
    return tree_map(lambda value: Elsewhere(value) if isinstance(value, Tensor) else value, result)


def _here(value: object) -> object:
    return value.here if isinstance(value, Elsewhere) else value


def features(count: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return (torch.randn(count, 16, generator=generator) + 0.1 * seed).relu()


METRICS: dict[str, Metric] = {
    "frechet": Frechet(),
    "jackknife": Frechet("jackknife"),
    "infinity": FrechetInfinity(smallest=50),
    "kid": KID(subsets=3, subset_size=100),
    "mind": MIND(projections=100),
    "prdc": PRDC(),
    "prdc of adm": PRDC(arithmetic="adm"),
    "accuracy": KNNAccuracy(),
    "inception score": InceptionScore(),
    "cmmd": CMMD(),
}


def evaluated(metric: Metric, put: Callable[[Tensor], Tensor], known: bool) -> dict[str, float]:
    """The numbers of a metric where features are put somewhere, and of the reals maybe only
    statistics are known, on the CPU."""
    detector = "inception_logits" if isinstance(metric, InceptionScore) else "d"
    sides = []
    for seed, count in enumerate((900, 700)):
        values, labels = features(count, seed), torch.arange(count) % 5
        sides.append(FeatureSet(detector, put(values), labels))
    if not known:
        statistics = GaussianStatistics.from_features(features(900, 0))
        sides[0] = FeatureSet(detector, given_statistics=statistics)
    return metric(real=sides[0], fake=sides[1])


@pytest.mark.parametrize(
    ("name", "known"),
    [(name, True) for name in METRICS]
    + [(name, False) for name, metric in METRICS.items() if not metric.needs_values],
)
def test_features_on_another_device_give_the_same_numbers(name: str, known: bool) -> None:
    expected = evaluated(METRICS[name], torch.clone, known)
    if torch.cuda.is_available():
        found = evaluated(METRICS[name], Tensor.cuda, known)
    else:
        with Pretended():
            found = evaluated(METRICS[name], Elsewhere, known)
    assert list(found) == list(expected)
    assert found == pytest.approx(expected, rel=1e-9)


@pytest.mark.skipif(torch.cuda.is_available(), reason="nothing is pretended where there is a GPU")
def test_the_pretended_device_notices_what_a_gpu_would() -> None:
    with Pretended(), pytest.raises(AssertionError, match="mixes devices"):
        Elsewhere(torch.ones(3)) + torch.ones(3)
