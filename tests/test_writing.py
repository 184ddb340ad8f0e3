"""Forms of output, several processes on one run, and too little memory."""

import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import torch

from guidex.cli import main
from guidex.errors import UsageError
from guidex.models.kernel import KernelDenoiser
from guidex.runs.settings import resolve_device
from guidex.runs.threads import WAITING, Writers

SAMPLE = ["sample", "seeds=0-19", "block=6", "batch=4", "sampler.grid.steps=4", "guidance=cfg"]


def test_latents_of_a_model_without_any(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*SAMPLE, "latents=true", f"out={tmp_path / 'run'}"]) == 2
    assert "latents" in capsys.readouterr().err
    assert main([*SAMPLE, "format=gif", f"out={tmp_path / 'run'}"]) == 2
    assert "png or zip or npz" in capsys.readouterr().err


def test_two_processes_make_the_files_of_one(tmp_path: Path) -> None:
    assert main([*SAMPLE, f"out={tmp_path / 'one'}"]) == 0
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    words = [*SAMPLE, f"out={tmp_path / 'two'}"]
    done = subprocess.run(
        [*launch, "-m", "guidex", *words],
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("guided steps") == 1
    names = [
        sorted(str(path.relative_to(tmp_path / run)) for path in (tmp_path / run).rglob("*.png"))
        for run in ("one", "two")
    ]
    assert names[0] == names[1]
    for name in [*names[0], "labels.csv"]:
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()


def test_a_shard_makes_its_blocks_and_leaves_the_rest(tmp_path: Path, capsys) -> None:
    words = [*SAMPLE, f"out={tmp_path / 'run'}"]
    for shard in ("0/2", "3/2", "1", "2/x"):
        assert main([*words, f"shard={shard}"]) == 2
        assert "shard must be i/n" in capsys.readouterr().err
    assert main([*words, "shard=2/2"]) == 0
    assert sorted(path.name for path in (tmp_path / "run").glob("points/*/*.png.record")) == [
        "000006-000011.png.record",
        "000018-000019.png.record",
    ]
    assert not (tmp_path / "run" / "labels.csv").exists()
    assert main([*words, "shard=1/2"]) == 0
    assert (tmp_path / "run" / "labels.csv").exists()


def test_ranks_do_not_delete(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert main([*SAMPLE, f"out={tmp_path / 'run'}", "overwrite=true"]) == 2


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("for the test"),
        RuntimeError("GET was unable to find an engine to execute this computation"),
    ],
    ids=["torch", "cudnn"],
)
def test_out_of_memory_halves_the_batch(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    error: RuntimeError,
) -> None:
    assert main([*SAMPLE, f"out={tmp_path / 'enough'}"]) == 0
    forward = KernelDenoiser.forward

    def scarce(self, x, sigma, labels=None):
        if len(x) > 2:
            raise error
        return forward(self, x, sigma, labels)

    monkeypatch.setattr(KernelDenoiser, "forward", scarce)
    assert main([*SAMPLE, f"out={tmp_path / 'scarce'}"]) == 0
    assert capsys.readouterr().err.count("batches of 2") == 1
    for name in ("labels.csv", "grid.png", "images/000000/000019.png"):
        assert (tmp_path / "enough" / name).read_bytes() == (
            tmp_path / "scarce" / name
        ).read_bytes()

    def none(self, x, sigma, labels=None):
        raise error

    monkeypatch.setattr(KernelDenoiser, "forward", none)
    assert main([*SAMPLE, f"out={tmp_path / 'nothing'}"]) == 1
    assert f"single image: {error}" in capsys.readouterr().err
    error = RuntimeError("mat1 and mat2 shapes cannot be multiplied")
    assert main([*SAMPLE, f"out={tmp_path / 'other'}"]) == 1
    assert "out of memory" not in capsys.readouterr().err


def test_a_compiled_batch_is_no_longer_than_the_run_needs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a short batch is filled up with is computed for nothing."""
    rows: list[int] = []
    forward = KernelDenoiser.forward

    def watched(self, x, sigma, labels=None):
        rows.append(len(x))
        return forward(self, x, sigma, labels)

    monkeypatch.setattr(KernelDenoiser, "compiled", True)
    monkeypatch.setattr(KernelDenoiser, "forward", watched)
    for block, expected in ((5, {5}), (7, {7}), (20, {8})):
        words = ["seeds=0-9", "batch=8", f"block={block}", "sampler.grid.steps=2"]
        assert main(["sample", *words, f"out={tmp_path / str(block)}"]) == 0
        assert set(rows) == expected
        rows.clear()
    for name in ("labels.csv", "images/000000/000009.png"):
        made = {(tmp_path / block / name).read_bytes() for block in ("5", "7", "20")}
        assert len(made) == 1


def test_a_gpu_that_is_not_there_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert [resolve_device(name) for name in ("auto", "cuda", "cuda:1")] == [
        "cuda:0",
        "cuda:0",
        "cuda:1",
    ]
    with pytest.raises(UsageError, match="there is no GPU 2: 2 can be seen here"):
        resolve_device("cuda:2")
    monkeypatch.setenv("LOCAL_RANK", "3")
    for name in ("auto", "cuda"):
        with pytest.raises(UsageError, match="there is no GPU 3"):
            resolve_device(name)


def test_errors_of_threads_come_back() -> None:
    def fail() -> None:
        raise OSError("no such disk")

    recorded: list[bool] = []
    with pytest.raises(OSError, match="no such disk"):
        with Writers() as writers:
            failed = writers.submit(fail)
            writers.submit(lambda: recorded.append(failed.result()))
    assert recorded == []
    with pytest.raises(OSError, match="no such disk"):
        with Writers() as writers:
            for _ in range(10 * WAITING):  # it is told while the sampler is still at work
                writers.submit(fail)
            pytest.fail("nobody was told")
    done: list[int] = []
    with Writers() as writers:
        for k in range(3 * WAITING):
            writers.submit(done.append, k)
    assert sorted(done) == list(range(3 * WAITING))


def test_a_job_waits_for_those_before_it_and_the_sampler_for_neither() -> None:
    going_on, written = threading.Event(), threading.Event()
    with Writers() as writers:
        for _ in range(20):  # more blocks than threads
            jobs = [writers.submit(going_on.wait, 60) for _ in range(7)]
            writers.submit(lambda jobs=jobs: [job.result() for job in jobs])
        last = writers.submit(written.set)
        assert not written.is_set() and not last.done()
        going_on.set()
    assert written.is_set()
