"""What a run keeps of the samples of a point: images, arrays, features, and what is drawn.

An output takes samples batch by batch and keeps them block by block: as arrays of the block's
record, or in files that the record lists. It holds nothing itself: blocks are made side by side.
"""

import io
import zipfile
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any, BinaryIO, ClassVar

import numpy as np
from torch import Tensor

from guidex.data.arrays import read_entry
from guidex.data.codec import from_pixels, write_png
from guidex.features.detectors import Detector, run_detectors
from guidex.features.features import FeatureSet
from guidex.files.atomic import atomic_write
from guidex.runs.blocks import Block, Piece, Store
from guidex.runs.provenance import digest
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
        detectors: those whose features are wanted.
    """

    seeds: list[int]
    labels: Tensor | None
    x: Tensor
    path: Tensor | None
    decode: Callable[[Tensor], Tensor]
    detectors: Sequence[Detector] = ()

    @cached_property
    def seen(self) -> Tensor:
        """Images, uint8 [B, C, H, W]; the samples where they are no images."""
        return self.decode(self.x)

    @cached_property
    def arriving(self) -> Arriving:
        """What is seen, on its way to memory."""
        return Arriving(self.seen)

    @cached_property
    def features(self) -> dict[Detector, Tensor]:
        """Of all detectors, [B, D]; networks that several share are run once."""
        found = run_detectors(self.detectors, self.seen)
        return {key: FeatureSet(key.name, values).values for key, values in found.items()}

    def rows(self, seeds: frozenset[int]) -> list[int]:
        return [row for row, seed in enumerate(self.seeds) if seed in seeds]


class Output(ABC):
    """The interface.

    Attributes:
        name: tells it from the other outputs of a point; equal for what is equal in content.
        bytes_per_sample: that it takes on disk, about.
        seeds: those whose samples it keeps; None for all.
        follows: whether it needs the trajectories of its samples.
        detector: whose features it needs, or None.
    """

    name: str
    bytes_per_sample: int = 0
    seeds: frozenset[int] | None = None
    follows: bool = False
    detector: Detector | None = None

    @property
    def title(self) -> str:
        """The name for people."""
        return self.name

    @abstractmethod
    def take(self, made: Made) -> Jobs:
        """Jobs that keep samples, for the threads of `Writers`."""

    @abstractmethod
    def keep(self, results: list[Any], record: Path) -> Kept:
        """What the jobs of a block have made, in order, as arrays of its record and as files."""

    def finish(self, store: Store, point: str, labels: Any) -> None:
        """Make what is made of all samples together; labels [N] or None."""
        return


@dataclass(frozen=True)
class PngFolder(Output):
    """images/000000/000123.png in a folder, one file per seed, a thousand to a folder."""

    folder: Path
    bytes_per_sample: int = 0
    name: ClassVar[str] = "png"

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
    """A zip that is made of the parts of all blocks, which lie beside their records until then, and
    of itself, where it has been made of fewer seeds."""

    file: Path
    bytes_per_sample: int = 0

    @property
    def name(self) -> str:
        return self.file.stem

    @abstractmethod
    def write(self, file: BinaryIO, results: list[Any]) -> None:
        """Write the part of a block."""

    @abstractmethod
    def join(
        self, archive: zipfile.ZipFile, pieces: list[Piece], block: Block, labels: Any
    ) -> None:
        """Fill the zip."""

    def keep(self, results: list[Any], record: Path) -> Kept:
        part = record.with_suffix("")
        atomic_write(part, lambda file: self.write(file, results))
        return {}, [part]

    def finish(self, store: Store, point: str, labels: Any) -> None:
        # Its own record comes just before itself, and the parts go last: one of both is whole.
        pieces, block = store.pieces(point, self.name), store.whole
        record = store.path(point, f"whole-{block.name}", self.name)
        if [piece.record for piece in pieces] == [record]:
            return
        for piece in pieces:
            store.read(piece)

        def join(file: BinaryIO) -> None:
            with zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:
                self.join(archive, pieces, block, labels)
            listed = (self.file.name, file.seek(0, io.SEEK_END), None)
            store.folder.write(record, b"", [listed], **block.spelled)

        atomic_write(self.file, join)
        for other in record.parent.glob(f"*.{self.name}.record"):
            if other != record:
                other.unlink(missing_ok=True)
        for part in record.parent.glob(f"*.{self.name}"):
            part.unlink(missing_ok=True)

    def _file(self, piece: Piece) -> Path:
        """The part of a block, or the whole of before."""
        is_whole = piece.record.name.startswith("whole-")
        return self.file if is_whole else piece.record.with_suffix("")


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
        self, archive: zipfile.ZipFile, pieces: list[Piece], block: Block, labels: Any
    ) -> None:
        with ExitStack() as opened:
            source = {}
            for piece in pieces:
                images = opened.enter_context(zipfile.ZipFile(self._file(piece)))
                source |= dict.fromkeys(piece.places.tolist(), images)
            for place, seed in enumerate(block.seeds):
                name = f"images/{image_name(seed)}"
                archive.writestr(zipfile.ZipInfo(name), source[place].read(name))

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
        labels, seeds_entry: names of the labels and of the seeds in the file; None leaves them out.
        channels_last: store [N, H, W, C], as ADM does.
        undecoded: take samples as the model makes them, not what is decoded from them.
    """

    entry: str
    labels: str = "labels"
    seeds_entry: str | None = "seeds"
    channels_last: bool = False
    undecoded: bool = False

    def take(self, made: Made) -> Jobs:
        return [(Arriving(made.x) if self.undecoded else made.arriving).numpy]

    def write(self, file: BinaryIO, results: list[np.ndarray]) -> None:
        whole = np.concatenate(results)
        np.save(file, whole.transpose(0, 2, 3, 1) if self.channels_last else whole)

    def join(
        self, archive: zipfile.ZipFile, pieces: list[Piece], block: Block, labels: Any
    ) -> None:
        source = {}
        for piece in pieces:
            file, rows = self._file(piece), zip(piece.places, piece.rows, strict=True)
            if zipfile.is_zipfile(file):
                with zipfile.ZipFile(file) as before:
                    array = read_entry(file, before, self.entry)
            else:
                array = np.load(file, mmap_mode="r")
            source |= {place: array[row] for place, row in rows}
        header = np.lib.format.header_data_from_array_1_0(np.empty(0, source[0].dtype))
        header["shape"] = (len(source), *source[0].shape)
        with archive.open(f"{self.entry}.npy", "w", force_zip64=True) as target:
            np.lib.format.write_array_header_1_0(target, header)
            for place in range(len(source)):
                target.write(np.ascontiguousarray(source[place]).tobytes())
        for name, values in ((self.labels, labels), (self.seeds_entry, np.array(block.seeds))):
            if name is not None and values is not None:
                with archive.open(f"{name}.npy", "w") as target:
                    np.lib.format.write_array(target, values)


class InRecord(Output):
    """An array in the record of a block, a row for each sample, under the output's name."""

    @abstractmethod
    def rows(self, made: Made) -> Tensor | None:
        """What is kept of a batch; None, of nothing."""

    def take(self, made: Made) -> Jobs:
        rows = self.rows(made)
        return [] if rows is None else [Arriving(rows).numpy]

    def keep(self, results: list[np.ndarray], record: Path) -> Kept:
        return ({self.name: np.concatenate(results)} if results else {}), []


class Labels(InRecord):
    """int64 [B], where there are classes."""

    name = "labels"

    def rows(self, made: Made) -> Tensor | None:
        return made.labels


@dataclass(frozen=True)
class Features(InRecord):
    """What a detector makes of all samples, [B, D]."""

    detector: Detector
    bytes_per_sample: int = 0

    @cached_property
    def name(self) -> str:
        return f"features-{digest(asdict(self.detector.identity), 12)}"

    @property
    def title(self) -> str:
        return f"features of {self.detector.name}"

    def rows(self, made: Made) -> Tensor:
        return made.features[self.detector]


@dataclass(frozen=True)
class Gallery(InRecord):
    """Images of some seeds."""

    seeds: frozenset[int]
    name: ClassVar[str] = "gallery"

    def rows(self, made: Made) -> Tensor | None:
        rows = made.rows(self.seeds)
        return made.seen[rows] if rows else None


class Coordinates(InRecord):
    """Samples of a toy, float32 [B, d]."""

    name = "coordinates"

    def rows(self, made: Made) -> Tensor:
        return made.x.float()


@dataclass(frozen=True)
class Paths(InRecord):
    """Trajectories of some seeds, [R, steps + 1, d]."""

    seeds: frozenset[int]
    name: ClassVar[str] = "path"
    follows: ClassVar[bool] = True

    def rows(self, made: Made) -> Tensor | None:
        rows = made.rows(self.seeds)
        return made.path.transpose(0, 1)[rows] if rows else None
