"""What a sweep works on: tasks, in cohorts that run together, and their results on disk."""

import io
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from guidex.config.compose import Config
from guidex.errors import GuidexError
from guidex.runs.blocks import Block
from guidex.runs.folder import RunFolder
from guidex.runs.measure import Measure
from guidex.runs.points import Point
from guidex.runs.provenance import merged


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
    folder: RunFolder

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

    def missing(self, block: Block) -> list[Task]:
        """The tasks that a block is yet to be made for."""
        return [one for one in self.tasks if not self.folder.holds(self.record(one, block))]

    def record(self, task: Task, block: Block) -> Path:
        """Where what a task makes of a block lies: under the point's own name, in any table."""
        return block.path(self.folder.path / "points" / task.point.settings.key, ".record")

    def gathered(
        self, task: Task, *names: str, first: int | None = None
    ) -> tuple[dict[str, np.ndarray], dict[str, str]]:
        """Arrays of a task's blocks, joined, and the versions that they were made with.

        Arguments:
            task: of the cohort.
            names: of the arrays; those that no block has are left out.
            first: only of the blocks that have the run's first seeds, so many.

        Raises:
            GuidexError: a block is damaged; it is deleted, so as to be made again.
        """
        parts: dict[str, list[np.ndarray]] = {}
        made_with = []
        for block in self.blocks:
            if first is not None and block.first >= first:
                continue
            path = self.record(task, block)
            record = self.folder.read(path)
            if record is None:
                path.unlink(missing_ok=True)
                raise GuidexError(f"{path} was damaged; the same command makes it anew")
            made_with.append(record[1])
            with np.load(io.BytesIO(record[0]), allow_pickle=False) as arrays:
                for name in names:
                    if name in arrays:
                        parts.setdefault(name, []).append(arrays[name])
        joined = {
            name: np.concatenate(part, axis=1 if name == "path" else 0)
            for name, part in parts.items()
        }
        return joined, merged(made_with)

    @property
    def images(self) -> int:
        """Images to be made, over all points."""
        return sum(map(_size, self.blocks)) * len(self.tasks)


def _size(block: Block) -> int:
    return len(block.seeds)
