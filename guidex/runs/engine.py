"""The one engine: points, in cohorts that share noise and steps, block of seeds by block of seeds.

Each point hands its samples to its outputs. What they keep of a block lies in a record under the
point's own name, which counts once it is there; so a run goes on where it was, and a table may have
its points in any order.
"""

import io
import time
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from guidex.config.compose import Config
from guidex.errors import GuidexError
from guidex.files.progress import Progress
from guidex.runs.blocks import Batch, Block, cut, run_block
from guidex.runs.folder import RunFolder, require_space
from guidex.runs.measure import Measure
from guidex.runs.outputs import Made, Output
from guidex.runs.parallel import Tick, in_parallel
from guidex.runs.points import Point
from guidex.runs.provenance import merged
from guidex.runs.ranks import Rank
from guidex.runs.writers import Arriving, Writers
from guidex.sampling.trajectories import NonFinite, Outcome, shared_steps


@dataclass(frozen=True)
class Task:
    """A point with all that is to be done with it.

    Attributes:
        index: of its row.
        point: what is sampled.
        outputs: what is kept of its samples.
        measures: what is measured, a detector each.
    """

    index: int
    point: Point
    outputs: list[Output]
    measures: list[Measure] = field(default_factory=list)

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
        return min(self.config["gallery"], len(self.tasks[0].point.settings.seeds))

    @property
    def unit(self) -> str:
        """What samples are called."""
        return self.tasks[0].point.kind.unit

    def record(self, task: Task, block: Block) -> Path:
        """Where what a task makes of a block lies: under the point's own name, in any table."""
        return self.folder.path / "points" / task.point.settings.key / f"{block.name}.record"

    def missing(self, block: Block) -> list[Task]:
        """The tasks that a block is yet to be made for, or whose files are gone."""
        tasks = []
        for task in self.tasks:
            record = self.record(task, block)
            used = [output.part(record) for output in task.outputs if output.is_finished]
            if not self.folder.holds(record, used):
                tasks.append(task)
        return tasks

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
                raise GuidexError(
                    f"{path} was damaged, or a file beside it; the same command makes it anew"
                )
            made_with.append(record[1])
            with np.load(io.BytesIO(record[0]), allow_pickle=False) as arrays:
                for name in names:
                    if name in arrays:
                        parts.setdefault(name, []).append(arrays[name])
        joined = {name: np.concatenate(part) for name, part in parts.items()}
        return joined, merged(made_with)


def grouped(tasks: Iterable[Task], folder: RunFolder) -> list[Cohort]:
    """Tasks in groups that run together."""
    groups: dict[str, list[Task]] = {}
    for task in tasks:
        groups.setdefault(task.point.settings.cohort, []).append(task)
    found = []
    for group in groups.values():
        settings = group[0].point.settings
        blocks = cut(settings.seeds, settings.labels, settings.config["block"])
        found.append(Cohort(group, blocks, folder))
    return found


def run(cohorts: Sequence[Cohort], rank: Rank) -> bool:
    """Make every block of this process that is not there yet, or no longer.

    Returns:
        Whether all blocks are there now; otherwise other processes are at work, and the last one
        goes on with the whole.

    Raises:
        GuidexError: too little disk space; a sample that is not finite, naming its point.
    """
    missing = {
        (number, block.index): cohort.missing(block)
        for number, cohort in enumerate(cohorts)
        for block in cohort.blocks
        if rank.takes(block.index)
    }
    total = left = needed = 0
    for (number, index), tasks in missing.items():
        size = len(cohorts[number].blocks[index].seeds)
        total += size * len(cohorts[number].tasks)
        left += size * len(tasks)
        needed += size * sum(o.bytes_per_sample for task in tasks for o in task.outputs)
    unit = cohorts[0].unit
    if left < total:
        print(f"{total - left} of {total} {unit} are there already")
    if left > 0:
        require_space(cohorts[0].folder.path, needed)
        if rank.first:
            if needed >= 2**30:
                print(f"results will take {needed / 2**30:.1f} GiB in {cohorts[0].folder.path}")
            _print_shared(cohorts)
        bar = Progress("sampling", total, total - left, unit, quiet=not rank.first)
        with bar as progress, Writers() as writers:
            for number, cohort in enumerate(cohorts):
                own = {i: tasks for (n, i), tasks in missing.items() if n == number and tasks}
                _run_cohort(cohort, own, writers, progress)
    return not any(cohort.missing(block) for cohort in cohorts for block in cohort.blocks)


def _run_cohort(
    cohort: Cohort, missing: dict[int, list[Task]], writers: Writers, progress: Progress
) -> None:
    """Make blocks, given by number, for the tasks that lack them."""
    blocks = [block for block in cohort.blocks if block.index in missing]
    if not blocks:
        return
    batch = Batch.of(cohort.config["batch"], blocks)

    def work(block: Block, tick: Tick) -> None:
        _make(cohort, missing[block.index], block, batch, writers, tick)

    model, device = cohort.tasks[0].point.model, cohort.config["device"]
    for _ in in_parallel(work, blocks, model, device, progress.update):
        pass  # a block's record says that it is done


def _make(
    cohort: Cohort, tasks: list[Task], block: Block, batch: Batch, writers: Writers, tick: Tick
) -> None:
    """Sample a block and hand it to the writers, whose last job makes it count."""
    points = [task.point for task in tasks]
    wanted = {seed for task in tasks for output in task.outputs for seed in output.paths_of}
    recorded = max((row + 1 for row, seed in enumerate(block.seeds) if seed in wanted), default=0)
    parts = [_Part(cohort.folder, cohort.record(task, block), task) for task in tasks]
    for seeds, labels, outcomes in _named(run_block(points, block, batch, recorded, tick), points):
        cohort.folder.check()
        arriving = None if labels is None else Arriving(labels)
        for part, outcome in zip(parts, outcomes, strict=True):
            part.take(seeds, arriving, outcome, writers)
    for part in parts:
        writers.submit(part.write)


class _Part:
    """What one task makes of one block."""

    def __init__(self, folder: RunFolder, record: Path, task: Task) -> None:
        self._folder, self._record, self._task = folder, record, task
        self._jobs: list[list[Future]] = [[] for _ in task.outputs]
        self._labels: list[Arriving] = []
        self._seconds = 0.0

    def take(
        self, seeds: list[int], labels: Arriving | None, outcome: Outcome, writers: Writers
    ) -> None:
        """Hand a batch to the outputs."""
        began = time.perf_counter()
        made = Made(seeds, outcome.x, outcome.path, self._task.point.kind.decode)
        for output, jobs in zip(self._task.outputs, self._jobs, strict=True):
            jobs += [writers.submit(job) for job in output.take(made)]
        if labels is not None:
            self._labels.append(labels)
        self._seconds += outcome.seconds + time.perf_counter() - began

    def write(self) -> None:
        """Once all jobs are done, write the record."""
        self._folder.check()
        arrays: dict[str, Any] = {"seconds": np.array([self._seconds])}
        if self._labels:
            arrays["labels"] = np.concatenate([labels.numpy() for labels in self._labels])
        files: list[Path] = []
        self._record.parent.mkdir(parents=True, exist_ok=True)
        for output, jobs in zip(self._task.outputs, self._jobs, strict=True):
            kept, written = output.keep([job.result() for job in jobs], self._record)
            arrays |= kept
            files += written
        content = io.BytesIO()
        np.savez(content, **arrays)
        self._folder.write(self._record, content.getvalue(), files)


def _named(
    batches: Iterator[tuple[list[int], Tensor | None, list[Outcome]]], points: Sequence[Point]
) -> Iterator[tuple[list[int], Tensor | None, list[Outcome]]]:
    """The batches; a failure says at which point it was."""
    try:
        yield from batches
    except NonFinite as error:
        values = points[error.run].settings.values
        at = " ".join(f"{key}={value}" for key, value in values.items())
        raise GuidexError(f"{error}\n  at the point {at}" if at else str(error)) from error


def _print_shared(cohorts: Sequence[Cohort]) -> None:
    taken = alone = 0
    for cohort in cohorts:
        steps = len(cohort.tasks[0].point.settings.plan.timeline.sigmas) - 1
        runs = [task.point.run for task in cohort.tasks]
        taken += shared_steps(runs, steps) * len(cohort.blocks)
        alone += steps * len(runs) * len(cohort.blocks)
    if taken < alone:
        print(f"{taken} of {alone} steps are taken, the rest is shared between points")
