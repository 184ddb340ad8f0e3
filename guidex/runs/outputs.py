"""What a run keeps of the samples of a point: images, arrays, features, and what is drawn.

An output takes samples batch by batch and keeps them block by block: as arrays of the block's
record, or in files that the record lists. It holds nothing of a block itself, so that blocks may be
made side by side.
"""

import io
import zipfile
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from torch import Tensor

from guidex.data.codec import from_pixels, write_png
from guidex.features.detectors import Detector, detect_all
from guidex.files.atomic import atomic_write
from guidex.runs.writers import Arriving

FORMATS = ("png", "zip", "npz")


def image_name(seed: int) -> str:
    """Where the image of a seed lies under images/: a thousand to a folder."""
    return f"{seed // 1000 * 1000:06d}/{seed:06d}.png"


@dataclass(frozen=True)
class Made:
    """What was made of a batch of seeds at one point.

    Attributes:
        seeds: of the batch.
        x: samples [B, *shape].
        path: states of the first rows at every step boundary [steps + 1, R, *shape], or None.
        decode: samples to what is seen of them.
    """

    seeds: list[int]
    x: Tensor
    path: Tensor | None
    decode: Callable[[Tensor], Tensor]

    @cached_property
    def seen(self) -> Tensor:
        """Images, uint8 [B, C, H, W]; the samples where they are no images."""
        return self.decode(self.x)

    @cached_property
    def arriving(self) -> Arriving:
        """What is seen, on its way to memory."""
        return Arriving(self.seen)

    def rows(self, seeds: frozenset[int]) -> list[int]:
        """Those of some seeds."""
        return [row for row, seed in enumerate(self.seeds) if seed in seeds]


class Output(ABC):
    """The interface.

    Attributes:
        bytes_per_sample: that it takes on disk, about.
        paths_of: seeds whose trajectories it needs.
        file: what becomes of the parts that blocks lie in, once all are there; a zip, or None.
        suffix: of the parts.
    """

    bytes_per_sample: int = 0
    paths_of: frozenset[int] = frozenset()
    file: Path | None = None
    suffix = ""

    @abstractmethod
    def take(self, made: Made) -> list[Callable[[], Any]]:
        """Jobs that keep samples, for the threads of `Writers`."""

    @abstractmethod
    def keep(self, results: list[Any], record: Path) -> tuple[dict[str, np.ndarray], list[Path]]:
        """What the jobs of a whole block have made, in order, as arrays for the block's record and
        as files, which may lie beside it."""

    def finish(self, records: Sequence[Path], seeds: Sequence[int], labels: Any) -> None:
        """Make the final file of the parts of all blocks, unless there is one, and drop them.

        Arguments:
            records: of the blocks, in order.
            seeds: of all blocks.
            labels: [N], or None.
        """
        if self.file is None:
            return
        parts = [self.part(record) for record in records]
        if not self.is_finished:
            atomic_write(self.file, lambda file: self.join(file, parts, seeds, labels))
        for part in parts:
            part.unlink(missing_ok=True)

    def join(
        self, file: BinaryIO, parts: Sequence[Path], seeds: Sequence[int], labels: Any
    ) -> None:
        """Write the final file; only of outputs that have one."""
        raise NotImplementedError

    def part(self, record: Path) -> Path:
        """Where a block lies until the final file is there."""
        return record.with_name(record.stem + self.suffix)

    @property
    def is_finished(self) -> bool:
        """Whether the final file is there and whole, so that parts are not needed."""
        return self.file is not None and zipfile.is_zipfile(self.file)


class PngFolder(Output):
    """images/000000/000123.png, one file per seed, a thousand to a folder."""

    def __init__(self, folder: Path, bytes_per_sample: int = 0) -> None:
        self.images = folder / "images"
        self.bytes_per_sample = bytes_per_sample

    def take(self, made: Made) -> list[Callable[[], Path]]:
        samples = made.arriving
        return [partial(self._write, samples, row, seed) for row, seed in enumerate(made.seeds)]

    def keep(self, results: list[Path], record: Path) -> tuple[dict[str, np.ndarray], list[Path]]:
        return {}, results

    def _write(self, samples: Arriving, row: int, seed: int) -> Path:
        path = self.images / image_name(seed)
        path.parent.mkdir(parents=True, exist_ok=True)
        write_png(path, samples.numpy()[row])
        return path


class Zip(Output):
    """images.zip: the same names as PNG files in one uncompressed archive."""

    suffix = ".zip"

    def __init__(self, folder: Path, bytes_per_sample: int = 0) -> None:
        self.file = folder / "images.zip"
        self.bytes_per_sample = bytes_per_sample

    def take(self, made: Made) -> list[Callable[[], tuple[str, bytes]]]:
        samples = made.arriving
        return [partial(_encoded, samples, row, seed) for row, seed in enumerate(made.seeds)]

    def keep(
        self, results: list[tuple[str, bytes]], record: Path
    ) -> tuple[dict[str, np.ndarray], list[Path]]:
        part = self.part(record)
        atomic_write(part, lambda file: _write_zip(file, results))
        return {}, [part]

    def join(
        self, file: BinaryIO, parts: Sequence[Path], seeds: Sequence[int], labels: Any
    ) -> None:
        def entries() -> Iterator[tuple[str, bytes]]:
            for part in parts:
                with zipfile.ZipFile(part) as archive:
                    for name in archive.namelist():
                        yield name, archive.read(name)

        _write_zip(file, entries())


@dataclass(frozen=True, kw_only=True)
class Arrays(Output):
    """FILE.npz: one array of all samples, made without holding it in memory, and what goes with it.

    Attributes:
        file: the final file.
        entry: name of the samples in the file; ADM's sample format has "arr_0".
        labels, seeds: names of the labels and of the seeds in the file; seeds=None leaves them out.
        channels_last: store [N, H, W, C], as ADM does.
        undecoded: take samples as the model makes them, not what is decoded from them.
    """

    file: Path
    entry: str
    labels: str = "labels"
    seeds: str | None = "seeds"
    channels_last: bool = False
    undecoded: bool = False
    bytes_per_sample: int = 0

    @property
    def suffix(self) -> str:
        return f".{self.file.stem}.npy"

    def take(self, made: Made) -> list[Callable[[], np.ndarray]]:
        return [(Arriving(made.x) if self.undecoded else made.arriving).numpy]

    def keep(
        self, results: list[np.ndarray], record: Path
    ) -> tuple[dict[str, np.ndarray], list[Path]]:
        whole = np.concatenate(results)
        if self.channels_last:
            whole = whole.transpose(0, 2, 3, 1)
        part = self.part(record)
        atomic_write(part, lambda file: np.save(file, whole))
        return {}, [part]

    def join(
        self, file: BinaryIO, parts: Sequence[Path], seeds: Sequence[int], labels: Any
    ) -> None:
        arrays = [np.load(part, mmap_mode="r") for part in parts]
        header = {
            "descr": np.lib.format.dtype_to_descr(arrays[0].dtype),
            "fortran_order": False,
            "shape": (sum(map(len, arrays)), *arrays[0].shape[1:]),
        }
        extra = {} if labels is None else {self.labels: labels}
        extra |= {} if self.seeds is None else {self.seeds: np.array(seeds)}
        with zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:
            with archive.open(f"{self.entry}.npy", "w", force_zip64=True) as target:
                np.lib.format.write_array_header_1_0(target, header)
                for array in arrays:
                    target.write(memoryview(np.ascontiguousarray(array)).cast("B"))
            for name, values in extra.items():
                with archive.open(f"{name}.npy", "w") as target:
                    np.lib.format.write_array(target, values)


class InRecord(Output):
    """Arrays that lie in the record of a block, a row for each sample that is kept."""

    @abstractmethod
    def arrays(self, made: Made) -> dict[str, Tensor]:
        """What is kept of a batch; nothing, of some."""

    def take(self, made: Made) -> list[Callable[[], tuple[str, np.ndarray]]]:
        return [
            partial(_named, name, Arriving(values)) for name, values in self.arrays(made).items()
        ]

    def keep(
        self, results: list[tuple[str, np.ndarray]], record: Path
    ) -> tuple[dict[str, np.ndarray], list[Path]]:
        names = dict.fromkeys(name for name, _ in results)
        return {
            name: np.concatenate([values for other, values in results if other == name])
            for name in names
        }, []


@dataclass(frozen=True)
class Features(InRecord):
    """features0, features1, …: what each detector makes of all samples, float32 [B, D].

    Attributes:
        detectors: on the samples' device.
    """

    detectors: tuple[Detector, ...]
    bytes_per_sample: int = 0

    def arrays(self, made: Made) -> dict[str, Tensor]:
        features = detect_all(self.detectors, made.seen, None)
        return {f"features{number}": each.values for number, each in enumerate(features)}


@dataclass(frozen=True)
class Gallery(InRecord):
    """gallery: images of some seeds.

    Attributes:
        seeds: of the images.
    """

    seeds: frozenset[int]

    def arrays(self, made: Made) -> dict[str, Tensor]:
        rows = made.rows(self.seeds)
        return {"gallery": made.seen[rows]} if rows else {}


@dataclass(frozen=True)
class Paths(InRecord):
    """What a figure of a toy shows: samples, float32 [B, d], of all seeds; path, the trajectories
    [R, steps + 1, d] of some.

    Attributes:
        paths_of: the seeds.
    """

    paths_of: frozenset[int]

    def arrays(self, made: Made) -> dict[str, Tensor]:
        rows = made.rows(self.paths_of)
        paths = {"path": made.path.transpose(0, 1)[rows]} if rows else {}
        return {"samples": made.x.float(), **paths}


def _encoded(samples: Arriving, row: int, seed: int) -> tuple[str, bytes]:
    buffer = io.BytesIO()
    from_pixels(samples.numpy()[row]).save(buffer, format="PNG")
    return f"images/{image_name(seed)}", buffer.getvalue()


def _named(name: str, values: Arriving) -> tuple[str, np.ndarray]:
    return name, values.numpy()


def _write_zip(file: BinaryIO, entries: Iterable[tuple[str, bytes]]) -> None:
    with zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:
        for name, data in entries:
            # A fixed date, so that equal images make equal files.
            archive.writestr(zipfile.ZipInfo(name, (1980, 1, 1, 0, 0, 0)), data)
