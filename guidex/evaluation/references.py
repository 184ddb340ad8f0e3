"""References: statistics that were published, statistics of our own, or images.

Statistics are of one detector and one way to resize, and compare with no other; they are refused
where they do not fit, before any image goes through a network.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from guidex.assets.cache import fetch, file_sha256
from guidex.assets.images import open_images
from guidex.assets.progress import download_bar
from guidex.errors import UsageError
from guidex.evaluation.detectors import Detector, Identity
from guidex.evaluation.features import FeatureSet
from guidex.evaluation.sources import Looking, detector_record, image_features, open_samples
from guidex.evaluation.statistics_files import StatisticsFile, read_statistics


def reference_features(
    source: str,
    detectors: Sequence[Detector],
    *,
    resize: int | None,
    crop: bool = False,
    bad: str,
    how: Looking,
) -> list[tuple[FeatureSet, dict[str, Any]]]:
    """The real side of a comparison for each detector, and what there is to know about it.

    Where only statistics are known, a set has no values; its count is 0 where the number of
    images is not recorded.

    Arguments:
        source: path or URL of statistics (see `statistics_files`), of images, or of a toy's points.
        detectors: what looks at images, and what statistics must be of.
        resize, crop, bad: as for `open_samples`; statistics are what they are.
        how: how images get to detectors.

    Raises:
        UsageError: no such file, or statistics of another detector, resize, weights or dimension.
        GuidexError: a damaged file.
    """
    path = _fetched(source) if "://" in source else Path(source)
    file = read_statistics(path)
    reading = {"resize": resize, "crop": crop, "bad": bad}
    if file is not None:
        return [_of_file(source, path, file, one, reading, how) for one in detectors]
    samples = open_samples(str(path), **reading)
    sets = samples.features(detectors, how)
    return [
        (features, samples.about | detector_record(detector))
        for features, detector in zip(sets, detectors, strict=True)
    ]


def _of_file(
    source: str,
    path: Path,
    file: StatisticsFile,
    detector: Detector,
    reading: Mapping[str, Any],
    how: Looking,
) -> tuple[FeatureSet, dict[str, Any]]:
    """What a file of statistics holds for a detector."""
    identity = detector.identity
    # Of ADM's files, detectors other than Inception take the images alone.
    if file.has_images and identity is not None and identity.name not in file.statistics:
        samples = open_samples(str(path), **reading)
        [features] = samples.features([detector], how)
        return features, samples.about | detector_record(detector)
    name = _chosen(file, identity, path)
    about = {
        "path": source,
        "kind": file.kind,
        "count": file.count,
        "sha256": file_sha256(path),
        "detector": _by_protocol(name, identity),
        **file.record,
    }
    if not file.has_images:
        count = 0 if file.count is None else file.count
        statistics = file.statistics[name]
        return FeatureSet(name, count, file.values, file.labels, statistics, None), about
    images = open_images(path)
    about |= {
        "features": len(images),
        "shape": list(images.shape),
        "formats": sorted(images.kinds),
    }
    [features] = image_features(images, [detector], how)
    return FeatureSet.from_values(
        detector=name,
        values=features.values,
        labels=features.labels,
        statistics=file.statistics[name],
    ), about


def _fetched(url: str) -> Path:
    with download_bar(url.rpartition("/")[2]) as progress:
        return fetch(url, progress=progress)


def _by_protocol(name: str, identity: Identity | None) -> dict[str, str]:
    """What published statistics do not say of themselves, but their names imply."""
    return {"name": name} if identity is None else {"name": name, "resize": identity.resize}


def _chosen(file: StatisticsFile, identity: Identity | None, path: Path) -> str:
    """The detector whose statistics are meant, if they are what this one would have made."""
    names = list(file.statistics)
    choices = " or ".join(f"detector={name}" for name in names)
    if identity is None:
        if names not in (["pixels"], ["coordinates"]):
            raise UsageError(f"{path} holds statistics of {' and '.join(names)}; choose {choices}")
        return names[0]
    if identity.name not in names:
        raise UsageError(
            f"{path} ({file.kind}) holds statistics of {' and '.join(names)}, not of "
            f"{identity.name}, and numbers of two detectors or two ways to resize do not compare. "
            f"Use {choices}, or a reference made with {identity.name}."
        )
    dim = file.statistics[identity.name].dim
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
    return identity.name


def describe(about: Mapping[str, Any]) -> str:
    """In one line: what it is, N, resolution, detector, resize and hash."""
    count, shape = about.get("count"), about.get("shape")
    parts = ["number of images not recorded" if count is None else f"{count:,} images"]
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
