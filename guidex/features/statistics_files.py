"""Files of statistics: EDM2's .pkl (FID and FD_DINOv2), the .npz with `mu` and `sigma` of EDM,
pytorch-fid and others (FID), ADM's .npz (those, `mu_s` and `sigma_s` for sFID, and images under
`arr_0`), and guidex's own .npz. No pickle in them is executed.
"""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

import guidex
from guidex.data.containers import reason_of
from guidex.errors import GuidexError, UsageError
from guidex.features.features import FeatureSet
from guidex.features.statistics import GaussianStatistics
from guidex.files.atomic import atomic_write
from guidex.files.pickles import read_pickle

FORMAT = 1  # of guidex's own files

# EDM2's names of its two distances, and the detectors that they are computed with.
_EDM2 = {"fid": "inception", "fd_dinov2": "dinov2"}

ADM, BARE = "ADM", "mu and sigma"
"""Kinds of the .npz of others: with images, or without: EDM's, whose images were resized as by
TensorFlow, pytorch-fid's, resized in another way, and more."""

# Detectors of published .npz (which do not name them), and what follows on mu and sigma there.
_PUBLISHED = {"inception": "", "inception_spatial": "_s"}


@dataclass(frozen=True, eq=False)
class StatisticsFile:
    """What a file of statistics holds."""

    kind: str  # what sort of file it is, for people
    # By name of the detector, with single features where it has them. They tell the number of
    # images, and guidex's own "shape" [C, H, W] and "formats" of the images, and "detector".
    sets: dict[str, FeatureSet]


@contextmanager
def open_npz(path: Path) -> Iterator[np.lib.npyio.NpzFile]:
    """The arrays of a file, read one by one; whatever fails is a GuidexError with its name."""
    try:
        # Opened here, since np.load leaves the file of a damaged zip open.
        with open(path, "rb") as stream, np.load(stream, allow_pickle=False) as arrays:
            yield arrays
    except GuidexError as error:
        raise type(error)(f"{path}: {error}") from error
    # Damaged zips and headers raise many types, zlib.error and SyntaxError among them.
    except Exception as error:
        raise GuidexError(f"{path} cannot be read: {reason_of(error)}") from error


def read_statistics(path: Path) -> StatisticsFile | None:
    """The statistics in a file, or None if it is not a file of statistics (but of images, say).
    Raises GuidexError for a damaged or dangerous file, or arrays that are no statistics."""
    if path.suffix.lower() == ".pkl":
        return _read_edm2(path)
    if path.suffix.lower() != ".npz" or not path.is_file():
        return None
    with open_npz(path) as arrays:
        if not {"mu", "sigma"} <= set(arrays.files):
            return None
        return _read_own(arrays) if "guidex" in arrays.files else _read_published(arrays)


def write_statistics(path: Path, features: FeatureSet, *, keep_features: bool) -> None:
    """Write guidex's own file: `mu` and `sigma` (N - 1) of at least 2 images, float64, which others
    read as well, what there is to know about them, and maybe single features and labels."""
    record = {key: value for key, value in features.about.items() if key != "path"}
    record |= {"format": FORMAT, "guidex": guidex.__version__, "name": features.detector}
    moments = features.statistics
    arrays = {"mu": moments.mean.numpy(), "sigma": moments.covariance.numpy()}
    arrays["guidex"] = np.array(json.dumps(record))
    if keep_features:
        arrays["features"] = features.values.float().numpy()
        if features.labels is not None:
            arrays["labels"] = features.labels.numpy()
    atomic_write(path, lambda file: np.savez(file, **arrays))


def _read_edm2(path: Path) -> StatisticsFile:
    content = read_pickle(path)
    try:
        count = content["num_images"]
        sets = {}
        for key, name in _EDM2.items():
            if key in content:
                moments = _moments(content[key]["mu"], content[key]["sigma"], count)
                sets[name] = FeatureSet(name, given_statistics=moments, about={"count": count})
    except GuidexError as error:
        raise GuidexError(f"{path}: {error}") from error
    except (KeyError, TypeError):
        sets = {}
    if not sets:
        raise UsageError(
            f"{path} is no reference of EDM2, with mu and sigma of {' or '.join(_EDM2)}"
        )
    return StatisticsFile("EDM2", sets)


def _read_published(arrays: np.lib.npyio.NpzFile) -> StatisticsFile:
    sets = {}
    for name, end in _PUBLISHED.items():
        if {f"mu{end}", f"sigma{end}"} <= set(arrays.files):
            moments = _moments(arrays[f"mu{end}"], arrays[f"sigma{end}"])
            sets[name] = FeatureSet(name, given_statistics=moments, about={"count": None})
    return StatisticsFile(ADM if "arr_0" in arrays.files else BARE, sets)


def _read_own(arrays: np.lib.npyio.NpzFile) -> StatisticsFile:
    record = json.loads(str(arrays["guidex"]))
    if record["format"] != FORMAT:
        raise GuidexError(f"not of format {FORMAT}; make it again with `guidex ref`.")
    name, count = record["name"], record["count"]
    moments = _moments(arrays["mu"], arrays["sigma"], count)
    values = labels = None
    if "features" in arrays.files:
        values = torch.from_numpy(arrays["features"])
        labels = torch.from_numpy(arrays["labels"]) if "labels" in arrays.files else None
        if values.shape != (count, moments.dim):
            raise GuidexError(
                f"its features are {tuple(values.shape)}, not {(count, moments.dim)}."
            )
    keys = ("count", "shape", "formats", "detector")
    about = {key: record[key] for key in keys if key in record}
    features = FeatureSet(name, values, labels, moments, about=about)
    return StatisticsFile("guidex", {name: features})


def _moments(mu: object, sigma: object, count: object = None) -> GaussianStatistics:
    """Statistics of `count` images. Files with mu and sigma alone do not tell how many images they
    are of (None): as many as make any covariance, here."""
    for array in (mu, sigma):
        if not isinstance(array, np.ndarray) or array.dtype.kind != "f":
            raise GuidexError("its mu or sigma is no array of floating-point numbers.")
    count = mu.size + 1 if count is None else count
    if not isinstance(count, int) or count < 2:
        raise GuidexError(f"its number of images is {count!r}.")
    mean, covariance = (torch.from_numpy(array.astype(np.float64)) for array in (mu, sigma))
    return GaussianStatistics.from_moments(count=count, mean=mean, covariance=covariance)
