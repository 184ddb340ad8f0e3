"""`guidex sweep`: a table of points, all on the same seeds, measured and drawn.

The way of the data: points -> cohorts (same noise, model and solver) -> blocks of seeds, in which
all points of a cohort run together and share the steps they agree in -> features on disk -> metrics
-> rows -> table, plots and grids.
"""

import functools
import json
from collections.abc import Callable, Hashable, Iterator, Sequence
from pathlib import Path

import torch

from guidex.config.compose import Config
from guidex.config.instantiate import Models
from guidex.features.detectors import detect_all
from guidex.features.features import FeatureSet
from guidex.features.references import describe
from guidex.features.samples import PassSettings
from guidex.files.progress import Progress
from guidex.reports.rows import Row, counted
from guidex.reports.tables import terminal_table, write_tables
from guidex.runs.drawings import draw
from guidex.runs.engine import Cohort, Task, grouped, run
from guidex.runs.folder import require_same_inputs, run_folder
from guidex.runs.measure import (
    Measure,
    Measures,
    are_metrics_chosen,
    detectors_of,
    repeats_of,
    settings_of,
    warn,
)
from guidex.runs.outputs import Features, Labels, Output
from guidex.runs.parallel import Tick, in_parallel
from guidex.runs.points import Point, load, words_of
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
from guidex.runs.settings import VOLATILE


def sweep(words: Sequence[str], plan_only: bool, default: str | None = DEFAULT_EXPERIMENT) -> None:
    """Run the command. Words with several values are the axes; of `default`, see `plan_table`."""
    table, rank = plan_table(words, default), this_rank()
    if rank.first:
        _print_size(table)
        warn(table.doubts)
    if plan_only:
        print_plans(table)
        return
    config = table.base.config
    folder = output_folder(config["out"], "sweep", table.name, _identity(table))
    made = made_by("sweep" if default else "sample eval=true", words)
    chosen = are_metrics_chosen(words)

    def finish(rows: list[Row], cohorts: list[Cohort]) -> None:
        files = [*write_tables(rows, folder), *draw(rows, cohorts, folder)]
        print("", terminal_table(rows), "", *files, sep="\n")

    fill(table, folder, made, bool(config["overwrite"]), chosen=chosen, finish=finish)


def fill(
    table: Table,
    folder: Path,
    made: dict[str, str],
    overwrite: bool = False,
    *,
    chosen: bool = False,
    identity: Config | None = None,
    finish: Callable[[list[Row], list[Cohort]], None] = lambda rows, cohorts: None,
) -> list[Row] | None:
    """Make all points of a table that are not in a folder yet, and measure them; returns the rows,
    or None where another process does.

    Arguments:
        made: the command line and the date, for the rows.
        chosen: whether somebody chose the metrics.
        identity: what the folder belongs to, if not to this table.
        finish: called with the rows while the folder is held.
    """
    rank = this_rank()
    with run_folder(folder, identity or _identity(table), overwrite, rank) as held:
        tasks = _prepare(table, rank, chosen)
        require_same_inputs(folder, _inputs(tasks))
        cohorts = grouped(tasks, held)
        with run(cohorts, rank, folder / "table.csv") as is_last:
            if not is_last:
                return None
            rows = _rows(table.entries, cohorts, made)
            held.check()
            finish(rows, cohorts)
    return rows


def _identity(table: Table) -> Config:
    """What decides the results of a table."""
    return {
        "command": "sweep",
        **{key: value for key, value in table.base.config.items() if key not in VOLATILE},
        "points": {words_of(entry.values): entry.identity for entry in table.entries},
    }


def _print_size(table: Table) -> None:
    planned = [entry.planned for entry in table.entries if entry.planned is not None]
    seeds = "/".join(map(str, sorted({len(each.seeds) for each in planned})))
    missing = len(table.entries) - len(planned)
    left_out = f", {missing} left out (see the table)" if missing else ""
    print(f"{table.name}: {counted(len(planned), 'point')} of {seeds} seeds{left_out}")


def _prepare(table: Table, rank: Rank, chosen: bool) -> list[Task]:
    """Load models and references; whatever is wrong with them shows here."""
    decoders: dict[str, Models] = {}  # by device
    measures = Measures(PassSettings(rank=rank.index, ranks=rank.count))
    tasks = []
    for index, entry in enumerate(table.entries):
        if entry.planned is None:
            continue
        device = entry.planned.settings.device
        point = load(entry.planned, decoders.setdefault(device, Models()))
        found = measures.get(
            entry.planned.config,
            point.model,
            entry.planned.choices["model"],
            count=_count(point),
            chosen=chosen,
            labelled=point.model.num_classes > 0,
            points=point.kind.image_shape is None,
        )
        tasks.append(Task(index, point, _outputs(point, found), found))
    _check_samples(tasks)
    if rank.first:
        _tell(tasks)
    measures.make_features()
    return tasks


def _outputs(point: Point, measures: list[Measure]) -> list[Output]:
    """What is kept of a point's samples: features to be measured, and what is to be seen."""
    shown = point.planned.seeds[: point.planned.settings.gallery]
    outputs = [Labels(), *point.kind.view(shown)]
    if any(one.metrics for one in measures):
        size = 4 * sum(one.dim for one in measures if one.metrics)
        outputs.append(Features(tuple(detectors_of(measures)), size))
    return outputs


def _count(point: Point) -> int:
    """Samples of one evaluation."""
    return len(point.planned.seeds) // point.planned.settings.repeats


def _inputs(tasks: Sequence[Task]) -> Iterator[tuple[str, str]]:
    """Role and place, as one text, and SHA-256 of the files that results depend on: models,
    references, detectors."""
    for task in tasks:
        yield from task.point.inputs
        for one in task.measures:
            yield from one.inputs


def _check_samples(tasks: Sequence[Task]) -> None:
    """Send a blank sample of each kind through all that will take samples."""
    kinds: dict[Hashable, Task] = {}
    for task in tasks:
        if task.is_measured:
            takers = tuple((id(one.detector), id(one.real)) for one in task.measures)
            kinds[task.point.decoder, task.point.model.shape, takers] = task
    for task in kinds.values():
        model, device = task.point.model, task.point.planned.settings.device
        samples = task.point.kind.decode(torch.zeros(1, *model.shape, device=device))
        for one in task.measures:
            one.check_samples(samples)
        detect_all(detectors_of(task.measures), samples, None)  # networks, too


def _tell(tasks: Sequence[Task]) -> None:
    """Say what is compared with, where it comes from files, and what to doubt."""
    told, doubts = [], []
    for task in tasks:
        shape = task.point.kind.image_shape
        fake = {"count": _count(task.point), "formats": ["array"]}
        fake |= {} if shape is None else {"shape": list(shape)}
        for one in task.measures:
            told += [f"real: {describe(one.about_real)}"] if "path" in one.about_real else []
            doubts += one.doubts(fake) if one.metrics else []
    for line in dict.fromkeys(told):
        print(line)
    warn(doubts)


def _rows(entries: Sequence[Entry], cohorts: Sequence[Cohort], made: dict[str, str]) -> list[Row]:
    """One row per entry, in the order of the table."""
    rows = [_missing_row(index, entry, made) for index, entry in enumerate(entries)]
    total = sum(len(cohort.tasks) for cohort in cohorts)
    with Progress("measuring", total, unit="points") as progress:
        for cohort in cohorts:
            work = functools.partial(_row, cohort, made)
            model, device = cohort.tasks[0].point.model, cohort.settings.device
            for row in in_parallel(work, cohort.tasks, model, device, progress.update):
                rows[row.point] = row
    return rows


def _row(cohort: Cohort, made: dict[str, str], task: Task, tick: Tick) -> Row:
    planned, plan, folder = task.point.planned, task.point.planned.plan, cohort.folder
    repeats = planned.settings.repeats
    name = f"row-{digest([planned.seeds, repeats], 8)}.record"
    path = cohort.record(task, cohort.blocks[0]).with_name(name)
    if folder.read(path) is None:
        folder.write(path, json.dumps(_measured(cohort, task)).encode())
    content, made_with = folder.read(path)
    found = json.loads(content)
    tick(1)
    return Row(
        point=task.index,
        values=typed(planned.values),
        guidance=planned.method,
        images=_count(task.point),
        repeats=repeats,
        metrics=found["metrics"],
        settings=settings_of(task.measures) if task.is_measured else {},
        evals_main=plan.evaluations_main,
        evals_ref=sum(plan.evaluations_ref),
        gflops=task.point.gflops,
        seconds=found["seconds"],
        plan=plan.record(),
        config=planned.config,
        unit=cohort.unit,
        note="not guided: no step of the sampler is in its interval" if plan.idle else None,
        provenance={
            **provenance(planned.config),
            **merged([found["versions"], made_with]),
            "origins": task.point.origins,
            "presets": planned.choices,
            **made,
        },
    )


def _missing_row(index: int, entry: Entry, made: dict[str, str]) -> Row:
    counts = ("images", "repeats", "evals_main", "evals_ref", "gflops", "seconds")
    return Row(
        point=index,
        values=typed(entry.values),
        guidance=entry.values.get("guidance", ""),
        metrics={},
        settings={},
        missing=entry.missing,
        provenance=made,
        **dict.fromkeys(counts, 0),
    )


def _measured(cohort: Cohort, task: Task) -> Config:
    """All metrics of a point, from the blocks on disk, and what its samples took."""
    arrays, made_with = cohort.gathered(task, "seconds")
    metrics: dict[str, float] = {}
    for one in task.measures if task.is_measured else ():
        name = f"features{detectors_of(task.measures).index(one.detector)}"
        kept, _ = cohort.gathered(task, "labels", name)
        features = FeatureSet.from_values(
            detector=one.name,
            values=torch.from_numpy(kept[name]),
            labels=torch.from_numpy(kept["labels"]) if "labels" in kept else None,
        )
        metrics |= one.values(repeats_of(features, task.point.planned.settings.repeats))
    return {"metrics": metrics, "seconds": float(arrays["seconds"].sum()), "versions": made_with}
