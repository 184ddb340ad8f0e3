"""Blocks of seeds, and what is kept of them: a record for each point, output and block.

Records are found again by seed and class, whatever the blocks and the table they were made for.
"""

import io
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple, Self

import numpy as np

from guidex.config.compose import Config
from guidex.errors import GuidexError
from guidex.runs.folder import RunFolder
from guidex.runs.provenance import digest, merged


@dataclass(frozen=True)
class Block:
    """Some seeds of a run, in order, and the classes asked for, or None to draw them."""

    seeds: list[int]
    labels: list[Any] | None

    @property
    def name(self) -> str:
        """Its first and last seed, and a digest where there is more to say."""
        first, last = self.seeds[0], self.seeds[-1]
        is_range = self.seeds == list(range(first, last + 1))
        more = "" if is_range and self.labels is None else f"-{digest(vars(self), 8)}"
        return f"{first:06d}-{last:06d}{more}"

    def rows(self, rows: Iterable[int]) -> "Block":
        """Some of them."""
        rows = list(rows)
        labels = None if self.labels is None else [self.labels[row] for row in rows]
        return Block([self.seeds[row] for row in rows], labels)

    @property
    def keys(self) -> list[tuple[int, Any]]:
        """What decides each sample of a point: its seed, and the class asked for."""
        return list(zip(self.seeds, self.labels or [None] * len(self.seeds), strict=True))

    @property
    def spelled(self) -> Config:
        """In short, as plain data."""
        seeds, same = self.seeds, self.labels and all(x == self.labels[0] for x in self.labels)
        starts = [n for n, seed in enumerate(seeds) if n == 0 or seed != seeds[n - 1] + 1]
        ends = [*starts[1:], len(seeds)]
        ranges = [[seeds[n], seeds[end - 1]] for n, end in zip(starts, ends, strict=True)]
        return {"seeds": ranges, "labels": self.labels[:1] if same else self.labels}

    @classmethod
    def of(cls, spelled: Config) -> Self:
        """The block of `spelled`."""
        seeds = [seed for low, high in spelled["seeds"] for seed in range(low, high + 1)]
        labels = spelled["labels"]
        return cls(seeds, labels * len(seeds) if labels and len(labels) == 1 else labels)


class Piece(NamedTuple):
    """Some samples that an output has kept: their record, what its header says, the rows of it that
    are wanted, and their places in the whole."""

    record: Path
    header: Config
    rows: np.ndarray
    places: np.ndarray


@dataclass(frozen=True)
class Store:
    """What a folder has of some seeds."""

    folder: RunFolder
    whole: Block

    @cached_property
    def _places(self) -> dict[tuple[int, Any], int]:
        return {key: place for place, key in enumerate(self.whole.keys)}

    @cached_property
    def _known(self) -> dict[str, np.ndarray]:
        """Where the rows of records stand in the whole, -1 if nowhere, by what records say."""
        return {}

    def path(self, point: str, block: Block | str, output: str) -> Path:
        """Of a record."""
        name = block if isinstance(block, str) else block.name
        return self.folder.path / "points" / point / f"{name}.{output}.record"

    def pieces(self, point: str, output: str) -> list[Piece]:
        """What there is of an output."""
        free, pieces = np.ones(len(self.whole.seeds), bool), []
        for record in sorted(self.path(point, "", "").parent.glob(f"*.{output}.record")):
            header = self.folder.header(record)
            if header is None or not {"seeds", "labels"} <= set(header):
                continue
            spelled = str((header["seeds"], header["labels"]))
            if spelled not in self._known:
                keys = Block.of(header).keys
                self._known[spelled] = np.array([self._places.get(key, -1) for key in keys])
            places = self._known[spelled]
            rows = np.flatnonzero((places >= 0) & free[places])
            if len(rows):
                free[places[rows]] = False
                pieces.append(Piece(record, header, rows, places[rows]))
        return pieces

    def read(self, piece: Piece) -> bytes:
        """The content of its record.

        Raises:
            GuidexError: it is damaged, or a file beside it; it is deleted, so as to be made again.
        """
        found = self.folder.read(piece.record)
        if found is None:
            piece.record.unlink(missing_ok=True)
            raise GuidexError(
                f"{piece.record} was damaged, or a file beside it; the same command makes it anew"
            )
        return found[0]

    def lacks(self, point: str, output: str, seeds: frozenset[int] | None = None) -> np.ndarray:
        """Which seeds of the whole an output is to have, and has not: bool [N]."""
        lacks = np.ones(len(self.whole.seeds), bool)
        if seeds is not None:
            lacks[:] = [seed in seeds for seed in self.whole.seeds]
        for piece in self.pieces(point, output):
            lacks[piece.places] = False
        return lacks

    def gathered(
        self, point: str, output: str, seeds: frozenset[int] | None = None
    ) -> np.ndarray | None:
        """What an output has kept, in the order of the seeds, of some or all of them; None if that
        is nothing.

        Raises:
            GuidexError: as `read`.
        """
        parts, places = [], []
        for piece in self.pieces(point, output):
            content = self.read(piece)
            if content == b"":  # labels of a model without classes
                return None
            wanted = [seeds is None or self.whole.seeds[place] in seeds for place in piece.places]
            with np.load(io.BytesIO(content), allow_pickle=False) as arrays:
                parts.append(arrays[output][piece.rows[wanted]])
            places.append(piece.places[wanted])
        order = np.argsort(np.concatenate(places))
        values = np.concatenate(parts)
        return values if (order[:-1] < order[1:]).all() else values[order]

    def made(self, point: str, *outputs: str) -> tuple[dict[str, str], float]:
        """Versions that outputs were made with, and seconds that the samples took."""
        pieces = [piece for output in outputs for piece in self.pieces(point, output)]
        seconds = sum(piece.header["seconds"] * len(piece.rows) for piece in pieces)
        return merged(piece.header["versions"] for piece in pieces), seconds
