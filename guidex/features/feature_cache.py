"""Features on disk, so that a second evaluation of the same images needs no network.

They lie in features/ of guidex's cache folder (see `guidex.files.cache`), one file for what a
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
import math
import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import BinaryIO

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from guidex.errors import GuidexError
from guidex.features.detectors import Identity
from guidex.files.atomic import atomic_write
from guidex.files.cache import cache_dir

FORMAT = "2"  # changes where features would, with all else the same

BLOCK = 1024
"""Images whose features are kept together while a set goes through a network."""

LIMIT = 20 * 2**30

SUM = 32  # hexadecimal digits of a checksum

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
        return self._read(self._part(block), self._part_key(block), slice(0, size), size)

    def keep_block(self, block: int, features: Tensor) -> bool:
        """Keep the features of a block, on the CPU; returns whether they are on disk now."""
        key = self._part_key(block)
        return self._write(self._part(block), key, len(features), lambda: [features])

    def keep(self, blocks: Mapping[int, Tensor | None]) -> Tensor:
        """Keep all features in one file, and return them, mapped from it: they never are in memory
        as a whole, unless they cannot be written.

        Arguments:
            blocks: all blocks; None for those that are on disk.

        Raises:
            GuidexError: a block on disk was deleted or damaged.
        """

        def parts() -> Iterator[Tensor]:
            for block in sorted(blocks):
                features = self.read_block(block) if blocks[block] is None else blocks[block]
                if features is None:
                    raise GuidexError(
                        f"{self._part(block)} was deleted or damaged while it was needed; run "
                        "again, which goes on from the other blocks."
                    )
                yield features

        if not self._path.is_file():
            self._write(self._path, self._key, self.count, parts)
        features = self.read()
        if features is None:
            features = torch.cat(list(parts()))
        shutil.rmtree(self._parts, ignore_errors=True)
        _drop_old(self._path)
        return features

    def _part_key(self, block: int) -> dict[str, object]:
        return {**self._key, "block": block}

    def _part(self, block: int) -> Path:
        return self._parts / f"{block:06d}.safetensors"

    def _write(
        self, path: Path, key: dict[str, object], count: int, parts: Callable[[], Iterable[Tensor]]
    ) -> bool:
        """Write float32 features [count, D], by parts that are whole blocks, in the layout of
        safetensors; returns whether that went well."""
        shape = [count, self.identity.dim]
        features = {"dtype": "F32", "shape": shape, "data_offsets": [0, 4 * math.prod(shape)]}

        def header(sums: list[str]) -> bytes:
            about = {"key": _text(key), "sums": " ".join(sums)}
            text = json.dumps({"__metadata__": about, "features": features}).encode()
            text += b" " * (-len(text) % 8)
            return len(text).to_bytes(8, "little") + text

        def write(file: BinaryIO) -> None:
            sums: list[str] = []
            file.write(header(["-" * SUM] * -(-count // BLOCK)))  # as long as it will be
            for part in parts():
                sums += _sums(part)
                file.write(part.contiguous().numpy())
            file.seek(0)
            file.write(header(sums))
            file.seek(0, os.SEEK_END)

        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            atomic_write(path, write)
            return True
        except (OSError, GuidexError) as error:
            log.warning("Features are not kept for the next time: %s", error)
            return False

    def _read(self, path: Path, key: dict[str, object], rows: slice, count: int) -> Tensor | None:
        """Some rows, which are whole blocks, of a file that should hold `count` of them."""
        if not path.is_file():
            return None
        with contextlib.suppress(OSError, SafetensorError):
            with safe_open(path, framework="pt", device="cpu") as file:
                about = file.metadata() or {}
                features = file.get_tensor("features")  # mapped; get_slice would copy
            if about.get("key") == _text(key) and features.shape == (count, self.identity.dim):
                sums, first = _sums(features[rows]), rows.start // BLOCK
                if sums == about.get("sums", "").split()[first : first + len(sums)]:
                    return features[rows]
        log.warning("%s is damaged or of another kind; making it again.", path)
        with contextlib.suppress(OSError):
            path.unlink()
        return None


def _drop_old(newest: Path) -> None:
    """Delete features beyond LIMIT, but not the newest ones; blocks that are being made stay."""
    total = 0
    with contextlib.suppress(OSError):
        used = [(path.stat(), path) for path in newest.parent.glob("*.safetensors")]
        for status, path in sorted(used, key=lambda file: file[0].st_mtime, reverse=True):
            total += status.st_size
            if total > LIMIT and path != newest:
                path.unlink()
                log.info("%s is deleted: %s holds more than %d bytes", path, path.parent, LIMIT)


def _sums(features: Tensor) -> list[str]:
    """A checksum of each block of features [N, D]."""
    blocks = features.contiguous().split(BLOCK)
    return [hashlib.sha256(block.numpy()).hexdigest()[:SUM] for block in blocks]


def _text(key: dict[str, object]) -> str:
    return json.dumps(key, sort_keys=True)
