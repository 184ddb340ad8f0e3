"""What all metrics have in common: columns, needs, smallest counts, options; and how to add one."""

import math
from pathlib import Path
from typing import Any

import helpers
import numpy as np
import pytest
import torch

import guidex.metrics
from guidex.cli import main
from guidex.errors import UsageError
from guidex.features.features import FeatureSet
from guidex.features.statistics import GaussianStatistics
from guidex.metrics.accuracy import KNNAccuracy
from guidex.metrics.cmmd import CMMD
from guidex.metrics.frechet import Frechet
from guidex.metrics.frechet_infinity import FrechetInfinity
from guidex.metrics.inception_score import InceptionScore
from guidex.metrics.kid import KID
from guidex.metrics.metric import Metric, column_of
from guidex.metrics.mind import MIND
from guidex.metrics.prdc import PRDC
from guidex.metrics.toy_quality import ToyQuality

DIM = 5

# Each with the numbers of reals and of fakes that just suffice.
METRICS: list[tuple[Metric, int, int]] = [
    (Frechet(), 2, 2),
    (Frechet(confidence="jackknife"), 2, 40),
    (FrechetInfinity(sizes=3, smallest=10), 2, 13),
    (FrechetInfinity(sizes=3, tenth=True), 2, 20),
    (PRDC(k=3), 4, 4),
    (KID(subset_size=7), 7, 7),
    (MIND(), 2, 2),
    (CMMD(), 2, 2),
    (KNNAccuracy(k=3), 3, 1),
    (InceptionScore(splits=4), 1, 4),
]


def feature_set(count: int, detector: str = "inception_logits") -> FeatureSet:
    labels = (torch.arange(count) % 3 == 0).long()  # not balanced
    return helpers.feature_set(helpers.normal(count, DIM, seed=count), labels, detector)


@pytest.mark.parametrize(("metric", "reals", "fakes"), METRICS)
def test_too_few_images_are_refused_before_the_computation(
    metric: Metric, reals: int, fakes: int
) -> None:
    assert metric(real=feature_set(reals), fake=feature_set(fakes))
    for side, real, fake in (("real", reals - 1, fakes), ("fake", reals, fakes - 1)):
        if 0 in (real, fake):  # no such set, or any number will do
            continue
        there = real if side == "real" else fake
        expected = f"at least {there + 1} {side} images, and has {there}; use more"
        sets = [FeatureSet.expected("inception_logits", count, DIM, True) for count in (real, fake)]
        with pytest.raises(UsageError, match=expected):
            metric.check(real=sets[0], fake=sets[1])


@pytest.mark.parametrize("metric", [metric for metric, *_ in METRICS])
def test_sets_that_lack_something_are_refused(metric: Metric) -> None:
    whole, other = feature_set(60), feature_set(60, "dinov2")
    detector, name = whole.detector, type(metric).__name__
    statistics = GaussianStatistics.from_features(whole.values)
    given = FeatureSet(detector, given_statistics=statistics)
    unlabelled = helpers.feature_set(whole.values, detector=detector)
    narrow = helpers.feature_set(whole.values[:, 1:], detector=detector)
    cases = []
    if metric.needs_reference:
        cases += [(other, whole, "'dinov2', fake ones of 'inception_logits'")]
        cases += [(whole, narrow, "5 dimensions, fake ones 4")]
    else:
        cases += [(None, other, "use detector=inception_logits")]
    if metric.needs_fake_values:
        cases += [(whole, given, f"{name} compares single images; give those of the fake set")]
    if metric.needs_reference and metric.needs_values:
        cases += [(given, whole, f"{name} compares single images; give those of the real set")]
    if metric.needs_labels:
        cases += [(unlabelled, whole, "compares classes, but the real set .* has no labels")]
        cases += [(whole, unlabelled, "compares classes, but the fake set .* has no labels")]
    else:
        assert metric(real=unlabelled, fake=unlabelled)
    for real, fake, text in cases:
        with pytest.raises(UsageError, match=text):
            metric(real=real, fake=fake)


@pytest.mark.parametrize("metric", [metric for metric, *_ in METRICS])
def test_columns_are_those_declared(metric: Metric) -> None:
    numbers = metric(real=feature_set(60), fake=feature_set(50))
    assert all(type(number) is float for number in numbers.values())
    names = [name for name in numbers if name.endswith("_inception_logits")]
    assert names == [f"{column.name}_inception_logits" for column in metric.columns]
    for name, column in zip(names, metric.columns, strict=True):
        assert column_of(name) == (column, "inception_logits")
        assert not column.is_share or 0 <= numbers[name] <= 1


def test_another_detector_or_no_truth_is_refused_before_any_image() -> None:
    InceptionScore().check_detector("inception_logits")
    KID().check_detector("inception")
    for detector in ("inception", None):
        with pytest.raises(UsageError, match="InceptionScore.*use detector=inception_logits"):
            InceptionScore().check_detector(detector)
    with pytest.raises(UsageError, match="closed form"):
        ToyQuality().check(real=feature_set(9), fake=feature_set(9))


@pytest.mark.parametrize(
    ("metric", "options", "message"),
    [
        (Frechet, {"level": 95}, "above 0 and below 1"),
        (Frechet, {"seed": -1}, "seed is -1; it must be a whole number of at least 0"),
        (FrechetInfinity, {"sizes": 1}, "sizes is 1; it must be a whole number"),
        (PRDC, {"k": True}, "k is True; it must be a whole number"),
        (PRDC, {"reals": 3}, "reals is 3; it must be a whole number of at least 4"),
        (PRDC, {"fakes": 10.5}, "fakes is 10.5"),
        (KID, {"subset_size": 1}, "whole number"),
        (MIND, {"projections": 0}, "whole number"),
        (CMMD, {"sigma": 0}, "must be a number above 0"),
        (CMMD, {"sigma": math.inf}, "must be a number above 0"),
        (KNNAccuracy, {"k": 0}, "whole number"),
        (InceptionScore, {"splits": 0}, "whole number"),
        (ToyQuality, {"quantile": 0.001, "draws": 5000}, "at least 10000 draws"),
        (ToyQuality, {"share": 1.5}, "share is 1.5"),
    ],
)
def test_impossible_options_are_refused(
    metric: type[Metric], options: dict[str, Any], message: str
) -> None:
    with pytest.raises(UsageError, match=message):
        metric(**options)


def test_captions_tell_the_options() -> None:
    most = PRDC(rule="<=", reals=10, fakes=20, equal=True, arithmetic="adm")
    for metric, captions in (
        (Frechet(), {}),
        (Frechet("jackknife"), {"FD interval without finite-sample bias": "jackknife 0.95"}),
        (PRDC(), {"precision/recall": "k=3, <"}),
        (
            most,
            {
                "precision/recall": "k=3, <=, 10 real, at most 20 fake, as many of each side, "
                "float16 distances"
            },
        ),
        (ToyQuality(), {"outliers": "below the 0.01 quantile"}),
    ):
        assert metric.caption(real=50, recorded=50) == captions


SHIFT = """
from dataclasses import dataclass

from guidex.features.features import FeatureSet
from guidex.metrics.metric import Column, Fewest, Metric


@dataclass(frozen=True)
class Shift(Metric):
    scale: float = 1.0

    columns = (Column("shift", "Shift", "lower", digits=1),)

    def fewest(self, dim: int) -> Fewest:
        return Fewest(real=3)

    def compute(self, real: FeatureSet, fake: FeatureSet) -> dict[str, float]:
        shift = fake.values.mean(dim=0) - real.values.mean(dim=0)
        return {"shift": self.scale * float(shift.norm())}
"""


def test_a_new_metric_is_one_class_and_one_yaml(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    # As if the folders held them.
    monkeypatch.setattr(guidex.metrics, "__path__", [*guidex.metrics.__path__, str(tmp_path)])
    (tmp_path / "shift.py").write_text(SHIFT)
    (tmp_path / "configs/metrics").mkdir(parents=True)
    (tmp_path / "configs/metrics/shift.yaml").write_text(
        "# How far the means are apart.\nshift:\n"
        "  _target_: guidex.metrics.shift.Shift\n  scale: 2.0\n"
    )
    monkeypatch.chdir(tmp_path)
    for name, value in (("reals", 0), ("fakes", 255)):
        np.savez(f"{name}.npz", np.full((4, 2, 2, 1), value, np.uint8))
    words = ["eval", "fakes.npz", "ref=reals.npz", "detector=pixels", "metrics=[shift]"]
    assert main([*words, "out=out", "--config-dir", "configs"]) == 0
    printed = capsys.readouterr().out
    assert "Shift ↓" in printed and "8.0" in printed
