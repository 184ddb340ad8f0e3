"""Trackers of experiments, which are told each point once it is measured, beside the tables.

A tracker imports its package when it is made, so that one that is not there is noticed first.
"""

import importlib
import io
import json
import math
import os
import re
from abc import ABC, abstractmethod
from contextlib import redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Literal

import numpy as np
from PIL import Image

from guidex.errors import UsageError
from guidex.reports.rows import Value, exact


@dataclass(frozen=True)
class Told:
    """What a tracker is told of a point.

    Attributes:
        table, name: of the table and of the point, for people.
        folder: of the run.
        parameters: what the point was made with.
        images: of the first seeds, side by side, uint8 [H, W, 3]; None where there are none.
    """

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
    """tracker.jsonl and tracker/NAME.png in the run's folder."""

    def tell(self, point: Told) -> None:
        line = {"point": point.name, "parameters": point.parameters}
        line["metrics"] = {
            name: value if math.isfinite(value) else exact(value)
            for name, value in point.metrics.items()
        }
        if point.images is not None:
            line["images"] = f"tracker/{point.slug}.png"
            (point.folder / "tracker").mkdir(exist_ok=True)
            Image.fromarray(point.images).save(point.folder / line["images"])
        with (point.folder / "tracker.jsonl").open("a", encoding="utf-8") as file:
            file.write(json.dumps(line, ensure_ascii=False) + "\n")


class TensorBoard(Tracker):
    """A folder of events for each point in `folder`, or in tensorboard of the run's."""

    def __init__(self, folder: str | None = None) -> None:
        self.writer = _package("tensorboard", "torch.utils.tensorboard").SummaryWriter
        self.folder = folder

    def tell(self, point: Told) -> None:
        top = Path(self.folder).expanduser() if self.folder else point.folder / "tensorboard"
        parameters = {name: _plain(value) for name, value in point.parameters.items()}
        with self.writer(str(top / point.slug)) as writer:
            writer.add_hparams(parameters, point.metrics, run_name=".")
            if point.images is not None:
                writer.add_image("samples", point.images, dataformats="HWC")


class Trackio(Tracker):
    """trackio's database on this machine, which TRACKIO_DIR names."""

    def __init__(self, project: str = "guidex") -> None:
        self.trackio, self.project = _package("trackio"), project

    def tell(self, point: Told) -> None:
        of = {"project": self.project, "group": point.table, "name": point.name}
        with redirect_stdout(io.StringIO()):  # its advice, for every point
            run = self.trackio.init(**of, config=point.parameters, embed=False, auto_log_gpu=False)
            image = {} if point.images is None else {"samples": self.trackio.Image(point.images)}
            run.log({**point.metrics, **image})
            run.finish()


class WandB(Tracker):
    """Weights & Biases; its files are in wandb of the run's folder."""

    def __init__(
        self, project: str = "guidex", mode: Literal["online", "offline"] = "online"
    ) -> None:
        self.wandb, self.project, self.mode = _package("wandb"), project, mode

    def tell(self, point: Told) -> None:
        of = {"project": self.project, "group": point.table, "name": point.name}
        settings = self.wandb.Settings(silent=True)
        run = self.wandb.init(
            **of, config=point.parameters, dir=str(point.folder), mode=self.mode, settings=settings
        )
        image = {} if point.images is None else {"samples": self.wandb.Image(point.images)}
        run.log({**point.metrics, **image})
        run.finish()


class MLflow(Tracker):
    """An MLflow server, or mlflow.db and mlflow/ in the run's folder."""

    def __init__(self, experiment: str = "guidex", uri: str | None = None) -> None:
        self.mlflow, self.experiment = _package("mlflow"), experiment
        self.uri = uri or os.environ.get("MLFLOW_TRACKING_URI")

    def tell(self, point: Told) -> None:
        mlflow, folder = self.mlflow, point.folder.absolute()
        mlflow.set_tracking_uri(self.uri or f"sqlite:///{folder}/mlflow.db")
        if mlflow.get_experiment_by_name(self.experiment) is None:
            place = None if self.uri else f"file://{folder}/mlflow"
            mlflow.create_experiment(self.experiment, place)
        mlflow.set_experiment(self.experiment)
        with mlflow.start_run(run_name=point.name, tags={"table": point.table}):
            names = {name: re.sub(r"[^\w./ -]", "_", name) for name in point.parameters}
            mlflow.log_params({names[name]: value for name, value in point.parameters.items()})
            mlflow.log_metrics(point.metrics)
            if point.images is not None:
                mlflow.log_image(point.images, "samples.png")


def _plain(value: Value) -> str | int | float | bool:
    return "null" if value is None else value


def _package(name: str, module: str | None = None) -> ModuleType:
    try:
        return importlib.import_module(module or name)
    except ImportError as error:
        raise UsageError(
            f"tracker={name} needs the Python package {name} ({error}); install it in the clone "
            f"of guidex: pip install '.[{name}]'"
        ) from error
