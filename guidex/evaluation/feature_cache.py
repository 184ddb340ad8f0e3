"""Features on disk, so that a second evaluation of the same images needs no network.

They lie in features/ of guidex's cache folder (see `guidex.assets.cache`), one file for what a
detector made of a set of images. Its name is a hash of all that they depend on: the pixels and
their order, the detector, the hash of its weights, resize, precision and compilation. While they
are being made, blocks of them lie in a folder of the same name, so that a run that was stopped goes
on where it was, and several processes take different blocks. Any of the files may be deleted at any
time; beyond LIMIT bytes, guidex deletes those that have not been used for the longest time.
"""

import contextlib
import hashlib
import json
import logging
import math
import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import BinaryIO

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from guidex.assets.atomic import atomic_write
from guidex.assets.cache import cache_dir
from guidex.errors import GuidexError
from guidex.evaluation.detectors import Identity

FORMAT = "1"  # changes where features would, with all else the same

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

    def keep_block(self, block: int, features: Tensor) -> Tensor:
        """Keep the features of a block, on the CPU; returns them as the file has them, which take
        no memory that is not free for others."""
        self._write(self._part(block), self._key_of(block), [features])
        kept = self.read_block(block)
        return features if kept is None else kept

    def keep(self, blocks: Mapping[int, Tensor]) -> Tensor:
        """Keep all features, given as all blocks, in one file; returns them joined, as
        `keep_block` does."""
        parts = [blocks[block] for block in sorted(blocks)]
        if not self._path.is_file():
            self._write(self._path, self._key, parts)
        kept = self.read()
        shutil.rmtree(self._parts, ignore_errors=True)
        _drop_old(self._path)
        return torch.cat(parts) if kept is None else kept

    def _key_of(self, block: int) -> dict[str, object]:
        return {**self._key, "block": block}

    def _part(self, block: int) -> Path:
        return self._parts / f"{block:06d}.safetensors"

    def _write(self, path: Path, key: dict[str, object], parts: Sequence[Tensor]) -> None:
        """Write float32 features, part by part, in the layout of safetensors."""
        shape = [sum(map(len, parts)), self.identity.dim]
        features = {"dtype": "F32", "shape": shape, "data_offsets": [0, 4 * math.prod(shape)]}
        header = json.dumps({"__metadata__": {"key": _text(key)}, "features": features}).encode()
        header += b" " * (-len(header) % 8)

        def write(file: BinaryIO) -> None:
            file.write(len(header).to_bytes(8, "little") + header)
            for part in parts:
                file.write(part.contiguous().numpy())

        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            atomic_write(path, write)
        except (OSError, GuidexError) as error:
            log.warning("Features are not kept for the next time: %s", error)

    def _read(self, path: Path, key: dict[str, object], rows: slice, count: int) -> Tensor | None:
        """Some rows of a file that should hold `count` of them."""
        if not path.is_file():
            return None
        try:
            with safe_open(path, framework="pt", device="cpu") as file:
                if (file.metadata() or {}).get("key") == _text(key):
                    features = file.get_slice("features")
                    if features.get_shape() == [count, self.identity.dim]:
                        return features[rows]
        except (OSError, SafetensorError):
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


def _text(key: dict[str, object]) -> str:
    return json.dumps(key, sort_keys=True)
