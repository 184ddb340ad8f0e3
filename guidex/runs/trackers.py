"""Trackers of experiments, which are told each point of a sweep once it is measured.

A tracker imports its package when it is made, so that one that is not there is noticed first.
"""

import importlib
import io
import json
import math
import os
import re
from abc import ABC, abstractmethod
from collections.abc import Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any, Literal

import numpy as np
from PIL import Image

from guidex.errors import GuidexError, UsageError, reason_of
from guidex.reports.rows import Row, Value, exact
from guidex.runs.engine import Cohort, Task
from guidex.runs.folder import read_json, write_json
from guidex.runs.points import words_of
from guidex.runs.points_table import Table
from guidex.runs.provenance import digest


@dataclass(frozen=True)
class Told:
    """What a tracker is told of a point: names of table and point, the run's folder, what the point
    was made with, what was measured, and images of the first seeds side by side, uint8 [H, W, 3],
    or None."""

    table: str
    name: str
    folder: Path
    parameters: dict[str, Value]
    metrics: dict[str, float]
    images: np.ndarray | None

    @property
    def slug(self) -> str:
        """The name, fit for a file."""
        return re.sub(r"[^\w.+=,-]+", "_", self.name)[:100]


class Tracker(ABC):
    """The interface."""

    @abstractmethod
    def tell(self, point: Told) -> None:
        """Take a point in; what goes wrong is raised."""


class JsonLines(Tracker):
    """tracker.jsonl and tracker/NAME.png in the run's folder; infinities and NaN are texts."""

    def tell(self, point: Told) -> None:
        metrics = {k: v if math.isfinite(v) else exact(v) for k, v in point.metrics.items()}
        line = {"point": point.name, "parameters": point.parameters, "metrics": metrics}
        if point.images is not None:
            line["images"] = f"tracker/{point.slug}.png"
            (point.folder / "tracker").mkdir(exist_ok=True)
            Image.fromarray(point.images).save(point.folder / line["images"])
        with (point.folder / "tracker.jsonl").open("a", encoding="utf-8") as file:
            file.write(json.dumps(line, ensure_ascii=False) + "\n")


class TensorBoard(Tracker):
    """A folder of events for each point in tensorboard of the run's folder."""

    def __init__(self) -> None:
        self.writer = _package("tensorboard", "torch.utils.tensorboard").SummaryWriter

    def tell(self, point: Told) -> None:
        parameters = {k: "null" if v is None else v for k, v in point.parameters.items()}
        with self.writer(str(point.folder / "tensorboard" / point.slug)) as writer:
            writer.add_hparams(parameters, point.metrics, run_name=".")
            if point.images is not None:
                writer.add_image("samples", point.images, dataformats="HWC")


class WandB(Tracker):
    """Weights & Biases; its files are in wandb of the run's folder."""

    def __init__(
        self, project: str = "guidex", mode: Literal["online", "offline"] = "online"
    ) -> None:
        self.package, self.project, self.mode = _package("wandb"), project, mode

    def options(self, folder: Path) -> dict[str, Any]:
        """Arguments of the package's `init`."""
        settings = self.package.Settings(silent=True)
        return {"mode": self.mode, "dir": str(folder), "settings": settings}

    def tell(self, point: Told) -> None:
        names = {"project": self.project, "group": point.table, "name": point.name}
        with redirect_stdout(io.StringIO()):  # advice, for every point
            run = self.package.init(**names, config=point.parameters, **self.options(point.folder))
            shown = point.images is not None
            image = {"samples": self.package.Image(point.images)} if shown else {}
            run.log({**point.metrics, **image})
            run.finish()


class Trackio(WandB):
    """trackio, which has the same functions; its database on this machine is TRACKIO_DIR's."""

    def __init__(self, project: str = "guidex") -> None:
        self.package, self.project = _package("trackio"), project

    def options(self, folder: Path) -> dict[str, Any]:
        return {"embed": False, "auto_log_gpu": False}


class MLflow(Tracker):
    """The MLflow server of MLFLOW_TRACKING_URI, or mlflow.db and mlflow/ in the run's folder."""

    def __init__(self, experiment: str = "guidex") -> None:
        self.mlflow, self.experiment = _package("mlflow"), experiment

    def tell(self, point: Told) -> None:
        mlflow, folder = self.mlflow, point.folder.absolute()
        uri = os.environ.get("MLFLOW_TRACKING_URI")
        mlflow.set_tracking_uri(uri or f"sqlite:///{folder}/mlflow.db")
        if mlflow.get_experiment_by_name(self.experiment) is None:
            place = None if uri else f"file://{folder}/mlflow"
            mlflow.create_experiment(self.experiment, place)
        mlflow.set_experiment(self.experiment)
        with mlflow.start_run(run_name=point.name, tags={"table": point.table}):
            names = {name: re.sub(r"[^\w./ -]", "_", name) for name in point.parameters}
            mlflow.log_params({names[k]: value for k, value in point.parameters.items()})
            mlflow.log_metrics(point.metrics)
            if point.images is not None:
                mlflow.log_image(point.images, "samples.png")


def _package(name: str, module: str | None = None) -> ModuleType:
    try:
        return importlib.import_module(module or name)
    except ImportError as error:
        raise UsageError(
            f"tracker={name} needs the Python package {name} ({error}); install it in the clone "
            f"of guidex: pip install '.[{name}]'"
        ) from error


def track(tracker: Tracker, table: Table, rows: Sequence[Row], cohorts: Sequence[Cohort]) -> None:
    """Tell the tracker of a table all measured points that it has not been told; GuidexError where
    it fails."""
    folder, config = cohorts[0].folder.path, table.base.config["tracker"]
    file = folder / "tracker.json"
    told = set(read_json(file) or ())
    for cohort, task in ((each, task) for each in cohorts for task in each.tasks):
        row, planned = rows[task.index], task.point.planned
        key = digest([config, row.values, row.metrics, planned.seeds], 32)
        if key in told:
            continue
        parameters = {name: planned.choices[name] for name in ("model", "sampler")} | row.swept
        for name in ("images", "evals_main", "evals_ref", "gflops"):
            parameters[name] = getattr(row, name)
        name, images = words_of(planned.values) or planned.method, _side_by_side(cohort, task)
        try:
            tracker.tell(Told(table.name, name, folder, parameters, row.metrics, images))
        except Exception as error:  # every package has its own
            raise GuidexError(
                f"tracker: {reason_of(error)}; the results are in {folder}, and the same command "
                "tells the rest"
            ) from error
        told.add(key)
        write_json(file, sorted(told))


def _side_by_side(cohort: Cohort, task: Task) -> np.ndarray | None:
    arrays = cohort.gathered(task, "gallery") if cohort.kept > 0 else {}
    if not arrays:
        return None
    images = np.concatenate(arrays["gallery"], axis=2).transpose(1, 2, 0)
    return np.broadcast_to(images, (*images.shape[:2], 3)).copy()
