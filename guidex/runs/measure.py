"""What is measured, by what, against what: detectors, metrics and references of a configuration."""

import dataclasses
import statistics
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from guidex.config.compose import Config, compose
from guidex.config.instantiate import Models, content_key, instantiate
from guidex.config.presets import nearest, options
from guidex.errors import UsageError
from guidex.features.detectors import Detector
from guidex.features.doubts import concerns
from guidex.features.features import (
    FeatureSet,
    Metric,
    check_comparable,
    check_detector,
    check_reference,
    check_whole,
)
from guidex.features.references import Real, Reference, open_model, open_reference, seen_by
from guidex.features.samples import Looking, detector_record
from guidex.features.weights import published_reference
from guidex.models.denoiser import Denoiser
from guidex.models.spec import Model
from guidex.models.spec import load as load_model

# What is known of a set of images, as plain data.
About = dict[str, object]


@dataclass(frozen=True)
class Measure:
    """One detector and what is computed from its features.

    Attributes:
        config: whose keys detector, metrics and ref made it.
        detector: what looks at samples.
        metrics: by name.
        real: the reference; None where no metric needs one. Its features are made by
            `Measures.look`, and are on the device.
        part: of the protocol that this is; empty without one.
        fakes: number of samples that are chosen at random where there are more; None for all.
    """

    config: Config
    detector: Detector
    metrics: dict[str, Metric]
    real: Real | None
    part: str = ""
    fakes: int | None = None

    @property
    def about_real(self) -> About:
        """What there is to know about the reference."""
        return {} if self.real is None else self.real.about

    @property
    def name(self) -> str:
        """Of the detector, in which columns end."""
        return str(self.detector.name) if self.real is None else self.real.detector

    @property
    def dim(self) -> int:
        """Number of features."""
        return self.detector.identity.dim if self.real is None else self.real.dim

    def check_samples(self, sample: Tensor) -> None:
        """Refuse samples that will not compare with the reference, by one of the same shape; no
        network is run."""
        fake = seen_by(self.detector, sample)
        if self.real is not None:
            check_comparable(real=self.real, fake=fake)

    def check(self, metric: Metric, count: int, labelled: bool) -> None:
        """Refuse a metric that the reference or the samples lack something for.

        Arguments:
            metric: one of `metrics`.
            count: number of samples.
            labelled: whether they have classes.
        """
        if metric.needs_reference:
            check_reference(metric, self.real)
        if metric.needs_labels and not labelled:
            raise UsageError(f"{type(metric).__name__} needs classes of the samples.")
        counts = {"real": self._reals(metric), "fake": self.fakes or count}
        metric.check_counts(**counts, dim=self.dim)

    def _reals(self, metric: Metric) -> int | None:
        """Number of reals that a metric sees; None where it is not recorded, or it needs none."""
        if not metric.needs_reference:
            return None
        return self.real.count if metric.needs_values else self.about_real["count"]

    def values(self, fakes: Sequence[FeatureSet]) -> dict[str, float]:
        """All metrics; of several repeats the median, with minimum, maximum, mean and standard
        deviation (n - 1) as further columns."""
        device = self.config["device"]
        results = [self._values(fake.at_most(self.fakes).to(device)) for fake in fakes]
        if len(results) == 1:
            return results[0]
        summary: dict[str, float] = {}
        for name in results[0]:
            values = [result[name] for result in results]
            summary[name] = statistics.median(values)
            summary[f"{name}_min"], summary[f"{name}_max"] = min(values), max(values)
            tensor = torch.tensor(values, dtype=torch.float64)  # whose std takes infinity, too
            summary[f"{name}_mean"], summary[f"{name}_std"] = (
                tensor.mean().item(),
                tensor.std().item(),
            )
        return summary

    def _values(self, fake: FeatureSet) -> dict[str, float]:
        values: dict[str, float] = {}
        real = None if self.real is None else self.real.features
        for metric in self.metrics.values():
            values |= metric(real=real, fake=fake)
        return values

    def concerns(self, about_fake: About) -> list[str]:
        """What keeps the numbers from being compared with published ones.

        Arguments:
            about_fake: what there is to know about the samples.
        """
        record = detector_record(self.detector)
        found = []
        for metric in self.metrics.values():
            found += metric.doubts(
                real=self._reals(metric),
                fake=self.fakes or about_fake["count"],
                detector=self.name,
                dim=self.dim,
                network=len(record) > 0,
            )
        return found + concerns(real=self.about_real, fake=about_fake | record)


class Detectors:
    """Detectors on their devices, each made once, whatever the number of points that ask for it."""

    def __init__(self) -> None:
        self._made: dict[str, Detector] = {}

    def get(self, config: Config) -> Detector:
        """The detector of a configuration with the keys detector and device (not auto)."""
        key = content_key([config["detector"], config["device"]])
        if key not in self._made:
            made = instantiate(config["detector"], f"{_key(config)}detector", Models(), Detector)
            self._made[key] = made.to(config["device"])
        return self._made[key]


class Measures:
    """What configurations measure; detectors and references are made once.

    `get` opens references and refuses what cannot be measured; `look`, after the last `get`, makes
    the features of the references.

    Arguments:
        how: how images of references get to detectors.
    """

    def __init__(self, how: Looking) -> None:
        self._how = how
        self._detectors = Detectors()
        self._opened: dict[str, Reference] = {}
        self._reals: dict[str, Real] = {}
        self._users: dict[Reference, dict[Real, list[Measure]]] = {}
        self._told: set[str] = set()

    def get(
        self,
        config: Config,
        model: Denoiser | None = None,
        name: str = "",
        *,
        count: int,
        chosen: bool = True,
        labelled: bool = True,
    ) -> list[Measure]:
        """What a configuration measures: that of its protocol, or of its detector and metrics.

        Arguments:
            config: has detector, metrics, protocol, ref and device, maybe model, resize, crop, bad.
            model: what `ref: auto` stands for.
            name: the model's name, for people.
            count: number of samples that are measured together.
            chosen: whether somebody chose the metrics. Of those by default, what the reference or
                the samples lack something for is left out, with a notice.
            labelled: whether the samples have classes.

        Raises:
            UsageError: no such reference, one that lacks what a metric needs, or too few images.
            GuidexError: a damaged file.
        """
        configs = _configs(config)
        detectors = [self._detectors.get(one) for one in configs]
        kind = dict[str, Metric]
        metrics = [
            instantiate(one["metrics"], f"{_key(one)}metrics", Models(), kind) for one in configs
        ]
        for detector, some in zip(detectors, metrics, strict=True):
            for metric in some.values():
                check_detector(metric, detector.name)
        measures = []
        for one, detector, some in zip(configs, detectors, metrics, strict=True):
            reference = real = None
            if _need_reference(some):
                reference = self._reference(one, model, name)
                real = self._real(one, detector, reference)
            most = one.get("fakes")
            fakes = most if most is not None and most < count else None
            measure = Measure(one, detector, some, real, one.get("part", ""), fakes)
            measure = self._possible(measure, count, chosen, labelled)
            if _need_reference(measure.metrics):
                self._users.setdefault(reference, {}).setdefault(real, []).append(measure)
            measures.append(measure)
        return measures

    def look(self) -> None:
        """Make the features of references that metrics need; the images of each go through all
        detectors in one pass."""
        for reference, users in self._users.items():
            asked = [
                (
                    measures[0].detector,
                    any(metric.needs_values for one in measures for metric in one.metrics.values()),
                )
                for measures in users.values()
            ]
            found = reference.features(asked, self._how)
            for (real, measures), features in zip(users.items(), found, strict=True):
                # Metrics are computed on the device.
                real.features = features.to(measures[0].config["device"])

    def _possible(self, measure: Measure, count: int, chosen: bool, labelled: bool) -> Measure:
        """With the metrics that the reference and the samples have all for."""
        possible = {}
        for name, metric in measure.metrics.items():
            try:
                measure.check(metric, count, labelled)
                possible[name] = metric
            except UsageError as error:
                if measure.part:
                    part = f"protocol.{measure.part}"
                    raise UsageError(
                        f"{part}: {error} {part}.ref=… gives it a reference of its own, "
                        f"{part}.metrics.{name}=null leaves the metric out."
                    ) from error
                if chosen:
                    raise
                self._tell(f"{name} is left out: {error}")
        return dataclasses.replace(measure, metrics=possible)

    def _tell(self, notice: str) -> None:
        """Print it, once, by the first process."""
        if notice not in self._told and self._how.rank == 0:
            print(notice)
        self._told.add(notice)

    def _reference(self, config: Config, model: Denoiser | None, name: str) -> Reference:
        """The reference of a configuration, opened once."""
        key = content_key(_source(config))
        if key not in self._opened:
            self._opened[key] = self._open(config, model, name)
        return self._opened[key]

    def _real(self, config: Config, detector: Detector, reference: Reference) -> Real:
        """What the reference is to the detector, asked once."""
        key = content_key(_source(config) | {"detector": config["detector"]})
        if key not in self._reals:
            self._reals[key] = reference.real(detector)
        return self._reals[key]

    def _open(self, config: Config, model: Denoiser | None, name: str) -> Reference:
        """A path or URL, the data of a model by name, or of the one at hand: `auto`."""
        ref = str(config["ref"])
        if config["ref"] is None:
            raise UsageError("ref must be given, for example ref=FOLDER or ref=STATISTICS.npz")
        if ref == "auto" and model is not None:
            return open_model(model, name, config.get("reals"))
        path = str(Path(ref).expanduser())
        named = ref in options("model")
        if not named and not Path(path).exists():
            ref = published_reference(ref) or ref
        if named and Path(path).exists():
            self._tell(
                f"ref={ref} is the data of the model of that name; write ref=./{ref} for what is "
                "called so here"
            )
        elif Path(path).exists() or "://" in ref:
            return open_reference(
                ref if "://" in ref else path,
                resize=config.get("resize"),
                crop=config.get("crop", False),
                bad=config.get("bad", "error"),
                most=config.get("reals"),
            )
        if not named:
            known = nearest(ref, options("model"))
            raise UsageError(f"ref={ref}: no such file or folder, and no model of that name{known}")
        found = compose("sample", [f"model={ref}"]).config["model"]
        model = instantiate(found, "model", Models(), Model)
        return open_model(load_model(model, config["device"]), ref, config.get("reals"))


def are_metrics_chosen(words: Sequence[str]) -> bool:
    """Whether the words of a command choose metrics, by themselves or by an experiment."""
    keys = {word.partition("=")[0].partition(".")[0] for word in words}
    return not keys.isdisjoint({"metrics", "protocol", "experiment"})


def _configs(config: Config) -> list[Config]:
    """A configuration for each part of the protocol; without one, itself. What is null is left
    out."""
    protocol = config.get("protocol")
    if not protocol:
        return [{**config, "metrics": _without_null(config["metrics"], "metrics")}]
    configs = []
    for name, part in protocol.items():
        if part is None:
            continue
        if not isinstance(part, dict) or not isinstance(part["detector"], dict):
            raise UsageError(
                f"protocol.{name}: a part of a protocol is changed by its keys, such as "
                f"protocol.{name}.detector.weights=FILE, or left out by protocol.{name}=null"
            )
        metrics = _without_null(part["metrics"], f"protocol.{name}.metrics")
        for key in ("reals", "fakes"):
            if part.get(key) is not None:
                check_whole(f"protocol.{name}.{key}", part[key], least=1)
        own = {key: part.get(key) for key in ("detector", "reals", "fakes")}
        ref = config["ref"] if part["ref"] is None else part["ref"]
        if metrics:
            configs.append({**config, **own, "metrics": metrics, "ref": ref, "part": name})
    made = Counter(
        (content_key(one["detector"]), name) for one in configs for name in one["metrics"]
    )
    if any(times > 1 for times in made.values()):
        (_, metric), _ = made.most_common(1)[0]
        raise UsageError(
            f"two parts of the protocol measure {metric} by one detector; leave it out of one of "
            f"them: protocol.….metrics.{metric}=null"
        )
    return configs


def _key(config: Config) -> str:
    """What the keys of one of `_configs` begin with."""
    return f"protocol.{config['part']}." if "part" in config else ""


def _without_null(metrics: object, key: str) -> Config:
    if not isinstance(metrics, dict):
        raise UsageError(
            f"{key} is {metrics!r}; change a metric by its name, such as {key}.frechet.seed=1, or "
            f"leave it out by {key}.frechet=null"
        )
    return {name: metric for name, metric in metrics.items() if metric is not None}


def detectors_of(measures: Sequence[Measure]) -> list[Detector]:
    """The detectors of measures, each once."""
    return list(dict.fromkeys(one.detector for one in measures))


def _need_reference(metrics: dict[str, Metric]) -> bool:
    return any(metric.needs_reference for metric in metrics.values())


def _source(config: Config) -> Config:
    """What a reference depends on, whatever the detector, and where its features go."""
    names = ["ref", "resize", "crop", "bad", "device", "reals"]
    names += ["model"] if config["ref"] == "auto" else []
    return {name: config.get(name) for name in names}


def warn(warnings: Sequence[str]) -> None:
    """Say each of them once, on stderr."""
    for warning in dict.fromkeys(warnings):
        print(f"guidex: warning: {warning}", file=sys.stderr)


def settings_of(measures: Sequence[Measure]) -> dict[str, Any]:
    """How a row was measured, in short; its configuration says it in full."""
    names = [one.name for one in measures]
    if len(set(names)) < len(names):  # parts of a protocol that share a detector
        names = [one.part or one.name for one in measures]
    found = [{"detector": one.name, **_settings(one)} for one in measures]
    merged: dict[str, Any] = {}
    for key in dict.fromkeys(key for one in found for key in one):
        values = [one.get(key) for one in found]
        if key == "detector" or len(set(values)) == 1:
            merged[key] = ", ".join(dict.fromkeys(values))
        else:
            merged[key] = ", ".join(
                f"{value} ({name})"
                for value, name in zip(values, names, strict=True)
                if value is not None
            )
    return merged


def _settings(measure: Measure) -> dict[str, str]:
    config = measure.config
    metrics = {name: config["metrics"][name] for name in measure.metrics}
    settings = {} if measure.real is None else {"reference": _reference(measure.about_real)}
    identity = measure.detector.identity
    if identity is not None and identity.weights is not None:
        settings["resize"] = identity.resize
        if config["detector"].get("weights") is not None:
            settings["weights"] = f"SHA-256 {identity.weights[:8]}"
    if config["detector"].get("precision", "float32") != "float32":
        settings["precision"] = config["detector"]["precision"]
    if "frechet" in metrics and metrics["frechet"]["confidence"] != "none":
        settings["FD interval without finite-sample bias"] = (
            f"{metrics['frechet']['confidence']} {metrics['frechet']['level']}"
        )
    if measure.fakes is not None:
        settings["fakes"] = f"{measure.fakes}, chosen at random"
    if "prdc" in metrics:
        options = metrics["prdc"]
        text = f"k={options['k']}, {options['rule']}"
        used = min(measure.real.count, options["reals"] or measure.real.count)
        if used != measure.about_real["count"]:
            text += f", {used} real"
        if options["fakes"] is not None:
            text += f", at most {options['fakes']} fake"
        text += ", as many of each side" if options["equal"] else ""
        text += ", float16 distances" if options["arithmetic"] == "adm" else ""
        settings["precision/recall"] = text
    if "accuracy" in metrics:
        settings["accuracy"] = f"k={metrics['accuracy']['k']}"
    if "toy" in metrics:
        settings["outliers"] = f"below the {metrics['toy']['quantile']} quantile"
    return settings


def _reference(about: About) -> str:
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
