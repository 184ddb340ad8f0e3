"""Blocks: the unit of work, of atomic output and of resuming."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from guidex.models.memory import Halving
from guidex.runs.points import Point
from guidex.runs.provenance import digest
from guidex.sampling.seeds import start
from guidex.sampling.trajectories import Outcome, trajectories


@dataclass(frozen=True)
class Block:
    """A stretch of a run's seeds, the position of the first in the run, and the classes asked for,
    or None to draw them."""

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
    batch: Halving,
    record: int,
    tick: Callable[[float], None],
) -> Iterator[tuple[list[int], Tensor | None, list[Outcome]]]:
    """All points of one cohort for a block's seeds, batch by batch.

    Arguments:
        batch: images per network call.
        record: how many seeds of the block, from its first, to record the trajectories of.
        tick: told how many images have been finished, counting parts.

    Raises:
        GuidexError: not even one image fits into the device's memory.

    Yields:
        Seeds, labels (int64 [B], None without classes) and one outcome per point, for each batch.
    """
    settings, solver, model = points[0].planned.settings, points[0].planned.solver, points[0].model
    device = torch.device(settings.device)
    generators = torch.device("cpu") if settings.rng == "cpu" else device
    runs = [point.run for point in points]

    def sample(first: int, size: int) -> tuple[list[int], Tensor | None, list[Outcome]]:
        part = slice(first, first + size)
        seeds, labels = block.seeds[part], block.labels and block.labels[part]
        count = len(seeds)
        # A compiled network wants one shape; what is made beyond the block is cut off again.
        padding = size - count if model.compiled else 0
        padded, given = seeds + seeds[-1:] * padding, labels and labels + labels[-1:] * padding
        noisy = solver.stochastic
        begin = start(padded, model.shape, model.conditions, given, device, generators, noisy)
        share, recorded = count / len(padded), max(0, min(record - first, count))
        outcomes = trajectories(
            runs, solver, begin, padded, recorded, lambda amount: tick(amount * share)
        )
        for outcome in outcomes:
            outcome.x = outcome.x[:count]
        return seeds, None if begin.labels is None else begin.labels[:count], outcomes

    first = 0
    while first < len(block.seeds):
        made = batch.fit(partial(sample, first))
        first += len(made[0])
        yield made
