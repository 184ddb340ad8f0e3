"""Metrics of feature sets, over repeats."""

import dataclasses
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from guidex.config import Config, compose
from guidex.errors import UsageError
from guidex.evaluation.detectors import Detector
from guidex.evaluation.features import FeatureSet, Metric, check_reference
from guidex.evaluation.references import reference_features
from guidex.evaluation.sources import detector_record, model_features
from guidex.instantiate import Models, content_key, instantiate
from guidex.models.denoiser import Denoiser
from guidex.presets import nearest, options
from guidex.runs.points import models_on


class Detectors:
    """Detectors on their devices, each made once, whatever the number of points that ask for it."""

    def __init__(self) -> None:
        self._made: dict[str, Detector] = {}

    def get(self, config: Config) -> Detector:
        """The detector of a configuration with the keys detector and device (not auto)."""
        key = content_key([config["detector"], config["device"]])
        if key not in self._made:
            made = instantiate(config["detector"], "detector", Models(finish=None))
            self._made[key] = made.to(config["device"])
        return self._made[key]


class References:
    """Reference sets, each made once.

    Arguments:
        models: where models that know their data come from.
        batch: images per batch.
    """

    def __init__(self, models: Models, batch: int) -> None:
        self._models, self._batch = models, batch
        self._made: dict[str, tuple[FeatureSet, dict[str, object]]] = {}

    def get(
        self, config: Config, detector: Detector, model: Denoiser | None, name: str = ""
    ) -> tuple[FeatureSet, dict[str, object]]:
        """The reference of a configuration: `ref: auto`, a path or URL, or a model's name.

        Arguments:
            config: has ref and detector, maybe model, resize, bad and cache.
            detector: made from the configuration.
            model: what "auto" stands for.
            name: the model's name, for people.

        Raises:
            UsageError: no such path or model.
        """
        names = ("ref", "detector", "model", "resize", "bad")
        key = content_key({name: config.get(name) for name in names})
        if key not in self._made:
            self._made[key] = self._make(config, detector, model, name)
        return self._made[key]

    def _make(
        self, config: Config, detector: Detector, model: Denoiser | None, name: str
    ) -> tuple[FeatureSet, dict[str, object]]:
        ref = str(config["ref"])
        if ref == "auto" and model is not None:
            features = model_features(model, detector)
            return features, self._about(name, features, detector)
        if Path(ref).exists() or "://" in ref:
            return reference_features(
                ref,
                detector,
                resize=config.get("resize"),
                bad=config.get("bad", "error"),
                batch=self._batch,
                cache=config.get("cache", True),
            )
        if ref not in options("model"):
            known = nearest(ref, options("model"))
            raise UsageError(f"ref={ref}: no such file or folder, and no model of that name{known}")
        named = instantiate(
            compose("sample", [f"model={ref}"]).config["model"], "model", self._models
        )
        features = model_features(named, detector)
        return features, self._about(ref, features, detector)

    def _about(self, name: str, features: FeatureSet, detector: Detector) -> dict[str, object]:
        return {"model": name, "count": features.count, **detector_record(detector)}


def make_metrics(config: Config) -> dict[str, Metric]:
    """The metrics of a configuration, by name."""
    return instantiate(config["metrics"], "metrics", Models(finish=None))


def check_metrics(metrics: dict[str, Metric], real: FeatureSet) -> None:
    """Refuse a reference that lacks what a metric needs, before any image is made."""
    for metric in metrics.values():
        check_reference(metric, real)


def measure(
    metrics: dict[str, Metric], real: FeatureSet, fakes: Sequence[FeatureSet]
) -> dict[str, float]:
    """All metrics; of several repeats the median, with minimum and maximum as further columns."""
    results = [
        {
            name: value
            for metric in metrics.values()
            for name, value in metric(real=real, fake=fake).items()
        }
        for fake in fakes
    ]
    if len(results) == 1:
        return results[0]
    summary: dict[str, float] = {}
    for name in results[0]:
        values = [result[name] for result in results]
        summary[name] = statistics.median(values)
        summary[f"{name}_min"], summary[f"{name}_max"] = min(values), max(values)
    return summary


def settings_of(config: Config, real: FeatureSet, about: dict[str, object]) -> dict[str, Any]:
    """How a row was measured, in short; its configuration says it in full."""
    settings: dict[str, Any] = {"detector": real.detector, "reference": _reference(about)}
    if config["detector"].get("precision", "float32") != "float32":
        settings["precision"] = config["detector"]["precision"]
    metrics = config["metrics"]
    if "frechet" in metrics and metrics["frechet"]["confidence"] != "none":
        settings["FD interval without finite-sample bias"] = (
            f"{metrics['frechet']['confidence']} {metrics['frechet']['level']}"
        )
    if "prdc" in metrics:
        settings["precision/recall"] = f"k={metrics['prdc']['k']}, {metrics['prdc']['rule']}"
    if "accuracy" in metrics:
        settings["accuracy"] = f"k={metrics['accuracy']['k']}"
    if "toy" in metrics:
        settings["outliers"] = f"below the {metrics['toy']['quantile']} quantile"
    return settings


def _reference(about: dict[str, object]) -> str:
    name = about.get("model", about.get("path"))
    count = about["count"]
    return f"{name} ({'N not recorded' if count is None else count})"


def repeats_of(features: FeatureSet, repeats: int) -> list[FeatureSet]:
    """A set cut into as many equal parts, in order."""
    size = features.count // repeats
    parts = []
    for first in range(0, size * repeats, size):
        labels = None if features.labels is None else features.labels[first : first + size]
        parts.append(
            dataclasses.replace(
                features, count=size, values=features.values[first : first + size], labels=labels
            )
        )
    return parts


def reference_models() -> Models:
    """Models for references on the CPU, where metrics are computed."""
    return models_on("cpu")
