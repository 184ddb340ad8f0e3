"""Differences of two points on the same seeds, with confidence, by a jackknife over blocks.

Where block b holds 1/g of the fakes, the pseudo-value of a number t is g t - (g - 1) t_without_b
(Tukey 1958). The mean of the pseudo-values is t without its bias of order 1 / N, and they scatter
as t does. The pseudo-values of a difference are the differences of those of two points; what luck
does to both, the same seeds being in block b, cancels.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

BLOCKS = 20
FEWEST_BLOCKS = 5  # of balanced classes, which a block holds one image of each of
FEWEST_FAKES = 2 * BLOCKS


def blocks_of(count: int, labels: Tensor | None, seed: int) -> Sequence[Tensor]:
    """Rows of the blocks of a jackknife, on the CPU: at random, since images often come sorted by
    class and a block must look like the whole. Of labels [N] with equal numbers of several classes,
    give or take one, each block has as many of each; none where there are fewer than 5 of each."""
    order = torch.randperm(count, generator=torch.Generator().manual_seed(seed))
    labels = torch.zeros(count) if labels is None else labels.cpu()
    found, numbers = labels.unique(return_counts=True)
    least = int(numbers.min())
    if len(found) == 1 or numbers.max() - least > 1:
        return order.tensor_split(BLOCKS)
    if least < FEWEST_BLOCKS:
        return []
    classes = [order[labels[order] == label] for label in found]
    # As few left over as possible.
    choices = range(min(least, BLOCKS // 2), min(least, BLOCKS) + 1)
    blocks = max(choices, key=lambda number: (least // number * number, number))
    each = least // blocks
    cut = [rows[: each * blocks].split(each) for rows in classes]
    return [torch.cat(rows_of_block) for rows_of_block in zip(*cut, strict=True)]


def block_means(values: Tensor) -> list[float]:
    """The pseudo-values of a mean over fakes, of the value of each [N]; none of too few fakes."""
    if len(values) < FEWEST_FAKES:
        return []
    blocks = blocks_of(len(values), None, seed=0)
    return [values[block.to(values.device)].double().mean().item() for block in blocks]


class Difference(NamedTuple):
    """A difference of two points without the bias of finitely many fakes, its standard error, and
    the number of blocks that it is known from."""

    centre: float
    error: float
    blocks: int

    def reach(self, level: float) -> float:
        """Half the width of the interval that holds the true difference with this probability, by
        Student's t."""
        from scipy.special import stdtrit  # half a second, for those who have points to compare

        return float(stdtrit(self.blocks - 1, (1 + level) / 2)) * self.error


def difference(ours: Sequence[float], theirs: Sequence[float]) -> Difference:
    """From the pseudo-values of two points, in equal blocks of the same seeds; those of repeats
    one after the other."""
    apart = np.subtract(ours, theirs)
    return Difference(float(apart.mean()), float(apart.std(ddof=1)) / len(apart) ** 0.5, len(apart))


def among_best(points: Sequence[Sequence[float]], best: int, sign: int, level: float) -> list[bool]:
    """Which points may be the best, of pseudo-values [points, blocks] and the number of the point
    that seems so: the truly best one is among them with the probability `level`.

    A point is left out where it is worse by more than chance explains, by one-sided tests whose
    errors add up to 1 - level (Bonferroni), so that the choice of the best is allowed for.

    Arguments:
        sign: 1 where lower values are better, -1 where higher ones are.
    """
    tests = max(len(points) - 1, 1)
    apart = [difference(point, points[best]) for point in points]
    return [sign * each.centre <= each.reach(1 - 2 * (1 - level) / tests) for each in apart]
