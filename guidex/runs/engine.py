"""The one engine: points, in cohorts that share noise and steps, block of seeds by block of seeds.

Each point hands its samples to its outputs. What they keep of a block lies in a record under the
point's own name; so a run goes on where it was, and a table may have its points in any order.
"""

import io
import time
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np
from filelock import FileLock

from guidex.errors import GuidexError
from guidex.files.progress import Progress
from guidex.models.memory import Halving
from guidex.runs.blocks import Block, cut, run_block
from guidex.runs.cost import timed
from guidex.runs.folder import RunFolder, require_space
from guidex.runs.measure import Measure
from guidex.runs.outputs import Made, Output, joined
from guidex.runs.parallel import Tick, in_parallel
from guidex.runs.points import Point, at_the_point
from guidex.runs.provenance import merged
from guidex.runs.ranks import Rank
from guidex.runs.settings import Settings
from guidex.runs.writers import Writers
from guidex.sampling.trajectories import NonFinite, shared_steps


@dataclass(frozen=True)
class Task:
    """A point, the index of its row, what is kept of its samples, and what is measured."""

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
    def settings(self) -> Settings:
        """Those of the first task; what concerns sampling is the same for all."""
        return self.tasks[0].point.planned.settings

    @property
    def kept(self) -> int:
        """How many seeds, from the first, have their images or trajectories kept."""
        return min(self.settings.gallery, len(self.settings.seeds))

    @property
    def unit(self) -> str:
        """What samples are called."""
        return self.tasks[0].point.kind.unit

    def record(self, task: Task, block: Block) -> Path:
        """Where what a task makes of a block lies: under the point's own name, in any table."""
        name = task.point.planned.settings.name
        return self.folder.path / "points" / name / f"{block.name}.record"

    def missing(self, block: Block) -> list[Task]:
        """The tasks that a block is yet to be made for, or whose files are gone."""
        missing = []
        for task in self.tasks:
            record = self.record(task, block)
            unneeded = [path for output in task.outputs for path in output.unneeded(record)]
            if not self.folder.holds(record, unneeded):
                missing.append(task)
        return missing

    def gathered(
        self, task: Task, *names: str, first: int | None = None
    ) -> tuple[dict[str, np.ndarray], dict[str, str]]:
        """Arrays of a task's blocks, joined, by those names that a block has, and the versions that
        they were made with.

        Arguments:
            first: only of the blocks that have the run's first seeds, so many.

        Raises:
            GuidexError: a block is damaged; it is deleted, so as to be made again.
        """
        parts, made_with = [], []
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
                parts.append({name: arrays[name] for name in names if name in arrays})
        return joined(parts), merged(made_with)


def grouped(tasks: Iterable[Task], folder: RunFolder) -> list[Cohort]:
    """Tasks in groups that run together."""
    cohorts: dict[str, Cohort] = {}
    for task in tasks:
        planned, key = task.point.planned, task.point.planned.settings.cohort
        if key not in cohorts:
            blocks = cut(planned.seeds, planned.labels, planned.settings.block)
            cohorts[key] = Cohort([], blocks, folder)
        cohorts[key].tasks.append(task)
    return list(cohorts.values())


@contextmanager
def run(cohorts: Sequence[Cohort], rank: Rank, result: Path) -> Iterator[bool]:
    """Make every block of this process that is not there yet, or no longer; then see whether this
    process is the last one, which goes on with the whole while the others wait.

    Arguments:
        result: a file of the run that the last process writes.

    Raises:
        GuidexError: too little disk space; a sample that is not finite, naming its point.
    """
    before = _written(result)
    _sample(cohorts, rank)
    if any(cohort.missing(block) for cohort in cohorts for block in cohort.blocks):
        yield False
        return
    cohorts[0].folder.check()
    with FileLock(result.parent / ".finish.lock"):
        yield _written(result) == before  # or another process has done it


def _written(file: Path) -> int | None:
    """When a file was written, in ns; None if it is not there."""
    return file.stat().st_mtime_ns if file.exists() else None


def _sample(cohorts: Sequence[Cohort], rank: Rank) -> None:
    unit, folder = cohorts[0].unit, cohorts[0].folder.path
    total = left = needed = 0
    todo: list[tuple[Cohort, list[tuple[Block, list[Task]]]]] = []
    for cohort in cohorts:
        own = [block for block in cohort.blocks if rank.takes(block.index)]
        lacking = [(block, tasks) for block in own if (tasks := cohort.missing(block))]
        total += sum(len(block.seeds) for block in own) * len(cohort.tasks)
        for block, tasks in lacking:
            left += len(block.seeds) * len(tasks)
            sizes = (output.bytes_per_sample for task in tasks for output in task.outputs)
            needed += len(block.seeds) * sum(sizes)
        if lacking:
            todo.append((cohort, lacking))
    if left < total:
        print(f"{total - left} of {total} {unit} are there already")
    if not todo:
        return
    require_space(folder, needed)
    if rank.first:
        _print_shared(cohorts)
    bar = Progress("sampling", total, total - left, unit, quiet=not rank.first)
    work = [
        ([task.point.planned for task in tasks], len(block.seeds))
        for _, lacking in todo
        for block, tasks in lacking
    ]
    with timed(work), bar as progress, Writers() as writers:
        for cohort, lacking in todo:
            longest = max(len(block.seeds) for block, _ in lacking)
            batch = Halving(min(cohort.settings.batch, longest))
            make, model = partial(_make, cohort, batch, writers), cohort.tasks[0].point.model
            in_parallel(make, lacking, model, cohort.settings.device, progress.update)


def _make(
    cohort: Cohort, batch: Halving, writers: Writers, todo: tuple[Block, list[Task]], tick: Tick
) -> None:
    """Sample a block and hand it to the writers; its records come last and make it count."""
    block, tasks = todo
    jobs: list[list[list[Future]]] = [[[] for _ in task.outputs] for task in tasks]
    seconds = [0.0] * len(tasks)
    points = [task.point for task in tasks]
    wanted = {seed for task in tasks for output in task.outputs for seed in output.paths_of}
    recorded = max((row + 1 for row, seed in enumerate(block.seeds) if seed in wanted), default=0)
    try:
        for seeds, labels, outcomes in run_block(points, block, batch, recorded, tick):
            cohort.folder.check()
            for k, (task, outcome) in enumerate(zip(tasks, outcomes, strict=True)):
                began = time.perf_counter()
                made = Made(seeds, labels, outcome.x, outcome.path, task.point.kind.decode)
                for output, own in zip(task.outputs, jobs[k], strict=True):
                    own += map(writers.submit, output.take(made))
                seconds[k] += outcome.seconds + time.perf_counter() - began
    except NonFinite as error:
        raise GuidexError(at_the_point(error, points[error.run].planned.values)) from error
    for task, own, spent in zip(tasks, jobs, seconds, strict=True):
        writers.submit(_keep, cohort.folder, cohort.record(task, block), task, own, spent)


def _keep(
    folder: RunFolder, record: Path, task: Task, jobs: list[list[Future]], seconds: float
) -> None:
    """Once the jobs of all outputs are done, write the record of a block."""
    folder.check()
    record.parent.mkdir(parents=True, exist_ok=True)
    arrays, files = {"seconds": np.array([seconds])}, []
    for output, own in zip(task.outputs, jobs, strict=True):
        kept, written = output.keep([job.result() for job in own], record)
        arrays |= kept
        files += written
    content = io.BytesIO()
    np.savez(content, **arrays)
    folder.write(record, content.getvalue(), files)


def _print_shared(cohorts: Sequence[Cohort]) -> None:
    taken = alone = 0
    for cohort in cohorts:
        steps = len(cohort.tasks[0].point.planned.plan.timeline.sigmas) - 1
        runs = [task.point.run for task in cohort.tasks]
        taken += shared_steps(runs, steps) * len(cohort.blocks)
        alone += steps * len(runs) * len(cohort.blocks)
    if taken < alone:
        print(f"{taken} of {alone} steps are taken, the rest is shared between points")
