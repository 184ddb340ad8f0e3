"""Everything that a sweep draws: curves and maps of its rows, and what its samples look like."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from guidex.guidance.plan import Plan
from guidex.models.denoiser import ExactDenoiser
from guidex.reports.grids import image_grid
from guidex.reports.plots import write_plots
from guidex.reports.rows import Row
from guidex.reports.toys import ToyPanel, figure_1d, figure_2d
from guidex.runs.cohorts import Cohort

MOST_ROWS = 60  # of points in one image grid
MOST_PANELS = 11  # of points in one figure of a toy


def draw(rows: Sequence[Row], cohorts: Sequence[Cohort], folder: Path) -> list[Path]:
    """Draw what the rows and samples of a finished sweep allow; returns the files."""
    files = list(write_plots(rows, folder))
    for number, cohort in enumerate(cohorts):
        suffix = f"_{number}" if len(cohorts) > 1 else ""
        model = cohort.tasks[0].point.model
        if cohort.kept == 0:
            continue
        if model.space == "points":
            files += _draw_toy(cohort, folder / f"toy{suffix}.png")
        else:
            files.append(_draw_grid(cohort, folder / f"grid{suffix}.png"))
    return files


def title(values: dict[str, str], method: str) -> str:
    """A point in a few words, such as "cfg · w 2" or "w 3 · (0.1, 1]" for an interval."""
    bounded = any(key.endswith(".hi") for key in values)
    parts = [] if method in values.values() else [method]
    for key, value in values.items():
        stem, _, name = key.rpartition(".")
        bounds = f"{stem}.lo", f"{stem}.hi"
        if key == bounds[0] and bounds[1] in values:
            parts.append(f"({value},\u00a0{values[bounds[1]]}]")
        elif key != bounds[1] or bounds[0] not in values:
            parts.append(value if not stem else f"{name} {value}")
    if bounded and method == "interval":
        parts = [part for part in parts if part != method]
    return " · ".join(parts)


def toy_panel(
    name: str,
    plan: Plan,
    samples: np.ndarray,
    labels: np.ndarray | None,
    path: np.ndarray,
) -> ToyPanel:
    """A toy's samples and trajectories as a panel of a figure."""
    guided = plan.guided.any(axis=(0, 2))
    return ToyPanel(name, samples, labels, path, plan.timeline.sigmas, guided)


def draw_toy(
    panels: Sequence[ToyPanel],
    model: ExactDenoiser,
    path: Path,
    view: dict[str, Any],
    reference: ExactDenoiser | None = None,
) -> bool:
    """Draw a toy of one or two dimensions; False for more, which cannot be drawn.

    Arguments:
        panels: one per point.
        model: knows the true density.
        path: the file.
        view: x_range and sigma_range of 1D toys, center and half_extent of 2D toys; null =
            automatic.
        reference: whose density is shown beside the true one, for 1D toys.
    """
    (dimensions,) = model.shape
    if dimensions == 1:
        ranges = {key: view[key] and tuple(view[key]) for key in ("x_range", "sigma_range")}
        figure_1d(panels, model, path, reference=reference, **ranges)
    elif dimensions == 2:
        center = view["center"] and tuple(view["center"])
        figure_2d(panels, model, path, center=center, half_extent=view["half_extent"])
    return dimensions <= 2


def _draw_grid(cohort: Cohort, path: Path) -> Path:
    """Same seeds under every point: a row per point, a column per seed."""
    tasks = cohort.tasks[:MOST_ROWS]
    shown = [cohort.gathered(task, "gallery", "labels", first=cohort.kept)[0] for task in tasks]
    kept = [arrays["gallery"][: cohort.kept] for arrays in shown]
    settings = cohort.tasks[0].point.settings
    labels = shown[0].get("labels")
    columns, model = [], cohort.tasks[0].point.model
    for k, seed in enumerate(settings.seeds[: cohort.kept]):
        name = "" if labels is None else f" · class {model.name_of(labels[k])}"
        columns.append(f"seed {seed}{name}")
    names = [title(task.point.settings.values, task.point.settings.method) for task in tasks]
    heading = None
    if len(tasks) < len(cohort.tasks):
        heading = f"the first {len(tasks)} of {len(cohort.tasks)} points"
    image_grid(np.stack(kept), names, columns, path, title=heading)
    return path


def _draw_toy(cohort: Cohort, path: Path) -> list[Path]:
    files = []
    tasks = cohort.tasks
    view = tasks[0].point.settings.config["figure"]
    reference = _reference(cohort)
    for first in range(0, len(tasks), MOST_PANELS):
        panels = []
        for task in tasks[first : first + MOST_PANELS]:
            settings = task.point.settings
            made, _ = cohort.gathered(task, "features0", "labels", "path")
            name = title(settings.values, settings.method)
            samples, labels, paths = made["features0"], made.get("labels"), made["path"]
            panels.append(toy_panel(name, settings.plan, samples, labels, paths))
        file = path if first == 0 else path.with_stem(f"{path.stem}_{first // MOST_PANELS + 1}")
        if draw_toy(panels, tasks[0].point.model, file, view, reference):
            files.append(file)
    return files


def _reference(cohort: Cohort) -> ExactDenoiser | None:
    """What the first guided point is guided away from, if its density is known."""
    for task in cohort.tasks:
        for term in task.point.guidance.terms.values():
            reference = getattr(term.direction, "reference", None)
            if isinstance(reference, ExactDenoiser):
                return reference
    return None
