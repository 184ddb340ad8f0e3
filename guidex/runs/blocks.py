"""Blocks: the unit of work, of atomic output and of resuming."""

import functools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from guidex.models.memory import Halving
from guidex.runs.points import Point
from guidex.runs.provenance import digest
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

    @property
    def name(self) -> str:
        """Its first and last seed, and a digest of all where they are not a range."""
        first, last = self.seeds[0], self.seeds[-1]
        is_range = self.seeds == list(range(first, last + 1))
        return f"{first:06d}-{last:06d}" + ("" if is_range else f"-{digest(self.seeds, 8)}")


class Batch(Halving):
    """Images per network call."""

    @classmethod
    def of(cls, wanted: int, blocks: Sequence[Block]) -> "Batch":
        """What is wanted, or what the longest of the blocks needs."""
        return cls(min(wanted, max(len(block.seeds) for block in blocks)))


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
    planned = points[0].planned
    device = torch.device(planned.settings.device)
    generators = torch.device("cpu") if planned.settings.rng == "cpu" else device
    model, solver = points[0].model, planned.solver
    runs = [point.run for point in points]

    def outcomes_of(first: int, size: int) -> tuple[int, Tensor | None, list[Outcome]]:
        part = slice(first, first + size)
        seeds = block.seeds[part]
        labels = None if block.labels is None else block.labels[part]
        # A compiled network wants one shape; what is made beyond the block is cut off again.
        padding = size - len(seeds) if model.compiled else 0
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

        def told(amount: float) -> None:
            tick(amount * len(seeds) / len(padded))

        outcomes = trajectories(runs, solver, begin, padded, recorded, told)
        for outcome in outcomes:
            outcome.x = outcome.x[: len(seeds)]
        labels = None if begin.labels is None else begin.labels[: len(seeds)]
        return len(seeds), labels, outcomes

    first = 0
    while first < len(block.seeds):
        count, labels, outcomes = batch.fit(functools.partial(outcomes_of, first))
        yield block.seeds[first : first + count], labels, outcomes
        first += count
