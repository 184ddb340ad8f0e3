"""Forms of output, several processes on one run, and too little memory."""

import os
import subprocess
import sys
import threading
from dataclasses import asdict
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch

from guidex.cli import main
from guidex.config.compose import compose
from guidex.config.instantiate import Models
from guidex.data.images import open_images
from guidex.errors import UsageError
from guidex.models.kernel import KernelDenoiser
from guidex.runs.blocks import Batch, cut, run_block
from guidex.runs.points import check, load
from guidex.runs.settings import resolve_device
from guidex.runs.writers import WAITING, Writers

SAMPLE = ["sample", "seeds=0-19", "block=6", "batch=4", "sampler.grid.steps=4", "guidance=cfg"]


def test_every_form_holds_the_same_images(tmp_path: Path) -> None:
    for form in ("png", "zip", "npz"):
        words = [*SAMPLE, f"format={form}", f"out={tmp_path / form}"]
        assert main(words) == 0
        assert main(words) == 0  # nothing left to do, and nothing spoilt
        parts = {path.suffix for path in (tmp_path / form).glob("points/*/*")}
        assert parts == {".record"}  # those of zip and npz are gone
    folder = open_images(tmp_path / "png")
    archive = open_images(tmp_path / "zip" / "images.zip")
    arrays = open_images(tmp_path / "npz" / "images.npz")
    everything = range(20)
    np.testing.assert_array_equal(folder.read(everything), archive.read(everything))
    np.testing.assert_array_equal(folder.read(everything), arrays.read(everything))
    np.testing.assert_array_equal(folder.labels, arrays.labels)
    with np.load(tmp_path / "npz" / "images.npz") as file:
        assert file["arr_0"].shape == (20, 8, 8, 1) and file["arr_0"].dtype == np.uint8
    grids = [(tmp_path / form / "grid.png").read_bytes() for form in ("png", "zip", "npz")]
    assert grids[0] == grids[1] == grids[2]


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


def test_a_rank_takes_its_blocks_and_leaves_the_rest(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "1")
    words = [*SAMPLE, f"out={tmp_path / 'run'}"]
    assert main(words) == 0
    assert sorted(path.name for path in (tmp_path / "run").glob("points/*/*.record")) == [
        "000006-000011.record",
        "000018-000019.record",
    ]
    assert not (tmp_path / "run" / "labels.csv").exists()
    monkeypatch.setenv("RANK", "0")
    assert main(words) == 0
    assert (tmp_path / "run" / "labels.csv").exists()
    assert main([*words, "overwrite=true"]) == 2


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("for the test"),
        RuntimeError("GET was unable to find an engine to execute this computation"),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
    ],
    ids=["torch", "cudnn", "cublas"],
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


def test_other_failures_are_no_lack_of_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def broken(self, x, sigma, labels=None):
        raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")

    monkeypatch.setattr(KernelDenoiser, "forward", broken)
    assert main([*SAMPLE, f"out={tmp_path / 'run'}"]) == 1
    assert "out of memory" not in capsys.readouterr().err


def test_a_compiled_batch_is_no_longer_than_the_run_needs(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a short batch is filled up with is computed for nothing."""
    planned = check(compose("sample", ["batch=8", "seeds=0-9", "sampler.grid.steps=2"]), {})
    point = load(planned, Models())
    monkeypatch.setattr(point.model, "compiled", True)
    rows: list[int] = []
    forward = KernelDenoiser.forward

    def watched(self, x, sigma, labels=None):
        rows.append(len(x))
        return forward(self, x, sigma, labels)

    monkeypatch.setattr(KernelDenoiser, "forward", watched)
    for block_size, expected in ((5, {5}), (7, {7}), (20, {8})):
        blocks = cut(planned.seeds, None, block_size)
        told: list[float] = []
        batch = Batch.of(8, blocks)
        for block in blocks:
            made = list(run_block([point], block, batch, 0, told.append))
            assert [seed for seeds, _, _ in made for seed in seeds] == block.seeds
            assert sum(len(outcome.x) for _, _, [outcome] in made) == len(block.seeds)
        assert set(rows) == expected and sum(told) == pytest.approx(10)
        rows.clear()


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


def test_latents_are_kept_where_nothing_can_decode_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from edm2_networks import TINY, tiny_model

    from guidex.models.edm2.checkpoints import Checkpoint, write_checkpoint

    monkeypatch.setenv("GUIDEX_OFFLINE", "1")
    monkeypatch.setenv("HF_HOME", str(tmp_path / "empty"))
    network = Checkpoint(asdict(TINY), tiny_model(TINY).state_dict(), {"source": "test"})
    write_checkpoint(network, tmp_path / "net.safetensors")
    words = ["sample", "model=edm2", f"model.checkpoint={tmp_path / 'net.safetensors'}"]
    words += ["model.dtype=float32", "seeds=0-4", "block=2", "sampler.grid.steps=3"]
    words += ["sampler.dtype=float32"]
    assert main([*words, f"out={tmp_path / 'run'}"]) == 2
    assert "decoder=sd_vae decoder.path=" in capsys.readouterr().err or not find_spec("diffusers")
    assert main([*words, "latents=true", f"out={tmp_path / 'run'}"]) == 0
    assert "images are not made, latents are" in capsys.readouterr().err
    with np.load(tmp_path / "run" / "latents.npz") as arrays:
        assert arrays["latents"].shape == (5, *tiny_model(TINY).shape)
        assert arrays["latents"].dtype == np.float32
        assert arrays["seeds"].tolist() == [0, 1, 2, 3, 4] and arrays["labels"].shape == (5,)
    assert not (tmp_path / "run" / "grid.png").exists()
