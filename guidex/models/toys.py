"""The toy distributions of the guidance papers, as exact denoisers."""

from collections.abc import Iterator
from typing import Literal

import numpy as np
import torch

from guidex.errors import UsageError
from guidex.models.mixture import GaussianMixture

# The tree of Karras et al. 2024 (arXiv 2406.02507, appendix C), in its own units.
TREE_SEED = 2
TREE_ORIGIN = np.array([0.0030, 0.0325])
TREE_SCALE = np.array([1.3136, 1.3844])
TREE_DEPTH = 6
TREE_ANGLES = {"A": 0.25 * np.pi, "B": 1.25 * np.pi}
POSITIONS = np.linspace(0.07, 0.93, 8)


def mixture1d(conditional: bool = True, blur: float = 0.0) -> GaussianMixture:
    """The 1D example of the guidance interval (Kynkäänniemi et al. 2024, arXiv 2404.07724, fig. 2).

    The paper does not give its mixture. These are the parameters that REG (zhengqigao/REG,
    1d-toy) published for it, and with them w = 6 shows what the figure shows: guidance everywhere
    loses a mode, guidance in the interval (0.1, 0.6] keeps both. As published, the conditional
    density is not a part of the unconditional one.

    Arguments:
        conditional: means 0.5 and 1.5, standard deviation 0.25, both in class 0 (the only one); if
            not, means -1 and 1, standard deviation 0.5. Equal weights; modes 0 and 1, in order.
        blur: standard deviation of extra blur, for a weaker model.
    """
    means, deviation = ([[0.5], [1.5]], 0.25) if conditional else ([[-1.0], [1.0]], 0.5)
    covariances = [[[deviation**2]]] * 2
    return GaussianMixture([1.0, 1.0], means, covariances, [0, 0], [0, 1], conditional, blur)


def fractal2d(
    classes: Literal["A", "B", "AB"] = "AB", conditional: bool = True, blur: float = 0.0
) -> GaussianMixture:
    """The 2D fractal of autoguidance: two tree-shaped classes (arXiv 2406.02507, fig. 1, app. C).

    Each class is a tree of 127 branches, each branch a row of 8 Gaussians and a mode. The trees
    have nearly the same weight (0.477 for A), because branch lengths are random. The data has zero
    mean and a standard deviation of 0.5 per dimension.

    Arguments:
        classes: which trees. Together, A is label 0 and B label 1; alone, either is label 0. A tree
            is the same whether the other is there or not.
        conditional: whether labels choose the tree.
        blur: standard deviation of extra blur, for a weaker model.
    """
    if classes not in ("A", "B", "AB"):
        raise UsageError(f"the fractal has classes 'A', 'B' and 'AB' (both), not {classes!r}")
    # One stream of random numbers for both trees: A is grown even where only B is wanted.
    rng = np.random.RandomState(TREE_SEED)
    trees = {name: list(_grow(rng, TREE_ORIGIN, angle)) for name, angle in TREE_ANGLES.items()}
    branches = [branch for name in classes for branch in trees[name]]
    labels = [label for label, name in enumerate(classes) for _ in trees[name]]
    count = len(POSITIONS)
    return GaussianMixture(
        *map(torch.from_numpy, _components(branches)),
        classes=torch.tensor(labels).repeat_interleave(count),
        modes=torch.arange(len(branches)).repeat_interleave(count),
        conditional=conditional,
        blur=blur,
        sigma_data=0.5,
    )


Branch = tuple[np.ndarray, np.ndarray, float, int]
"""Its start [2], direction [2] of unit length, length and depth."""


def _grow(
    rng: np.random.RandomState, start: np.ndarray, angle: float, depth: int = 0
) -> Iterator[Branch]:
    """A branch, then its subtree to the left, then that to the right. The order of random numbers
    defines the distribution: the branch's length, then each child's angle and all its subtree."""
    length = 0.292 * 0.8**depth * (1 + 0.2 * rng.randn())
    direction = np.array([np.cos(angle), np.sin(angle)])
    yield start, direction, length, depth
    for side in (1, -1):
        # The outermost branches draw the angles of their children too, though these do not grow.
        child_angle = angle + side * 0.7**depth * (1 + 0.2 * rng.randn())
        if depth < TREE_DEPTH:
            yield from _grow(rng, start + length * direction, child_angle, depth + 1)


def _components(branches: list[Branch]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """From N branches to the weights [8N], means [8N, 2] and covariances [8N, 2, 2] along them."""
    starts, directions, lengths, depths = map(np.array, zip(*branches, strict=True))
    along = lengths[:, None, None] * POSITIONS[:, None] * directions[:, None, :]
    means = (starts[:, None, :] + along) * TREE_SCALE
    # Narrow across the branch: the thickness is a fraction of the spread along it.
    thickness = 0.2 * 0.8**depths / lengths
    parallel = directions[:, :, None] * directions[:, None, :]
    shape = parallel + thickness[:, None, None] ** 2 * (np.eye(2) - parallel)
    spread = 0.06 * lengths[:, None] * TREE_SCALE
    covariances = shape * spread[:, :, None] * spread[:, None, :]
    weights = lengths * 0.5**depths
    count = len(POSITIONS)
    return weights.repeat(count), means.reshape(-1, 2), covariances.repeat(count, axis=0)
