"""Differences of two points on the same seeds, with confidence, by a jackknife over blocks.

Where block b holds 1/g of the fakes, the pseudo-value of a number t is g t - (g - 1) t_without_b
(Tukey 1958). The mean of the pseudo-values is t without its bias of order 1 / N, and they scatter
as t does. The pseudo-values of a difference are the differences of those of two points; what luck
does to both, the same seeds being in block b, cancels.
"""

from collections.abc import Sequence
from typing import NamedTuple, TypeVar

import numpy as np
import torch
from torch import Tensor

LEVEL = 0.9  # of confidence
BLOCKS = 20
FEWEST_BLOCKS = 5  # of balanced classes, which a block holds one image of each of
FEWEST_FAKES = 2 * BLOCKS

T = TypeVar("T")


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
    """A difference of two points without the bias of finitely many fakes, and the ends of the
    interval that holds the true one with the probability asked for."""

    centre: float
    low: float
    high: float


def difference(ours: Sequence[float], theirs: Sequence[float], level: float = LEVEL) -> Difference:
    """From the pseudo-values of two points in blocks of the same seeds, those of repeats one after
    the other, by Student's t."""
    from scipy.special import stdtrit  # half a second, for those who have points to compare

    apart = np.subtract(ours, theirs)
    error = float(apart.std(ddof=1)) / len(apart) ** 0.5
    reach = float(stdtrit(len(apart) - 1, (1 + level) / 2)) * error
    centre = float(apart.mean())
    return Difference(centre, centre - reach, centre + reach)


def among_best(
    points: Sequence[T], values: Sequence[Sequence[float]], best: T, sign: int, level: float = LEVEL
) -> list[T]:
    """The points that may be the best, of their pseudo-values [points, blocks] and the one that
    seems so: the truly best one is among them with the probability `level`.

    A point is left out where it is worse by more than chance explains, in one-sided tests whose
    errors add up to 1 - level (Bonferroni), so that the choice of the best is allowed for.

    Arguments:
        sign: 1 where lower values are better, -1 where higher ones are.
    """
    if len(points) < 2:
        return list(points)
    one_sided = 1 - 2 * (1 - level) / (len(points) - 1)
    theirs = values[[point is best for point in points].index(True)]
    apart = [difference(ours, theirs, one_sided) for ours in values]
    worse = [each.low > 0 if sign > 0 else each.high < 0 for each in apart]
    return [point for point, is_worse in zip(points, worse, strict=True) if not is_worse]
