"""`guidex sweep`: a table of points, all on the same seeds, measured and drawn.

The way of the data: points -> cohorts (same noise, model and solver) -> blocks of seeds, in which
all points of a cohort run together and share the steps they agree in -> features on disk -> metrics
-> rows -> table, plots and grids.
"""

import dataclasses
import io
import json
import time
from collections.abc import Hashable, Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from guidex.config.compose import Config
from guidex.config.instantiate import Models
from guidex.errors import GuidexError
from guidex.features.detectors import detect_all
from guidex.features.features import FeatureSet
from guidex.features.references import describe
from guidex.features.samples import PassSettings
from guidex.files.progress import Progress
from guidex.reports.rows import Row, counted
from guidex.reports.tables import terminal_table, write_tables
from guidex.runs.blocks import Batch, Block, cut, run_block
from guidex.runs.cohorts import Cohort, Task
from guidex.runs.drawings import draw
from guidex.runs.folder import (
    VOLATILE,
    Finish,
    RunFolder,
    require_same_inputs,
    require_space,
    run_folder,
)
from guidex.runs.measure import (
    Measures,
    are_metrics_chosen,
    detectors_of,
    repeats_of,
    settings_of,
    warn,
)
from guidex.runs.parallel import Tick, in_parallel
from guidex.runs.points import Point, load
from guidex.runs.points_table import (
    DEFAULT_EXPERIMENT,
    Entry,
    Table,
    plan_table,
    print_plans,
    typed,
)
from guidex.runs.provenance import digest, made_by, merged, output_folder, provenance
from guidex.runs.ranks import Rank, this_rank
from guidex.sampling.trajectories import NonFinite, Outcome, shared_steps

_Made = tuple[list[int], Tensor | None, list[Outcome]]


def sweep(words: Sequence[str], plan_only: bool, default: str | None = DEFAULT_EXPERIMENT) -> None:
    """Run the command.

    Arguments:
        words: Hydra overrides; those with several values are the axes.
        plan_only: print the plan of every point and stop.
        default: see `plan_table`.

    Raises:
        UsageError, GuidexError: before any work where possible.
    """
    table, rank = plan_table(words, default), this_rank()
    if rank.first:
        _print_size(table)
        warn(table.doubts)
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
    with run_folder(folder, identity, bool(config["overwrite"]), rank) as held:
        tasks = _prepare(table, rank, are_metrics_chosen(words))
        require_same_inputs(folder, _inputs(tasks))
        cohorts = _cohorts(tasks, held)
        finish = Finish(folder / "table.csv")
        _sample(cohorts, folder, rank)
        if any(cohort.missing(block) for cohort in cohorts for block in cohort.blocks):
            return  # other processes are at work; the last one finishes
        held.check()
        with finish.turn() as mine:
            if not mine:
                return
            made = made_by("sweep" if default else "sample eval=true", words)
            rows = [
                dataclasses.replace(row, provenance=row.provenance | made)
                for row in _rows(table.entries, cohorts)
            ]
            held.check()
            files = [*write_tables(rows, folder), *draw(rows, cohorts, folder)]
    print(f"\n{terminal_table(rows)}\n")
    for file in files:
        print(file)


def _print_size(table: Table) -> None:
    planned = [entry.settings for entry in table.entries if entry.settings is not None]
    counts = sorted({len(settings.seeds) for settings in planned})
    missing = len(table.entries) - len(planned)
    print(
        f"{table.name}: {counted(len(planned), 'point')} of {'/'.join(map(str, counts))} seeds"
        + (f", {missing} left out (see the table)" if missing else "")
    )


def _prepare(table: Table, rank: Rank, chosen: bool) -> list[Task]:
    """Load models and references; whatever is wrong with them shows here."""
    decoders: dict[str, Models] = {}  # by device
    measures = Measures(PassSettings(rank=rank.index, ranks=rank.count))
    tasks = []
    for index, entry in enumerate(table.entries):
        if entry.settings is None:
            continue
        config = entry.settings.config
        device = config["device"]
        point = load(entry.settings, decoders.setdefault(device, Models()))
        name = entry.settings.choices["model"]
        found = measures.get(
            config,
            point.model,
            name,
            count=_count(point),
            chosen=chosen,
            labelled=point.model.num_classes > 0,
        )
        tasks.append(Task(index, point, found))
    _check_samples(tasks)
    if rank.first:
        _tell(tasks)
    measures.make_features()
    return tasks


def _count(point: Point) -> int:
    """Samples of one evaluation."""
    return len(point.settings.seeds) // point.settings.config["repeats"]


def _inputs(tasks: Sequence[Task]) -> Iterator[tuple[str, str]]:
    """Role and place, as one text, and SHA-256 of the files that results depend on: models,
    references, detectors."""
    for task in tasks:
        yield from task.point.inputs
        for one in task.measures:
            if "path" in one.about_real:
                yield f"ref {one.about_real['path']}", one.about_real["sha256"]
            identity = one.detector.identity
            if identity is not None and identity.weights is not None:
                place = one.config["detector"].get("weights")
                yield f"detector {identity.name} {place or ''}".strip(), identity.weights


def _check_samples(tasks: Sequence[Task]) -> None:
    """Send a blank sample of each kind through all that will take samples."""
    kinds: dict[Hashable, Task] = {}
    for task in tasks:
        if task.is_measured:
            takers = tuple((id(one.detector), id(one.real)) for one in task.measures)
            kinds[task.point.decoder, task.point.model.shape, takers] = task
    for task in kinds.values():
        model, device = task.point.model, task.point.settings.config["device"]
        samples = task.point.decoded(torch.zeros(1, *model.shape, device=device))
        for one in task.measures:
            one.check_samples(samples)
        detect_all(detectors_of(task.measures), samples, None)  # networks, too


def _tell(tasks: Sequence[Task]) -> None:
    """Say what is compared with, where it comes from files, and what to doubt."""
    told: dict[str, None] = {}
    doubts: dict[str, None] = {}
    for task in tasks:
        fake = {"count": _count(task.point), "formats": ["array"]}
        if task.point.decoder is not None:
            fake["shape"] = list(task.point.decoder.image_shape(task.point.model.shape))
        for one in task.measures:
            if "path" in one.about_real:
                told[f"real: {describe(one.about_real)}"] = None
            if one.metrics:
                doubts |= dict.fromkeys(one.doubts(fake))
    for line in told:
        print(line)
    warn(list(doubts))


def _cohorts(tasks: Sequence[Task], folder: RunFolder) -> list[Cohort]:
    groups: dict[str, list[Task]] = {}
    for task in tasks:
        groups.setdefault(task.point.settings.cohort, []).append(task)
    cohorts = []
    for group in groups.values():
        settings = group[0].point.settings
        blocks = cut(settings.seeds, settings.labels, settings.config["block"])
        cohorts.append(Cohort(group, blocks, folder))
    return cohorts


def _sample(cohorts: Sequence[Cohort], folder: Path, rank: Rank) -> None:
    """Make every block of this process that is not there yet."""
    own = [
        (cohort, block) for cohort in cohorts for block in cohort.blocks if rank.takes(block.index)
    ]
    todo = [(block, cohort.missing(block)) for cohort, block in own]
    total = sum(len(block.seeds) * len(cohort.tasks) for cohort, block in own)
    left = sum(len(block.seeds) * len(tasks) for block, tasks in todo)
    if left < total:
        print(f"{total - left} of {total} {cohorts[0].unit} are there already")
    if not left:
        return
    needed = sum(
        len(block.seeds) * one.dim * 4
        for block, tasks in todo
        for task in tasks
        for one in task.measures
        if one.metrics
    )
    require_space(folder, needed)
    if rank.first:
        if needed >= 2**30:
            print(f"features will take {needed / 2**30:.1f} GiB in {folder}")
        _print_shared(cohorts)
    bar = Progress("sampling", total, total - left, cohorts[0].unit, quiet=not rank.first)
    with bar as progress:
        for cohort in cohorts:
            blocks = [block for block in cohort.blocks if rank.takes(block.index)]
            _sample_cohort(cohort, [one for one in blocks if cohort.missing(one)], progress)


def _sample_cohort(cohort: Cohort, blocks: Sequence[Block], progress: Progress) -> None:
    if not blocks:
        return
    batch = Batch.of(cohort.config["batch"], blocks)
    model, device = cohort.tasks[0].point.model, cohort.config["device"]

    def work(block: Block, tick: Tick) -> list[tuple[Task, dict[str, np.ndarray]]]:
        tasks = cohort.missing(block)
        return list(zip(tasks, _run(tasks, block, batch, tick), strict=True))

    for block, made in in_parallel(work, blocks, model, device, progress.update):
        for task, arrays in made:
            content = io.BytesIO()
            np.savez(content, **arrays)
            cohort.folder.write(cohort.record(task, block), content.getvalue())


def _print_shared(cohorts: Sequence[Cohort]) -> None:
    taken = alone = 0
    for cohort in cohorts:
        steps = len(cohort.tasks[0].point.settings.plan.timeline.sigmas) - 1
        runs = [task.point.run for task in cohort.tasks]
        taken += shared_steps(runs, steps) * len(cohort.blocks)
        alone += steps * len(runs) * len(cohort.blocks)
    if taken < alone:
        print(f"{taken} of {alone} steps are taken, the rest is shared between points")


def _run(
    tasks: Sequence[Task], block: Block, batch: Batch, tick: Tick
) -> list[dict[str, np.ndarray]]:
    """All points for a block's seeds, each as arrays to be kept."""
    left = max(0, tasks[0].point.settings.config["gallery"] - block.first)
    recorded = left if tasks[0].point.model.space == "points" else 0
    parts: list[dict[str, list[Tensor]]] = [{} for _ in tasks]
    points = [task.point for task in tasks]
    for part, labels, outcomes in _named(run_block(points, block, batch, recorded, tick), points):
        for task, outcome, own in zip(tasks, outcomes, parts, strict=True):
            began = time.perf_counter()
            kept = _keep(task, outcome.x, outcome.path, left)
            if labels is not None:
                kept["labels"] = labels
            taken = outcome.seconds + time.perf_counter() - began
            kept["seconds"] = torch.tensor([taken], dtype=torch.float64)
            for name, values in kept.items():
                own.setdefault(name, []).append(values)
        left = max(0, left - len(part))
    return [
        {
            name: torch.cat(part, dim=1 if name == "path" else 0).cpu().numpy()
            for name, part in own.items()
        }
        for own in parts
    ]


def _named(batches: Iterator[_Made], points: Sequence[Point]) -> Iterator[_Made]:
    """The batches; a failure says at which point it was."""
    try:
        yield from batches
    except NonFinite as error:
        values = points[error.run].settings.values
        at = " ".join(f"{key}={value}" for key, value in values.items())
        raise GuidexError(f"{error}\n  at the point {at}" if at else str(error)) from error


def _keep(task: Task, x: Tensor, path: Tensor | None, shown: int) -> dict[str, Tensor]:
    """What a block keeps of a point's samples: features, and for the first seeds what is to be
    seen."""
    samples = task.point.decoded(x)
    kept = {}
    if task.keeps_features:
        for m, features in enumerate(detect_all(detectors_of(task.measures), samples, None)):
            kept[f"features{m}"] = features.values
    if task.point.model.space == "points":
        return kept if path is None else {**kept, "path": path}
    return {**kept, "gallery": samples[:shown]} if shown else kept


def _rows(entries: Sequence[Entry], cohorts: Sequence[Cohort]) -> list[Row]:
    """One row per entry, in the order of the table."""
    made: dict[int, Row] = {}
    total = sum(len(cohort.tasks) for cohort in cohorts)
    with Progress("measuring", total, unit="points") as progress:
        for cohort in cohorts:

            def work(position: int, tick: Tick, cohort: Cohort = cohort) -> Row:
                row = _row(cohort, cohort.tasks[position])
                tick(1)
                return row

            positions, model = range(len(cohort.tasks)), cohort.tasks[0].point.model
            device = cohort.config["device"]
            for position, row in in_parallel(work, positions, model, device, progress.update):
                made[cohort.tasks[position].index] = row
    return [
        made[index] if index in made else _missing_row(index, entry)
        for index, entry in enumerate(entries)
    ]


def _row(cohort: Cohort, task: Task) -> Row:
    settings, plan = task.point.settings, task.point.settings.plan
    config, folder = settings.config, cohort.folder
    name = f"row-{digest([settings.seeds, config['repeats']], 8)}.record"
    path = cohort.record(task, cohort.blocks[0]).with_name(name)
    if folder.read(path) is None:
        folder.write(path, json.dumps(_measured(cohort, task)).encode())
    content, made_with = folder.read(path)
    found = json.loads(content)
    return Row(
        point=task.index,
        values=typed(settings.values),
        guidance=settings.method,
        images=len(settings.seeds) // config["repeats"],
        repeats=config["repeats"],
        metrics=found["metrics"],
        settings=settings_of(task.measures) if task.is_measured else {},
        evals_main=plan.evaluations_main,
        evals_ref=sum(plan.evaluations_ref),
        gflops=task.point.gflops,
        seconds=found["seconds"],
        missing=None,
        plan=plan.record(),
        config=config,
        unit=cohort.unit,
        note="not guided: no step of the sampler is in its interval" if plan.idle else None,
        provenance={
            **provenance(config),
            **merged([found["versions"], made_with]),
            "origins": task.point.origins,
            "presets": settings.choices,
        },
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


def _measured(cohort: Cohort, task: Task) -> Config:
    """All metrics of a point, from the blocks on disk, and what its samples took."""
    arrays, made_with = cohort.gathered(task, "seconds")
    found = {"metrics": {}, "seconds": float(arrays["seconds"].sum()), "versions": made_with}
    if task.is_measured:
        detectors = detectors_of(task.measures)
        for one in task.measures:
            name = f"features{detectors.index(one.detector)}"
            arrays, _ = cohort.gathered(task, "labels", name)
            features = FeatureSet.from_values(
                detector=one.name,
                values=torch.from_numpy(arrays[name]),
                labels=torch.from_numpy(arrays["labels"]) if "labels" in arrays else None,
            )
            found["metrics"] |= one.values(
                repeats_of(features, task.point.settings.config["repeats"])
            )
    return found
