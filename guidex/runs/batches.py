"""Batches of a block through the sampler, as large as the memory allows."""

from collections.abc import Callable, Iterator, Sequence
from functools import partial

import torch
from torch import Tensor

from guidex.models.memory import Halving
from guidex.runs.blocks import Block
from guidex.runs.points import Point
from guidex.sampling.seeds import start
from guidex.sampling.trajectories import Outcome, trajectories


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
