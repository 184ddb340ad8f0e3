"""Where samples to be measured come from: files of images, files of points, models that know the
truth."""

import dataclasses
import hashlib
import zipfile
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from guidex.assets.image_set import ImageSet
from guidex.assets.images import open_images
from guidex.errors import GuidexError, UsageError
from guidex.evaluation.detectors import Detector, detect
from guidex.evaluation.feature_cache import cached_features
from guidex.evaluation.features import FeatureSet
from guidex.models.denoiser import ExactDenoiser

DRAWS = 10_000  # true samples of a toy that its reference is made of


def file_features(
    path: str, detector: Detector, *, resize: int | None, bad: str, batch: int, cache: bool
) -> tuple[FeatureSet, dict[str, object]]:
    """Features of what lies in a file or folder, and what there is to know about it.

    Arguments:
        path: a folder, zip or npz of images, or the samples.npz of a toy.
        detector: what looks at them.
        resize: side that images are resized to, or None.
        bad: "error" or "skip", for unreadable images.
        batch: images per batch.
        cache: whether features of networks are kept on disk for the next time.
    """
    points = _read_points(Path(path))
    if points is not None:
        features = detect(detector, *points, batch)
        return features, {"path": path, "count": features.count, "skipped": 0}
    images = open_images(path, bad=bad, resize=resize)
    features = image_features(images, detector, batch=batch, cache=cache)
    return features, {
        "path": path,
        "count": len(images),
        "shape": list(images.shape),
        "formats": sorted(images.kinds),
        "skipped": len(images.skipped),
        "sha256": images.fingerprint(),
        **detector_record(detector),
    }


def image_features(images: ImageSet, detector: Detector, *, batch: int, cache: bool) -> FeatureSet:
    """Features of a set of images, from the cache if they are there; the result is on the CPU."""
    labels = None if images.labels is None else torch.as_tensor(images.labels, dtype=torch.int64)
    identity = detector.identity
    if identity is not None and identity.weights is not None and cache:
        values = cached_features(
            images.fingerprint(),
            identity,
            len(images),
            lambda: _image_values(images, detector, batch)[1],
        )
        return FeatureSet.from_values(detector=identity.name, values=values, labels=labels)
    name, values = _image_values(images, detector, batch)
    return FeatureSet.from_values(detector=name, values=values, labels=labels)


def model_features(model: object, detector: Detector, seed: int = 0) -> FeatureSet:
    """Features of the true distribution of a model that knows it.

    Raises:
        UsageError: the model does not know it.
    """
    if not isinstance(model, ExactDenoiser):
        raise UsageError("this model does not know its data; give a reference: ref=PATH")
    samples, labels = model.reference(DRAWS, seed)
    identity = detector.identity
    if identity is None or identity.weights is None:
        features = detect(detector, samples, labels)
    else:
        values = cached_features(
            _digest(samples),
            identity,
            len(samples),
            lambda: detect(detector, samples, None).values,
        )
        features = FeatureSet.from_values(detector=identity.name, values=values, labels=labels)
    return dataclasses.replace(features, truth=model if model.space == "points" else None)


def detector_record(detector: Detector) -> dict[str, object]:
    """How a network looked at the images, for the record; nothing where there is no network."""
    identity = detector.identity
    if identity is None or identity.weights is None:
        return {}
    return {"detector": dataclasses.asdict(identity)}


def _image_values(images: ImageSet, detector: Detector, batch: int) -> tuple[str, Tensor]:
    name, parts = "", []
    with tqdm(
        total=len(images), desc="features", unit="image", delay=2, leave=False, disable=None
    ) as bar:
        for pixels in images.batches(batch):
            name, values = detector(torch.from_numpy(pixels))
            parts.append(values.cpu())
            bar.update(len(pixels))
    return name, torch.cat(parts)


def _digest(samples: Tensor) -> str:
    """SHA-256 of an array, as a fingerprint of its images."""
    array = np.ascontiguousarray(samples.cpu().numpy())
    state = hashlib.sha256(f"guidex array {array.dtype} {array.shape}\n".encode())
    state.update(array)
    return state.hexdigest()


def _read_points(path: Path) -> tuple[Tensor, Tensor | None] | None:
    """Points and labels of a toy's samples.npz, or None if the file is not one."""
    if path.suffix != ".npz" or not path.is_file():
        return None
    try:
        with open(path, "rb") as stream, np.load(stream, allow_pickle=False) as file:
            if "samples" not in file.files:
                return None
            samples = file["samples"]
            labels = file["labels"] if "labels" in file.files else None
    except (OSError, ValueError, zipfile.BadZipFile) as error:
        raise GuidexError(f"{path} cannot be read: {error}") from error
    if samples.ndim != 2 or samples.dtype.kind != "f" or len(samples) == 0:
        raise UsageError(
            f"{path}: samples must be floating point [N, d], not {samples.dtype} {samples.shape}"
        )
    points = torch.from_numpy(samples)
    return points, None if labels is None else torch.as_tensor(labels, dtype=torch.int64)
