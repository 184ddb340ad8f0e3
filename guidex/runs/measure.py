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
from guidex.features.detectors import Detector, detector_record, output_of, resolved
from guidex.features.doubts import doubts_of_sides
from guidex.features.features import FeatureSet, SetDescription, check_comparable
from guidex.features.references import (
    Reference,
    open_model,
    open_reference,
    published_reference,
)
from guidex.features.samples import PassSettings
from guidex.metrics.metric import Metric, check_whole
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
        detector: that samples go through.
        metrics: by name.
        real: the reference; None where no metric needs one. Its features are made by
            `Measures.make_features`, and are on the device.
        part: of the protocol that this is; empty without one.
        fakes: number of samples that are chosen at random where there are more; None for all.
    """

    config: Config
    detector: Detector
    metrics: dict[str, Metric]
    real: SetDescription | None
    part: str = ""
    fakes: int | None = None

    @property
    def about_real(self) -> About:
        return {} if self.real is None else self.real.about

    @property
    def name(self) -> str:
        """Of the detector, in which columns end."""
        return self.detector.name

    @property
    def dim(self) -> int:
        """Number of features."""
        return self.detector.identity.dim if self.real is None else self.real.dim

    @property
    def needs_values(self) -> bool:
        """Whether a metric needs single features of the reference."""
        return any(
            metric.needs_reference and metric.needs_values for metric in self.metrics.values()
        )

    def check_samples(self, sample: Tensor) -> None:
        """Refuse samples that will not compare with the reference, by one of the same shape; no
        network is run."""
        fake = SetDescription(*output_of(self.detector, sample))
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
            metric.check_reference(self.real)
        if metric.needs_labels and not labelled:
            raise UsageError(f"{type(metric).__name__} needs classes of the samples.")
        metric.check_counts(real=self._reals(metric), fake=self.fakes or count, dim=self.dim)

    def _reals(self, metric: Metric) -> int | None:
        """Number of reals that a metric is given; None where that is not recorded or needed."""
        if not metric.needs_reference:
            return None
        return self.real.count if metric.needs_values else self.about_real["count"]

    def values(self, fakes: Sequence[FeatureSet]) -> dict[str, float]:
        """All metrics; of several repeats the median, with minimum, maximum, mean and standard
        deviation (n - 1) as further columns."""
        results = [self._values(fake) for fake in fakes]
        if len(results) == 1:
            return results[0]
        summary: dict[str, float] = {}
        for name in results[0]:
            values = [result[name] for result in results]
            tensor = torch.tensor(values, dtype=torch.float64)  # whose std takes infinity, too
            summary |= {
                name: statistics.median(values),
                f"{name}_min": min(values),
                f"{name}_max": max(values),
                f"{name}_mean": tensor.mean().item(),
                f"{name}_std": tensor.std().item(),
            }
        return summary

    def _values(self, fake: FeatureSet) -> dict[str, float]:
        fake = fake.at_most(self.fakes).to(self.config["device"])
        real = None if self.real is None else self.real.features
        values: dict[str, float] = {}
        for metric in self.metrics.values():
            values |= metric(real=real, fake=fake)
        return values

    def doubts(self, about_fake: About) -> list[str]:
        """What keeps the numbers from being compared with published ones.

        Arguments:
            about_fake: what there is to know about the samples.
        """
        record = detector_record(self.detector)
        doubts = []
        for metric in self.metrics.values():
            doubts += metric.doubts(
                real=self._reals(metric),
                fake=self.fakes or about_fake["count"],
                dim=self.dim,
                network=len(record) > 0,
            )
        return doubts + doubts_of_sides(real=self.about_real, fake=about_fake | record)

    @property
    def settings(self) -> dict[str, str]:
        """How it measures, in short, by subject."""
        settings, detector = {}, self.config["detector"]
        if self.real is not None:
            name = self.about_real.get("model", self.about_real.get("path"))
            count = self.about_real["count"]
            settings["reference"] = f"{name} ({'N not recorded' if count is None else count})"
        identity = self.detector.identity
        if identity.weights is not None:
            settings["resize"] = identity.resize
            if detector.get("weights") is not None:
                settings["weights"] = f"SHA-256 {identity.weights[:8]}"
        if detector.get("precision", "float32") != "float32":
            settings["precision"] = detector["precision"]
        if self.fakes is not None:
            settings["fakes"] = f"{self.fakes}, chosen at random"
        for metric in self.metrics.values():
            real = self.real.count if metric.needs_reference else None
            settings |= metric.caption(real=real, recorded=self.about_real.get("count"))
        return settings


class Detectors:
    """Detectors on their devices, each made once, whatever the number of points that ask for it."""

    def __init__(self) -> None:
        self._made: dict[str, Detector] = {}

    def get(self, config: Config, points: bool = False) -> Detector:
        """The detector of a configuration with the keys detector and device (not auto), for points
        or for images."""
        key = content_key([config["detector"], config["device"], points])
        if key not in self._made:
            made = instantiate(config["detector"], f"{_key(config)}detector", Models(), Detector)
            self._made[key] = resolved(made, points).to(config["device"])
        return self._made[key]


class Measures:
    """What configurations measure; detectors and references are made once.

    `get` opens references and refuses what cannot be measured; `make_features`, after the last
    `get`, makes the features of the references.

    Arguments:
        settings: how images of references go through detectors.
    """

    def __init__(self, settings: PassSettings) -> None:
        self._settings = settings
        self._detectors = Detectors()
        self._references: dict[str, Reference] = {}
        self._descriptions: dict[tuple[Reference, Detector], SetDescription] = {}
        self._measures: list[tuple[Reference, Measure]] = []
        self._notices: set[str] = set()

    def get(
        self,
        config: Config,
        model: Denoiser | None = None,
        name: str = "",
        *,
        count: int,
        chosen: bool = True,
        labelled: bool = True,
        points: bool = False,
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
            points: whether the samples are no images.

        Raises:
            UsageError: no such reference, one that lacks what a metric needs, or too few images.
            GuidexError: a damaged file.
        """
        parts = []
        for part in _parts(config):
            metrics = instantiate(
                part["metrics"], f"{_key(part)}metrics", Models(), dict[str, Metric]
            )
            detector = self._detectors.get(part, points)
            for metric in metrics.values():
                metric.check_detector(detector.name)
            parts.append((part, detector, metrics))
        measures = []
        for part, detector, metrics in parts:
            reference = real = None
            if _need_reference(metrics):
                reference = self._reference(part, model, name)
                real = self._description(reference, detector)
            most = part.get("fakes")
            fakes = most if most is not None and most < count else None
            measure = Measure(part, detector, metrics, real, part.get("part", ""), fakes)
            measure = self._possible(measure, count, chosen, labelled)
            if _need_reference(measure.metrics):
                self._measures.append((reference, measure))
            measures.append(measure)
        return measures

    def make_features(self) -> None:
        """Make the features of references that metrics need; the images of each go through all
        detectors in one pass."""
        for reference in dict.fromkeys(reference for reference, _ in self._measures):
            groups: dict[Detector, list[Measure]] = {}
            for other, measure in self._measures:
                if other is reference:
                    groups.setdefault(measure.detector, []).append(measure)
            asked = [
                (detector, any(measure.needs_values for measure in group))
                for detector, group in groups.items()
            ]
            sets = reference.features(asked, self._settings)
            for (measure, *_), features in zip(groups.values(), sets, strict=True):
                # Metrics are computed on the device.
                measure.real.features = features.to(measure.config["device"])

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
        if notice not in self._notices and self._settings.rank == 0:
            print(notice)
        self._notices.add(notice)

    def _reference(self, config: Config, model: Denoiser | None, name: str) -> Reference:
        """The reference of a configuration, opened once."""
        names = ["ref", "resize", "crop", "bad", "device", "reals"]
        names += ["model"] if config["ref"] == "auto" else []
        key = content_key({name: config.get(name) for name in names})
        if key not in self._references:
            self._references[key] = self._open(config, model, name)
        return self._references[key]

    def _description(self, reference: Reference, detector: Detector) -> SetDescription:
        """What the reference is to the detector, asked once."""
        if (reference, detector) not in self._descriptions:
            self._descriptions[reference, detector] = reference.description(detector)
        return self._descriptions[reference, detector]

    def _open(self, config: Config, model: Denoiser | None, name: str) -> Reference:
        """A path or URL, the data of a model by name, or of the one at hand: `auto`."""
        ref, most = str(config["ref"]), config.get("reals")
        if config["ref"] is None:
            raise UsageError("ref must be given, for example ref=FOLDER or ref=STATISTICS.npz")
        if ref == "auto" and model is not None:
            return open_model(model, name, most)
        path = str(Path(ref).expanduser())
        named, there = ref in options("model"), Path(path).exists()
        if named and there:
            self._tell(
                f"ref={ref} is the data of the model of that name; write ref=./{ref} for what is "
                "called so here"
            )
        if named:
            preset = compose("sample", [f"model={ref}"]).config["model"]
            loaded = load_model(instantiate(preset, "model", Models(), Model), config["device"])
            return open_model(loaded, ref, most)
        if "://" in ref:
            path = ref
        elif not there:
            path = published_reference(ref)
        if path is None:
            similar = nearest(ref, options("model"))
            raise UsageError(
                f"ref={ref}: no such file or folder, and no model of that name{similar}"
            )
        return open_reference(
            path,
            resize=config.get("resize"),
            crop=config.get("crop", False),
            bad=config.get("bad", "error"),
            most=most,
        )


def are_metrics_chosen(words: Sequence[str]) -> bool:
    """Whether the words of a command choose metrics, by themselves or by an experiment."""
    keys = {word.partition("=")[0].partition(".")[0] for word in words}
    return not keys.isdisjoint({"metrics", "protocol", "experiment"})


def _parts(config: Config) -> list[Config]:
    """A configuration for each part of the protocol; without one, itself. What is null is left
    out."""
    protocol = config.get("protocol")
    if not protocol:
        return [{**config, "metrics": _without_null(config["metrics"], "metrics")}]
    parts = []
    for name, part in protocol.items():
        if part is None:
            continue
        if not isinstance(part, dict) or not isinstance(part["detector"], dict):
            raise UsageError(
                f"protocol.{name}: a part of a protocol is changed by its keys, such as "
                f"protocol.{name}.detector.weights=FILE, or left out by protocol.{name}=null"
            )
        for key in ("reals", "fakes"):
            if part.get(key) is not None:
                check_whole(f"protocol.{name}.{key}", part[key], least=1)
        metrics = _without_null(part["metrics"], f"protocol.{name}.metrics")
        if metrics:
            keys = {key: part.get(key) for key in ("detector", "reals", "fakes")}
            ref = config["ref"] if part["ref"] is None else part["ref"]
            parts.append({**config, **keys, "metrics": metrics, "ref": ref, "part": name})
    times = Counter(
        (content_key(part["detector"]), metric) for part in parts for metric in part["metrics"]
    )
    for (_, metric), number in times.items():
        if number > 1:
            raise UsageError(
                f"two parts of the protocol measure {metric} by one detector; leave it out of one "
                f"of them: protocol.….metrics.{metric}=null"
            )
    return parts


def _key(config: Config) -> str:
    """What the keys of one of `_parts` begin with."""
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
    return list(dict.fromkeys(measure.detector for measure in measures))


def _need_reference(metrics: dict[str, Metric]) -> bool:
    return any(metric.needs_reference for metric in metrics.values())


def warn(warnings: Sequence[str]) -> None:
    """Say each of them once, on stderr."""
    for warning in dict.fromkeys(warnings):
        print(f"guidex: warning: {warning}", file=sys.stderr)


def settings_of(measures: Sequence[Measure]) -> dict[str, Any]:
    """How a row was measured, in short; its configuration says it in full."""
    names = [measure.name for measure in measures]
    if len(set(names)) < len(names):  # parts of a protocol that share a detector
        names = [measure.part or measure.name for measure in measures]
    each = [{"detector": measure.name, **measure.settings} for measure in measures]
    merged: dict[str, Any] = {}
    for key in dict.fromkeys(key for settings in each for key in settings):
        values = [settings.get(key) for settings in each]
        if key != "detector" and len(set(values)) > 1:
            named = zip(values, names, strict=True)
            values = [f"{value} ({name})" for value, name in named if value is not None]
        merged[key] = ", ".join(dict.fromkeys(values))
    return merged


def repeats_of(features: FeatureSet, repeats: int) -> list[FeatureSet]:
    """A set cut into as many equal parts, in order."""
    size = features.count // repeats
    return [features.rows(slice(first, first + size)) for first in range(0, size * repeats, size)]
