"""The one engine: points, in cohorts that share noise and steps, block of seeds by block of seeds.

Each point hands its samples to its outputs, and each output keeps a record of a block under the
point's own name. So only what is missing is made, whatever the table was before. Processes share a
run by way of the folder alone: who makes a block has locked its claim, which the operating system
frees when a process dies.
"""

import concurrent.futures
import io
import time
from collections import Counter, defaultdict
from collections.abc import Hashable, Iterable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from filelock import FileLock, Timeout
from filelock import FileLock as alone
from torch import Tensor

from guidex.errors import GuidexError
from guidex.files.progress import Progress
from guidex.models.memory import Halving
from guidex.runs.blocks import Block, Store
from guidex.runs.cost import Sampled, timed
from guidex.runs.folder import RunFolder
from guidex.runs.measure import Measure
from guidex.runs.outputs import Made, Output
from guidex.runs.points import Point, at_the_point
from guidex.runs.provenance import digest
from guidex.runs.ranks import this_rank
from guidex.runs.settings import Settings
from guidex.runs.threads import Tick, Writers, in_parallel
from guidex.sampling.seeds import start
from guidex.sampling.trajectories import NonFinite, Outcome, trajectories


@dataclass(frozen=True)
class Task:
    """A point, the index of its row, what is kept of its samples, and what is measured."""

    index: int
    point: Point
    outputs: list[Output]
    measures: list[Measure] = field(default_factory=list)

    @property
    def name(self) -> str:
        """Of the point: what decides its samples."""
        return self.point.planned.settings.name

    @property
    def is_measured(self) -> bool:
        return any(measure.metrics for measure in self.measures)

    def is_whole(self, store: Store) -> bool:
        """Whether nothing is missing."""
        return not any(store.lacks(self.name, o.name, o.seeds).any() for o in self.outputs)


class Work(NamedTuple):
    """Seeds of one block that lack the same outputs, the file that claims them, and for each task
    the outputs."""

    block: Block
    claim: Path
    lacking: list[tuple[Task, list[Output]]]


@dataclass(frozen=True)
class Cohort:
    """Tasks that run together: same seeds, main model and solver."""

    tasks: list[Task]
    store: Store

    @property
    def folder(self) -> RunFolder:
        return self.store.folder

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

    def lacks(self) -> tuple[list[tuple[Task, Output]], np.ndarray]:
        """All outputs of all tasks, each once, and which seeds each is to have, and has not: bool
        [., N]. Tasks that are measured in other ways may have one point."""
        each: dict[Hashable, tuple[Task, Output]] = {}
        for task in self.tasks:
            for output in task.outputs:
                each.setdefault((task.name, output.name, output.seeds), (task, output))
        lacks = [self.store.lacks(task.name, o.name, o.seeds) for task, o in each.values()]
        return list(each.values()), np.stack(lacks)

    def work(self) -> tuple[list[Work], int]:
        """What is missing of this process's part, block by block; how many seeds that part has."""
        (part, parts), size = self.settings.part, self.settings.block
        pairs, lacks = self.lacks()
        numbers = np.arange(lacks.shape[1]) // size
        mine, work = numbers % parts == part, []
        # To keep the samples of some seeds cuts no block, unless a task lacks nothing else there.
        patterns, is_all = lacks.copy(), np.array([output.seeds is None for _, output in pairs])
        of_task = np.array([task.index for task, _ in pairs])
        for k in np.flatnonzero(~is_all):
            patterns[k] &= ~lacks[is_all & (of_task == of_task[k])].any(axis=0)
        places = np.flatnonzero(patterns.any(axis=0) & mine)
        groups: dict[bytes, list[int]] = {}
        for place, key in zip(places, np.vstack([numbers, patterns])[:, places].T, strict=True):
            groups.setdefault(key.tobytes(), []).append(place)
        for group in groups.values():
            lacking: dict[int, tuple[Task, list[Output]]] = {}
            for k in np.flatnonzero(lacks[:, group].any(axis=1)):
                task, output = pairs[k]
                lacking.setdefault(task.index, (task, []))[1].append(output)
            name = f"{digest(self.settings.cohort, 8)}-{numbers[group[0]] * size}-{size}"
            claim = self.folder.path / ".claims" / name
            work.append(Work(self.store.whole.rows(group), claim, list(lacking.values())))
        return work, int(mine.sum())

    def gathered(self, task: Task, *names: str) -> dict[str, np.ndarray]:
        """What outputs of a task have kept of all their seeds, in order, by their names."""
        arrays = {
            output.name: self.store.gathered(task.name, output.name, output.seeds)
            for output in task.outputs
            if output.name in names
        }
        return {name: array for name, array in arrays.items() if array is not None}


def grouped(tasks: Iterable[Task], folder: RunFolder) -> list[Cohort]:
    """Tasks in groups that run together."""
    cohorts: dict[str, Cohort] = {}
    for task in tasks:
        planned, key = task.point.planned, task.point.planned.settings.cohort
        if key not in cohorts:
            cohorts[key] = Cohort([], Store(folder, Block(planned.seeds, planned.labels)))
        cohorts[key].tasks.append(task)
    return list(cohorts.values())


@contextmanager
def run(cohorts: Sequence[Cohort], result: Path) -> Iterator[str]:
    """Make every block that is missing, and wait for those that other processes make; then hold
    the whole while others wait.

    Arguments:
        result: a file that is written last.

    Yields:
        "missing" where other shards are; "written" where another process has written the result in
        the meantime; "whole" otherwise.

    Raises:
        GuidexError: a sample that is not finite, naming its point; the disk is full.
    """
    before = _written(result)
    _sample(cohorts)
    if any(cohort.lacks()[1].any() for cohort in cohorts):
        yield "missing"
        return
    cohorts[0].folder.check()
    with alone(result.parent / ".lock-finish"):
        yield "whole" if _written(result) == before else "written"


def _written(file: Path) -> int | None:
    """When a file was written, in ns; None if it is not there."""
    return file.stat().st_mtime_ns if file.exists() else None


def _sample(cohorts: Sequence[Cohort]) -> None:
    is_first = this_rank().first
    unit, folder = cohorts[0].unit, cohorts[0].folder.path
    todo, total, left = [], 0, 0
    again: Counter[str] = Counter()
    for cohort in cohorts:
        works, seeds = cohort.work()
        todo += [(cohort, works)] if works else []
        total += seeds * len(cohort.tasks)
        for block, _, lacking in works:
            for _, outputs in lacking:
                left += len(block.seeds)
                titles = [output.title for output in outputs]
                again.update(dict.fromkeys([] if "labels" in titles else titles, len(block.seeds)))
    if is_first:
        if left < total:
            print(f"{total - left} of {total} {unit} are there already")
        for title, count in again.items():
            print(f"{count} {unit} were sampled without {title}, and are again")
    if not left:
        return
    (folder / ".claims").mkdir(exist_ok=True)
    bar = Progress("sampling", total, total - left, unit, quiet=not is_first)
    with timed() as made, bar as progress, Writers() as writers:
        for cohort, works in todo:
            longest = max(len(block.seeds) for block, *_ in works)
            batch = Halving(min(cohort.settings.batch, longest))
            model, device = cohort.tasks[0].point.model, cohort.settings.device
            maker = _Maker(cohort, batch, writers, made)
            for wait in (False, True):  # for those that other processes make, in the end
                make = partial(maker.claim, wait)
                works = in_parallel(make, works, model, device, progress.update)
                works = [work for work in works if work is not None]


@dataclass(frozen=True)
class _Maker:
    """Makes the blocks of a cohort, several side by side."""

    cohort: Cohort
    batch: Halving
    writers: Writers
    made: list[Sampled]

    def claim(self, wait: bool, work: Work, tick: Tick) -> Work | None:
        """Make a block, unless another process makes it, or has made it; returns it if it is
        left."""
        claim = FileLock(work.claim, thread_local=False)  # threads of `Writers` let it go
        while not _is_free(claim):
            tick(0)
            if not wait:
                return work
            time.sleep(0.1)
        try:
            path, header, block = self.cohort.store.path, self.cohort.folder.header, work.block
            lacking = [  # nobody has made it in the meantime
                (task, outputs)
                for task, outputs in work.lacking
                if any(header(path(task.name, _part(block, o), o.name)) is None for o in outputs)
            ]
            tick(len(block.seeds) * (len(work.lacking) - len(lacking)))
            records = self.make(block, lacking, tick) if lacking else []
            self.made.append(([task.point.planned for task, _ in lacking], len(block.seeds)))
            self.writers.submit(_release, claim, records)
        except BaseException:
            claim.release(force=True)
            raise
        return None

    def make(
        self, block: Block, lacking: list[tuple[Task, list[Output]]], tick: Tick
    ) -> list[Future]:
        """Sample a block and hand it to the writers; its records come last and make it count."""
        points, submit = [task.point for task, _ in lacking], self.writers.submit
        follow = {seed for _, own in lacking for o in own if o.follows for seed in o.seeds}
        recorded = max((n + 1 for n, seed in enumerate(block.seeds) if seed in follow), default=0)
        jobs: dict[tuple[int, str], list[Future]] = defaultdict(list)
        seconds: Counter[int] = Counter()
        try:
            for seeds, labels, outcomes in run_block(points, block, self.batch, recorded, tick):
                self.cohort.folder.check()
                for k, ((task, outputs), outcome) in enumerate(zip(lacking, outcomes, strict=True)):
                    began = time.perf_counter()
                    made = Made(seeds, labels, outcome, task.point.kind.decode, outputs)
                    for output in outputs:
                        jobs[k, output.name] += map(submit, output.take(made))
                    seconds[k] += outcome.seconds + time.perf_counter() - began
        except NonFinite as error:
            raise GuidexError(at_the_point(error, points[error.run].planned.values)) from error
        count = len(block.seeds)
        return [
            submit(self.keep, task, output, block, jobs[k, output.name], seconds[k] / count)
            for k, (task, outputs) in enumerate(lacking)
            for output in outputs
        ]

    def keep(
        self, task: Task, output: Output, block: Block, jobs: list[Future], seconds: float
    ) -> None:
        """Once its jobs are done, write the record of an output."""
        folder, part = self.cohort.folder, _part(block, output)
        folder.check()
        record = self.cohort.store.path(task.name, part, output.name)
        record.parent.mkdir(parents=True, exist_ok=True)
        arrays, files = output.keep([job.result() for job in jobs], record, part)
        content = io.BytesIO()
        if arrays:
            np.savez(content, **arrays)
        folder.write(record, content.getvalue(), files, seconds=seconds, **part.spelled)


def run_block(
    points: Sequence[Point], block: Block, batch: Halving, record: int, tick: Tick
) -> Iterator[tuple[list[int], Tensor | None, list[Outcome]]]:
    """All points of one cohort for a block's seeds, batch by batch.

    Arguments:
        batch: images per network call.
        record: how many seeds of the block, from its first, to record the trajectories of.
        tick: told how many images have been finished, counting parts.

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


def _is_free(claim: FileLock) -> bool:
    try:
        claim.acquire(timeout=0)
    except Timeout:
        return False
    return True


def _release(claim: FileLock, records: list[Future]) -> None:
    """Once everything is written; what failed is told by `Writers`."""
    concurrent.futures.wait(records)
    claim.release(force=True)


def _part(block: Block, output: Output) -> Block:
    """The seeds of a block that an output keeps."""
    if output.seeds is None:
        return block
    return block.rows(n for n, seed in enumerate(block.seeds) if seed in output.seeds)
