"""An image set: images of one shape in a fixed order, decoded when asked for."""

import hashlib
import itertools
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TypeVar

import numpy as np
import PIL
from numpy.typing import NDArray

from guidex.data.codec import (
    Channels,
    Conversion,
    Pixels,
    from_pixels,
    quiet_pillow,
    to_pixels,
)
from guidex.data.containers import shown
from guidex.errors import GuidexError, UsageError

_T = TypeVar("_T")
_R = TypeVar("_R")


@dataclass(eq=False, repr=False)
class ImageSet:
    """N images of one shape, in a fixed order.

    Attributes:
        shape: (C, H, W) of every image, C = 1 (grey) or 3 (RGB).
        names: one per image, relative to the set and sorted; the index for arrays.
        labels: classes [N], int64, or None.
        class_names: names of classes 0 ... K-1 if they come from sub-folders, else None.
        kinds: formats that occur: "png", "jpeg", "webp", "bmp", and "array" for pixels that were
            never in files of their own. Numbers from JPEGs and from the others do not compare.
        skipped: (name, reason) of unreadable images that were left out.
        load: the pixels of image k, uint8 [C,H,W], maybe read-only; called by several threads.
        digest: SHA-256 of image k as it is stored, before any conversion; called by threads.
        crop: whether images were cropped to their central squares.
    """

    shape: tuple[int, int, int]
    names: list[str]
    labels: NDArray[np.int64] | None
    class_names: list[str] | None
    kinds: set[str]
    skipped: list[tuple[str, str]]
    load: Callable[[int], Pixels]
    digest: Callable[[int], bytes]
    crop: bool
    _fingerprint: str | None = field(default=None, init=False)

    def __len__(self) -> int:
        return len(self.names)

    def read(self, indices: Sequence[int] | NDArray[np.integer]) -> Pixels:
        """Images by index (0 ... N-1), as a new array uint8 [n,C,H,W].

        Raises:
            IndexError: no such image.
            GuidexError: a file has changed since the set was opened, or cannot be decoded.
        """
        for index in indices:
            if not 0 <= index < len(self):
                raise IndexError(f"image {index} of a set of {len(self)}")
        quiet_pillow()
        workers = default_workers()
        return self._stack(map_ahead(self.load, indices, workers, 2 * workers), len(indices))

    def batches(self, batch_size: int, workers: int | None = None) -> Iterator[Pixels]:
        """All images in order, `batch_size` at a time, the last batch maybe fewer; see `stacks`.

        Raises:
            UsageError: a number below 1.
        """
        if batch_size < 1:
            raise UsageError(f"batch_size is {batch_size}, yet it must be at least 1.")
        count = len(self)
        groups = [range(k, min(k + batch_size, count)) for k in range(0, count, batch_size)]
        return self.stacks(groups, workers)

    def stacks(self, groups: Sequence[range], workers: int | None = None) -> Iterator[Pixels]:
        """Groups of images, decoded by threads up to a group ahead of the consumer.

        Arguments:
            groups: indices of images (0 ... N-1).
            workers: threads; None for one per available core, at most 16. It changes no pixel.

        Returns:
            An iterator over new arrays uint8 [n,C,H,W], one per group.

        Raises:
            UsageError: a number of workers below 1.
            GuidexError: a file has changed since the set was opened, or cannot be decoded.
        """
        workers = default_workers() if workers is None else workers
        if workers < 1:
            raise UsageError(f"workers is {workers}, yet it must be at least 1.")
        quiet_pillow()
        return self._stacks(groups, workers)

    def fingerprint(self) -> str:
        """SHA-256, in hex, of what the set holds: shape, images in order, what is done to them,
        labels.

        The bytes of image files count, not their names and times, nor whether they lie in a folder
        or in a zip. Decoders differ in the pixels that they make of JPEG and WebP files: of sets
        with such files, the version of Pillow counts too.
        """
        if self._fingerprint is not None:
            return self._fingerprint
        total = hashlib.sha256(f"guidex images {self.shape} {len(self)} {self.crop}\n".encode())
        workers = default_workers()
        for one in map_ahead(self.digest, range(len(self)), workers, 4 * workers):
            total.update(one)
        if self.kinds & {"jpeg", "webp"}:
            total.update(f"Pillow {PIL.__version__}".encode())
        if self.labels is not None:
            total.update(b"labels" + self.labels.astype("<i8").tobytes())
        self._fingerprint = total.hexdigest()
        return self._fingerprint

    def _stacks(self, groups: Sequence[range], workers: int) -> Iterator[Pixels]:
        ahead = max(map(len, groups), default=0) + workers
        images = map_ahead(self.load, itertools.chain.from_iterable(groups), workers, ahead)
        for group in groups:
            yield self._stack(images, len(group))

    def _stack(self, images: Iterator[Pixels], count: int) -> Pixels:
        batch = np.empty((count, *self.shape), dtype=np.uint8)
        for row in batch:
            row[...] = next(images)
        return batch


def array_images(
    images: Pixels,
    *,
    labels: NDArray[np.int64] | None = None,
    class_names: list[str] | None = None,
    resize: int | None = None,
    crop: bool = False,
    channels: Channels = "auto",
) -> ImageSet:
    """The set of the images in an array.

    Arguments:
        images: uint8 [N,H,W,C] with C = 1 or 3. It is neither copied nor changed, and it may be
            mapped from a file.
        labels: classes [N], int64, or None.
        class_names: names of the classes 0 ... K-1, or None.
        resize, crop, channels: see `codec.Conversion`.

    Raises:
        ValueError: an array is of another type or shape, or empty.
        UsageError: `resize`, `crop` or `channels` is not among what is allowed.
    """
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[3] not in (1, 3):
        raise ValueError(f"images are uint8 [N,H,W,1 or 3], not {images.dtype} {images.shape}")
    if images.size == 0 or (labels is not None and labels.shape != images.shape[:1]):
        raise ValueError("an image set has at least one image, and one label per image")
    conversion = Conversion(channels, resize, crop)
    count, height, width, stored = images.shape
    digests: dict[int, bytes] = {}

    def read(index: int) -> tuple[Pixels, bytes]:
        """A copy, and its hash; the array may be mapped from a file that somebody changes."""
        pixels = images[index].copy()
        state = hashlib.sha256(f"{images.shape[1:]}".encode())
        state.update(pixels)
        if digests.setdefault(index, state.digest()) != state.digest():
            raise GuidexError(changed(f"image {index}", "its content is another"))
        return pixels, state.digest()

    def load(index: int) -> Pixels:
        pixels, _ = read(index)
        return to_pixels(from_pixels(pixels.transpose(2, 0, 1)), conversion)

    def digest(index: int) -> bytes:
        return read(index)[1]

    return ImageSet(
        shape=conversion.shape(stored == 1, width, height),
        names=[f"{index:06d}" for index in range(count)],
        labels=labels,
        class_names=class_names,
        kinds={"array"},
        skipped=[],
        load=load,
        digest=digest,
        crop=crop,
    )


def changed(name: str, reason: str) -> str:
    """The complaint about an image that is another one than before."""
    return (
        f"{shown(name)} has changed since the images were opened: {reason}. Leave the images "
        "alone while they are being read, and start again."
    )


def default_workers() -> int:
    """Threads to decode with: one per core that this process may use, at most 16."""
    try:
        cores = len(os.sched_getaffinity(0))
    except AttributeError:  # on macOS and Windows
        cores = os.cpu_count() or 1
    return min(cores, 16)


def map_ahead(
    function: Callable[[_T], _R], items: Iterable[_T], workers: int, ahead: int
) -> Iterator[_R]:
    """Like `map`, in order, but computed by threads, at most `ahead` items before the consumer."""
    pending: deque[Future[_R]] = deque()
    with ThreadPoolExecutor(workers, thread_name_prefix="guidex-images") as pool:
        try:
            for item in items:
                pending.append(pool.submit(function, item))
                if len(pending) > ahead:
                    yield pending.popleft().result()
            while pending:
                yield pending.popleft().result()
        finally:
            for future in pending:
                future.cancel()
