"""Blocks: the unit of work, of atomic output and of resuming."""

import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from guidex.errors import GuidexError
from guidex.models.memory import is_out_of_memory
from guidex.runs.points import Point
from guidex.sampling.seeds import start
from guidex.sampling.trajectories import Outcome, trajectories


@dataclass(frozen=True)
class Block:
    """A stretch of a run's seeds.

    Attributes:
        index: number of the block.
        first: position of its first seed in the run.
        seeds: its seeds.
        labels: the classes asked for, or None to draw them.
    """

    index: int
    first: int
    seeds: list[int]
    labels: list[int] | None

    def path(self, folder: Path, suffix: str) -> Path:
        """Where the block's record lies; it exists once the block is done."""
        return folder / f"{self.seeds[0]:06d}-{self.seeds[-1]:06d}{suffix}"


@dataclass
class Batch:
    """Images per network call, halved for the rest of a run when the device's memory is too small.

    Attributes:
        size: images per call.
    """

    size: int

    @classmethod
    def of(cls, wanted: int, blocks: Sequence[Block]) -> "Batch":
        """What is wanted, or what the longest of the blocks needs."""
        return cls(min(wanted, max(len(block.seeds) for block in blocks)))

    def halve(self, used: int, reason: str) -> None:
        """Go on with half of what was used.

        Raises:
            GuidexError: that was one image.
        """
        if used == 1:
            raise GuidexError(f"the device has too little memory for a single image: {reason}")
        if self.size <= used // 2:
            return  # another thread has done so
        self.size = used // 2
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        print(f"out of memory: going on with batches of {self.size}", file=sys.stderr)


def cut(seeds: Sequence[int], labels: Sequence[int] | None, size: int) -> list[Block]:
    """Seeds cut into blocks of `size`, the last one maybe shorter."""
    blocks = []
    for index, first in enumerate(range(0, len(seeds), size)):
        part = slice(first, first + size)
        chosen = None if labels is None else list(labels[part])
        blocks.append(Block(index, first, list(seeds[part]), chosen))
    return blocks


def run_block(
    points: Sequence[Point],
    block: Block,
    batch: Batch,
    record: int,
    tick: Callable[[float], None],
) -> Iterator[tuple[list[int], Tensor | None, list[Outcome]]]:
    """All points of one cohort for a block's seeds, batch by batch.

    Arguments:
        points: share the main model, the solver and the noise.
        block: the seeds.
        batch: images per network call.
        record: how many seeds of the block, from its first, to record the trajectories of.
        tick: told how many images have been finished, counting parts.

    Raises:
        GuidexError: not even one image fits into the device's memory.

    Yields:
        Seeds, labels (int64 [B], None without classes) and one outcome per point, for each batch.
    """
    settings = points[0].settings
    device = torch.device(settings.config["device"])
    generators = torch.device("cpu") if settings.config["rng"] == "cpu" else device
    model, solver = points[0].model, settings.solver
    runs = [point.run for point in points]
    first = 0
    while first < len(block.seeds):
        part = slice(first, first + batch.size)
        seeds = block.seeds[part]
        labels = None if block.labels is None else block.labels[part]
        # A compiled network wants one shape; what is made beyond the block is cut off again.
        padding = batch.size - len(seeds) if model.compiled else 0
        padded = seeds + seeds[-1:] * padding
        begin = start(
            padded,
            model.shape,
            model.conditions,
            labels and labels + labels[-1:] * padding,
            device,
            generators,
            solver.stochastic,
        )
        recorded = max(0, min(record - first, len(seeds)))

        def told(amount: float, share: float = len(seeds) / len(padded)) -> None:
            tick(share * amount)

        try:
            outcomes = trajectories(runs, solver, begin, padded, recorded, told)
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
            outcomes, reason = None, str(error)
        if outcomes is None:  # and what failed is no longer held by its exception
            batch.halve(len(padded), reason.splitlines()[0])
            continue
        for outcome in outcomes:
            outcome.x = outcome.x[: len(seeds)]
        yield seeds, None if begin.labels is None else begin.labels[: len(seeds)], outcomes
        first += len(seeds)
