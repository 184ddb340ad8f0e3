"""`guidex sample`: images of one point, to a folder."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from guidex.commands.launch import launch
from guidex.commands.sweep import sweep
from guidex.config.compose import compose
from guidex.config.instantiate import Models
from guidex.errors import UsageError
from guidex.files.atomic import atomic_write
from guidex.reports.image_grids import sample_grid
from guidex.reports.toy_figures import ToyPanel, toy_figure
from guidex.runs.asked import ask, seeds_asked
from guidex.runs.drawings import captions
from guidex.runs.engine import Cohort, Task, grouped, run
from guidex.runs.folder import require_same_inputs, run_folder, write_json
from guidex.runs.measure import warn
from guidex.runs.outputs import InRecord, Labels, image_name
from guidex.runs.points import Point, check, load
from guidex.runs.points_table import Entry
from guidex.runs.provenance import output_folder, provenance
from guidex.runs.ranks import this_rank

SHOWN = 64  # images, or trajectories of a toy, in grid.png


def sample(words: Sequence[str], plan_only: bool) -> None:
    """Run the command. With `eval=true`, the other words are those of a sweep of one point."""
    measured = [word.partition("=")[2].lower() for word in words if word.startswith("eval=")][-1:]
    if measured not in ([], ["true"], ["false"]):
        raise UsageError(f"eval must be true or false, not {measured[0]}")
    if measured == ["true"]:
        others = [word for word in words if not word.startswith("eval=")]
        sweep(others, plan_only, default=None)
        return
    chosen = [word for word in words if word.startswith("experiment=")]
    if chosen and compose("sweep", chosen).config["sweep"]["axes"]:
        if not plan_only:
            raise UsageError(f"{chosen[-1]} is a table; run it with guidex sweep, or add --plan")
        sweep(words, plan_only)
        return
    planned = check(compose("sample", words), {})
    settings = planned.settings
    if this_rank().first:
        print(planned.describe())
        warn(planned.doubts)
    if plan_only:
        return
    identity = {"command": "sample", **settings.identity}
    folder = output_folder(settings.out, "sample", planned.method, identity)
    if launch(["sample", *words], planned.config, folder):
        return
    lasting = {key: value for key, value in identity.items() if key not in ("seeds", "block")}
    with run_folder(folder, lasting, settings.overwrite) as held:
        lost = seeds_asked(folder) - set(settings.seeds)
        if lost:
            raise UsageError(
                f"{folder} holds images of other seeds, such as {min(lost)}; more seeds may be "
                "added to them, as in seeds=[…,…]; for others, give another out=FOLDER"
            )
        point = load(planned, Models(), latents_suffice=settings.latents)
        files = point.kind.files(settings.format, settings.latents, folder)
        task = Task(0, point, [Labels(), *files, *point.kind.view(settings.seeds[:SHOWN])])
        require_same_inputs(folder / "points" / task.name, point.inputs)
        ask(held, [Entry({}, planned, None)], [task], command="sample")
        [cohort] = grouped([task], held)
        with run([cohort], folder / "summary.json") as state:
            if state == "whole":
                _finish(cohort, task)
                print(f"{len(settings.seeds)} {cohort.unit} in {folder}")


def _finish(cohort: Cohort, task: Task) -> None:
    """Everything that is made from all blocks together."""
    point, held, store = task.point, cohort.folder, cohort.store
    planned = point.planned
    names = [output.name for output in task.outputs if isinstance(output, InRecord)]
    arrays, (made_with, seconds) = cohort.gathered(task, *names), store.made(task.name, "labels")
    labels = arrays.get("labels")
    held.check()
    for output in task.outputs:
        output.finish(store, task.name, labels)
    _write_labels(point, labels, held.path / "labels.csv")
    grid = held.path / "grid.png"
    if "path" in arrays:
        samples = (arrays["coordinates"], labels, arrays["path"])
        toy_figure([ToyPanel(planned.method, *samples, planned.plan)], point.model, grid)
    elif "gallery" in arrays:
        sample_grid(arrays["gallery"], captions(planned.seeds[:SHOWN], labels, point.model), grid)
    made = {**provenance(planned.config), **made_with, "origins": point.origins}
    summary = {
        "plan": planned.plan.record(),
        "gflops": planned.gflops,
        "seconds": seconds,
        "config": planned.config,
        "provenance": made,
    }
    write_json(held.path / "summary.json", summary)
    held.forget_workers()


def _write_labels(point: Point, labels: np.ndarray | None, path: Path) -> None:
    lines = ["seed,label,file"]
    for number, seed in enumerate(point.planned.seeds):
        file = "" if point.kind.decoder is None else f"images/{image_name(seed)}"
        lines.append(f"{seed},{'' if labels is None else labels[number]},{file}")
    atomic_write(path, lambda file: file.write("\n".join([*lines, ""]).encode()))
