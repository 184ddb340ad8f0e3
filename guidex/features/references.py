"""References: statistics that were published, statistics of our own, images, or a model's data.

They are opened first, which tells all that is known of them before any network runs. Statistics are
of one detector and one way to resize, and are refused at once where they do not fit.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from guidex.errors import UsageError
from guidex.features.detectors import Detector
from guidex.features.features import FeatureSet
from guidex.features.samples import PassSettings, Samples, model_samples, open_samples
from guidex.features.statistics_files import ADM, BARE, StatisticsFile, read_statistics
from guidex.files.cache import fetch, file_sha256

_EDM2 = "https://nvlabs-fi-cdn.nvidia.com/edm2/dataset-refs"
# Where statistics are published that papers compare with, by the names that people know.
_PUBLISHED = {name: f"{_EDM2}/{name}" for name in ("img512.pkl", "img64.pkl")}

NOT_RECORDED = "resize not recorded"

# What statistics must have in common with a detector.
_COMPARED = {"dim": "number of features", "resize": "way to resize", "weights": "weights"}


@dataclass(frozen=True, eq=False)
class Reference:
    """Statistics, samples, or (ADM's files) both, opened: nothing about it is damaged."""

    source: str  # path or URL as given, or name of a model
    path: Path | None  # the file, or a folder of images; None for a model's data
    file: StatisticsFile | None
    samples: Samples | None
    most: int | None = None  # number of single features that are taken of the file's; None: all

    def expected(self, detector: Detector, singles: bool = True) -> FeatureSet:
        """What it is to a detector, before any network runs; where there are statistics, with or
        without `singles`, the features of its images. Raises UsageError where its statistics are of
        another detector, resize, weights or dimension."""
        file, samples = self.file, self.samples
        # Of ADM's files, other detectors than those of the statistics take the images.
        if file is None or (samples is not None and detector.name not in file.sets):
            return samples.expected(detector)
        given, identity = self._statistics(detector).at_most(self.most), detector.identity
        made_by = {"name": given.detector}
        if identity.weights is not None:  # what published statistics do not say of themselves
            resize = identity.resize if given.detector == identity.name else "that of EDM2 (torch)"
            made_by["resize"] = NOT_RECORDED if file.kind == BARE else resize
            made_by["precision"] = "float32"
        about = {"path": self.source, "kind": file.kind, "sha256": self._sha256}
        about |= {"detector": made_by, **given.about}
        if samples is not None:
            about["features"] = samples.count
            about |= {key: samples.about[key] for key in ("shape", "formats")}
            if singles:
                images = samples.expected(detector)
                given = dataclasses.replace(given, values=images.values, labels=images.labels)
        return dataclasses.replace(given, detector=detector.name, about=about)

    def features(
        self, asked: Sequence[tuple[Detector, bool]], settings: PassSettings
    ) -> list[FeatureSet]:
        """The sets of different detectors and of whether their single features are needed (see
        `expected`), on the CPU; each image is decoded once for all of them."""
        sets = {detector: self.expected(detector, singles) for detector, singles in asked}
        run = [d for d, each in sets.items() if each.values is not None and each.values.is_meta]
        made = self.samples.features(run, settings) if run else []
        for detector, one in zip(run, made, strict=True):
            whole = dataclasses.replace(sets[detector], values=one.values, labels=one.labels)
            sets[detector] = whole
        return list(sets.values())

    def _statistics(self, detector: Detector) -> FeatureSet:
        """Those that a detector takes, if they are what it would have made."""
        name, file = detector.name, self.file
        # The interval paper's own code compares features after Pillow's resize with EDM2's file.
        if (file.kind, name) == ("EDM2", "dinov2_pil"):
            name = "dinov2"
        if name not in file.sets:
            raise UsageError(
                f"{self.path} ({file.kind}) holds statistics of {' and '.join(file.sets)}, not of "
                f"{name}, and numbers of two detectors or two ways to resize do not compare. Use "
                f"detector={' or detector='.join(file.sets)}, or a reference made with {name}."
            )
        given = file.sets[name]
        made_by = {"dim": given.dim} | given.about.get("detector", {})
        for key, what in _COMPARED.items():
            here = getattr(detector.identity, key)  # for which weights are downloaded
            if here is not None and made_by.get(key, here) != here:
                raise UsageError(
                    f"{self.path} ({file.kind}) is of {name} with another {what} ({made_by[key]} "
                    f"there, {here} here). Make it again with `guidex ref`, or use the same."
                )
        return given

    @cached_property
    def _sha256(self) -> str:
        return file_sha256(self.path)


def place_of(ref: str) -> str | None:
    """The path or URL that is meant, also by the name of published statistics; None of none."""
    path = Path(ref).expanduser()
    return ref if "://" in ref else str(path) if path.exists() else _PUBLISHED.get(ref)


def open_reference(
    source: str, *, resize: int | None, crop: bool = False, bad: str, most: int | None = None
) -> Reference:
    """Open a path or URL of statistics, images or a toy's points as the real side of comparisons,
    with `most` of its single images or features, chosen at random. The other arguments and the
    errors are those of `open_samples`."""
    path = fetch(source) if "://" in source else Path(source)
    file, samples = read_statistics(path), None
    if file is None or file.kind == ADM:
        samples = open_samples(str(path), resize=resize, crop=crop, bad=bad).at_most(most)
    return Reference(source, path, file, samples, most)


def open_model(model: object, name: str, most: int | None = None) -> Reference:
    """The data of a model as the real side of comparisons. Raises as `model_samples`."""
    return Reference(name, None, None, model_samples(model, name).at_most(most))


def describe(about: Mapping[str, Any]) -> str:
    """In one line: what it is, N, resolution, detector, resize and hash."""
    count, detector = about.get("count"), about.get("detector", {})
    noun = "samples" if "model" in about else "images"
    parts = [f"number of {noun} not recorded" if count is None else f"{count:,} {noun}"]
    if "of" in about:
        parts[0] += f" of {about['of']:,}, chosen at random"
    if "shape" in about:
        parts.append(f"{about['shape'][2]}x{about['shape'][1]}")
    if "features" in about:
        parts.append(f"single features of {about['features']:,}")
    if about.get("formats"):
        parts.append("/".join(about["formats"]))
    parts += [detector[key] for key in ("name", "resize", "precision") if key in detector]
    for what, digest in (("weights", detector.get("weights")), ("SHA-256", about.get("sha256"))):
        if digest is not None:
            parts.append(f"{what} {digest[:8]}")
    kind = f" ({about['kind']})" if "kind" in about else ""
    return f"{about.get('path', about.get('model'))}{kind}: {', '.join(parts)}"


def doubts_of_sides(*, real: Mapping[str, Any], fake: Mapping[str, Any]) -> list[str]:
    """Reasons to doubt a comparison, in whole sentences, from what is known of the two sides. What
    numbers of images do is up to metrics (see `Metric.doubts`)."""
    doubts = []
    formats = [about.get("formats", ()) for about in (real, fake)]
    if all(formats) and ("jpeg" in formats[0]) != ("jpeg" in formats[1]):
        text = ", fake ".join("/".join(sorted(names)) for names in formats)
        doubts.append(f"JPEG meets images without its losses (real {text}), which distances see.")
    shapes = [about.get("shape") for about in (real, fake)]
    if all(shapes) and shapes[0] != shapes[1]:
        text = " and ".join(f"{w}x{h}x{c}" for c, h, w in shapes)
        doubts.append(f"real and fake images differ in size or colour: {text}.")
    for key in ("precision", "resize"):
        told = [about.get("detector", {}).get(key) for about in (real, fake)]
        if all(told) and told[0] != told[1]:
            doubts.append(
                f"{real.get('path')} does not tell how its images were resized: with another way "
                f"than here ({told[1]}), as pytorch-fid has, FID moves by some 5 %."
                if told[0] == NOT_RECORDED
                else f"real and fake features differ in {key}: {' and '.join(told)}."
            )
    return doubts
