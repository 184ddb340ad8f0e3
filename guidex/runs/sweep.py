"""`guidex sweep`: a table of points, all on the same seeds, measured and drawn.

The way of the data: points -> cohorts (same noise, model and solver) -> blocks of seeds, in which
    all points
of a cohort run together and share the steps they agree in -> features on disk -> metrics -> rows
-> table, plots and grids.
"""

import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from guidex.assets.atomic import atomic_write
from guidex.evaluation.detectors import Detector, detect
from guidex.evaluation.features import FeatureSet, check_comparable
from guidex.instantiate import Models
from guidex.reports.rows import Row
from guidex.reports.tables import terminal_table, write_tables
from guidex.runs.blocks import Batch, Block, cut, run_block
from guidex.runs.cohorts import Cohort, Task
from guidex.runs.drawings import draw
from guidex.runs.folder import VOLATILE, read_json, require_space, run_folder, write_json
from guidex.runs.measure import (
    Detectors,
    References,
    check_metrics,
    make_metrics,
    measure,
    reference_models,
    repeats_of,
    settings_of,
)
from guidex.runs.parallel import Tick, in_parallel
from guidex.runs.points import Point, load, models_on
from guidex.runs.progress import Progress
from guidex.runs.provenance import output_folder, provenance
from guidex.runs.table import Entry, Table, plan_table, print_plans
from guidex.sampling.trajectories import shared_steps


def sweep(words: Sequence[str], plan_only: bool) -> None:
    """Run the command.

    Arguments:
        words: Hydra overrides; those with several values are the axes.
        plan_only: print the plan of every point and stop.

    Raises:
        UsageError, GuidexError: before any work where possible.
    """
    table = plan_table(words)
    _print_size(table)
    if plan_only:
        print_plans(table)
        return
    config = table.base.config
    identity = {
        "command": "sweep",
        **{key: value for key, value in config.items() if key not in VOLATILE},
        "points": {
            " ".join(f"{k}={v}" for k, v in e.values.items()): e.settings and e.settings.identity
            for e in table.entries
        },
    }
    folder = output_folder(config["out"], "sweep", table.name, identity)
    with run_folder(folder, identity, bool(config["overwrite"])):
        tasks = _prepare(table)
        cohorts = _cohorts(tasks, folder)
        _sample(cohorts, folder)
        rows = _rows(table.entries, cohorts, folder)
        files = [*write_tables(rows, folder), *draw(rows, cohorts, folder)]
    print(f"\n{terminal_table(rows)}\n")
    for file in files:
        print(file)


def _print_size(table: Table) -> None:
    planned = [entry.settings for entry in table.entries if entry.settings is not None]
    counts = sorted({len(settings.seeds) for settings in planned})
    missing = len(table.entries) - len(planned)
    print(
        f"{table.name}: {len(planned)} points of {'/'.join(map(str, counts))} images"
        + (f", {missing} left out (see the table)" if missing else "")
    )


def _prepare(table: Table) -> list[Task]:
    """Load models and references; whatever is wrong with them shows here."""
    stores: dict[str, Models] = {}
    references, detectors = References(reference_models(), batch=1024), Detectors()
    tasks = []
    for index, entry in enumerate(table.entries):
        if entry.settings is None:
            continue
        config = entry.settings.config
        device = config["device"]
        point = load(entry.settings, stores.setdefault(device, models_on(device)))
        detector = detectors.get(config)
        metrics = make_metrics(config)
        if not metrics:
            tasks.append(Task(index, point, detector, {}, None, {}))
            continue
        real, about = references.get(config, detector, point.model, entry.settings.choices["model"])
        check_metrics(metrics, real)
        _check_detector(point, detector, real)
        tasks.append(Task(index, point, detector, metrics, real, about))
    return tasks


def _check_detector(point: Point, detector: Detector, real: FeatureSet) -> None:
    """Refuse a reference that the samples will not compare with, by a sample of the same shape."""
    blank = torch.zeros(1, *point.model.shape, device=point.settings.config["device"])
    check_comparable(real=real, fake=detect(detector, point.decoded(blank), None))


def _cohorts(tasks: Sequence[Task], folder: Path) -> list[Cohort]:
    groups: dict[str, list[Task]] = {}
    for task in tasks:
        groups.setdefault(task.point.settings.cohort, []).append(task)
    cohorts = []
    for number, group in enumerate(groups.values()):
        settings = group[0].point.settings
        blocks = cut(settings.seeds, settings.labels, settings.config["block"])
        cohorts.append(Cohort(group, blocks, folder / "blocks" / f"{number:02d}"))
    return cohorts


def _sample(cohorts: Sequence[Cohort], folder: Path) -> None:
    """Make every block that is not there yet."""
    total = sum(cohort.images for cohort in cohorts)
    todo = [
        (cohort, block)
        for cohort in cohorts
        for block in cohort.blocks
        if not block.path(cohort.records, ".npz").exists()
    ]
    left = sum(len(block.seeds) * len(cohort.tasks) for cohort, block in todo)
    if left < total:
        print(f"{total - left} of {total} images are there already")
    if not todo:
        return
    needed = sum(
        len(block.seeds) * task.real.dim * 4
        for cohort, block in todo
        for task in cohort.tasks
        if task.real is not None
    )
    require_space(folder, needed)
    _print_shared(cohorts)
    with Progress("sampling", total, total - left) as progress:
        for cohort in cohorts:
            blocks = [block for other, block in todo if other is cohort]
            _sample_cohort(cohort, blocks, progress)


def _sample_cohort(cohort: Cohort, blocks: Sequence[Block], progress: Progress) -> None:
    cohort.records.mkdir(parents=True, exist_ok=True)
    batch = Batch(cohort.config["batch"])
    model, device = cohort.tasks[0].point.model, cohort.config["device"]

    def work(block: Block, tick: Tick) -> dict[str, np.ndarray]:
        return _run(cohort.tasks, block, batch, tick)

    for block, arrays in in_parallel(work, blocks, model, device, progress.update):
        path = block.path(cohort.records, ".npz")
        atomic_write(path, lambda file, arrays=arrays: np.savez(file, **arrays))


def _print_shared(cohorts: Sequence[Cohort]) -> None:
    taken = alone = 0
    for cohort in cohorts:
        steps = len(cohort.tasks[0].point.settings.plan.timeline.sigmas) - 1
        runs = [task.point.run for task in cohort.tasks]
        taken += shared_steps(runs, steps) * len(cohort.blocks)
        alone += steps * len(runs) * len(cohort.blocks)
    if taken < alone:
        print(f"{taken} of {alone} steps are taken, the rest is shared between points")


def _run(tasks: Sequence[Task], block: Block, batch: Batch, tick: Tick) -> dict[str, np.ndarray]:
    """All points for a block's seeds, as arrays to be kept."""
    kept = max(0, tasks[0].point.settings.config["gallery"] - block.first)
    parts: dict[str, list[Tensor]] = {}
    seconds = np.zeros(len(tasks))
    points = [task.point for task in tasks]
    for _, labels, outcomes in run_block(points, block, batch, kept, tick):
        if labels is not None:
            parts.setdefault("labels", []).append(labels)
        for k, (task, outcome) in enumerate(zip(tasks, outcomes, strict=True)):
            began = time.perf_counter()
            shown = 0 if outcome.path is None else outcome.path.shape[1]
            for name, part in _keep(task, outcome.x, outcome.path, shown).items():
                parts.setdefault(f"{name}_{k}", []).append(part)
            seconds[k] += outcome.seconds + time.perf_counter() - began
    arrays = {
        name: torch.cat(part, dim=1 if name.startswith("path") else 0).cpu().numpy()
        for name, part in parts.items()
    }
    return {**arrays, "seconds": seconds}


def _keep(task: Task, x: Tensor, path: Tensor | None, shown: int) -> dict[str, Tensor]:
    """What a block keeps of a point's samples: features, and for the first seeds what is to be
    seen."""
    if task.point.model.space == "points":
        kept = {"features": detect(task.detector, x, None).values}
        return kept if path is None else {**kept, "path": path}
    images = task.point.decoded(x)
    kept = {"features": detect(task.detector, images, None).values} if task.keeps_features else {}
    return {**kept, "gallery": images[:shown]} if shown else kept


def _rows(entries: Sequence[Entry], cohorts: Sequence[Cohort], folder: Path) -> list[Row]:
    """One row per entry, in the order of the table."""
    made: dict[int, Row] = {}
    (folder / "metrics").mkdir(exist_ok=True)
    total = sum(len(cohort.tasks) for cohort in cohorts)
    with Progress("measuring", total, unit="points") as progress:
        for cohort in cohorts:

            def work(position: int, tick: Tick, cohort: Cohort = cohort) -> Row:
                row = _row(cohort, position, folder)
                tick(1)
                return row

            positions, model = range(len(cohort.tasks)), cohort.tasks[0].point.model
            for position, row in in_parallel(work, positions, model, "cpu", progress.update):
                made[cohort.tasks[position].index] = row
    return [
        made[index] if index in made else _missing_row(index, entry)
        for index, entry in enumerate(entries)
    ]


def _row(cohort: Cohort, position: int, folder: Path) -> Row:
    task = cohort.tasks[position]
    settings, plan = task.point.settings, task.point.settings.plan
    config = settings.config
    record = folder / "metrics" / f"{task.index:06d}.json"
    if task.real is not None and not record.exists():
        fakes = repeats_of(features_of(cohort, position), config["repeats"])
        write_json(record, measure(task.metrics, task.real, fakes))
    return Row(
        point=task.index,
        values=typed(settings.values),
        guidance=settings.method,
        images=len(settings.seeds) // config["repeats"],
        repeats=config["repeats"],
        metrics={} if task.real is None else read_json(record),
        settings={} if task.real is None else settings_of(config, task.real, task.about_real),
        evals_main=plan.evaluations_main,
        evals_ref=sum(plan.evaluations_ref),
        gflops=task.point.gflops,
        seconds=cohort.seconds(position),
        missing=None,
        plan=plan.record(),
        config=config,
        provenance={**provenance(config), "checkpoints": task.point.checkpoints},
    )


def _missing_row(index: int, entry: Entry) -> Row:
    return Row(
        point=index,
        values=typed(entry.values),
        guidance=entry.values.get("guidance", ""),
        images=0,
        repeats=0,
        metrics={},
        settings={},
        evals_main=0,
        evals_ref=0,
        gflops=0.0,
        seconds=0.0,
        missing=entry.missing,
        plan={},
        config={},
        provenance={},
    )


def features_of(cohort: Cohort, position: int) -> FeatureSet:
    """All features of a point, from the blocks on disk."""
    labels = cohort.labels()
    return FeatureSet.from_values(
        detector=cohort.tasks[position].real.detector,
        values=torch.from_numpy(cohort.gathered(f"features_{position}", axis=0)),
        labels=None if labels is None else torch.from_numpy(labels),
    )


def typed(values: dict[str, str]) -> dict[str, str | int | float | bool | None]:
    """Swept values as what they say: numbers as numbers."""
    return {key: _typed(value) for key, value in values.items()}


def _typed(text: str) -> str | int | float | bool | None:
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return {"null": None, "true": True, "false": False}.get(text, text)
