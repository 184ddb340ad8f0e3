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
from guidex.features.samples import PassSettings
from guidex.files.progress import Progress, megabytes
from guidex.reports.baselines import baseline_of, with_differences
from guidex.reports.html_report import write_report
from guidex.reports.rows import Row, counted
from guidex.reports.tables import terminal_table, write_tables
from guidex.runs.asked import ask
from guidex.runs.drawings import draw
from guidex.runs.engine import Cohort, Task, grouped, run
from guidex.runs.folder import read_json, require_same_inputs, run_folder, write_json
from guidex.runs.kinds import KINDS
from guidex.runs.measure import Measure, Measures, settings_of, warn
from guidex.runs.outputs import Features, Labels
from guidex.runs.plans import print_plans
from guidex.runs.points import load
from guidex.runs.points_table import DEFAULT_EXPERIMENT, Entry, Table, plan_table, typed
from guidex.runs.provenance import digest, made_by, merged, output_folder, provenance
from guidex.runs.ranks import this_rank
from guidex.runs.settings import VOLATILE
from guidex.runs.threads import Tick, in_parallel
from guidex.runs.trackers import Tracker, track

SHOWN = (".csv", ".jsonl", ".md", ".tex", ".png", ".pdf", ".svg", ".html")  # of what a sweep writes
_SHOWN = "shown.json"  # the files of the table last written, and which table that was


def sweep(words: Sequence[str], plan_only: bool, default: str | None = DEFAULT_EXPERIMENT) -> None:
    """Run the command. Words with several values are the axes; of `default`, see `plan_table`."""
    table, rank = plan_table(words, default), this_rank()
    config = table.base.config
    baseline_of(config["baseline"], [e.planned and typed(e.values) for e in table.entries])
    if rank.first:
        seeds = "/".join(map(str, sorted({len(point.seeds) for point in table.planned})))
        missing = len(table.entries) - len(table.planned)
        left_out = f", {missing} left out (see the table)" if missing else ""
        print(f"{table.name}: {counted(len(table.planned), 'point')} of {seeds} seeds{left_out}")
        warn([doubt for point in table.planned for doubt in point.doubts])
    if plan_only:
        print_plans(table)
        return
    identity = {
        "command": "sweep",
        **{k: v for k, v in config.items() if k not in VOLATILE},
        "points": table.identity,
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
        sampling: False: make no samples; rows whose samples are missing say so.

    Returns:
        A row for each entry of the table; None where another process finishes.
    """
    token, chosen = digest([made, table.identity], 16), table.base.config.get("tracker")
    tracker = chosen and instantiate(chosen, "tracker", Models(), Tracker)
    with run_folder(folder, {"command": "sweep"}, overwrite, table.identity) as held:
        tasks = _prepare(table)
        for task in tasks:
            inputs = [pair for one in (task.point, *task.measures) for pair in one.inputs]
            require_same_inputs(folder / "points" / task.name, inputs)
        cohorts = grouped(tasks, held)
        dropping = table.base.config["features"] == "drop"
        if dropping:
            _leave_out_measured(cohorts)
        if not sampling:
            return _finish(table, cohorts, made, figures, None)
        about = {"command": "sweep", "made": made, "chosen": table.are_metrics_chosen}
        ask(held, table.entries, tasks, **about)
        with run(cohorts, folder / "table.csv") as state:
            shown = read_json(folder / _SHOWN) or {}
            if state == "missing" or (state == "written" and shown.get("token") == token):
                return None
            rows = _finish(table, cohorts, made, figures, token)
            if tracker:
                track(tracker, table, rows, cohorts)
            # Others may still look for what is missing.
            at_work = [each for each in held.workers().values() if each["at work"]]
            if dropping and len(at_work) <= 1:
                records = _leave_out_measured(cohorts)
                size = megabytes(sum(record.stat().st_size for record in records))
                for record in records:
                    record.unlink()
                print(f"features: {size} deleted")
                ask(held, table.entries, tasks, **about)
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
    names = [file.name for file in files]
    for name in set(before.get("files", ())).difference(names):
        (folder.path / Path(name).name).unlink(missing_ok=True)  # of another table
    write_json(folder.path / _SHOWN, {"token": token, "files": names})
    return rows


def _leave_out_measured(cohorts: Sequence[Cohort]) -> set[Path]:
    """Ask no more for features that all metrics are computed of; returns their records."""
    records = set[Path]()
    for cohort, task in ((each, task) for each in cohorts for task in each.tasks):
        needed = {
            Features(one.detector).name
            for one in task.measures
            for name in one.metrics
            if cohort.folder.header(_path(cohort, task, one, name)) is None
        }
        for output in [each for each in task.outputs if isinstance(each, Features)]:
            if output.name not in needed:
                task.outputs.remove(output)
                records |= {p.record for p in cohort.store.pieces(task.name, output.name)}
    return records


def _prepare(table: Table) -> list[Task]:
    """Load models and references; whatever is wrong with them shows here."""
    decoders: dict[str, Models] = {}  # by device
    measures = Measures(PassSettings(rank=this_rank().index, ranks=this_rank().count))
    columns = {
        name
        for planned in table.planned
        for one in measures.detected(
            {**planned.config, "device": planned.settings.device},
            points=not KINDS[planned.model.space].is_image,
        )
        for name in one.columns
    }
    if (sort := table.base.config["sort"]) is not None and sort not in columns:
        raise UsageError(f"sort={sort}: the table has no such column{nearest(sort, columns)}")
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
            count=point.planned.count,
            chosen=table.are_metrics_chosen,
            labelled=point.model.num_classes > 0,
            points=point.kind.image_shape is None,
        )
        shown = point.planned.seeds[: point.planned.settings.gallery]
        features = map(Features, dict.fromkeys(one.detector for one in found if one.metrics))
        tasks.append(Task(index, point, [Labels(), *point.kind.view(shown), *features], found))
    _check(tasks)
    measures.make_features()
    return tasks


def _check(tasks: Sequence[Task]) -> None:
    """Send a blank sample of each kind through all that will take samples; say what to doubt."""
    doubts, checked = list[str](), set[Hashable]()
    for task in tasks:
        point, measures = task.point, [one for one in task.measures if one.metrics]
        fake = {"count": point.planned.count, "formats": ["array"]}
        fake |= {"shape": list(point.kind.image_shape)} if point.kind.image_shape else {}
        for one in measures:
            doubts += one.doubts(fake)
        takers = tuple((one.detector, id(one.real)) for one in measures)
        kind = point.kind.decoder, point.model.shape, takers
        if measures and kind not in checked:
            checked.add(kind)
            device = point.planned.settings.device
            samples = point.kind.decode(torch.zeros(1, *point.model.shape, device=device))
            for one in measures:
                one.check_samples(samples)
            run_detectors([one.detector for one in measures], samples)  # networks, too
    if this_rank().first:
        warn(doubts)


def _rows(entries: Sequence[Entry], cohorts: Sequence[Cohort], made: dict[str, str]) -> list[Row]:
    """One row per entry, in the order of the table."""
    rows = [
        Row(
            point=index,
            values=typed(entry.values),
            guidance=entry.values.get("guidance", ""),
            metrics={},
            missing=entry.missing or "samples are missing",
            provenance=made,
        )
        for index, entry in enumerate(entries)
    ]
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
        images=planned.count,
        repeats=planned.settings.repeats,
        metrics=metrics,
        pseudovalues=pseudovalues,
        settings=settings,
        evals_main=plan.evaluations_main,
        evals_ref=sum(plan.evaluations_ref),
        gflops=planned.gflops,
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
        fakes: FeatureSet | None = None
        for name, metric in one.metrics.items():
            path = _path(cohort, task, one, name)
            found = folder.read(path)
            if found is None:
                fakes = _features(cohort, task, one) if fakes is None else fakes
                results = dataclasses.replace(one, metrics={name: metric}).measured(fakes, repeats)
                folder.write(path, json.dumps(results).encode())
                found = folder.read(path)
            values, blocks = json.loads(found[0])
            metrics |= values
            pseudovalues |= blocks
            versions.append(found[1])
    return metrics, pseudovalues, merged(versions)


def _path(cohort: Cohort, task: Task, one: Measure, name: str) -> Path:
    """Where a metric of a point is kept, once it is computed: named after what it depends on."""
    seeds, repeats = cohort.store.whole.spelled, task.point.planned.settings.repeats
    key = digest([*one.decides(name), seeds, repeats], 12)
    return cohort.store.path(task.name, f"measured-{key}", name)


def _features(cohort: Cohort, task: Task, one: Measure) -> FeatureSet:
    name = Features(one.detector).name
    kept = {k: torch.from_numpy(v) for k, v in cohort.gathered(task, "labels", name).items()}
    return FeatureSet(one.name, kept[name], kept.get("labels"))
