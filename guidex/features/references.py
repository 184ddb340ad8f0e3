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
from guidex.features.detectors import Detector, Identity, detector_record, output_of
from guidex.features.doubts import NOT_RECORDED
from guidex.features.features import FeatureSet, SetDescription
from guidex.features.samples import PassSettings, Samples, model_samples, open_samples
from guidex.features.statistics_files import BARE, StatisticsFile, read_statistics
from guidex.files.cache import fetch, file_sha256
from guidex.files.progress import download_bar


@dataclass(frozen=True, eq=False)
class Reference:
    """Statistics, samples, or (ADM's files) both, opened: nothing about it is damaged.

    Attributes:
        source: path or URL as given, or name of a model.
        path: the file, or a folder of images; None for a model's data.
        file: the statistics, or None.
        samples: the images or points, or None.
        most: number of single features that are taken of the file's, or None for all.
    """

    source: str
    path: Path | None
    file: StatisticsFile | None
    samples: Samples | None
    most: int | None = None

    def description(self, detector: Detector) -> SetDescription:
        """What it is to a detector.

        Raises:
            UsageError: statistics of another detector, resize, weights or dimension.
        """
        samples, file = self.samples, self.file
        if not self._has_statistics(detector):
            about = samples.about | detector_record(detector)
            name, dim = output_of(detector, samples.blank())
            return SetDescription(
                name, dim, samples.count, True, samples.has_labels, samples.truth, about
            )
        identity = detector.identity
        name = _statistics_for(file, identity, self.path)
        shown, dim = name if identity is None else identity.name, file.statistics[name].dim
        about = {
            "path": self.source,
            "kind": file.kind,
            "count": file.count,
            "sha256": self._sha256,
            "detector": _by_convention(name, identity, file),
            **file.record,
        }
        if samples is not None:
            about["features"] = samples.count
            about |= {key: samples.about[key] for key in ("shape", "formats")}
            return SetDescription(shown, dim, samples.count, True, samples.has_labels, None, about)
        has_values, count = file.values is not None, file.count or 0
        if has_values:
            count = min(count, self.most or count)
        return SetDescription(shown, dim, count, has_values, file.labels is not None, None, about)

    def features(
        self, asked: Sequence[tuple[Detector, bool]], settings: PassSettings
    ) -> list[FeatureSet]:
        """Features for detectors, on the CPU; each image is decoded once for all of them.

        Arguments:
            asked: the detectors, each with whether single features are needed where there are
                statistics. Where not, no image goes through it.
            settings: how images go through detectors.
        """
        run = [
            detector
            for detector, single in asked
            if self.samples is not None and (single or not self._has_statistics(detector))
        ]
        sets = dict(zip(run, self.samples.features(run, settings), strict=True)) if run else {}
        return [self._with_statistics(detector, sets.get(detector)) for detector, _ in asked]

    def _with_statistics(self, detector: Detector, features: FeatureSet | None) -> FeatureSet:
        if not self._has_statistics(detector):
            return features
        file, identity = self.file, detector.identity
        name = _statistics_for(file, identity, self.path)
        statistics = file.statistics[name]
        if features is not None:
            return dataclasses.replace(features, given_statistics=statistics)
        shown = name if identity is None else identity.name
        whole = FeatureSet(shown, file.count or 0, file.values, file.labels, statistics)
        return whole.at_most(self.most)

    def _has_statistics(self, detector: Detector) -> bool:
        """Whether a detector takes the statistics: of ADM's files, those other than Inception's
        take the images alone."""
        if self.file is None or self.samples is None or detector.identity is None:
            return self.file is not None
        return detector.identity.name in self.file.statistics

    @cached_property
    def _sha256(self) -> str:
        return file_sha256(self.path)


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
    path = Path(source)
    if "://" in source:
        with download_bar(source.rpartition("/")[2]) as progress:
            path = fetch(source, progress=progress)
    file, samples = read_statistics(path), None
    if file is None or file.has_images:
        samples = open_samples(str(path), resize=resize, crop=crop, bad=bad).at_most(most)
    return Reference(source, path, file, samples, most)


def open_model(model: object, name: str, most: int | None = None) -> Reference:
    """The data of a model that knows them, `most` of them at most, as the real side of comparisons.

    Raises:
        UsageError: the model does not know them.
    """
    return Reference(name, None, None, model_samples(model, name).at_most(most))


def _by_convention(name: str, identity: Identity | None, file: StatisticsFile) -> dict[str, str]:
    """What published statistics do not say of themselves, but their names imply."""
    if identity is None:
        return {"name": name}
    resize = identity.resize if identity.name == name else "that of EDM2 (torch)"
    if file.kind == BARE:
        resize = NOT_RECORDED
    return {"name": name, "resize": resize, "precision": "float32"}


def _statistics_for(file: StatisticsFile, identity: Identity | None, path: Path) -> str:
    """The detector whose statistics are meant, if they are what the given one would have made."""
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
