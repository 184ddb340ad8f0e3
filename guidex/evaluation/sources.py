"""Where samples to be measured come from: files of images, files of points, models that know the
truth."""

import dataclasses
import zipfile
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from guidex.assets.images import open_images
from guidex.errors import GuidexError, UsageError
from guidex.evaluation.detectors import Detector, detect
from guidex.evaluation.features import FeatureSet
from guidex.models.denoiser import ExactDenoiser

DRAWS = 10_000  # true samples of a toy that its reference is made of


def file_features(
    path: str, detector: Detector, *, resize: int | None, bad: str, batch: int
) -> tuple[FeatureSet, dict[str, object]]:
    """Features of what lies in a file or folder, and what there is to know about it.

    Arguments:
        path: a folder, zip or npz of images, or the samples.npz of a toy.
        detector: what looks at them.
        resize: side that images are resized to, or None.
        bad: "error" or "skip", for unreadable images.
        batch: images per batch.
    """
    points = _read_points(Path(path))
    if points is not None:
        features = detect(detector, *points, batch)
        return features, {"path": path, "count": features.count, "skipped": 0}
    images = open_images(path, bad=bad, resize=resize)
    name, parts = "", []
    for pixels in images.batches(batch):
        name, values = detector(torch.from_numpy(pixels))
        parts.append(values.cpu())
    labels = None if images.labels is None else torch.as_tensor(images.labels, dtype=torch.int64)
    features = FeatureSet.from_values(detector=name, values=torch.cat(parts), labels=labels)
    return features, {
        "path": path,
        "count": len(images),
        "shape": list(images.shape),
        "formats": sorted(images.kinds),
        "skipped": len(images.skipped),
        "sha256": images.fingerprint(),
    }


def model_features(model: object, detector: Detector, seed: int = 0) -> FeatureSet:
    """Features of the true distribution of a model that knows it.

    Raises:
        UsageError: the model does not know it.
    """
    if not isinstance(model, ExactDenoiser):
        raise UsageError("this model does not know its data; give a reference: ref=PATH")
    features = detect(detector, *model.reference(DRAWS, seed))
    return dataclasses.replace(features, truth=model if model.space == "points" else None)


def _read_points(path: Path) -> tuple[Tensor, Tensor | None] | None:
    """Points and labels of a toy's samples.npz, or None if the file is not one."""
    if path.suffix != ".npz" or not path.is_file():
        return None
    try:
        with np.load(path, allow_pickle=False) as file:
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
