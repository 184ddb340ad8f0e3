"""What a run keeps of the samples of a point: images, arrays, features, and what is drawn.

An output takes samples batch by batch and keeps them block by block: as arrays of the block's
record, or in files that the record lists. It holds nothing itself: blocks are made side by side.
"""

import io
import itertools
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any, BinaryIO, ClassVar
from zipfile import ZipFile, ZipInfo

import numpy as np
from torch import Tensor

from guidex.data.arrays import read_entry
from guidex.data.codec import from_pixels, write_png
from guidex.features.detectors import Detector, run_detectors
from guidex.features.features import FeatureSet
from guidex.files.atomic import atomic_write
from guidex.runs.blocks import Block, Store
from guidex.runs.provenance import digest
from guidex.runs.threads import Arriving
from guidex.sampling.trajectories import Outcome

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
        outcome: samples x [B, *shape], and the path of the first of them.
        decode: samples to what is seen of them.
        outputs: all that will take them.
    """

    seeds: list[int]
    labels: Tensor | None
    outcome: Outcome
    decode: Callable[[Tensor], Tensor]
    outputs: "Sequence[Output]"

    @cached_property
    def seen(self) -> Tensor:
        """Images, uint8 [B, C, H, W]; the samples where they are no images."""
        return self.decode(self.outcome.x)

    @cached_property
    def arriving(self) -> Arriving:
        """What is seen, on its way to memory."""
        return Arriving(self.seen)

    @cached_property
    def features(self) -> dict[Detector, Tensor]:
        """Of all detectors, [B, D]; networks that several share are run once."""
        detectors = [output.detector for output in self.outputs if output.detector]
        found = run_detectors(detectors, self.seen)
        return {key: FeatureSet(key.name, values).values for key, values in found.items()}

    def rows(self, seeds: frozenset[int]) -> list[int]:
        return [row for row, seed in enumerate(self.seeds) if seed in seeds]


class Output(ABC):
    """The interface.

    Attributes:
        name: tells it from the other outputs of a point; equal for what is equal in content.
        seeds: those whose samples it keeps; None for all.
        follows: whether it needs the trajectories of its samples.
        detector: whose features it needs, or None.
    """

    name: str
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
    def keep(self, results: list[Any], record: Path, block: Block) -> Kept:
        """What the jobs of a block have made, in order, as arrays of its record and as files."""

    def finish(self, store: Store, point: str, labels: Any) -> None:
        """Make what is made of all samples together; labels [N] or None."""
        return


@dataclass(frozen=True)
class PngFolder(Output):
    """images/000000/000123.png in a folder, one file per seed, a thousand to a folder."""

    folder: Path
    name: ClassVar[str] = "png"

    def take(self, made: Made) -> Jobs:
        rows = enumerate(made.seeds)
        return [partial(self._write, made.arriving, row, seed) for row, seed in rows]

    def keep(self, results: list[Path], record: Path, block: Block) -> Kept:
        return {}, results

    def _write(self, samples: Arriving, row: int, seed: int) -> Path:
        path = self.folder / "images" / image_name(seed)
        path.parent.mkdir(parents=True, exist_ok=True)
        write_png(path, samples.numpy()[row])
        return path


@dataclass(frozen=True, kw_only=True)
class Joined(Output):
    """A zip that is made of those of all blocks, which lie beside their records until then, and of
    itself, where it has been made of fewer seeds."""

    file: Path

    @property
    def name(self) -> str:
        return self.file.stem

    @abstractmethod
    def write(self, archive: ZipFile, block: Block, samples: Iterator[Any], labels: Any) -> None:
        """Fill a zip with the samples of a block; labels [N] or None."""

    @abstractmethod
    def reader(self, archive: ZipFile, file: Path) -> Callable[[int], Any]:
        """What gives the samples in a zip, by their number."""

    def keep(self, results: list[Any], record: Path, block: Block) -> Kept:
        part = record.with_suffix("")
        atomic_write(part, lambda file: self._write(file, block, iter(results)))
        return {}, [part]

    def finish(self, store: Store, point: str, labels: Any) -> None:
        # Its own record comes just before itself, and the parts go last: one of both is whole.
        pieces, block = store.pieces(point, self.name), store.whole
        record = store.path(point, f"whole-{block.name}", self.name)
        if [piece.record for piece in pieces] == [record]:
            return

        def join(file: BinaryIO) -> None:
            samples = {}
            with ExitStack() as opened:
                for piece in pieces:
                    is_whole = piece.record.name.startswith("whole-")
                    source = self.file if is_whole else piece.record.with_suffix("")
                    read = self.reader(opened.enter_context(ZipFile(source)), source)
                    places = zip(piece.places, piece.rows, strict=True)
                    samples |= {place: partial(read, row) for place, row in places}
                in_order = (samples[place]() for place in range(len(samples)))
                self._write(file, block, in_order, labels)
            listed = (self.file.name, file.seek(0, io.SEEK_END), None)
            store.folder.write(record, b"", [listed], **block.spelled)

        for piece in pieces:
            store.read(piece)
        atomic_write(self.file, join)
        others = {*record.parent.glob(f"*.{self.name}.record")} - {record}
        for other in [*others, *record.parent.glob(f"*.{self.name}")]:
            other.unlink(missing_ok=True)

    def _write(self, file: BinaryIO, block: Block, samples: Iterator, labels: Any = None) -> None:
        with ZipFile(file, "w") as archive:
            self.write(archive, block, samples, labels)


class Zip(Joined):
    """The same names as PNG files in one uncompressed archive."""

    def take(self, made: Made) -> Jobs:
        return [partial(self._encoded, made.arriving, row) for row in range(len(made.seeds))]

    def write(self, archive: ZipFile, block: Block, samples: Iterator[bytes], labels: Any) -> None:
        for seed, data in zip(block.seeds, samples, strict=True):
            # Without the date of today, so that equal images make equal files.
            archive.writestr(ZipInfo(f"images/{image_name(seed)}"), data)

    def reader(self, archive: ZipFile, file: Path) -> Callable[[int], bytes]:
        names = archive.namelist()
        return lambda row: archive.read(names[row])

    def _encoded(self, samples: Arriving, row: int) -> bytes:
        buffer = io.BytesIO()
        from_pixels(samples.numpy()[row]).save(buffer, format="PNG")
        return buffer.getvalue()


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
        samples = Arriving(made.outcome.x) if self.undecoded else made.arriving
        return [partial(self._row, samples, row) for row in range(len(made.seeds))]

    def write(self, archive: ZipFile, block: Block, samples: Iterator[Any], labels: Any) -> None:
        first = next(samples)
        header = np.lib.format.header_data_from_array_1_0(np.empty(0, first.dtype))
        header["shape"] = (len(block.seeds), *first.shape)
        with archive.open(f"{self.entry}.npy", "w", force_zip64=True) as target:
            np.lib.format.write_array_header_1_0(target, header)
            for sample in itertools.chain([first], samples):
                target.write(sample.tobytes())
        for name, values in ((self.labels, labels), (self.seeds_entry, np.array(block.seeds))):
            if name is not None and values is not None:
                with archive.open(f"{name}.npy", "w") as target:
                    np.lib.format.write_array(target, values)

    def reader(self, archive: ZipFile, file: Path) -> Callable[[int], np.ndarray]:
        return read_entry(file, archive, self.entry).__getitem__

    def _row(self, samples: Arriving, row: int) -> np.ndarray:
        sample = samples.numpy()[row]
        return sample.transpose(1, 2, 0) if self.channels_last else sample


class InRecord(Output):
    """An array in the record of a block, a row for each sample, under the output's name."""

    @abstractmethod
    def rows(self, made: Made) -> Tensor | None:
        """What is kept of a batch; None, of nothing."""

    def take(self, made: Made) -> Jobs:
        rows = self.rows(made)
        return [] if rows is None else [Arriving(rows).numpy]

    def keep(self, results: list[np.ndarray], record: Path, block: Block) -> Kept:
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
        return made.outcome.x.float()


@dataclass(frozen=True)
class Paths(InRecord):
    """Trajectories of some seeds, [R, steps + 1, d]."""

    seeds: frozenset[int]
    name: ClassVar[str] = "path"
    follows: ClassVar[bool] = True

    def rows(self, made: Made) -> Tensor | None:
        rows = made.rows(self.seeds)
        return made.outcome.path.transpose(0, 1)[rows] if rows else None
