"""An image set: images of one shape in a fixed order, decoded when asked for."""

import dataclasses
import hashlib
import itertools
import os
import warnings
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import numpy as np
import PIL
from numpy.typing import NDArray

from guidex.data.codec import Pixels, from_pixels, require_size, to_pixels
from guidex.errors import GuidexError, printable, reason_of


@dataclasses.dataclass(eq=False, repr=False)
class ImageSet:
    """N images of one shape, in a fixed order, whose bytes stay as they were first read."""

    shape: tuple[int, int, int]  # (C, H, W) of every image, C = 1 (grey) or 3 (RGB)
    names: list[str]  # relative to the set and sorted; the index for arrays
    read_bytes: Callable[[int], bytes]  # image k as it is stored; called by several threads
    decode: Callable[[bytes], Pixels]  # to uint8 [C,H,W], or [1,H,W] for all C; called by threads
    kinds: set[str]  # formats that occur: "png", "jpeg", "webp", "bmp" or "array"
    labels: NDArray[np.int64] | None  # classes [N]
    class_names: list[str] | None  # of classes 0 ... K-1, if they come from sub-folders
    crop: bool  # whether images were cropped to their central squares
    # (name, reason) of unreadable images that were left out
    skipped: list[tuple[str, str]] = dataclasses.field(default_factory=list)
    # SHA-256 of the bytes of images that have been read, by index
    digests: dict[int, bytes] = dataclasses.field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.names)

    def load(self, index: int) -> Pixels:
        """The pixels of image k, uint8 [C,H,W], maybe read-only. Raises GuidexError: its bytes have
        changed, or cannot be decoded."""
        try:
            return np.broadcast_to(self.decode(self._bytes(index)), self.shape)
        except ValueError as error:
            raise GuidexError(
                f"{printable(self.names[index])} cannot be decoded, although its checksums are "
                f"right: {reason_of(error)}. Repair or remove it."
            ) from error

    def read(self, indices: Sequence[int]) -> Pixels:
        """Images by index (0 ... N-1), as a new array uint8 [n,C,H,W]. Raises: as `load`."""
        return next(self.stacks([indices]))

    def stacks(self, groups: Sequence[Sequence[int]]) -> Iterator[Pixels]:
        """Images by index, a new array uint8 [n,C,H,W] for each group of them, decoded by threads
        up to a group ahead of the consumer. Raises: as `load`."""
        ahead = max(map(len, groups), default=0) + default_workers()
        images = map_ahead(self.load, itertools.chain.from_iterable(groups), ahead)
        for group in groups:
            batch = np.empty((len(group), *self.shape), dtype=np.uint8)
            for row in batch:
                row[...] = next(images)
            yield batch

    def subset(self, rows: Sequence[int]) -> "ImageSet":
        """The set of some of the images."""
        return dataclasses.replace(
            self,
            names=[self.names[row] for row in rows],
            read_bytes=lambda index: self.read_bytes(int(rows[index])),
            digests={k: self.digests[row] for k, row in enumerate(rows) if row in self.digests},
            labels=None if self.labels is None else self.labels[rows],
        )

    def fingerprint(self) -> str:
        """SHA-256, in hex, of what the set holds: shape, images in order, what is done to them,
        labels; not names and times, nor whether files lie in a folder or in a zip."""
        total = hashlib.sha256(f"guidex images {self.shape} {len(self)} {self.crop}\n".encode())
        unread = [index for index in range(len(self)) if index not in self.digests]
        deque(map_ahead(self._bytes, unread, default_workers()), maxlen=0)
        for index in range(len(self)):
            total.update(self.digests[index])
        if self.kinds & {"jpeg", "webp"}:  # of which decoders make different pixels
            total.update(f"Pillow {PIL.__version__}".encode())
        if self.labels is not None:
            total.update(b"labels" + self.labels.astype("<i8").tobytes())
        return total.hexdigest()

    def _bytes(self, index: int) -> bytes:
        """An image as it is stored, found to be the same as before."""
        try:
            data = self.read_bytes(index)
            digest = hashlib.sha256(data).digest()
            if self.digests.setdefault(index, digest) != digest:
                raise ValueError("its content is another")
        except (OSError, ValueError) as error:
            raise GuidexError(
                f"{printable(self.names[index])} has changed since the images were opened: "
                f"{reason_of(error)}. Start again, and leave the images alone meanwhile."
            ) from error
        return data


def array_images(
    images: Pixels,
    *,
    labels: NDArray[np.int64] | None = None,
    class_names: list[str] | None = None,
    resize: int | None = None,
    crop: bool = False,
) -> ImageSet:
    """The set of the images in an array uint8 [N,H,W,C] with C = 1 or 3, N > 0, maybe mapped from a
    file. See `ImageSet` for labels and names, `codec.to_pixels` for `resize` and `crop`."""
    require_size(resize, crop)
    count, height, width, channels = images.shape
    head = f"{images.shape[1:]}".encode()

    def decode(data: bytes) -> Pixels:
        pixels = np.frombuffer(data, np.uint8, offset=len(head)).reshape(images.shape[1:])
        return to_pixels(from_pixels(pixels.transpose(2, 0, 1)), resize, crop)

    return ImageSet(
        shape=(channels, resize or height, resize or width),
        names=[f"{index:06d}" for index in range(count)],
        read_bytes=lambda index: head + images[index].tobytes(),
        decode=decode,
        kinds={"array"},
        labels=labels,
        class_names=class_names,
        crop=crop,
    )


def default_workers() -> int:
    """Threads to decode with: one per core that this process may use, at most 16."""
    known = hasattr(os, "sched_getaffinity")  # not on macOS and Windows
    return min(len(os.sched_getaffinity(0)) if known else os.cpu_count() or 1, 16)


def map_ahead(function: Callable, items: Iterable, ahead: int | None = None) -> Iterator[Any]:
    """Like `map`, in order, but computed by threads, at most `ahead` items before the consumer (by
    default, four for each thread)."""
    # Pillow warns about metadata (EXIF, animation) that is not used here.
    warnings.filterwarnings("ignore", module=r"PIL\.")
    ahead = 4 * default_workers() if ahead is None else ahead
    pool = ThreadPoolExecutor(default_workers(), thread_name_prefix="guidex-images")
    pending: deque[Future] = deque()
    try:
        for item in items:
            pending.append(pool.submit(function, item))
            if len(pending) > ahead:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)
