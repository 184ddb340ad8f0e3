"""Features on disk, so that a second evaluation of the same images needs no network.

They lie in features/ of guidex's cache folder (see `guidex.assets.cache`), one file for what a
detector made of a set of images. Its name is a hash of all that they depend on: the pixels and
their order, the detector, the hash of its weights, resize, precision and compilation. Any of the
files may be deleted at any time.
"""

import hashlib
import json
import logging
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import safetensors.torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from guidex.assets.atomic import atomic_write
from guidex.assets.cache import cache_dir
from guidex.errors import GuidexError
from guidex.evaluation.detectors import Identity

FORMAT = "1"  # changes where features would, with all else the same

log = logging.getLogger(__name__)


def cached_features(
    fingerprint: str, identity: Identity, count: int, compute: Callable[[], Tensor]
) -> Tensor:
    """Features from the cache, or else computed and kept there.

    A file that is damaged, or a folder that cannot be written, costs a warning and no more.

    Arguments:
        fingerprint: of the images, such as `ImageSet.fingerprint` gives.
        identity: of a detector with a network.
        count: number of images N.
        compute: gives the features, float32 [N, D], on the CPU.
    """
    key = {"format": FORMAT, "images": fingerprint, **asdict(identity)}
    path = _path(key)
    if path.is_file():
        features = _read(path, key)
        if features is not None and features.shape == (count, identity.dim):
            return features
        log.warning("%s is damaged or of another kind; making it again.", path)
    features = compute()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        content = safetensors.torch.save({"features": features}, {"key": _text(key)})
        atomic_write(path, lambda file: file.write(content))
    except (OSError, GuidexError) as error:
        log.warning("Features are not kept for the next time: %s", error)
    return features


def _text(key: dict[str, object]) -> str:
    return json.dumps(key, sort_keys=True)


def _path(key: dict[str, object]) -> Path:
    digest = hashlib.sha256(_text(key).encode()).hexdigest()
    return cache_dir() / "features" / f"{key['name']}-{digest[:32]}.safetensors"


def _read(path: Path, key: dict[str, object]) -> Tensor | None:
    try:
        with safe_open(path, framework="pt", device="cpu") as file:
            if (file.metadata() or {}).get("key") != _text(key):
                return None
            return file.get_tensor("features")
    except (OSError, SafetensorError):
        return None
