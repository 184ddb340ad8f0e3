"""Everything that a sweep draws: curves and maps of its rows, and what its samples look like."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from guidex.config.compose import Config
from guidex.config.instantiate import content_key
from guidex.guidance.plan import Plan
from guidex.models.denoiser import Denoiser, ExactDenoiser
from guidex.reports.image_grids import image_grid
from guidex.reports.plots import write_plots
from guidex.reports.rows import Row
from guidex.reports.toy_figures import ToyPanel, figure_1d, figure_2d
from guidex.runs.engine import Cohort, Task
from guidex.runs.points_table import typed

MOST_ROWS = 60  # of points in one image grid
MOST_PANELS = 11  # of points in one figure of a toy

# A point of a figure, and the cohort that its samples lie in.
_Pair = tuple[Cohort, Task]


def draw(rows: Sequence[Row], cohorts: Sequence[Cohort], folder: Path) -> list[Path]:
    """Draw what the rows and samples of a finished sweep allow; returns the files.

    Points stand side by side in one figure, whatever their samplers and models, where they show
    the same seeds and classes; of a toy, where the truth is the same.
    """
    files = list(write_plots(rows, folder))
    figures: dict[str, list[_Pair]] = {}
    for cohort in cohorts:
        if cohort.kept > 0:
            pairs = [(cohort, task) for task in cohort.tasks]
            figures.setdefault(_alike(cohort), []).extend(pairs)
    for number, pairs in enumerate(figures.values()):
        pairs.sort(key=lambda pair: pair[1].index)
        suffix = f"_{number}" if len(figures) > 1 else ""
        if pairs[0][1].point.kind.is_image:
            files += _draw_grid(pairs, folder / f"grid{suffix}.png")
        else:
            files += _draw_toy(pairs, folder / f"toy{suffix}.png")
    return files


def title(values: dict[str, str], method: str) -> str:
    """A point in a few words, such as "cfg · w 2" or "w 3 · (0.1, 1]" for an interval."""
    parts = [] if method in values.values() else [method]
    for key, value in values.items():
        stem, _, name = key.rpartition(".")
        lo, hi = f"{stem}.lo", f"{stem}.hi"
        if key == lo and hi in values:
            parts.append(f"({value},\u00a0{values[hi]}]")
        elif key != hi or lo not in values:
            parts.append(value if not stem else f"{name} {value}")
    if method == "interval" and any(key.endswith(".hi") for key in values):
        parts = [part for part in parts if part != method]  # its bounds tell it
    return " · ".join(parts)


def toy_panel(
    name: str, plan: Plan, samples: np.ndarray, labels: np.ndarray | None, paths: np.ndarray
) -> ToyPanel:
    """A toy's samples and some trajectories [R, steps + 1, d] as a panel of a figure."""
    guided = plan.guided.any(axis=(0, 2))
    return ToyPanel(name, samples, labels, paths.swapaxes(0, 1), plan.timeline.sigmas, guided)


def draw_toy(
    panels: Sequence[ToyPanel],
    model: ExactDenoiser,
    path: Path,
    view: Config,
    reference: ExactDenoiser | None = None,
) -> bool:
    """Draw a toy of one or two dimensions, a panel per point; False for more dimensions. In 1D, the
    density of the reference is shown beside the true one of the model; `view` has the ends of its
    axes, x_range and sigma_range."""
    (dimensions,) = model.shape
    if dimensions == 1:
        figure_1d(panels, model, path, reference=reference, **view)
    elif dimensions == 2:
        figure_2d(panels, model, path)
    return dimensions <= 2


def captions(seeds: Sequence[int], labels: Sequence[int] | None, model: Denoiser) -> list[str]:
    """What stands with images: their seeds and classes, which may have names."""
    if labels is None:
        return [f"seed {seed}" for seed in seeds]
    return [
        f"seed {seed} · {model.conditions.caption(label)}"
        for seed, label in zip(seeds, map(int, labels), strict=False)
    ]


def _columns(cohort: Cohort) -> list[str]:
    """What stands above the images of a cohort."""
    point = cohort.tasks[0].point
    labels = cohort.gathered(cohort.tasks[0], "labels").get("labels")
    return captions(point.planned.seeds[: cohort.kept], labels, point.model)


def _alike(cohort: Cohort) -> str:
    """Equal for images that fit under the same columns, and for toys of the same density."""
    point = cohort.tasks[0].point
    if point.kind.is_image:
        return content_key([point.kind.image_shape, _columns(cohort)])
    model = point.planned.settings.model
    return content_key({key: value for key, value in model.items() if key != "references"})


def _draw_grid(pairs: Sequence[_Pair], path: Path) -> list[Path]:
    """Same seeds under every point: a row per point, a column per seed."""
    shown, columns = pairs[:MOST_ROWS], _columns(pairs[0][0])
    heading = f"the first {MOST_ROWS} of {len(pairs)} points" if len(shown) < len(pairs) else None
    images = np.stack([cohort.gathered(task, "gallery")["gallery"] for cohort, task in shown])
    names = [_name(task) for _, task in shown]
    values = [typed(task.point.planned.values) for _, task in shown]
    image_grid(images, names, columns, path, title=heading, points=values)
    return [path]


def _draw_toy(pairs: Sequence[_Pair], path: Path) -> list[Path]:
    files = []
    model, view = pairs[0][1].point.model, pairs[0][0].settings.figure
    # What the first guided point is guided away from, if its density is known.
    references = (network for _, task in pairs for network in task.point.guidance.networks)
    reference = next((each for each in references if isinstance(each, ExactDenoiser)), None)
    for first in range(0, len(pairs), MOST_PANELS):
        panels = []
        for cohort, task in pairs[first : first + MOST_PANELS]:
            arrays = cohort.gathered(task, "coordinates", "labels", "path")
            samples, labels = arrays["coordinates"], arrays.get("labels")
            planned = task.point.planned
            panel = toy_panel(_name(task), planned.plan, samples, labels, arrays["path"])
            panels.append(replace(panel, values=typed(planned.values)))
        file = path if first == 0 else path.with_stem(f"{path.stem}_{first // MOST_PANELS + 1}")
        if draw_toy(panels, model, file, view, reference):
            files.append(file)
    return files


def _name(task: Task) -> str:
    return title(task.point.planned.values, task.point.planned.method)
