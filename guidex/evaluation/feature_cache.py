"""Features on disk, so that a second evaluation of the same images needs no network.

They lie in features/ of guidex's cache folder (see `guidex.assets.cache`), one file for what a
detector made of a set of images. Its name is a hash of all that they depend on: the pixels and
their order, the detector, the hash of its weights, resize, precision, compilation, and versions of
the packages that compute. Every block in a file has a checksum, compared whenever it is read. While
features are being made, blocks of them lie in a folder of the same name, so that a run that was
stopped goes on where it was, and several processes take different blocks. Any of the files may be
deleted at any time; beyond LIMIT bytes, guidex deletes those that have not been used for the
longest time.
"""

import contextlib
import hashlib
import json
import logging
import os
import shutil
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path

import safetensors.torch
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from guidex.assets.atomic import atomic_write
from guidex.assets.cache import cache_dir
from guidex.errors import GuidexError
from guidex.evaluation.detectors import Identity

FORMAT = "2"  # changes where features would, with all else the same

BLOCK = 1024
"""Images whose features are kept together while a set is being looked at."""

LIMIT = 20 * 2**30

log = logging.getLogger(__name__)


class FeatureStore:
    """Where the features of one set of images by one detector are kept.

    A file that is damaged, or a folder that cannot be written, costs a warning and no more.

    Arguments:
        fingerprint: of the images, such as `ImageSet.fingerprint` gives.
        identity: of a detector with a network.
        count: number of images N.
    """

    def __init__(self, fingerprint: str, identity: Identity, count: int) -> None:
        self.identity, self.count = identity, count
        self._key = {"format": FORMAT, "images": fingerprint, **asdict(identity)}
        digest = hashlib.sha256(_text(self._key).encode()).hexdigest()
        self._path = cache_dir() / "features" / f"{identity.name}-{digest[:32]}.safetensors"
        self._parts = self._path.with_suffix(".parts")

    def read(self) -> Tensor | None:
        """All features, float32 [N, D], if they are there."""
        features = self._read(self._path, self._key, slice(0, self.count), self.count)
        if features is not None:
            with contextlib.suppress(OSError):  # in a folder of somebody else's, say
                os.utime(self._path)
        return features

    def read_block(self, block: int) -> Tensor | None:
        """The features of images BLOCK * block and on, if they are there."""
        rows = slice(BLOCK * block, min(BLOCK * (block + 1), self.count))
        if self._path.is_file():  # another process has finished
            return self._read(self._path, self._key, rows, self.count)
        size = rows.stop - rows.start
        return self._read(self._part(block), self._key_of(block), slice(0, size), size)

    def keep_block(self, block: int, features: Tensor) -> None:
        """Keep the features of a block, on the CPU."""
        self._write(self._part(block), self._key_of(block), features)

    def keep(self, blocks: Mapping[int, Tensor]) -> Tensor:
        """Keep all features, given as all blocks, in one file; returns them joined."""
        features = torch.cat([blocks[block] for block in sorted(blocks)])
        if not self._path.is_file():
            self._write(self._path, self._key, features)
        shutil.rmtree(self._parts, ignore_errors=True)
        _drop_old(self._path)
        return features

    def _key_of(self, block: int) -> dict[str, object]:
        return {**self._key, "block": block}

    def _part(self, block: int) -> Path:
        return self._parts / f"{block:06d}.safetensors"

    def _write(self, path: Path, key: dict[str, object], features: Tensor) -> None:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            about = {"key": _text(key), "sums": json.dumps(_sums(features))}
            content = safetensors.torch.save({"features": features}, about)
            atomic_write(path, lambda file: file.write(content))
        except (OSError, GuidexError) as error:
            log.warning("Features are not kept for the next time: %s", error)

    def _read(self, path: Path, key: dict[str, object], rows: slice, count: int) -> Tensor | None:
        """Some rows, which are whole blocks, of a file that should hold `count` of them."""
        if not path.is_file():
            return None
        try:
            with safe_open(path, framework="pt", device="cpu") as file:
                about = file.metadata() or {}
                if about.get("key") == _text(key):
                    features = file.get_slice("features")
                    if features.get_shape() == [count, self.identity.dim]:
                        wanted = json.loads(about["sums"])[rows.start // BLOCK :]
                        found = features[rows]
                        if (sums := _sums(found)) == wanted[: len(sums)]:
                            return found
        except (OSError, SafetensorError, KeyError, ValueError):
            pass
        log.warning("%s is damaged or of another kind; making it again.", path)
        with contextlib.suppress(OSError):
            path.unlink()
        return None


def _drop_old(newest: Path) -> None:
    """Delete features beyond LIMIT, but not the newest ones; blocks that are being made stay."""
    total = 0
    with contextlib.suppress(OSError):
        used = [(path.stat(), path) for path in newest.parent.glob("*.safetensors")]
        for status, path in sorted(used, key=lambda one: one[0].st_mtime, reverse=True):
            total += status.st_size
            if total > LIMIT and path != newest:
                path.unlink()
                log.info("%s is deleted: %s holds more than %d bytes", path, path.parent, LIMIT)


def _sums(features: Tensor) -> list[str]:
    """A checksum of each block of features [N, D]."""
    blocks = features.contiguous().split(BLOCK)
    return [hashlib.sha256(block.numpy()).hexdigest()[:32] for block in blocks]


def _text(key: dict[str, object]) -> str:
    return json.dumps(key, sort_keys=True)
