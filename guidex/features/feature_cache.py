"""Features on disk, so that a second evaluation of the same images needs no network.

One file in features/ of guidex's cache folder is for what a detector made of a set of images. Its
name is a hash of all that they depend on: the pixels and their order, and the detector's
`Identity`. A file holds float32 [N, D], and behind them a checksum for each block of BLOCK images.
What is lacking or damaged is made again, by several processes in different blocks. Files may be
deleted at any time; beyond LIMIT bytes, guidex deletes those unused for the longest time.
"""

import contextlib
import hashlib
import json
import logging
import os
from dataclasses import asdict
from pathlib import Path

import torch
from torch import Tensor

from guidex.features.detectors import Identity
from guidex.files.cache import cache_dir

FORMAT = "3"  # changes where features would, with all else the same

BLOCK = 1024
LIMIT = 20 * 2**30
SUM = 32  # bytes of a checksum

log = logging.getLogger(__name__)


def blocks_of(count: int) -> list[range]:
    """The images of each block of a set of `count`."""
    return [range(at, min(at + BLOCK, count)) for at in range(0, count, BLOCK)]


def place_of(fingerprint: str, identity: Identity) -> Path:
    """The file for the features of images with such an `ImageSet.fingerprint`."""
    key = {"format": FORMAT, "images": fingerprint, **asdict(identity)}
    digest = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()
    return cache_dir() / "features" / f"{identity.name}-{digest[:32]}.features"


class FeatureStore:
    """The features of one set of `count` images by one detector, block by block: in a file, or in
    memory where there is none. A file that cannot be written costs a warning and no more."""

    values: Tensor  # float32 [N, D], mapped from the file, so that they need not be in memory

    def __init__(self, count: int, dim: int, path: Path | None = None) -> None:
        self._path, self._size = path, 4 * count * dim
        size = self._size + SUM * len(blocks_of(count))
        content = None
        try:
            if path is not None:
                path.parent.mkdir(parents=True, exist_ok=True)
                with open(path, "ab") as file:  # another process may make it at the same time
                    file.truncate(size)  # with zeros where there is nothing yet
                os.utime(path)
                _drop_old(path)
                # What is written into the mapping stays in memory.
                content = torch.from_file(str(path), shared=False, size=size, dtype=torch.uint8)
        except OSError as error:
            self._give_up(error)
        content = torch.zeros(size, dtype=torch.uint8) if content is None else content
        self.values = content[: self._size].view(torch.float32).view(count, dim)
        self._sums = content[self._size :].view(-1, SUM)

    def has(self, block: range) -> bool:
        """Whether the features of these images are there, and not damaged."""
        kept = self._sums[block.start // BLOCK].numpy().tobytes()
        if kept == bytes(SUM):
            return False
        is_whole = kept == _checksum(self.values[block.start : block.stop])
        if not is_whole:
            log.warning("%s is damaged; making a part of it again.", self._path)
        return is_whole

    def keep(self, block: range, features: Tensor) -> None:
        """Keep the features of these images, on the CPU."""
        features, number = features.contiguous(), block.start // BLOCK
        checksum = _checksum(features)
        if self._path is not None:
            try:
                with open(self._path, "r+b") as file:
                    file.seek(features[0].nbytes * block.start)
                    file.write(features.numpy())
                    file.seek(self._size + SUM * number)
                    file.write(checksum)
            except OSError as error:
                self._give_up(error)
        if not self.has(block):  # there is no file, or it was deleted and made anew
            self.values[block.start : block.stop] = features
            self._sums[number] = torch.frombuffer(bytearray(checksum), dtype=torch.uint8)

    def _give_up(self, error: OSError) -> None:
        log.warning("Features are not kept for the next time: %s", error)
        self._path = None


def _checksum(features: Tensor) -> bytes:
    return hashlib.sha256(features.numpy()).digest()


def _drop_old(newest: Path) -> None:
    """Delete features beyond LIMIT, but not the newest ones."""
    total = 0
    with contextlib.suppress(OSError):
        files = [(path.stat(), path) for path in newest.parent.iterdir() if path.is_file()]
        for status, path in sorted(files, key=lambda file: file[0].st_mtime, reverse=True):
            total += status.st_size
            if total > LIMIT and path != newest:
                path.unlink()
                log.info("%s is deleted: %s holds more than %d bytes", path, path.parent, LIMIT)
