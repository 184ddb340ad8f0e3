"""Results belong to points: a table that grows computes what is new, and ends as a fresh one."""

import json
import multiprocessing
import os
import random
import re
import signal
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import nullcontext, suppress
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from guidex.cli import main
from guidex.runs import engine, outputs
from guidex.runs.blocks import Block, Store
from guidex.runs.folder import read_json, run_folder
from guidex.runs.settings import Settings

SWEEP = ["sweep", "guidance=cfg", "block=16", "sampler.grid.steps=4", "gallery=3"]
Said = pytest.CaptureFixture[str]


@pytest.fixture(autouse=True)
def no_plots(monkeypatch: pytest.MonkeyPatch) -> None:
    """They take most of the time, and are not what is tested here."""
    monkeypatch.setattr("guidex.commands.sweep.draw", lambda *_: [])
    monkeypatch.setattr("guidex.commands.sample.sample_grid", lambda *_: None)


@pytest.fixture
def sampled(monkeypatch: pytest.MonkeyPatch) -> Iterator[Counter]:
    """How many images have been sampled, by w."""
    counted: Counter = Counter()
    run_block = engine.run_block

    def counting(points, block, *others):
        for point in points:
            counted[point.planned.config["guidance"]["schedule"]["w"]] += len(block.seeds)
        return run_block(points, block, *others)

    monkeypatch.setattr("guidex.runs.engine.run_block", counting)
    yield counted


def rows_of(folder: Path) -> list[dict]:
    """All of the rows but what names seconds, command, date and place."""
    rows = [json.loads(line) for line in (folder / "rows.jsonl").read_text().splitlines()]
    for row in rows:
        row.pop("seconds")
        for key in ("out", "shard"):
            row["config"].pop(key, None)
        for key in ("command", "date"):
            row["provenance"].pop(key)
    return rows


def files_of(folder: Path) -> dict[str, str]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in [*folder.rglob("*.png"), folder / "labels.csv"]
    }


def test_a_table_that_grows_computes_what_is_new(
    tmp_path: Path, sampled: Counter, capsys: Said
) -> None:
    two, three = "guidance.schedule.w=1,2", "guidance.schedule.w=1,2,3"
    seeds, prdc = "seeds=0-39", "metrics=[frechet,prdc]"
    steps = [
        ([two, seeds, "metrics=[frechet]"], {1: 40, 2: 40}),
        ([three, seeds, "metrics=[frechet]"], {3: 40}),
        ([three, seeds, prdc], {}),
        ([three, "seeds=0-59", prdc], {1: 20, 2: 20, 3: 20}),
        ([three, "seeds=0-59", prdc, "repeats=2"], {1: 60, 2: 60, 3: 60}),
        ([three, "seeds=0-59", prdc, "gallery=5"], {1: 2, 2: 2, 3: 2}),
        ([three, "seeds=20-39", prdc, "block=7", "labels=random", "gallery=0"], {}),
        ([two, seeds, "labels=3"], {1: 40, 2: 40}),
        ([two, seeds, "labels=[3,4]"], {1: 20, 2: 20}),
    ]
    for number, (words, expected) in enumerate(steps):
        sampled.clear()
        assert main([*SWEEP, *words, f"out={tmp_path / 'grown'}"]) == 0
        assert dict(sampled) == expected, words
        assert main([*SWEEP, *words, f"out={tmp_path / str(number)}"]) == 0
        assert rows_of(tmp_path / "grown") == rows_of(tmp_path / str(number))
        tables = [
            (tmp_path / run / "table.csv").read_text().splitlines()
            for run in ("grown", str(number))
        ]
        for grown, fresh in zip(*tables, strict=True):
            assert grown.rpartition(",")[0] == fresh.rpartition(",")[0]  # but for seconds
    assert "120 images are there already" not in capsys.readouterr().err


def test_another_detector_is_said_to_sample_again(
    tmp_path: Path, sampled: Counter, capsys: Said, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = [*SWEEP, "seeds=0-19", "guidance.schedule.w=1,2", f"out={tmp_path / 'run'}"]
    assert main([*words, "metrics=[]"]) == 0
    capsys.readouterr()
    assert main([*words, "metrics=[frechet]"]) == 0
    said = capsys.readouterr().out
    assert "40 images were sampled without features of pixels, and are again" in said
    assert dict(sampled) == {1: 40, 2: 40}
    # Two ways to measure one point: its samples are made once.
    sampled.clear()
    words = [*SWEEP, "seeds=0-19", "guidance.schedule.w=2", f"out={tmp_path / 'ways'}"]
    assert main([*words, "metrics=[prdc]", "metrics.prdc.k=3,5"]) == 0
    assert dict(sampled) == {2: 20}
    rows = [row["metrics"] for row in rows_of(tmp_path / "ways")]
    assert len(rows) == 2 and rows[0] != rows[1]


@pytest.mark.parametrize("form", ["png", "zip", "npz"])
def test_more_seeds_extend_images(
    tmp_path: Path, form: str, sampled: Counter, capsys: Said
) -> None:
    words = ["sample", "guidance=cfg", "sampler.grid.steps=3", "block=8", f"format={form}"]
    out = f"out={tmp_path / 'grown'}"
    for seeds, new in (("[7,3,0-2]", 5), ("0-9", 5), ("0-20", 11), ("0-20", 0)):
        sampled.clear()
        assert main([*words, f"seeds={seeds}", out]) == 0
        assert sampled[2] == new
    assert main([*words, "seeds=0-20", f"out={tmp_path / 'fresh'}"]) == 0
    fresh, grown = files_of(tmp_path / "fresh"), files_of(tmp_path / "grown")
    assert fresh == grown and len(fresh) == 1 + (21 if form == "png" else 0)
    if form != "png":
        whole = [(tmp_path / run / f"images.{form}").read_bytes() for run in ("fresh", "grown")]
        assert whole[0] == whole[1]
        assert not list((tmp_path / "grown").glob("points/*/*.images"))
    assert main([*words, "seeds=0-9", out]) == 2
    assert "holds images of other seeds, such as 10" in capsys.readouterr().err
    assert main([*words, "seeds=0-30", "guidance.schedule.w=3", out]) == 2
    assert files_of(tmp_path / "grown") == grown


def test_a_zip_that_was_being_extended_loses_nothing(
    tmp_path: Path, sampled: Counter, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ["sample", "guidance=cfg", "sampler.grid.steps=3", "format=npz"]
    run, write = tmp_path / "run", outputs.atomic_write
    assert main([*words, "seeds=0-9", f"out={run}"]) == 0

    def killed_before(path: Path, content) -> None:
        if path.name == "images.npz":
            with open(tmp_path / "scratch", "x+b") as file:
                content(file)
            raise KeyboardInterrupt
        write(path, content)

    def killed_after(path: Path, content) -> None:
        write(path, content)
        if path.name == "images.npz":
            raise KeyboardInterrupt

    for killed in (killed_before, killed_after):
        with monkeypatch.context() as stopped:
            stopped.setattr("guidex.runs.outputs.atomic_write", killed)
            assert main([*words, "seeds=0-19", f"out={run}"]) == 130
    assert main([*words, "seeds=0-19", f"out={run}"]) == 0
    assert sampled[2] == 20
    assert main([*words, "seeds=0-19", f"out={tmp_path / 'fresh'}"]) == 0
    whole = [(folder / "images.npz").read_bytes() for folder in (tmp_path / "fresh", run)]
    assert whole[0] == whole[1]


def test_what_is_kept_is_found_by_seed_and_class(tmp_path: Path) -> None:
    assert Block.of(Block([5, 6, 7, 2, 9, 10], None).spelled).seeds == [5, 6, 7, 2, 9, 10]
    labelled = Block([1, 2, 3], [4, 4, 4])
    assert labelled.spelled == {"seeds": [[1, 3]], "labels": [4]}
    assert Block.of(labelled.spelled) == labelled
    names = {Block([1, 2, 3], labels).name for labels in (None, [4, 4, 4], [4, 4, 5])}
    assert len(names) == 3
    with run_folder(tmp_path / "run", {"command": "x"}, False) as folder:
        kept = Block([3, 4, 5, 8], None)
        path = Store(folder, kept).path("p", kept, "labels")
        folder.write(path, b"", seconds=1.0, **kept.spelled)
        store = Store(folder, Block([8, 1, 4], None))
        assert store.lacks("p", "labels").tolist() == [False, True, False]
        assert store.made("p", "labels")[1] == 2.0
        other = Store(folder, Block([8, 1, 4], [0, 0, 0]))
        assert other.lacks("p", "labels").all()
        assert np.array_equal(store.lacks("p", "x", frozenset([4])), [False, False, True])


# Tables and progress at any time


def test_a_table_of_what_is_there(tmp_path: Path, capsys: Said) -> None:
    out = tmp_path / "run"
    words = [*SWEEP, "seeds=0-39", "metrics=[frechet]", f"out={out}"]
    assert main([*words, "guidance.schedule.w=1,2"]) == 0
    assert main([*words, "guidance.schedule.w=1,2,3", "shard=1/2"]) == 0
    capsys.readouterr()
    assert main(["status", str(out)]) == 0
    said = capsys.readouterr().out
    assert "2 of 3 points, 104 of 120 samples" in said
    assert "missing: 16 of 40 at guidance.schedule.w=3" in said
    assert main(["table", str(out)]) == 1
    assert "samples of 1 of 3 points are missing" in capsys.readouterr().err
    rows = rows_of(out)
    assert [row["missing"] for row in rows] == [None, None, "samples are missing"]
    assert main([*words, "guidance.schedule.w=1,2,3", "shard=2/2"]) == 0
    whole = rows_of(out)
    assert main(["table", str(out)]) == 0
    assert rows_of(out) == whole and whole[:2] == rows[:2]
    capsys.readouterr()
    assert main(["status", str(out)]) == 0
    assert capsys.readouterr().out.splitlines() == [f"{out}: 3 of 3 points, 120 of 120 samples"]
    for command in ("table", "status"):
        assert main([command, str(tmp_path)]) == 2 and main([command]) == 2


def test_failures_are_told_until_the_rest_is_made(
    tmp_path: Path, capsys: Said, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = [*SWEEP, "seeds=0-9", "guidance.schedule.w=1,2", f"out={tmp_path / 'run'}"]

    def fails(*_: object) -> None:
        raise RuntimeError("a cable was pulled")

    with monkeypatch.context() as broken:
        broken.setattr("guidex.runs.engine._make", fails)
        assert main(words) == 1
    capsys.readouterr()
    assert main(["status", str(tmp_path / "run")]) == 0
    assert "did not come to an end: a cable was pulled" in capsys.readouterr().out
    assert main(words) == 0
    capsys.readouterr()
    assert main(["status", str(tmp_path / "run")]) == 0
    assert "did not" not in capsys.readouterr().out


# Several processes


def as_rank(rank: int, words: list[str]) -> None:
    """The target of child processes: one of two that torchrun starts."""
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 1)
    os.dup2(null, 2)
    os.environ |= {"RANK": str(rank), "WORLD_SIZE": "2"}
    sys.exit(main(words))


# Submitit lets go of its processes by and by.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.filterwarnings("ignore::ResourceWarning")
def test_processes_that_are_killed_end_with_the_same_table(tmp_path: Path, capsys: Said) -> None:
    """Two jobs of submitit and two ranks on one folder, of which three die."""
    pytest.importorskip("submitit", reason="jobs take submitit")
    server = multiprocessing.get_context("forkserver")
    server.set_forkserver_preload(["guidex.commands.sweep", "sklearn.datasets"])
    words = [*SWEEP, "seeds=0-159", "block=8", "metrics=[frechet]", "guidance.schedule.w=1,2,3"]
    assert main([*words, f"out={tmp_path / 'whole'}"]) == 0
    shared, chance, killed = tmp_path / "shared", random.Random(3), 0
    words.append(f"out={shared}")
    capsys.readouterr()
    assert main([*words, "launcher=local", "launcher.jobs=2"]) == 0
    jobs = [int(job) for job in re.findall(r"\d+", capsys.readouterr().out.partition(" fill")[0])]
    ranks = [server.Process(target=as_rank, args=(rank, words)) for rank in range(2)]
    for rank in ranks:
        rank.start()
    deadline = time.monotonic() + 60
    while killed < 3 and time.monotonic() < deadline:
        workers = [read_json(path) for path in shared.glob(".worker-*")]
        if workers and (shared / "points").exists():
            time.sleep(chance.uniform(0, 0.3))
            with suppress(ProcessLookupError, TypeError):
                os.kill(chance.choice(workers)["process"], signal.SIGKILL)
                killed += 1
        if not any(rank.is_alive() for rank in ranks) and len(workers) == 0:
            break
        time.sleep(0.02)
    for rank in ranks:
        rank.join()
    for job in jobs:
        with suppress(ChildProcessError):
            os.waitpid(job, 0)
    assert main(words) == 0 and killed > 0
    assert rows_of(shared) == rows_of(tmp_path / "whole")
    assert not list(shared.rglob(".guidex-*"))
    assert len(list(shared.glob("points/*/*.labels.record"))) == 3 * 20


def test_a_table_is_made_where_its_device_is_missing(tmp_path: Path, capsys: Said) -> None:
    out = tmp_path / "run"
    words = [*SWEEP, "seeds=0-19", "metrics=[frechet]", "guidance.schedule.w=1,2", f"out={out}"]
    assert main(words) == 0
    asked = json.loads((out / "asked.json").read_text())
    before = [row["metrics"] for row in rows_of(out)]
    for point in asked["points"]:
        named = out / "points" / point["point"]
        point["config"]["device"] = "cuda"
        planned = Settings.anywhere(point["config"])
        assert planned.identity["device"] == "cuda"
        named.rename(named.with_name(planned.name))
        point["point"] = planned.name
    (out / "asked.json").write_text(json.dumps(asked))
    assert main(["table", str(out)]) == 0
    assert [row["metrics"] for row in rows_of(out)] == before
    for point in asked["points"]:
        point["config"]["plugin"] = "mine.py"
    (out / "asked.json").write_text(json.dumps(asked))
    capsys.readouterr()
    assert main(["table", str(out)]) == 2
    assert "code of your own, plugin=mine.py; say so again" in capsys.readouterr().err


def test_what_slurm_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Said) -> None:
    submitit = pytest.importorskip("submitit", reason="jobs take submitit")
    words = [*SWEEP, "guidance.schedule.w=1,2", f"out={tmp_path / 'run'}", "launcher=slurm"]
    assert main(words) == 2  # there is no SLURM here
    assert "launcher=slurm: " in capsys.readouterr().err
    assert main([*words, "launcher.jobs=0"]) == 2
    assert "launcher.jobs must be a whole number" in capsys.readouterr().err
    assert main([*words, "overwrite=true"]) == 2
    told = {}

    class Executor:
        def __init__(self, folder: Path, cluster: str) -> None:
            told["cluster"] = cluster

        update_parameters = lambda self, **named: told.update(named)  # noqa: E731
        batch = nullcontext

        def submit(self, job):
            told["words"] = job.words
            return SimpleNamespace(job_id="7")

    monkeypatch.setattr(submitit, "AutoExecutor", Executor)
    words += ["launcher.jobs=16", "launcher.partition=gpu", "launcher.options={constraint: a100}"]
    assert main(words) == 0
    assert "jobs 7, 7, " in capsys.readouterr().out
    assert told["cluster"] == "slurm" and told["slurm_partition"] == "gpu"
    assert told["slurm_array_parallelism"] == 16 and "slurm_qos" not in told
    assert told["slurm_additional_parameters"] == {"constraint": "a100"}
    assert not any("launcher" in word for word in told["words"])
    assert told["words"][0] == "sweep" and told["words"][-1] == f"out={tmp_path / 'run'}"


def test_a_model_without_classes_has_no_labels(tmp_path: Path) -> None:
    words = ["guidance=none", "model.conditional=false", "sampler.grid.steps=2", "seeds=0-3"]
    assert main(["sweep", *words, "metrics=[frechet]", f"out={tmp_path / 'a'}"]) == 0
    assert main(["sample", *words, f"out={tmp_path / 'b'}"]) == 0
