"""Telling a tracker the points of a run, each once."""

import json
from collections.abc import Sequence
from contextlib import suppress

import numpy as np

from guidex.config.compose import Config
from guidex.errors import GuidexError, reason_of
from guidex.reports.rows import Row
from guidex.reports.trackers import Told, Tracker
from guidex.runs.engine import Cohort, Task
from guidex.runs.folder import write_json
from guidex.runs.points import words_of
from guidex.runs.provenance import digest


def track(
    tracker: Tracker, config: Config, table: str, rows: Sequence[Row], cohorts: Sequence[Cohort]
) -> None:
    """Tell a tracker, made from a configuration, all measured points that it has not been told.

    Raises:
        GuidexError: the tracker fails.
    """
    folder = cohorts[0].folder.path
    file, known = folder / "tracker.json", set()
    with suppress(OSError, ValueError, TypeError):
        known = set(json.loads(file.read_text(encoding="utf-8")))
    for cohort in cohorts:
        for task in cohort.tasks:
            row, planned = rows[task.index], task.point.planned
            key = digest([config, row.values, row.metrics, planned.seeds], 32)
            if key in known:
                continue
            presets = {name: planned.choices[name] for name in ("model", "sampler")}
            costs = {name: getattr(row, name) for name in ("evals_main", "evals_ref", "gflops")}
            parameters = presets | row.swept | {"images": row.images} | costs
            name = words_of(planned.values) or planned.method
            images = _side_by_side(cohort, task)
            try:
                tracker.tell(Told(table, name, folder, parameters, row.metrics, images))
            except Exception as error:  # every package has its own
                raise GuidexError(
                    f"tracker: {reason_of(error)}; the results are in {folder}, and the same "
                    "command tells the rest"
                ) from error
            known.add(key)
            write_json(file, sorted(known))


def _side_by_side(cohort: Cohort, task: Task) -> np.ndarray | None:
    """Images of the first seeds, uint8 [H, W, 3]; None where there are none."""
    if cohort.kept == 0:
        return None
    arrays, _ = cohort.gathered(task, "gallery", first=cohort.kept)
    if "gallery" not in arrays:
        return None
    images = arrays["gallery"][: cohort.kept].transpose(2, 0, 3, 1)
    height, count, width, channels = images.shape
    return np.broadcast_to(
        images.reshape(height, count * width, channels), (height, count * width, 3)
    ).copy()
