"""What a sweep works on: tasks, in cohorts that run together, and their results on disk."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np

from guidex.config import Config
from guidex.errors import GuidexError
from guidex.runs.blocks import Block
from guidex.runs.measure import Measure
from guidex.runs.points import Point


@dataclass(frozen=True)
class Task:
    """A point with everything that is needed to sample and to measure it.

    Attributes:
        index: of its row.
        point: what is sampled.
        measures: what is measured, a detector each.
    """

    index: int
    point: Point
    measures: list[Measure]

    @property
    def keeps_features(self) -> bool:
        """Whether features go to disk: to be measured, or as the points of a toy."""
        return self.is_measured or self.point.model.space == "points"

    @property
    def is_measured(self) -> bool:
        return any(measure.metrics for measure in self.measures)


@dataclass(frozen=True)
class Cohort:
    """Tasks that run together: same seeds, main model and solver."""

    tasks: list[Task]
    blocks: list[Block]
    records: Path

    @property
    def config(self) -> Config:
        """Configuration of the first task; what concerns sampling is the same for all."""
        return self.tasks[0].point.settings.config

    @property
    def kept(self) -> int:
        """How many seeds, from the first, have their images or trajectories kept."""
        return min(self.config["gallery"], sum(map(_size, self.blocks)))

    @property
    def unit(self) -> str:
        """What samples are called."""
        return "samples" if self.tasks[0].point.model.space == "points" else "images"

    def arrays(self) -> list[Any]:
        """The blocks' arrays, opened; each is read when asked for.

        Raises:
            GuidexError: a block is damaged.
        """
        opened = []
        for block in self.blocks:
            path = block.path(self.records, ".npz")
            try:
                opened.append(np.load(path, allow_pickle=False))
            except (OSError, ValueError, BadZipFile) as error:
                raise GuidexError(
                    f"{path} cannot be read: {error}; delete it and run again"
                ) from error
        return opened

    def gathered(self, name: str, axis: int) -> np.ndarray:
        """An array of all blocks that have it, joined."""
        parts = []
        for arrays in self.arrays():
            with arrays:
                if name in arrays:
                    parts.append(arrays[name])
        return np.concatenate(parts, axis=axis)

    def seconds(self, position: int) -> float:
        """Time that a task's sampling took, over all blocks."""
        return float(
            self.gathered("seconds", axis=0).reshape(-1, len(self.tasks))[:, position].sum()
        )

    def labels(self) -> np.ndarray | None:
        """Class of every image, or None."""
        if self.tasks[0].point.model.num_classes == 0:
            return None
        return self.gathered("labels", axis=0)

    @property
    def images(self) -> int:
        """Images to be made, over all points."""
        return sum(map(_size, self.blocks)) * len(self.tasks)


def _size(block: Block) -> int:
    return len(block.seeds)
