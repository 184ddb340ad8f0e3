"""`guidex sweep`: a table of points, all on the same seeds, measured and drawn.

The way of the data: points -> cohorts (same noise, model and solver) -> blocks of seeds, in which
all points of a cohort run together and share the steps they agree in -> features on disk -> metrics
-> rows -> table, plots and grids.
"""

import dataclasses
import functools
import json
from collections.abc import Hashable, Sequence
from pathlib import Path

import torch

from guidex.commands.launch import launch
from guidex.config.instantiate import Models, instantiate
from guidex.config.presets import nearest
from guidex.errors import GuidexError, UsageError
from guidex.features.detectors import detector_record, run_detectors
from guidex.features.features import FeatureSet
from guidex.features.references import describe
from guidex.features.samples import PassSettings
from guidex.files.progress import Progress, megabytes
from guidex.reports.differences import baseline_of, with_differences
from guidex.reports.report import write_report
from guidex.reports.rows import Row, counted
from guidex.reports.tables import terminal_table, write_tables
from guidex.runs.asked import ask
from guidex.runs.blocks import Store
from guidex.runs.drawings import draw
from guidex.runs.engine import Cohort, Task, grouped, run
from guidex.runs.folder import read_json, require_same_inputs, run_folder, write_json
from guidex.runs.measure import Measure, Measures, detectors_of, repeats_of, settings_of, warn
from guidex.runs.outputs import Features, Labels, Output
from guidex.runs.plans import print_plans
from guidex.runs.points import Point, load, words_of
from guidex.runs.points_table import DEFAULT_EXPERIMENT, Entry, Table, plan_table, typed
from guidex.runs.provenance import digest, made_by, merged, output_folder, provenance
from guidex.runs.ranks import Rank, this_rank
from guidex.runs.settings import VOLATILE
from guidex.runs.threads import Tick, in_parallel
from guidex.runs.trackers import Tracker, track

SHOWN = (".csv", ".jsonl", ".md", ".tex", ".png", ".pdf", ".svg", ".html")  # of what a sweep writes
_SHOWN = "shown.json"  # the files of the table last written, and which table that was
_IDENTITY = {"command": "sweep"}


def sweep(words: Sequence[str], plan_only: bool, default: str | None = DEFAULT_EXPERIMENT) -> None:
    """Run the command. Words with several values are the axes; of `default`, see `plan_table`."""
    table, rank = plan_table(words, default), this_rank()
    config = table.base.config
    baseline_of(config["baseline"], [e.planned and typed(e.values) for e in table.entries])
    if rank.first:
        _print_size(table)
        warn(table.doubts)
    if plan_only:
        print_plans(table)
        return
    identity = {
        "command": "sweep",
        **{k: v for k, v in config.items() if k not in VOLATILE},
        "points": {words_of(entry.values): entry.identity for entry in table.entries},
    }
    folder = output_folder(config["out"], "sweep", table.name, identity)
    asked = ["sweep"] if default else ["sample", "eval=true"]
    if launch([*asked, *words], config, folder):
        return
    made = made_by(" ".join(asked), words)
    rows = fill(table, folder, made, bool(config["overwrite"]))
    if rows is not None:
        show(rows, folder)
    elif rank.first:
        print(f"another process writes the table; guidex status {folder} tells more")


def show(rows: Sequence[Row], folder: Path) -> None:
    """Print a table, and the files of its folder."""
    files = sorted(file for file in folder.glob("[!.]*") if file.suffix in SHOWN)
    print("", terminal_table(rows), "", *files, sep="\n")


def fill(
    table: Table,
    folder: Path,
    made: dict[str, str],
    overwrite: bool = False,
    sampling: bool = True,
    figures: bool = True,
) -> list[Row] | None:
    """Make what is missing of a table in its folder, measure it, and write tables and figures. What
    other tables have left in the folder is used, and stays.

    Arguments:
        made: what goes into the provenance of all rows: command and date.
        overwrite: delete what the folder holds first.
        sampling: False: make no samples; rows whose samples are missing say so.
        figures: False: write tables alone.

    Returns:
        A row for each entry of the table; None where another process finishes.
    """
    rank = this_rank()
    reads = {words_of(entry.values): entry.identity for entry in table.entries}
    token, told = digest([made, reads], 16), table.base.config.get("tracker")
    tracker = told and instantiate(told, "tracker", Models(), Tracker)
    with run_folder(folder, _IDENTITY, overwrite, reads) as held:
        tasks = _prepare(table, rank)
        for task in tasks:
            require_same_inputs(folder / "points" / task.name, _inputs(task))
        cohorts = grouped(tasks, held)
        dropping = table.base.config["features"] == "drop"
        if dropping:
            _leave_out_measured(cohorts)
        if not sampling:
            return _finish(table, cohorts, made, figures, None)
        chosen = table.are_metrics_chosen
        ask(held, table.entries, tasks, command="sweep", made=made, chosen=chosen)
        with run(cohorts, folder / "table.csv") as state:
            if state == "missing":
                return None
            if state == "written" and (read_json(folder / _SHOWN) or {}).get("token") == token:
                return None
            rows = _finish(table, cohorts, made, figures, token)
            if tracker:
                track(tracker, told, table.name, rows, cohorts)
            # Others may still look for what is missing.
            at_work = [each for each in held.workers().values() if each["at work"]]
            dropping = dropping and len(at_work) <= 1
            _tell_features(cohorts, dropping)
            if dropping:
                ask(held, table.entries, tasks, command="sweep", made=made, chosen=chosen)
        held.forget_workers()
    return rows


def _finish(
    table: Table, cohorts: Sequence[Cohort], made: dict[str, str], figures: bool, token: str | None
) -> list[Row]:
    """Measure what has all its samples, and write tables and figures."""
    folder = cohorts[0].folder
    whole = [
        dataclasses.replace(cohort, tasks=tasks)
        for cohort in cohorts
        if (tasks := [task for task in cohort.tasks if task.is_whole(cohort.store)])
    ]
    if not whole:
        raise GuidexError(f"no point of {folder.path} has all its samples yet")
    rows = with_differences(_rows(table.entries, whole, made), table.base.config["baseline"])
    folder.check()
    before = read_json(folder.path / _SHOWN) or {}
    files = write_tables(rows, folder.path)
    if figures:
        files = [*files, *draw(rows, whole, folder.path)]
        files.append(write_report([folder.path], folder.path / "report.html"))
    for name in set(before.get("files", ())) - {file.name for file in files}:
        (folder.path / Path(name).name).unlink(missing_ok=True)  # of another table
    shown = {"token": token, "files": [file.name for file in files]}
    write_json(folder.path / _SHOWN, shown)
    return rows


def _leave_out_measured(cohorts: Sequence[Cohort]) -> list[Path]:
    """Ask no more for features that all metrics are computed of; returns their records."""
    records = []
    for cohort in cohorts:
        for task in cohort.tasks:
            needed = {
                Features(one.detector).name
                for one in task.measures
                for name in one.metrics
                if cohort.folder.header(_path(cohort, task, one, name)) is None
            }
            for output in [each for each in task.outputs if isinstance(each, Features)]:
                if output.name not in needed:
                    task.outputs.remove(output)
                    records += [p.record for p in cohort.store.pieces(task.name, output.name)]
    return records


def _tell_features(cohorts: Sequence[Cohort], dropping: bool) -> None:
    """Say what disk space features take; where they are dropped, delete what is measured."""
    if dropping:
        records = set(_leave_out_measured(cohorts))
    else:
        records = {
            piece.record
            for cohort in cohorts
            for task in cohort.tasks
            for output in task.outputs
            if isinstance(output, Features)
            for piece in cohort.store.pieces(task.name, output.name)
        }
    size = megabytes(sum(record.stat().st_size for record in records))
    if dropping:
        for record in records:
            record.unlink()
        print(f"features: {size} deleted")
    elif records:
        print(f"features: {size} on disk (features=drop deletes them after measuring)")


def _print_size(table: Table) -> None:
    planned = [entry.planned for entry in table.entries if entry.planned is not None]
    seeds = "/".join(map(str, sorted({len(each.seeds) for each in planned})))
    missing = len(table.entries) - len(planned)
    left_out = f", {missing} left out (see the table)" if missing else ""
    print(f"{table.name}: {counted(len(planned), 'point')} of {seeds} seeds{left_out}")


def _prepare(table: Table, rank: Rank) -> list[Task]:
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
            {**entry.planned.config, "device": device},
            point.model,
            entry.planned.choices["model"],
            count=_count(point),
            chosen=table.are_metrics_chosen,
            labelled=point.model.num_classes > 0,
            points=point.kind.image_shape is None,
        )
        tasks.append(Task(index, point, _outputs(point, found), found))
    _check_sort(table.base.config["sort"], tasks)
    _check_samples(tasks)
    if rank.first:
        _tell(tasks)
    measures.make_features()
    return tasks


def _outputs(point: Point, measures: list[Measure]) -> list[Output]:
    """What is kept of a point's samples: features to be measured, and what is to be seen."""
    shown = point.planned.seeds[: point.planned.settings.gallery]
    outputs = [Labels(), *point.kind.view(shown)]
    detectors = dict.fromkeys(one.detector for one in measures if one.metrics)
    return [*outputs, *map(Features, detectors)]


def _count(point: Point) -> int:
    """Samples of one evaluation."""
    return len(point.planned.seeds) // point.planned.settings.repeats


def _inputs(task: Task) -> list[tuple[str, str]]:
    """Role and place, as one text, and SHA-256 of the files that results depend on: models,
    references, detectors."""
    return [*task.point.inputs, *(pair for one in task.measures for pair in one.inputs)]


def _check_sort(name: str | None, tasks: Sequence[Task]) -> None:
    """Refuse to sort by a column that the table will not have."""
    measures = [one for task in tasks for one in task.measures]
    metrics = [(one, metric) for one in measures for metric in one.metrics.values()]
    columns = {f"{column.name}_{one.name}" for one, metric in metrics for column in metric.columns}
    if name is not None and name not in columns:
        raise UsageError(f"sort={name}: the table has no such column{nearest(name, columns)}")


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
        run_detectors(detectors_of(task.measures), samples)  # networks, too


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
    planned, plan = task.point.planned, task.point.planned.plan
    metrics, pseudovalues, made_with = _measured(cohort, task)
    settings = settings_of(task.measures) if task.is_measured else {}
    if planned.config["labels"] == "balanced":  # FID is lower than with random ones
        settings["labels"] = "balanced"
    tick(1)
    return Row(
        point=task.index,
        values=typed(planned.values),
        guidance=planned.method,
        images=_count(task.point),
        repeats=planned.settings.repeats,
        metrics=metrics,
        pseudovalues=pseudovalues,
        settings=settings,
        evals_main=plan.evaluations_main,
        evals_ref=sum(plan.evaluations_ref),
        gflops=task.point.gflops,
        seconds=cohort.store.made(task.name, "labels")[1],
        plan=plan.record(),
        config=planned.config,
        unit=cohort.unit,
        note="not guided: no step of the sampler is in its interval" if plan.idle else None,
        provenance={
            **provenance({**planned.config, "device": planned.settings.device}),
            **made_with,
            "origins": task.point.origins,
            "reals": [one.about_real for one in task.measures],
            "detectors": [detector_record(one.detector) for one in task.measures],
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
        missing=entry.missing or "samples are missing",
        provenance=made,
        **dict.fromkeys(counts, 0),
    )


def _measured(
    cohort: Cohort, task: Task
) -> tuple[dict[str, float], dict[str, list[float]], dict[str, str]]:
    """All metrics of a point, their pseudo-values (see `metrics.differences`), and the versions
    that they and its samples were made with. Each metric is computed once, and kept under what it
    depends on."""
    folder, store, repeats = cohort.folder, cohort.store, task.point.planned.settings.repeats
    metrics, pseudovalues = {}, {}
    outputs = ["labels", *(Features(each.detector).name for each in task.measures)]
    versions = [store.made(task.name, *outputs)[0]]
    for one in task.measures:
        fakes: list[FeatureSet] = []
        for name, metric in one.metrics.items():
            path = _path(cohort, task, one, name)
            found = folder.read(path)
            if found is None:
                fakes = fakes or repeats_of(_features(cohort, task, one), repeats)
                results = dataclasses.replace(one, metrics={name: metric}).measured(fakes)
                folder.write(path, json.dumps(results).encode())
                found = folder.read(path)
            values, blocks = json.loads(found[0])
            metrics |= values
            pseudovalues |= blocks
            versions.append(found[1])
    return metrics, pseudovalues, merged(versions)


def _path(cohort: Cohort, task: Task, one: Measure, name: str) -> Path:
    """Where a metric of a point is kept, once it is computed."""
    repeats = task.point.planned.settings.repeats
    key = _key(one, name, cohort.store, repeats)
    return cohort.store.path(task.name, f"measured-{key}", name)


def _key(one: Measure, name: str, store: Store, repeats: int) -> str:
    """What a metric of a point depends on, but for the point."""
    part, about = one.part, one.about_real if one.metrics[name].needs_reference else {}
    reading = [part.ref, part.reals, part.resize, part.crop, part.bad] if about else []
    detector = dataclasses.asdict(one.detector.identity)
    what = [part.metrics[name], detector, about, reading, one.fakes]
    return digest([*what, store.whole.spelled, repeats], 12)


def _features(cohort: Cohort, task: Task, one: Measure) -> FeatureSet:
    name = Features(one.detector).name
    kept = cohort.gathered(task, "labels", name)
    labels = torch.from_numpy(kept["labels"]) if "labels" in kept else None
    return FeatureSet(one.name, torch.from_numpy(kept[name]), labels)
