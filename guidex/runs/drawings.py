"""Everything that a sweep draws: curves and maps of its rows, and what its samples look like."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from guidex.config.instantiate import content_key
from guidex.models.denoiser import Denoiser, ExactDenoiser
from guidex.reports.charts import names_of
from guidex.reports.image_grids import image_grid
from guidex.reports.plots import write_plots
from guidex.reports.rows import Row
from guidex.reports.toy_figures import ToyPanel, toy_figure
from guidex.runs.engine import Cohort, Task

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
            files += _draw_grid(pairs, rows, folder / f"grid{suffix}.png")
        else:
            files += _draw_toy(pairs, rows, folder / f"toy{suffix}.png")
    return files


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


def _draw_grid(pairs: Sequence[_Pair], rows: Sequence[Row], path: Path) -> list[Path]:
    """Same seeds under every point: a row per point, a column per seed."""
    shown, names = pairs[:MOST_ROWS], names_of(rows)
    images = [cohort.gathered(task, "gallery")["gallery"] for cohort, task in shown]
    labels = [names[task.index] for _, task in shown]
    values = [rows[task.index].values for _, task in shown]
    heading = f"the first {MOST_ROWS} of {len(pairs)} points" if len(pairs) > MOST_ROWS else ""
    columns = _columns(pairs[0][0])
    image_grid(np.stack(images), labels, [columns], path, title=heading, points=values)
    return [path]


def _draw_toy(pairs: Sequence[_Pair], rows: Sequence[Row], path: Path) -> list[Path]:
    files, names = [], names_of(rows)
    model, view = pairs[0][1].point.model, pairs[0][0].settings.figure
    # What the first guided point is guided away from, if its density is known.
    references = (network for _, task in pairs for network in task.point.guidance.networks)
    reference = next((each for each in references if isinstance(each, ExactDenoiser)), None)
    for first in range(0, len(pairs), MOST_PANELS):
        panels = []
        for cohort, task in pairs[first : first + MOST_PANELS]:
            made = cohort.gathered(task, "coordinates", "labels", "path")
            samples = (made["coordinates"], made.get("labels"), made["path"])
            about = (task.point.planned.plan, rows[task.index].values)
            panels.append(ToyPanel(names[task.index], *samples, *about))
        file = path if first == 0 else path.with_stem(f"{path.stem}_{first // MOST_PANELS + 1}")
        if toy_figure(panels, model, file, reference, **view):
            files.append(file)
    return files
