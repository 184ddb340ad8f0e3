"""Trackers are told every point of a sweep once: parameters, metrics, images."""

import json
import sqlite3
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from guidex.cli import main
from guidex.config.compose import compose
from guidex.config.instantiate import Models, instantiate
from guidex.runs import trackers

Captured = pytest.CaptureFixture[str]

WORDS = ["sweep", "guidance=cfg", "guidance.schedule.w=1,2", "seeds=0-11", "metrics=[frechet]"]
WORDS += ["sampler.grid.steps=3", "gallery=3", "device=cpu"]
NAMES = ["guidance.schedule.w=1", "guidance.schedule.w=2"]


def swept(folder: Path, *more: str) -> dict[str, dict]:
    """Run a sweep; the rows by the names of their points."""
    assert main([*WORDS, f"out={folder}", *more]) == 0
    rows = map(json.loads, (folder / "rows.jsonl").read_text().splitlines())
    return dict(zip(NAMES, rows, strict=False))


def tell(folder: Path, *words: str) -> None:
    """Tell a tracker of two points."""
    config = compose("sweep", words).config["tracker"]
    tracker = instantiate(config, "tracker", Models(), trackers.Tracker)
    folder.mkdir()
    for number, name in enumerate(NAMES, 1):
        parameters = {"guidance": "cfg", "guidance.schedule.w": number, "labels": None}
        images = np.arange(8 * 24 * 3, dtype=np.uint8).reshape(8, 24, 3)
        metrics = {"fd_pixels": number / 7}
        tracker.tell(trackers.Told("table", name, folder, parameters, metrics, images))


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("GUIDEX_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("guidex.commands.sweep.draw", lambda *_: [])
    return tmp_path / "run"


def test_json_lines(folder: Path) -> None:
    rows = swept(folder, "tracker=jsonl")
    lines = [json.loads(line) for line in (folder / "tracker.jsonl").read_text().splitlines()]
    assert [line["point"] for line in lines] == NAMES
    for line in lines:
        row = rows[line["point"]]
        assert line["metrics"] == row["metrics"] and "fd_pixels" in line["metrics"]
        w = row["values"]["guidance.schedule.w"]
        assert line["parameters"]["guidance.schedule.w"] == w
        assert line["parameters"]["model"] == "digits" and line["parameters"]["images"] == 12
        with Image.open(folder / line["images"]) as image:
            assert image.size == (3 * 8, 8) and image.mode == "RGB"
            assert np.asarray(image).std() > 0
    swept(folder, "tracker=jsonl")
    assert len((folder / "tracker.jsonl").read_text().splitlines()) == 2  # nothing new
    assert "tracker" not in json.loads((folder / "run.json").read_text())


def test_points_of_a_toy_have_no_images(folder: Path) -> None:
    swept(folder, "tracker=jsonl", "model=mixture1d")
    line = json.loads((folder / "tracker.jsonl").read_text().splitlines()[0])
    assert "images" not in line and line["metrics"]


def test_a_tracker_that_fails_loses_nothing(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: Captured
) -> None:
    work, told = trackers.JsonLines.tell, []

    def fails_once(self: trackers.JsonLines, point: trackers.Told) -> None:
        told.append(point.name)
        if len(told) == 2:
            raise ConnectionError("no server")
        work(self, point)

    monkeypatch.setattr(trackers.JsonLines, "tell", fails_once)
    assert main([*WORDS, f"out={folder}", "tracker=jsonl"]) == 1
    error = capsys.readouterr().err
    assert "tracker: no server" in error and "the same command tells the rest" in error
    assert (folder / "table.csv").exists()
    swept(folder, "tracker=jsonl")
    assert told == [*NAMES, NAMES[1]]


def test_a_package_that_is_not_there_is_told_first(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: Captured
) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)
    assert main([*WORDS, f"out={folder}", "tracker=wandb"]) == 2
    assert "pip install '.[wandb]'" in capsys.readouterr().err and not folder.exists()
    assert main([*WORDS, "tracker=wandbb"]) == 2
    assert "did you mean wandb?" in capsys.readouterr().err


def test_tensorboard(folder: Path) -> None:
    module, reason = "torch.utils.tensorboard", "tensorboard is not installed"
    pytest.importorskip(module, reason=reason, exc_type=ImportError)
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    tell(folder, "tracker=tensorboard")
    assert sorted(path.name for path in (folder / "tensorboard").iterdir()) == NAMES
    for name in NAMES:
        events = EventAccumulator(str(folder / "tensorboard" / name)).Reload()
        [value] = events.Scalars("fd_pixels")
        assert value.value == pytest.approx(int(name[-1]) / 7)
        [image] = events.Images("samples")
        assert (image.width, image.height) == (24, 8)
        assert "_hparams_/session_start_info" in events.summary_metadata


def test_trackio(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))
    pytest.importorskip("trackio", reason="trackio is not installed", exc_type=ImportError)
    tell(folder, "tracker=trackio", "tracker.project=some")
    with sqlite3.connect(tmp_path / "trackio" / "some.db") as database:
        found = database.execute("select run_name, metrics from metrics").fetchall()
    assert sorted(name for name, _ in found) == NAMES
    for name, metrics in found:
        assert json.loads(metrics)["fd_pixels"] == int(name[-1]) / 7
    assert len(list((tmp_path / "trackio" / "media").rglob("*.png"))) == 2


def test_wandb_offline(folder: Path) -> None:
    pytest.importorskip("wandb", reason="wandb is not installed", exc_type=ImportError)
    tell(folder, "tracker=wandb", "tracker.mode=offline")
    runs = sorted((folder / "wandb").glob("offline-run-*"))
    assert len(runs) == 2
    for run in runs:
        file = next(run.glob("run-*.wandb"))
        for _ in range(100):  # a process of its own writes it
            if b"fd_pixels" not in file.read_bytes():
                time.sleep(0.1)
        content = file.read_bytes()
        assert b"fd_pixels" in content and b"guidance.schedule.w" in content
        assert len(list(run.rglob("samples_*.png"))) == 1


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
def test_mlflow(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    mlflow = pytest.importorskip("mlflow", reason="mlflow is not installed", exc_type=ImportError)
    pytest.importorskip("sqlalchemy", reason="sqlalchemy is not installed")
    tell(folder, "tracker=mlflow", "tracker.experiment=some")
    client = mlflow.MlflowClient(f"sqlite:///{folder}/mlflow.db")
    experiment = client.get_experiment_by_name("some")
    runs = {run.info.run_name: run for run in client.search_runs([experiment.experiment_id])}
    assert sorted(runs) == NAMES
    for name, run in runs.items():
        assert run.data.metrics["fd_pixels"] == int(name[-1]) / 7
        assert run.data.params["guidance.schedule.w"] == name[-1]
        assert [file.path for file in client.list_artifacts(run.info.run_id)] == ["samples.png"]
