"""References: statistics that were published, statistics of our own, images, or a model's data.

They are opened first, which tells all that there is to know of them, and looked at by networks
later. Statistics are of one detector and one way to resize, and compare with no other; they are
refused where they do not fit, at once.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from guidex.errors import UsageError
from guidex.features.detectors import Detector, Identity, detect
from guidex.features.doubts import NOT_RECORDED
from guidex.features.features import FeatureSet
from guidex.features.samples import (
    Looking,
    Samples,
    detector_record,
    model_features,
    model_samples,
    open_samples,
)
from guidex.features.statistics_files import BARE, StatisticsFile, read_statistics
from guidex.files.cache import fetch, file_sha256
from guidex.files.progress import download_bar
from guidex.models.denoiser import ExactDenoiser


@dataclass(eq=False)
class Real:
    """The real side of a comparison by one detector, as it is known before any network looks.

    Attributes:
        detector, dim, has_labels, truth: as of the `FeatureSet` to come.
        count: number of single images, where there are any; otherwise that of the statistics, 0
            where it is not recorded.
        has_values: whether there are single images, or features of them.
        about: what there is to know, as plain data; its count is of the images that statistics are
            of, None where it is not recorded.
        features: None until somebody makes them (see `Reference.features`) and puts them here.
    """

    detector: str
    dim: int
    count: int
    has_values: bool
    has_labels: bool
    truth: ExactDenoiser | None
    about: dict[str, Any]
    features: FeatureSet | None = None


class Reference(Protocol):
    """A reference that is open: nothing about it is wrong, and no network has looked at it."""

    def real(self, detector: Detector) -> Real:
        """What it is to a detector.

        Raises:
            UsageError: statistics of another detector, resize, weights or dimension.
        """
        ...

    def features(self, asked: Sequence[tuple[Detector, bool]], how: Looking) -> list[FeatureSet]:
        """Features for detectors, on the CPU; each image is decoded once for all of them.

        Arguments:
            asked: the detectors, each with whether single features are needed where there are
                statistics. Where not, no image goes through it.
            how: how images get to detectors.
        """
        ...


class Seen(NamedTuple):
    """Name of a detector and number of features D that it gives."""

    detector: str
    dim: int


def seen_by(detector: Detector, sample: Tensor) -> Seen:
    """What a detector will make of samples. No network is run to tell.

    Arguments:
        sample: something like them, uint8 [1, C, H, W] or floating [1, d].

    Raises:
        UsageError: the detector does not look at such samples.
    """
    identity = detector.identity
    if identity is not None and identity.dim is not None and sample.dtype == torch.uint8:
        return Seen(identity.name, identity.dim)
    seen = detect(detector, sample, None)
    return Seen(seen.detector, seen.dim)


def open_reference(
    source: str, *, resize: int | None, crop: bool = False, bad: str, most: int | None = None
) -> Reference:
    """Open a file or folder as the real side of comparisons.

    Arguments:
        source: path or URL of statistics (see `statistics_files`), of images, or of a toy's points.
        resize, crop, bad: as for `open_samples`; statistics are what they are.
        most: of the single images or features, no more than so many, chosen at random.

    Raises:
        UsageError: no such file.
        GuidexError: a damaged file.
    """
    path = _fetched(source) if "://" in source else Path(source)
    file = read_statistics(path)
    samples = None
    if file is None or file.has_images:
        samples = open_samples(str(path), resize=resize, crop=crop, bad=bad).at_most(most)
    return _FileReference(source, path, file, samples, most)


def open_model(model: object, name: str, most: int | None = None) -> Reference:
    """The data of a model that knows them, `most` of them at most, as the real side of comparisons.

    Raises:
        UsageError: the model does not know them.
    """
    samples, labels = model_samples(model)
    return _ModelReference(model, name, samples, labels is not None, most)


@dataclass(frozen=True, eq=False)
class _FileReference:
    """Statistics, images, or (ADM's files) both.

    Attributes:
        source: as given.
        path: the file, or a folder of images.
        file: the statistics, or None.
        samples: the images or points, or None.
        most: number of single features that are taken of the file's, or None for all.
    """

    source: str
    path: Path
    file: StatisticsFile | None
    samples: Samples | None
    most: int | None

    def real(self, detector: Detector) -> Real:
        if not self._has_statistics(detector):
            name, dim = seen_by(detector, self.samples.one())
            about = self.samples.about | detector_record(detector)
            return Real(name, dim, self.samples.count, True, self.samples.has_labels, None, about)
        name, file = _chosen(self.file, detector.identity, self.path), self.file
        dim = file.statistics[name].dim
        shown = name if detector.identity is None else detector.identity.name
        about = {
            "path": self.source,
            "kind": file.kind,
            "count": file.count,
            "sha256": self._sha256,
            "detector": _by_protocol(name, detector.identity, file),
            **file.record,
        }
        if self.samples is None:
            singles, labels = file.values is not None, file.labels is not None
            count = min(self._recorded, self.most or self._recorded) if singles else self._recorded
            return Real(shown, dim, count, singles, labels, None, about)
        images = self.samples.images
        about |= {
            "features": len(images),
            "shape": list(images.shape),
            "formats": sorted(images.kinds),
        }
        return Real(shown, dim, len(images), True, self.samples.has_labels, None, about)

    def features(self, asked: Sequence[tuple[Detector, bool]], how: Looking) -> list[FeatureSet]:
        lookers = [
            detector
            for detector, singles in asked
            if self.samples is not None and (singles or not self._has_statistics(detector))
        ]
        found = self.samples.features(lookers, how) if lookers else []
        seen = dict(zip(lookers, found, strict=True))
        return [self._features(detector, seen.get(detector)) for detector, _ in asked]

    def _features(self, detector: Detector, seen: FeatureSet | None) -> FeatureSet:
        if not self._has_statistics(detector):
            return seen
        file, name = self.file, _chosen(self.file, detector.identity, self.path)
        statistics = file.statistics[name]
        if seen is not None:
            return dataclasses.replace(seen, given_statistics=statistics)
        shown = name if detector.identity is None else detector.identity.name
        whole = FeatureSet(shown, self._recorded, file.values, file.labels, statistics, None)
        return whole.at_most(self.most)

    def _has_statistics(self, detector: Detector) -> bool:
        """Whether a detector takes the statistics: of ADM's files, those other than Inception's
        take the images alone."""
        if self.file is None or self.samples is None or detector.identity is None:
            return self.file is not None
        return detector.identity.name in self.file.statistics

    @property
    def _recorded(self) -> int:
        return 0 if self.file.count is None else self.file.count

    @cached_property
    def _sha256(self) -> str:
        return file_sha256(self.path)


@dataclass(frozen=True, eq=False)
class _ModelReference:
    """Data of a model, `samples` [N, ...]."""

    model: ExactDenoiser
    name: str
    samples: Tensor
    has_labels: bool
    most: int | None

    def real(self, detector: Detector) -> Real:
        name, dim = seen_by(detector, self.samples[:1])
        count = min(len(self.samples), self.most or len(self.samples))
        about = {"model": self.name, "count": count, **detector_record(detector)}
        truth = self.model if self.model.space == "points" else None
        return Real(name, dim, count, True, self.has_labels, truth, about)

    def features(self, asked: Sequence[tuple[Detector, bool]], how: Looking) -> list[FeatureSet]:
        return [model_features(self.model, one).at_most(self.most) for one, _ in asked]


def _fetched(url: str) -> Path:
    with download_bar(url.rpartition("/")[2]) as progress:
        return fetch(url, progress=progress)


def _by_protocol(name: str, identity: Identity | None, file: StatisticsFile) -> dict[str, str]:
    """What published statistics do not say of themselves, but their names imply."""
    if identity is None:
        return {"name": name}
    resize = identity.resize if identity.name == name else "that of EDM2 (torch)"
    if file.kind == BARE:
        resize = NOT_RECORDED
    return {"name": name, "resize": resize, "precision": "float32"}


def _chosen(file: StatisticsFile, identity: Identity | None, path: Path) -> str:
    """The detector whose statistics are meant, if they are what this one would have made."""
    names = list(file.statistics)
    choices = " or ".join(f"detector={name}" for name in names)
    if identity is None:
        if names not in (["pixels"], ["coordinates"]):
            raise UsageError(f"{path} holds statistics of {' and '.join(names)}; choose {choices}")
        return names[0]
    # The interval paper's own code compares features after Pillow's resize with EDM2's file.
    name = "dinov2" if (file.kind, identity.name) == ("EDM2", "dinov2_pil") else identity.name
    if name not in names:
        raise UsageError(
            f"{path} ({file.kind}) holds statistics of {' and '.join(names)}, not of "
            f"{identity.name}, and numbers of two detectors or two ways to resize do not compare. "
            f"Use {choices}, or a reference made with {identity.name}."
        )
    dim = file.statistics[name].dim
    if identity.dim is not None and identity.dim != dim:
        raise UsageError(
            f"{path} ({file.kind}) holds statistics of {dim} features, and {identity.name} has "
            f"{identity.dim}: they are of another network."
        )
    made_by = file.record.get("detector", {})
    for key, what in (("resize", "way to resize"), ("weights", "weights")):
        if key in made_by and made_by[key] != getattr(identity, key):
            raise UsageError(
                f"{path} was made by {identity.name} with another {what} ({made_by[key]} there, "
                f"{getattr(identity, key)} here). Make it again with `guidex ref`, or use the same."
            )
    return name


def describe(about: Mapping[str, Any]) -> str:
    """In one line: what it is, N, resolution, detector, resize and hash."""
    count, shape = about.get("count"), about.get("shape")
    parts = ["number of images not recorded" if count is None else f"{count:,} images"]
    if "of" in about:
        parts[0] += f" of {about['of']:,}, chosen at random"
    if shape is not None:
        parts.append(f"{shape[2]}x{shape[1]}")
    elif "kind" in about:
        parts.append("resolution not recorded")
    if "features" in about:
        parts.append(f"single features of {about['features']:,}")
    if about.get("formats"):
        parts.append("/".join(about["formats"]))
    detector = about.get("detector", {})
    parts += [detector[key] for key in ("name", "resize", "precision") if key in detector]
    if detector.get("weights") is not None:
        parts.append(f"weights {detector['weights'][:8]}")
    if "sha256" in about:
        parts.append(f"SHA-256 {about['sha256'][:8]}")
    kind = f" ({about['kind']})" if "kind" in about else ""
    return f"{about.get('path', about.get('model'))}{kind}: {', '.join(parts)}"
