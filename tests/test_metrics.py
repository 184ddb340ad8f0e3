"""What all metrics have in common: columns, needs, smallest counts, options; and how to add one."""

import math
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import guidex
from guidex.config.presets import config_dir
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
    (Frechet(confidence="bootstrap"), 2, 40),
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
    return FeatureSet.from_values(
        detector=detector,
        values=torch.randn(count, DIM, generator=torch.Generator().manual_seed(count)),
        labels=(torch.arange(count) % 3 == 0).long(),  # not balanced
    )


@pytest.mark.parametrize(("metric", "reals", "fakes"), METRICS)
def test_too_few_images_are_refused_before_the_computation(
    metric: Metric, reals: int, fakes: int
) -> None:
    metric.check_counts(real=reals, fake=fakes, dim=DIM)
    metric.check_counts(real=None, fake=fakes, dim=DIM)  # not recorded
    assert metric(real=feature_set(reals), fake=feature_set(fakes))
    for side, real, fake in (("real", reals - 1, fakes), ("fake", reals, fakes - 1)):
        if 0 in (real, fake):  # no such set, or any number will do
            continue
        there = real if side == "real" else fake
        expected = f"at least {there + 1} {side} images, but there (is|are) {there}; use more"
        with pytest.raises(UsageError, match=expected) as before:
            metric.check_counts(real=real, fake=fake, dim=DIM)
        with pytest.raises(UsageError) as computed:
            metric(real=feature_set(real), fake=feature_set(fake))
        assert str(before.value) == str(computed.value)


@pytest.mark.parametrize("metric", [metric for metric, *_ in METRICS])
def test_sets_that_lack_something_are_refused(metric: Metric) -> None:
    whole, other = feature_set(60), feature_set(60, "dinov2")
    given = FeatureSet.from_statistics(
        detector="inception_logits", statistics=GaussianStatistics.from_features(whole.values)
    )
    unlabelled = FeatureSet.from_values(detector="inception_logits", values=whole.values)
    if metric.needs_reference:
        with pytest.raises(UsageError, match="'dinov2', fake ones of 'inception_logits'"):
            metric(real=other, fake=whole)
        narrow = FeatureSet.from_values(detector=other.detector, values=other.values[:, 1:])
        with pytest.raises(UsageError, match="5 dimensions, fake ones 4"):
            metric(real=other, fake=narrow)
    else:
        with pytest.raises(UsageError, match="dinov2; use detector=inception_logits"):
            metric(real=None, fake=other)
    name = type(metric).__name__
    single = rf"{name} compares single images, but of the {{}} set .*inception_logits, 60 images\)"
    if metric.needs_fake_values:
        with pytest.raises(UsageError, match=single.format("fake")):
            metric(real=whole, fake=given)
    if metric.needs_reference and metric.needs_values:
        for refused in (metric.check_reference, lambda real: metric(real=real, fake=whole)):
            with pytest.raises(UsageError, match=single.format("real")):
                refused(given)
    elif metric.needs_reference:
        assert metric(real=given, fake=whole)
    if metric.needs_labels:
        for real, fake, side in ((unlabelled, whole, "real"), (whole, unlabelled, "fake")):
            with pytest.raises(UsageError, match=f"compares classes, but the {side} set .* has no"):
                metric(real=real, fake=fake)
    else:
        assert metric(real=unlabelled, fake=unlabelled)


@pytest.mark.parametrize("metric", [metric for metric, *_ in METRICS])
def test_columns_are_those_declared(metric: Metric) -> None:
    numbers = metric(real=feature_set(60), fake=feature_set(50))
    assert all(type(number) is float for number in numbers.values())
    names = [name for name in numbers if name.endswith("_inception_logits")]
    assert names == [f"{column.name}_inception_logits" for column in metric.columns]
    for name, column in zip(names, metric.columns, strict=True):
        assert column_of(name) == (column, "inception_logits")
        assert not column.is_share or 0 <= numbers[name] <= 1


def test_another_detector_is_refused_before_any_image() -> None:
    InceptionScore().check_detector("inception_logits")
    KID().check_detector("inception")
    for detector in ("inception", None):
        with pytest.raises(UsageError, match="InceptionScore.*use detector=inception_logits"):
            InceptionScore().check_detector(detector)


def test_a_truth_that_is_needed_is_asked_for() -> None:
    for refused in (ToyQuality().check_reference, lambda real: ToyQuality()(real=real, fake=real)):
        with pytest.raises(UsageError, match="closed form"):
            refused(feature_set(9))


@pytest.mark.parametrize(
    ("metric", "options", "message"),
    [
        (Frechet, {"confidence": "percentile"}, "none, bootstrap or jackknife"),
        (Frechet, {"level": 95}, "above 0 and below 1"),
        (Frechet, {"resamples": 200.5}, "resamples is 200.5; it must be a whole number"),
        (Frechet, {"seed": -1}, "seed is -1; it must be a whole number of at least 0"),
        (Frechet, {"confidence": "bootstrap", "level": 0.99, "resamples": 199}, "at least 200"),
        (FrechetInfinity, {"sizes": 1}, "sizes is 1; it must be a whole number"),
        (PRDC, {"k": True}, "k is True; it must be a whole number"),
        (PRDC, {"rule": ">"}, '"<" or "<="'),
        (PRDC, {"arithmetic": "half"}, "it must be exact or adm"),
        (PRDC, {"reals": 3}, "reals is 3; it must be a whole number of at least 4"),
        (PRDC, {"fakes": 10.5}, "fakes is 10.5"),
        (KID, {"subsets": 0}, "whole number"),
        (KID, {"subset_size": 1}, "whole number"),
        (MIND, {"projections": 0}, "whole number"),
        (CMMD, {"sigma": 0}, "must be a number above 0"),
        (CMMD, {"sigma": math.inf}, "must be a number above 0"),
        (CMMD, {"sigma": "10"}, "must be a number above 0"),
        (KNNAccuracy, {"k": 0}, "whole number"),
        (InceptionScore, {"splits": 0}, "whole number"),
        (ToyQuality, {"quantile": 0.0}, "quantile is 0.0"),
        (ToyQuality, {"quantile": 0.001, "draws": 5000}, "at least 10000 draws"),
        (ToyQuality, {"share": 1.5}, "share is 1.5"),
        (ToyQuality, {"min_expected": 9.5}, "min_expected is 9.5"),
    ],
)
def test_impossible_options_are_refused(
    metric: type[Metric], options: dict[str, Any], message: str
) -> None:
    with pytest.raises(UsageError, match=message):
        metric(**options)


def test_captions_tell_the_options() -> None:
    assert Frechet().caption(real=9, recorded=9) == {}
    interval = Frechet("jackknife").caption(real=9, recorded=9)
    assert interval == {"FD interval without finite-sample bias": "jackknife 0.95"}
    assert PRDC().caption(real=9, recorded=9) == {"precision/recall": "k=3, <"}
    most = PRDC(rule="<=", reals=10, fakes=20, equal=True, arithmetic="adm")
    assert most.caption(real=50, recorded=None) == {
        "precision/recall": "k=3, <=, 10 real, at most 20 fake, as many of each side, "
        "float16 distances"
    }
    assert ToyQuality().caption(real=9, recorded=9) == {"outliers": "below the 0.01 quantile"}


SHIFT = """
from guidex.features.features import FeatureSet
from guidex.metrics.metric import Column, Fewest, Metric


class Shift(Metric):
    columns = (Column("shift", "Shift", "lower", digits=1),)

    def __init__(self, scale: float = 1.0) -> None:
        self.scale = scale

    def fewest(self, dim: int) -> list[Fewest]:
        return [Fewest(real=3)]

    def compute(self, real: FeatureSet, fake: FeatureSet) -> dict[str, float]:
        shift = fake.values.mean(dim=0) - real.values.mean(dim=0)
        return {"shift": self.scale * float(shift.norm())}
"""


def test_a_new_metric_is_one_class_and_one_yaml(tmp_path: Path) -> None:
    shutil.copytree(Path(guidex.__file__).parent, tmp_path / "guidex")
    shutil.copytree(config_dir(), tmp_path / "configs", dirs_exist_ok=True)
    (tmp_path / "guidex/metrics/shift.py").write_text(SHIFT)
    (tmp_path / "configs/metrics/shift.yaml").write_text(
        "# How far the means are apart.\nshift:\n"
        "  _target_: guidex.metrics.shift.Shift\n  scale: 2.0\n"
    )
    for name, value in (("reals", 0), ("fakes", 255)):
        np.savez(tmp_path / f"{name}.npz", np.full((4, 2, 2, 1), value, np.uint8))

    def run(*words: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "guidex", "eval", "fakes.npz", "ref=reals.npz", *words]
        environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
        return subprocess.run(
            command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300
        )

    made = run("detector=pixels", "metrics=[shift]", "out=out")
    assert made.returncode == 0, made.stderr
    assert "Shift ↓" in made.stdout and "8.0" in made.stdout
    refused = run("detector=pixels", "metrics=[shift]", "out=two", "metrics.shift.size=1")
    assert "metrics.shift.size" in refused.stderr
