"""What a run keeps of the samples of a point: images, arrays, features, and what is drawn.

An output takes samples batch by batch and keeps them block by block: as arrays of the block's
record, or in files that the record lists. It holds nothing itself: blocks are made side by side.
"""

import io
import zipfile
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
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

Jobs = list[Callable[[], Any]]
Kept = tuple[dict[str, np.ndarray], list[Path]]


def image_name(seed: int) -> str:
    """Where the image of a seed lies under images/: a thousand to a folder."""
    return f"{seed // 1000 * 1000:06d}/{seed:06d}.png"


@dataclass(frozen=True)
class Made:
    """What was made of a batch of seeds at one point.

    Attributes:
        labels: int64 [B], or None without classes.
        x: samples [B, *shape].
        path: states of the first rows at every step boundary [steps + 1, R, *shape], or None.
        decode: samples to what is seen of them.
    """

    seeds: list[int]
    labels: Tensor | None
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
        return [row for row, seed in enumerate(self.seeds) if seed in seeds]


class Output(ABC):
    """The interface.

    Attributes:
        bytes_per_sample: that it takes on disk, about.
        paths_of: seeds whose trajectories it needs.
    """

    bytes_per_sample: int = 0
    paths_of: frozenset[int] = frozenset()

    @abstractmethod
    def take(self, made: Made) -> Jobs:
        """Jobs that keep samples, for the threads of `Writers`."""

    @abstractmethod
    def keep(self, results: list[Any], record: Path) -> Kept:
        """What the jobs of a block have made, in order, as arrays of its record and as files."""

    def finish(self, records: Sequence[Path], seeds: Sequence[int], labels: Any) -> None:
        """Make what is made of all blocks together; labels [N] or None."""
        return

    def unneeded(self, record: Path) -> list[Path]:
        """The block's files that may be gone."""
        return []


@dataclass(frozen=True)
class PngFolder(Output):
    """images/000000/000123.png in a folder, one file per seed, a thousand to a folder."""

    folder: Path
    bytes_per_sample: int = 0

    def take(self, made: Made) -> Jobs:
        samples = made.arriving
        return [partial(self._write, samples, row, seed) for row, seed in enumerate(made.seeds)]

    def keep(self, results: list[Path], record: Path) -> Kept:
        return {}, results

    def _write(self, samples: Arriving, row: int, seed: int) -> Path:
        path = self.folder / "images" / image_name(seed)
        path.parent.mkdir(parents=True, exist_ok=True)
        write_png(path, samples.numpy()[row])
        return path


@dataclass(frozen=True, kw_only=True)
class Joined(Output):
    """A zip that is made of the parts of all blocks; they lie beside their records until then."""

    file: Path
    bytes_per_sample: int = 0

    @abstractmethod
    def write(self, file: BinaryIO, results: list[Any]) -> None:
        """Write the part of a block."""

    @abstractmethod
    def join(
        self, archive: zipfile.ZipFile, parts: list[Path], seeds: Sequence[int], labels: Any
    ) -> None:
        """Fill the zip."""

    def _part(self, record: Path) -> Path:
        return record.with_suffix(f".{self.file.stem}")

    def keep(self, results: list[Any], record: Path) -> Kept:
        part = self._part(record)
        atomic_write(part, lambda file: self.write(file, results))
        return {}, [part]

    def finish(self, records: Sequence[Path], seeds: Sequence[int], labels: Any) -> None:
        parts = [self._part(record) for record in records]

        def join(file: BinaryIO) -> None:
            with zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:
                self.join(archive, parts, seeds, labels)

        if not zipfile.is_zipfile(self.file):
            atomic_write(self.file, join)
        for part in parts:
            part.unlink(missing_ok=True)

    def unneeded(self, record: Path) -> list[Path]:
        return [self._part(record)] if zipfile.is_zipfile(self.file) else []


@dataclass(frozen=True, kw_only=True)
class Zip(Joined):
    """The same names as PNG files in one uncompressed archive."""

    def take(self, made: Made) -> Jobs:
        samples = made.arriving
        return [partial(self._encoded, samples, row, seed) for row, seed in enumerate(made.seeds)]

    def write(self, file: BinaryIO, results: list[tuple[str, bytes]]) -> None:
        with zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:
            for name, data in results:
                # Without the date of today, so that equal images make equal files.
                archive.writestr(zipfile.ZipInfo(name), data)

    def join(
        self, archive: zipfile.ZipFile, parts: list[Path], seeds: Sequence[int], labels: Any
    ) -> None:
        for part in parts:
            with zipfile.ZipFile(part) as images:
                for entry in images.infolist():
                    archive.writestr(entry, images.read(entry))

    def _encoded(self, samples: Arriving, row: int, seed: int) -> tuple[str, bytes]:
        buffer = io.BytesIO()
        from_pixels(samples.numpy()[row]).save(buffer, format="PNG")
        return f"images/{image_name(seed)}", buffer.getvalue()


@dataclass(frozen=True, kw_only=True)
class Arrays(Joined):
    """An npz with one array of all samples, made without holding it in memory, and what goes with
    it.

    Attributes:
        entry: name of the samples in the file; ADM's sample format has "arr_0".
        labels, seeds: names of the labels and of the seeds in the file; seeds=None leaves them out.
        channels_last: store [N, H, W, C], as ADM does.
        undecoded: take samples as the model makes them, not what is decoded from them.
    """

    entry: str
    labels: str = "labels"
    seeds: str | None = "seeds"
    channels_last: bool = False
    undecoded: bool = False

    def take(self, made: Made) -> Jobs:
        return [(Arriving(made.x) if self.undecoded else made.arriving).numpy]

    def write(self, file: BinaryIO, results: list[np.ndarray]) -> None:
        whole = np.concatenate(results)
        np.save(file, whole.transpose(0, 2, 3, 1) if self.channels_last else whole)

    def join(
        self, archive: zipfile.ZipFile, parts: list[Path], seeds: Sequence[int], labels: Any
    ) -> None:
        arrays = [np.load(part, mmap_mode="r") for part in parts]
        header = np.lib.format.header_data_from_array_1_0(np.empty(0, arrays[0].dtype))
        header["shape"] = (sum(map(len, arrays)), *arrays[0].shape[1:])
        with archive.open(f"{self.entry}.npy", "w", force_zip64=True) as target:
            np.lib.format.write_array_header_1_0(target, header)
            for array in arrays:
                target.write(memoryview(np.ascontiguousarray(array)).cast("B"))
        for name, values in ((self.labels, labels), (self.seeds, np.array(seeds))):
            if name is not None and values is not None:
                with archive.open(f"{name}.npy", "w") as target:
                    np.lib.format.write_array(target, values)


class InRecord(Output):
    """Arrays that lie in the record of a block, a row for each sample that is kept."""

    @abstractmethod
    def arrays(self, made: Made) -> dict[str, Tensor]:
        """What is kept of a batch; nothing, of some."""

    def take(self, made: Made) -> Jobs:
        arrays = {name: Arriving(values) for name, values in self.arrays(made).items()}
        return [lambda: {name: values.numpy() for name, values in arrays.items()}]

    def keep(self, results: list[dict[str, np.ndarray]], record: Path) -> Kept:
        return joined(results), []


class Labels(InRecord):
    """labels, int64 [B], where there are classes."""

    def arrays(self, made: Made) -> dict[str, Tensor]:
        return {} if made.labels is None else {"labels": made.labels}


@dataclass(frozen=True)
class Features(InRecord):
    """features0, features1, …: what each detector makes of all samples, [B, D]."""

    detectors: tuple[Detector, ...]
    bytes_per_sample: int = 0

    def arrays(self, made: Made) -> dict[str, Tensor]:
        features = detect_all(self.detectors, made.seen, None)
        return {f"features{number}": each.values for number, each in enumerate(features)}


@dataclass(frozen=True)
class Gallery(InRecord):
    """gallery: images of some seeds."""

    seeds: frozenset[int]

    def arrays(self, made: Made) -> dict[str, Tensor]:
        rows = made.rows(self.seeds)
        return {"gallery": made.seen[rows]} if rows else {}


@dataclass(frozen=True)
class Paths(InRecord):
    """samples, float32 [B, d], of all seeds; path, trajectories [R, steps + 1, d], of some."""

    paths_of: frozenset[int]

    def arrays(self, made: Made) -> dict[str, Tensor]:
        rows = made.rows(self.paths_of)
        paths = {"path": made.path.transpose(0, 1)[rows]} if rows else {}
        return {"samples": made.x.float(), **paths}


def joined(parts: Sequence[dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
    """Arrays of equal names, one after the other; not all parts need to have all names."""
    names = dict.fromkeys(name for part in parts for name in part)
    return {name: np.concatenate([part[name] for part in parts if name in part]) for name in names}
