"""Runs: whole, resumable, never mixed, and told apart from each other."""

import csv
import json
import multiprocessing
import os
import random
import signal
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from filelock import FileLock
from PIL import Image

from guidex.cli import main
from guidex.models import kernel as kernel_module
from guidex.runs.folder import run_folder

SWEEP = [
    "sweep",
    "seeds=0-39",
    "block=4",
    "batch=4",
    "gallery=3",
    "sampler.grid.steps=6",
    "guidance=interval",
    "guidance.schedule.w=1,3",
    "guidance.schedule.hi=1,3",
]
SAMPLE = ["sample", "seeds=0-39", "block=4", "batch=4", "sampler.grid.steps=6", "guidance=cfg"]


def run(words: list[str], out: Path) -> None:
    """The target of child processes."""
    sys.exit(main([*words, f"out={out}"]))


def quiet(words: list[str], out: Path) -> None:
    """Like run, without output."""
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 1)
    os.dup2(null, 2)
    run(words, out)


@pytest.fixture(scope="module")
def server():
    """Starts processes quickly: they are forked from one that has imported everything."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(
        ["guidex.commands.sweep", "guidex.commands.sample", "sklearn.datasets"]
    )
    return context


def without_seconds(folder: Path) -> list[dict[str, str]]:
    """The table but for the one column that measures time."""
    with (folder / "table.csv").open(newline="") as file:
        return [{k: v for k, v in row.items() if k != "seconds"} for row in csv.DictReader(file)]


def labels_of(folder: Path) -> list[dict[str, str]]:
    """The rows of labels.csv."""
    with (folder / "labels.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def pixels(path: Path) -> np.ndarray:
    """An image as an array."""
    with Image.open(path) as image:
        return np.asarray(image)


def files(folder: Path) -> dict[str, bytes]:
    """Every image and label of a run."""
    found = sorted(folder.rglob("*.png")) + [folder / "labels.csv"]
    return {str(path.relative_to(folder)): path.read_bytes() for path in found}


def kill_often(server, words: list[str], out: Path, kills: int) -> int:
    """Start and kill -9 a run at random moments; returns how often it was really killed."""
    chance = random.Random(7)
    killed = 0
    for _ in range(kills):
        process = server.Process(target=quiet, args=(words, out))
        process.start()
        process.join(chance.uniform(0.05, 0.9))
        if process.is_alive():
            os.kill(process.pid, signal.SIGKILL)
        process.join()
        killed += process.exitcode == -signal.SIGKILL
    return killed


def test_killed_sweep_ends_with_the_same_table(server, tmp_path: Path) -> None:
    assert main([*SWEEP, f"out={tmp_path / 'whole'}"]) == 0
    assert kill_often(server, SWEEP, tmp_path / "killed", 8) >= 3
    assert main([*SWEEP, f"out={tmp_path / 'killed'}"]) == 0
    assert without_seconds(tmp_path / "whole") == without_seconds(tmp_path / "killed")
    grids = [(tmp_path / run / "grid.png").read_bytes() for run in ("whole", "killed")]
    assert grids[0] == grids[1]
    assert not list((tmp_path / "killed").rglob(".guidex-*"))

    before = (tmp_path / "killed" / "table.csv").read_bytes()
    assert main([*SWEEP, f"out={tmp_path / 'killed'}"]) == 0
    assert (tmp_path / "killed" / "table.csv").read_bytes() == before


def test_killed_sample_ends_with_the_same_images(server, tmp_path: Path) -> None:
    assert main([*SAMPLE, f"out={tmp_path / 'whole'}"]) == 0
    assert kill_often(server, SAMPLE, tmp_path / "killed", 8) >= 3
    assert main([*SAMPLE, f"out={tmp_path / 'killed'}"]) == 0
    whole = files(tmp_path / "whole")
    assert len(whole) == 40 + 2  # images, grid.png, labels.csv
    assert whole == files(tmp_path / "killed")


def test_interrupt_leaves_a_resumable_folder(
    server, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["sample", "seeds=0-999", "block=10", "batch=10", *SAMPLE[4:]]
    process = server.Process(target=quiet, args=(words, tmp_path / "run"))
    process.start()
    deadline = time.monotonic() + 60
    while not list((tmp_path / "run").glob("points/*/*.png.record")):
        assert time.monotonic() < deadline and process.is_alive()
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGINT)
    process.join(60)
    assert process.exitcode == 130
    records = [
        list((tmp_path / "run").glob(f"points/*/*.{name}.record")) for name in ("labels", "png")
    ]
    done = len({path.name[:13] for path in records[0]} & {path.name[:13] for path in records[1]})
    assert 1 <= done < 100
    assert main([*words, f"out={tmp_path / 'run'}"]) == 0
    assert f"{10 * done} of 1000 images are there already" in capsys.readouterr().out
    assert len(list((tmp_path / "run" / "images").rglob("*.png"))) == 1000


def test_changed_settings_never_mix(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = f"out={tmp_path / 'run'}"
    assert main([*SAMPLE, out]) == 0
    before = files(tmp_path / "run")
    assert main([*SAMPLE, out, "guidance.schedule.w=3"]) == 2
    assert "guidance.schedule.w: 2.0 there, 3" in capsys.readouterr().err
    assert files(tmp_path / "run") == before
    assert main([*SAMPLE, out, "batch=3"]) == 0  # the batch size changes nothing
    assert main([*SAMPLE, out, "guidance.schedule.w=3", "overwrite=true"]) == 0
    assert files(tmp_path / "run") != before


def test_a_run_does_not_go_on_with_other_files(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def put(name: str, seed: int) -> str:
        pixels = np.random.default_rng(seed).integers(0, 256, (12, 4, 4, 1), dtype=np.uint8)
        np.savez(tmp_path / name, images=pixels, labels=np.arange(12) % 2)
        return str(tmp_path / name)

    data, ref = put("data.npz", 0), put("ref.npz", 1)
    out = tmp_path / "run"
    words = ["model=kernel", f"model.data={data}", "model.h=0.5", "seeds=0-7", f"out={out}"]
    sample = ["sample", *words]
    assert main(sample) == main(sample) == 0
    put("data.npz", 2)
    # In one process, data are read once; a new one looks again.
    kernel_module._load.cache_clear()
    assert main(sample) == 2
    said = capsys.readouterr().err
    assert "was begun with other content of" in said and "data.npz" in said
    assert main([*sample, "overwrite=true"]) == main(sample) == 0

    words = [*words[:-1], f"out={tmp_path / 'table'}", f"ref={ref}", "guidance.schedule.w=1,2"]
    sweep = ["sweep", *words, "repeats=1", "metrics=[frechet]"]
    assert main(sweep) == main(sweep) == 0
    put("ref.npz", 3)
    assert main(sweep) == 2
    said = capsys.readouterr().err
    assert "ref.npz" in said and "data.npz" not in said


def test_a_run_that_another_process_marks_meanwhile_is_joined(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of processes that start together, one may look into the folder just before the other
    writes its mark."""
    list_items = Path.iterdir
    mark = {"run": "0123", "versions": {}, "command": "x"}

    def marked_meanwhile(folder: Path):
        (folder / "run.json").write_text(json.dumps(mark))
        return list_items(folder)

    tmp_path.joinpath("run").mkdir()
    monkeypatch.setattr(Path, "iterdir", marked_meanwhile)
    monkeypatch.setenv("WORLD_SIZE", "2")
    with run_folder(tmp_path / "run", {"command": "x"}, False):
        assert (tmp_path / "run" / "run.json").exists()


def test_a_run_is_finished_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    result = tmp_path / "run" / "summary.json"

    @contextmanager
    def after_another_process(lock: Path):
        result.write_text("done")
        yield

    with monkeypatch.context() as meanwhile:
        meanwhile.setattr("guidex.runs.engine.alone", after_another_process)
        assert main([*SAMPLE, f"out={result.parent}"]) == 0
    assert result.read_text() == "done" and not (tmp_path / "run" / "labels.csv").exists()
    assert main([*SAMPLE, f"out={result.parent}"]) == 0  # the same command, given again
    assert (tmp_path / "run" / "labels.csv").exists()


@pytest.mark.parametrize(
    ("word", "told"),
    [
        ("gallery=-1", "gallery must be a whole number of at least 0, not -1"),
        ("figure.x_range=3", "figure.x_range must be two increasing numbers or null, not 3"),
        ("figure.x_range=[1,1]", "figure.x_range must be two increasing numbers"),
        ("figure.sigma_range=[0,.nan]", "figure.sigma_range must be two increasing numbers"),
    ],
)
def test_what_cannot_be_shown_is_refused_at_once(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], word: str, told: str
) -> None:
    words = ["sweep", "experiment=interval/fig2", f"out={tmp_path / 'run'}", word]
    assert main(words) == 2
    assert told in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_another_view_needs_no_new_samples(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    ranges = []
    drawn = "guidex.runs.drawings.toy_figure"
    monkeypatch.setattr(drawn, lambda *_, x_range, **__: ranges.append(x_range))
    words = ["sweep", "experiment=interval/fig2", "sampler.grid.steps=4", "seeds=0-19"]
    assert main([*words, f"out={tmp_path}"]) == 0
    assert main([*words, f"out={tmp_path}", "figure.x_range=[-3,3]"]) == 0
    assert ranges == [[-1.5, 2.2], [-3, 3]]
    assert "are there already" in capsys.readouterr().out


def test_nothing_is_deleted_under_another_process(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "run").mkdir()
    with FileLock(tmp_path / "run" / ".lock-0"):
        assert main([*SAMPLE, f"out={tmp_path / 'run'}", "overwrite=true"]) == 1
        assert "is in use by" in capsys.readouterr().err
        assert main([*SAMPLE, f"out={tmp_path / 'run'}"]) == 0
    assert main([*SAMPLE, f"out={tmp_path / 'run'}", "overwrite=true"]) == 0


def test_nonfinite_names_seed_step_and_point(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["model=mixture1d", "guidance=cfg", "guidance.schedule.w=2,1e300", "seeds=5-6"]
    words += ["metrics=[]", "sampler.grid.steps=4", f"out={tmp_path / 'run'}"]
    assert main(["sweep", *words]) == 1
    error = capsys.readouterr().err
    assert "seed 5 " in error and "step 0 " in error
    assert "at the point guidance.schedule.w=1e+300" in error
    assert not list((tmp_path / "run").glob("points/*/*.record"))


def test_full_disk(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=200k", "tmpfs", str(disk)]
    if subprocess.run(mount, capture_output=True).returncode != 0:
        pytest.skip("mounting a small file system needs root")
    try:
        words = [*SAMPLE, f"out={disk / 'run'}", "seeds=0-199"]
        assert main(words) == 1
        assert "full" in capsys.readouterr().err
        assert not list(disk.rglob("*.tmp"))
        subprocess.run(["mount", "-o", "remount,size=20m", str(disk)], check=True)
        assert main(words) == 0
        assert len(list((disk / "run" / "images").rglob("*.png"))) == 200
    finally:
        subprocess.run(["umount", str(disk)], check=True)


def test_sample_writes_what_its_seeds_decide(tmp_path: Path) -> None:
    assert main([*SAMPLE, f"out={tmp_path / 'all'}"]) == 0
    assert main([*SAMPLE, f"out={tmp_path / 'some'}", "seeds=[30-33,7]", "batch=3", "block=2"]) == 0
    rows = labels_of(tmp_path / "some")
    assert [row["seed"] for row in rows] == ["30", "31", "32", "33", "7"]
    whole = {row["seed"]: row for row in labels_of(tmp_path / "all")}
    for row in rows:
        assert row == whole[row["seed"]]
        ours, theirs = (pixels(tmp_path / folder / row["file"]) for folder in ("some", "all"))
        np.testing.assert_array_equal(ours, theirs)
        assert ours.dtype == np.uint8 and ours.shape == (8, 8)


def test_sample_then_eval_agrees_with_sweep(tmp_path: Path) -> None:
    common = ["seeds=0-59", "sampler.grid.steps=8", "guidance=cfg"]
    assert main(["sample", *common, f"out={tmp_path / 'sample'}"]) == 0
    assert main(["eval", str(tmp_path / "sample"), "ref=digits", f"out={tmp_path / 'eval'}"]) == 0
    assert main(["sweep", *common, "guidance.schedule.w=2,3", f"out={tmp_path / 'sweep'}"]) == 0
    measured = json.loads((tmp_path / "eval" / "rows.jsonl").read_text())["metrics"]
    swept = json.loads((tmp_path / "sweep" / "rows.jsonl").read_text().splitlines()[0])["metrics"]
    assert measured == pytest.approx(swept, rel=1e-9)
    assert {"fd_pixels", "precision_pixels", "recall_pixels", "accuracy_pixels"} <= set(measured)


def test_repeats_show_median_and_spread(tmp_path: Path) -> None:
    words = ["sweep", "guidance=none", "experiment=null", "sampler.grid.steps=4", "seeds=0-29"]
    assert main([*words, "repeats=3", f"out={tmp_path / 'three'}"]) == 0
    three = json.loads((tmp_path / "three" / "rows.jsonl").read_text())
    singles = []
    for first in (0, 30, 60):
        out = tmp_path / str(first)
        assert main([*words, f"seeds={first}-{first + 29}", f"out={out}"]) == 0
        singles.append(json.loads((out / "rows.jsonl").read_text())["metrics"]["fd_pixels"])
    metrics = three["metrics"]
    assert three["images"] == 30 and three["repeats"] == 3
    assert metrics["fd_pixels"] == pytest.approx(sorted(singles)[1])
    assert metrics["fd_pixels_min"] == pytest.approx(min(singles))
    assert metrics["fd_pixels_max"] == pytest.approx(max(singles))
    assert metrics["fd_pixels_mean"] == pytest.approx(np.mean(singles))
    assert metrics["fd_pixels_std"] == pytest.approx(np.std(singles, ddof=1))
