"""Images on their way to the disk: encoded and written by threads while the next batch is made."""

import io
import queue
import threading
import zipfile
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, Self

import numpy as np
import torch
from torch import Tensor

from guidex.data.codec import from_pixels, write_png
from guidex.data.image_set import default_workers
from guidex.files.atomic import atomic_write
from guidex.runs.points import Point

WAITING = 512  # images that may wait for a thread before the sampler has to


FORMATS = ("png", "zip", "npz")


def image_name(seed: int) -> str:
    """Where the image of a seed lies under images/: a thousand to a folder."""
    return f"{seed // 1000 * 1000:06d}/{seed:06d}.png"


class Threads:
    """Runs small jobs in threads, at most WAITING ahead; errors come back to the caller.

    Used as a context manager around a run: leaving it waits until everything is written.
    """

    def __init__(self) -> None:
        self._jobs: queue.Queue[Callable[[], None] | None] = queue.Queue(WAITING)
        self._errors: list[BaseException] = []
        self._threads = [
            threading.Thread(target=self._work, daemon=True) for _ in range(default_workers())
        ]

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for _ in self._threads:
            self._jobs.put(None)
        for thread in self._threads:
            thread.join()
        if error is None:
            self._raise()

    def submit(self, job: Callable[[], None]) -> None:
        """Run a job soon; waits where too many are waiting already.

        Raises:
            Exception: what an earlier job raised.
        """
        self._raise()
        self._jobs.put(job)

    def _work(self) -> None:
        while (job := self._jobs.get()) is not None:
            if self._errors:
                continue  # what was submitted after a failure is not worth the time
            try:
                job()
            except BaseException as error:
                self._errors.append(error)

    def _raise(self) -> None:
        if self._errors:
            raise self._errors[0]


class Jobs:
    """The jobs of one block, and a last one that is done after all of them, also in a thread, while
    the next block is made.

    Arguments:
        threads: do the jobs.
    """

    def __init__(self, threads: Threads) -> None:
        self._threads = threads
        self._lock = threading.Lock()
        self._left = 0
        self._last: Callable[[], None] | None = None

    def submit(self, job: Callable[[], None]) -> None:
        """Run a job soon; waits and raises as Threads.submit does."""
        self._add(job, last=None)

    def close(self, last: Callable[[], None]) -> None:
        """There are no more jobs; `last` is run once all others are done, and never after a
        failure of one."""
        self._add(lambda: None, last)

    def _add(self, job: Callable[[], None], last: Callable[[], None] | None) -> None:
        with self._lock:
            self._left += 1
            self._last = last
        self._threads.submit(lambda: self._do(job))

    def _do(self, job: Callable[[], None]) -> None:
        job()
        with self._lock:
            self._left -= 1
            last = self._last if self._left == 0 else None
        if last is not None:
            last()


class Arriving:
    """Samples on their way from a device to memory; nobody waits for them before they are wanted.

    Arguments:
        samples: on any device; those on the CPU are there already.
    """

    def __init__(self, samples: Tensor) -> None:
        self._samples = samples.to("cpu", non_blocking=True)  # pinned memory, if from a GPU
        self._device = samples.device
        self._arrived: torch.cuda.Event | None = None
        if samples.is_cuda:
            # Blocking: threads that wait sleep, and leave the cores to those that compute.
            self._arrived = torch.cuda.Event(blocking=True)
            self._arrived.record(torch.cuda.current_stream(samples.device))

    def numpy(self) -> np.ndarray:
        """The samples as an array, once they have arrived."""
        if self._arrived is not None:
            # A thread begins on GPU 0, and would take memory there for a context of its own.
            with torch.cuda.device(self._device):
                self._arrived.synchronize()
        return self._samples.numpy()


class Store(ABC):
    """A form in which samples are kept: parts beside each block's record, then one final file.

    Attributes:
        of_latents: whether it takes latents, not what is decoded from them.
        path: the final file, a zip, or None where there is none.
        suffix: of the parts.
    """

    of_latents = False
    path: Path | None = None
    suffix = ""

    @abstractmethod
    def write(self, jobs: Jobs, seeds: Sequence[int], samples: Arriving) -> None:
        """Take samples of the block at hand: images uint8 [n, C, H, W], or numbers [n, ...]."""

    @abstractmethod
    def close(self, block: Path) -> list[Path]:
        """Keep what was taken, in parts at the block's path with a suffix of their own, or in
        files; returns them. The block's jobs are done."""

    @property
    def is_finished(self) -> bool:
        """Whether the final file is there and whole, so that parts are not needed."""
        return self.path is not None and zipfile.is_zipfile(self.path)

    def part(self, block: Path) -> Path:
        """Where the part of a block is kept until the final file is there."""
        return block.with_name(block.stem + self.suffix)

    @abstractmethod
    def finish(
        self, blocks: Sequence[Path], seeds: Sequence[int], labels: np.ndarray | None
    ) -> None:
        """Make the final file of all blocks, if it is not there, and drop the parts."""


class PngFolder(Store):
    """images/000000/000123.png, one file per seed, a thousand to a folder."""

    def __init__(self, folder: Path) -> None:
        self.images = folder / "images"
        self.written: list[Path] = []

    def write(self, jobs: Jobs, seeds: Sequence[int], samples: Arriving) -> None:
        for k, seed in enumerate(seeds):
            path = self.images / image_name(seed)
            path.parent.mkdir(parents=True, exist_ok=True)
            self.written.append(path)
            jobs.submit(lambda path=path, k=k: write_png(path, samples.numpy()[k]))

    def close(self, block: Path) -> list[Path]:
        del block
        written, self.written = self.written, []
        return written

    def finish(
        self, blocks: Sequence[Path], seeds: Sequence[int], labels: np.ndarray | None
    ) -> None:
        del blocks, seeds, labels


class Zip(Store):
    """images.zip: the same names as PNG files in one uncompressed archive."""

    suffix = ".zip"

    def __init__(self, folder: Path) -> None:
        self.path = folder / "images.zip"
        self.encoded: dict[str, bytes] = {}

    def write(self, jobs: Jobs, seeds: Sequence[int], samples: Arriving) -> None:
        for k, seed in enumerate(seeds):
            name = f"images/{image_name(seed)}"
            self.encoded[name] = b""  # the order of the seeds, whichever thread is first
            jobs.submit(lambda name=name, k=k: self._encode(name, samples.numpy()[k]))

    def close(self, block: Path) -> list[Path]:
        entries, self.encoded = self.encoded, {}
        part = self.part(block)
        atomic_write(part, lambda file: _write_zip(file, entries.items()))
        return [part]

    def finish(
        self, blocks: Sequence[Path], seeds: Sequence[int], labels: np.ndarray | None
    ) -> None:
        parts = list(map(self.part, blocks))

        def entries() -> Iterator[tuple[str, bytes]]:
            for part in parts:
                with zipfile.ZipFile(part) as archive:
                    for name in archive.namelist():
                        yield name, archive.read(name)

        _make_once(self.path, lambda file: _write_zip(file, entries()), parts)

    def _encode(self, name: str, image: np.ndarray) -> None:
        buffer = io.BytesIO()
        from_pixels(image).save(buffer, format="PNG")
        self.encoded[name] = buffer.getvalue()


class Arrays(Store):
    """NAME.npz: one array of all samples, made without holding it in memory, and what goes with it.

    Arguments:
        folder: of the run.
        name: of the file.
        entry: name of the samples in the file; ADM's sample format has "arr_0".
        channels_last: store [N, H, W, C], as ADM does.
        with_labels: name of the labels in the file ("arr_1" for ADM).
        with_seeds: name of the seeds, or None to leave them out.
        of_latents: whether it takes latents, not what is decoded from them.
    """

    def __init__(
        self,
        folder: Path,
        name: str,
        entry: str,
        channels_last: bool,
        with_labels: str,
        with_seeds: str | None,
        of_latents: bool = False,
    ) -> None:
        self.path = folder / f"{name}.npz"
        self.entry, self.channels_last = entry, channels_last
        self.with_labels, self.with_seeds = with_labels, with_seeds
        self.of_latents = of_latents
        self.suffix = f".{name}.npy"
        self.taken: list[Arriving] = []

    def write(self, jobs: Jobs, seeds: Sequence[int], samples: Arriving) -> None:
        self.taken.append(samples)

    def close(self, block: Path) -> list[Path]:
        whole, self.taken = np.concatenate([samples.numpy() for samples in self.taken]), []
        if self.channels_last:
            whole = whole.transpose(0, 2, 3, 1)
        part = self.part(block)
        atomic_write(part, lambda file: np.save(file, whole))
        return [part]

    def finish(
        self, blocks: Sequence[Path], seeds: Sequence[int], labels: np.ndarray | None
    ) -> None:
        parts = list(map(self.part, blocks))
        extra = {} if labels is None else {self.with_labels: labels}
        if self.with_seeds is not None:
            extra[self.with_seeds] = np.array(seeds)
        _make_once(self.path, lambda file: _write_npz(file, self.entry, parts, extra), parts)


def stores(form: str, folder: Path, point: Point) -> list[Store]:
    """Where the samples of a run go.

    Arguments:
        form: of images: png, zip or npz. The points of a toy are kept as numbers.
        folder: of the run.
        point: whose samples they are; its configuration says whether latents are kept.
    """
    if point.model.space == "points":
        return [Arrays(folder, "samples", "samples", False, "labels", "seeds")]
    kept: list[Store] = []
    if not point.latents_alone:
        if form == "npz":
            kept.append(Arrays(folder, "images", "arr_0", True, "arr_1", None))
        else:
            kept.append({"png": PngFolder, "zip": Zip}[form](folder))
    if point.settings.config["latents"]:
        kept.append(Arrays(folder, "latents", "latents", False, "labels", "seeds", of_latents=True))
    return kept


def _make_once(path: Path, write: Callable[[BinaryIO], None], parts: Sequence[Path]) -> None:
    """Write the final file unless a run before did, then drop the parts it is made of."""
    if not zipfile.is_zipfile(path):
        atomic_write(path, write)
    for part in parts:
        part.unlink(missing_ok=True)


def _write_npz(
    file: BinaryIO, entry: str, parts: Sequence[Path], extra: dict[str, np.ndarray]
) -> None:
    arrays = [np.load(part, mmap_mode="r") for part in parts]
    shape = (sum(map(len, arrays)), *arrays[0].shape[1:])
    header = {
        "descr": np.lib.format.dtype_to_descr(arrays[0].dtype),
        "fortran_order": False,
        "shape": shape,
    }
    with zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:
        with archive.open(f"{entry}.npy", "w", force_zip64=True) as target:
            np.lib.format.write_array_header_1_0(target, header)
            for array in arrays:
                target.write(memoryview(np.ascontiguousarray(array)).cast("B"))
        for name, values in extra.items():
            with archive.open(f"{name}.npy", "w") as target:
                np.lib.format.write_array(target, values)


def _write_zip(file: BinaryIO, entries: Iterable[tuple[str, bytes]]) -> None:
    with zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:
        for name, data in entries:
            # A fixed date, so that equal images make equal files.
            archive.writestr(zipfile.ZipInfo(name, (1980, 1, 1, 0, 0, 0)), data)
