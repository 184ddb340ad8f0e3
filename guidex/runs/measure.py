"""What is measured, by what, against what: detectors, metrics and references of a configuration."""

import dataclasses
import statistics
import sys
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from guidex.config.compose import Config, compose
from guidex.config.instantiate import Models, content_key, instantiate
from guidex.config.presets import nearest, options
from guidex.errors import UsageError
from guidex.features.detectors import Detector, detector_record, features_of, resolved
from guidex.features.features import FeatureSet, check_comparable
from guidex.features.references import (
    Reference,
    describe,
    doubts_of_sides,
    open_model,
    open_reference,
    place_of,
)
from guidex.features.samples import PassSettings
from guidex.metrics.metric import Metric, check_whole
from guidex.models.denoiser import Denoiser
from guidex.models.spec import Model
from guidex.models.spec import load as load_model

FEWEST_REPEATS = 3  # that tell how sure their mean is


@dataclass(frozen=True, kw_only=True)
class Part:
    """What is measured by one detector: settings of a part of a protocol, or of a whole command.

    Attributes:
        detector, metrics, model: configurations; of metrics by name.
        device: where detectors and metrics work.
        name: of the part; "" without a protocol.
        reals, fakes: samples of each side, chosen at random where there are more; None for all.
        resize, crop, bad: how images of the reference are read.
    """

    detector: Config
    metrics: Config
    ref: Any
    device: str
    name: str = ""
    model: Config | None = None
    reals: int | None = None
    fakes: int | None = None
    resize: int | None = None
    crop: bool = False
    bad: str = "error"

    @property
    def key(self) -> str:
        """What the keys of its configuration begin with."""
        return f"protocol.{self.name}." if self.name else ""

    @property
    def reading(self) -> list[Any]:
        """The reference, and how it is read."""
        return [self.ref, self.reals, self.resize, self.crop, self.bad]


def parts_of(config: Config) -> list[Part]:
    """The parts of a configuration's protocol, one by one; without one, the whole."""
    fields = [each.name for each in dataclasses.fields(Part) if each.name != "name"]
    whole = {name: config[name] for name in fields if name in config}
    protocol = config.get("protocol") or {"": whole}
    parts, measured = [], set()
    for name, own in protocol.items():
        if own is None:
            continue
        if not isinstance(own, dict) or not all(
            isinstance(own[key], dict) for key in ("detector", "metrics")
        ):
            raise UsageError(
                f"protocol.{name}: a part of a protocol is changed by its keys, such as "
                f"protocol.{name}.detector.weights=FILE; a part or a metric is left out by null, "
                f"as protocol.{name}=null or protocol.{name}.metrics.frechet=null"
            )
        for key in ("reals", "fakes"):
            if own.get(key) is not None:
                check_whole(f"protocol.{name}.{key}", own[key], least=1)
        metrics = {metric: each for metric, each in own["metrics"].items() if each is not None}
        ref = config["ref"] if own["ref"] is None else own["ref"]
        part = Part(**{**whole, **own, "name": name, "metrics": metrics, "ref": ref})
        if part.metrics or not name:
            parts.append(part)
        for metric in metrics:
            column = (content_key(part.detector), metric)
            if column in measured:
                raise UsageError(
                    f"two parts of the protocol measure {metric} by one detector; leave it out of "
                    f"one of them: {part.key}metrics.{metric}=null"
                )
            measured.add(column)
    return parts


@dataclass
class Measure:
    """One detector and what is computed from its features.

    Attributes:
        metrics: by name; only those that reference and samples have all for.
        reference: what is compared with, opened; None where no metric needs one.
        real: what the reference is to the detector. Its features are made by
            `Measures.make_features`, and are on the device.
        fakes: number of samples that are chosen at random where there are more; None for all.
    """

    part: Part
    detector: Detector
    metrics: dict[str, Metric]
    reference: Reference | None = None
    real: FeatureSet | None = None
    fakes: int | None = None

    @property
    def about_real(self) -> Config:
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
    def needs_reference(self) -> bool:
        return any(metric.needs_reference for metric in self.metrics.values())

    @property
    def needs_values(self) -> bool:
        """Whether a metric needs single features of the reference."""
        return any(each.needs_reference and each.needs_values for each in self.metrics.values())

    @property
    def columns(self) -> dict[str, str | None]:
        """Those of tables, and which of their values are the better ones."""
        columns = [column for metric in self.metrics.values() for column in metric.columns]
        return {f"{column.name}_{self.name}": column.better for column in columns}

    def decides(self, name: str) -> list[Any]:
        """What the numbers of a metric depend on, but for the samples, as plain data."""
        about = self.about_real if self.metrics[name].needs_reference else {}
        detector = dataclasses.asdict(self.detector.identity)
        reading = self.part.reading if about else []
        return [self.part.metrics[name], detector, about, reading, self.fakes]

    @property
    def inputs(self) -> list[tuple[str, str]]:
        """Role and place, as one text, and SHA-256 of the files that its numbers depend on."""
        inputs, identity = [], self.detector.identity
        if "path" in self.about_real:
            inputs.append((f"ref {self.about_real['path']}", self.about_real["sha256"]))
        if identity.weights is not None:
            place = self.part.detector.get("weights") or ""
            inputs.append((f"detector {identity.name} {place}".strip(), identity.weights))
        return inputs

    def check_samples(self, sample: Tensor) -> None:
        """Refuse samples that will not compare with the reference, by one of the same shape; no
        network is run."""
        fake = FeatureSet.expected(self.name, 1, features_of(self.detector, sample), False)
        if self.real is not None:
            check_comparable(real=self.real, fake=fake)

    def measured(
        self, fakes: FeatureSet, repeats: int = 1, blockwise: bool = True
    ) -> tuple[dict[str, float], dict[str, list[float]]]:
        """All metrics by column, and with `blockwise` their pseudo-values (see
        `metrics.differences`).

        Of repeats, as many equal parts in order, the median, with minimum, maximum, mean and
        standard deviation (n - 1) as further columns; and the pseudo-values of one after the other,
        or, of metrics without such, the repeats themselves.
        """
        results: list[dict[str, float]] = []
        pseudovalues: dict[str, list[float]] = {}
        size = fakes.count // repeats
        for first in range(0, size * repeats, size):
            fake = fakes.rows(slice(first, first + size)).at_most(self.fakes).to(self.part.device)
            results.append({})
            for metric in self.metrics.values():
                numbers, blocks = metric.measured(real=self.real, fake=fake, blockwise=blockwise)
                results[-1] |= numbers
                for name, each in blocks.items():
                    pseudovalues.setdefault(name, []).extend(each)
        if len(results) == 1:
            return results[0], pseudovalues
        summary: dict[str, float] = {}
        for name in results[0]:
            values = [result[name] for result in results]
            tensor = torch.tensor(values, dtype=torch.float64)  # whose std takes infinity, too
            if blockwise and len(values) >= FEWEST_REPEATS and tensor.isfinite().all():
                pseudovalues.setdefault(name, values)
            summary |= {
                name: statistics.median(values),
                f"{name}_min": min(values),
                f"{name}_max": max(values),
                f"{name}_mean": tensor.mean().item(),
                f"{name}_std": tensor.std().item(),
            }
        return summary, pseudovalues

    def doubts(self, about_fake: Config) -> list[str]:
        """What keeps the numbers from being compared with published ones, given what there is to
        know about the samples."""
        record = detector_record(self.detector)
        doubts = []
        for metric in self.metrics.values():
            reals = self.about_real.get("count")
            if metric.needs_reference and metric.needs_values:
                reals = self.real.count
            doubts += metric.doubts(
                real=reals,
                fake=self.fakes or about_fake["count"],
                dim=self.dim,
                network=len(record) > 0,
            )
        return doubts + doubts_of_sides(real=self.about_real, fake=about_fake | record)

    @property
    def settings(self) -> dict[str, str]:
        """How it measures, in short, by subject."""
        settings, identity = {"detector": self.name}, self.detector.identity
        if self.real is not None:
            name = self.about_real.get("model", self.about_real.get("path"))
            count = self.about_real["count"]
            settings["reference"] = f"{name} ({'N not recorded' if count is None else count})"
        if identity.weights is not None:
            settings["resize"] = identity.resize
            if self.part.detector.get("weights") is not None:
                settings["weights"] = f"SHA-256 {identity.weights[:8]}"
            if identity.precision != "float32":
                settings["precision"] = identity.precision
        if self.fakes is not None:
            settings["fakes"] = f"{self.fakes}, chosen at random"
        for metric in self.metrics.values():
            real = self.real.count if metric.needs_reference else None
            settings |= metric.caption(real=real, recorded=self.about_real.get("count"))
        return settings


def make_detector(config: Config, key: str = "detector", points: bool = False) -> Detector:
    """The detector of a configuration, called by its key, on its device (not auto), for points or
    for images."""
    made = instantiate(config["detector"], key, Models(), Detector)
    return resolved(made, points).to(config["device"])


class Measures:
    """What configurations measure; detectors and references are made once, and told."""

    def __init__(self, settings: PassSettings) -> None:
        self._settings = settings
        self._made: dict[Hashable, Any] = {}
        self._measures: list[Measure] = []

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
        """What a configuration, with the keys of `Part` and maybe a protocol, measures of `count`
        samples, `labelled` or not, images or `points`.

        Arguments:
            model, name: what `ref: auto` stands for, and its name.
            chosen: whether somebody chose the metrics. Of those by default, what the reference or
                the samples lack something for is left out, with a notice.

        Raises:
            UsageError: no such reference, one that lacks what a metric needs, or too few images.
            GuidexError: a damaged file.
        """
        measures = self.detected(config, points)
        for measure in measures:  # references come last: to open one may take a download
            self._compare(measure, model, name)
            self._leave_out(measure, count, chosen, labelled)
        self._measures += measures
        return measures

    def detected(self, config: Config, points: bool = False) -> list[Measure]:
        """The same with all metrics, and before references are opened."""
        measures = []
        for part in parts_of(config):
            metrics = instantiate(part.metrics, f"{part.key}metrics", Models(), dict[str, Metric])
            make = partial(make_detector, vars(part), f"{part.key}detector", points)
            detector = self._once(content_key([part.detector, part.device, points]), make)
            for metric in metrics.values():
                metric.check_detector(detector.name)
            measures.append(Measure(part, detector, metrics))
        return measures

    def make_features(self) -> None:
        """After the last `get`: make the features of references that metrics need; the images of
        each go through all detectors in one pass."""
        groups: dict[Reference, dict[Detector, list[Measure]]] = {}
        for measure in self._measures:
            if measure.needs_reference:
                detectors = groups.setdefault(measure.reference, {})
                detectors.setdefault(measure.detector, []).append(measure)
        for reference, detectors in groups.items():
            asked = [
                (detector, any(measure.needs_values for measure in measures))
                for detector, measures in detectors.items()
            ]
            sets = reference.features(asked, self._settings)
            for measures, features in zip(detectors.values(), sets, strict=True):
                real = features.to(measures[0].part.device)  # where metrics are computed
                for measure in measures:
                    measure.real = real

    def _once(self, key: Hashable, make: Callable[[], Any]) -> Any:
        """What is made under a key, at its first use."""
        if key not in self._made:
            self._made[key] = make()
        return self._made[key]

    def _tell(self, notice: str) -> None:
        """Print it, once, by the first process."""
        if self._settings.rank == 0:
            self._once(notice, partial(print, notice))

    def _compare(self, measure: Measure, model: Denoiser | None, name: str) -> None:
        """Set its reference, and what that is to the detector."""
        if not measure.needs_reference:
            return
        part, detector = measure.part, measure.detector
        key = content_key([part.reading, part.device, part.model if part.ref == "auto" else None])
        measure.reference = reference = self._once(key, lambda: reference_of(part, model, name))
        measure.real = self._once((reference, detector), lambda: reference.expected(detector))
        if part.ref != "auto":
            self._tell(f"real: {describe(measure.about_real)}")

    def _leave_out(self, measure: Measure, count: int, chosen: bool, labelled: bool) -> None:
        """Leave out metrics that the reference or the samples lack something for."""
        part = measure.part
        measure.fakes = part.fakes if part.fakes is not None and part.fakes < count else None
        dim = measure.dim or 1  # not known yet of pixels that are compared with nothing
        fake = FeatureSet.expected(measure.name, measure.fakes or count, dim, labelled)
        for name, metric in list(measure.metrics.items()):
            try:
                metric.check(real=measure.real, fake=fake)
            except UsageError as error:
                if part.name:
                    raise UsageError(
                        f"protocol.{part.name}: {error} {part.key}ref=… gives it a reference of "
                        f"its own, {part.key}metrics.{name}=null leaves the metric out."
                    ) from error
                if chosen:
                    raise
                self._tell(f"{name} is left out: {error}")
                del measure.metrics[name]


def reference_of(part: Part, model: Denoiser | None, name: str) -> Reference:
    """Open a path or URL, the data of a model by name, or of the one at hand: `auto`. Raises as
    `Measures.get`."""
    ref = str(part.ref)
    if part.ref is None:
        raise UsageError("ref must be given, for example ref=FOLDER or ref=STATISTICS.npz")
    if ref == "auto" and model is not None:
        return open_model(model, name, part.reals)
    if ref in options("model"):
        preset = compose("sample", [f"model={ref}"]).config["model"]
        loaded = load_model(instantiate(preset, "model", Models(), Model), part.device)
        return open_model(loaded, ref, part.reals)
    if (place := place_of(ref)) is None:
        similar = nearest(ref, options("model"))
        raise UsageError(f"ref={ref}: no such file or folder, and no model of that name{similar}")
    return open_reference(place, resize=part.resize, crop=part.crop, bad=part.bad, most=part.reals)


def are_metrics_chosen(words: Sequence[str]) -> bool:
    """Whether the words of a command choose metrics, by themselves or by an experiment."""
    keys = {word.partition("=")[0].partition(".")[0] for word in words}
    return not keys.isdisjoint({"metrics", "protocol", "experiment"})


def warn(warnings: Sequence[str]) -> None:
    """Say each of them once, on stderr."""
    for warning in dict.fromkeys(warnings):
        print(f"guidex: warning: {warning}", file=sys.stderr)


def settings_of(measures: Sequence[Measure]) -> dict[str, Any]:
    """How a row was measured, in short; its configuration says it in full."""
    names = [measure.name for measure in measures]
    if len(set(names)) < len(names):  # parts of a protocol that share a detector
        names = [measure.part.name or measure.name for measure in measures]
    each = [measure.settings for measure in measures]
    merged: dict[str, Any] = {}
    for key in dict.fromkeys(key for settings in each for key in settings):
        values = [settings.get(key) for settings in each]
        if key != "detector" and len(set(values)) > 1:
            named = zip(values, names, strict=True)
            values = [f"{value} ({name})" for value, name in named if value is not None]
        merged[key] = ", ".join(dict.fromkeys(values))
    return merged
