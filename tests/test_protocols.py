"""Protocols: several detectors on the same images, told apart in one row; and evaluation by several
processes, and straight from sampling."""

import json
import os
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from guidex.cli import main
from guidex.commands.evaluate import evaluate
from guidex.config.compose import compose
from guidex.config.presets import options
from guidex.errors import UsageError
from guidex.features.inception import Inception
from guidex.features.networks import NetworkDetector
from guidex.features.samples import PassSettings
from guidex.runs.measure import Measures

pytest.importorskip("torch_fidelity", reason="torch-fidelity is not installed")
pytest.importorskip("timm", reason="timm is not installed")

from test_dinov2 import SMALL, hub_tensors
from test_inception import random_weights


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Words that give random weights to EDM2's two detectors, the second one small."""
    folder = tmp_path_factory.mktemp("weights")
    torch.save(random_weights(), folder / "inception.pth")
    torch.save(hub_tensors(SMALL), folder / "dinov2.pth")
    return [
        f"protocol.fid.detector.weights={folder / 'inception.pth'}",
        f"protocol.fd_dinov2.detector.weights={folder / 'dinov2.pth'}",
        "protocol.fd_dinov2.detector.size=s",
    ]


@pytest.fixture(scope="module")
def sets(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Two folders of images, the reals and the fakes."""
    folders = []
    for seed, name in enumerate(("reals", "fakes")):
        folder = tmp_path_factory.mktemp(name)
        rng = np.random.default_rng(seed)
        for index in range(12):
            pixels = rng.integers(0, 256 - 40 * seed, (16, 16, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / f"{index:03d}.png")
        folders.append(folder)
    return folders[0], folders[1]


@pytest.fixture(scope="module", autouse=True)
def shared_cache(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """One cache for all tests here, so that images go through the networks once."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GUIDEX_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


def row_of(folder: Path) -> dict[str, Any]:
    (row,) = (folder / "rows.jsonl").read_text(encoding="utf-8").splitlines()
    return json.loads(row)


def test_both_distances_in_one_row(
    sets: tuple[Path, Path],
    weights: list[str],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    reals, fakes = sets
    words = [str(fakes), f"ref={reals}", "protocol=fbg", *weights, "protocol.pr.reals=11"]
    evaluate([*words, f"out={tmp_path / 'both'}"])
    row = row_of(tmp_path / "both")
    assert list(row["metrics"])[:3] == ["fd_inception", "fd_dinov2_s", "precision_dinov2_s"]
    assert row["settings"]["detector"] == "inception, dinov2_s"
    told = f"{reals} (12) (fid), {reals} (12) (fd_dinov2), {reals} (11) (pr)"
    assert row["settings"]["reference"] == told
    assert row["settings"]["precision/recall"] == "k=5, <=, at most 10240 fake (pr)"
    assert len(row["config"]["reals"]) == 3
    captured = capsys.readouterr()
    assert captured.out.count("fake: ") == 1 and captured.out.count("real: ") == 3
    assert "11 images of 12, chosen at random" in captured.out
    assert "FD (inception)" in captured.out and "FD (dinov2_s)" in captured.out
    assert "12 fake images and 384 features:" in captured.err

    alone = [
        str(fakes),
        f"ref={reals}",
        "detector=dinov2_s",
        weights[1].replace("protocol.fd_dinov2.", ""),
        "metrics=[frechet]",
    ]
    evaluate([*alone, f"out={tmp_path / 'alone'}"])
    metrics = row_of(tmp_path / "alone")["metrics"]
    assert metrics == {name: row["metrics"][name] for name in metrics}
    assert metrics["fd_dinov2_s"] > 0


def test_the_intervals_features_are_of_pillows_resize_with_references_of_their_own(
    sets: tuple[Path, Path],
    weights: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("GUIDEX_CACHE", str(tmp_path / "cache"))
    seen: list[tuple[str, int]] = []
    called = NetworkDetector.__call__

    def call(self: NetworkDetector, samples: torch.Tensor) -> tuple[str, torch.Tensor]:
        seen.append((self.name, len(samples)))
        return called(self, samples)

    monkeypatch.setattr(NetworkDetector, "__call__", call)
    reals, fakes = sets
    edm2 = {"num_images": 50_000}
    for name, dim in (("fid", 2048), ("fd_dinov2", 384)):
        edm2[name] = {"mu": np.zeros(dim), "sigma": np.eye(dim)}
    (tmp_path / "img512.pkl").write_bytes(pickle.dumps(edm2))
    words = ["eval", str(fakes), f"ref={tmp_path / 'img512.pkl'}", "protocol=interval", *weights]
    words += [f"protocol.pr.ref={reals}", f"protocol.fd_dinov2.ref={reals}"]
    assert main([*words, "protocol.fid.fakes=5", f"out={tmp_path / 'out'}"]) == 0
    assert sorted(seen) == [("dinov2_s_pil", 12), ("dinov2_s_pil", 12), ("inception", 12)]
    row = row_of(tmp_path / "out")
    expected = ["fd_inception", "fd_dinov2_s_pil", "precision_dinov2_s_pil", "recall_dinov2_s_pil"]
    assert list(row["metrics"])[:4] == expected
    assert row["settings"]["fakes"] == "5, chosen at random (fid)"
    assert "5 fake images and 2,048 features" in capsys.readouterr().err


def test_parts_and_metrics_of_a_protocol_can_be_left_out(
    sets: tuple[Path, Path],
    weights: list[str],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    reals, fakes = sets
    words = ["eval", str(fakes), f"ref={reals}", "protocol=interval", *weights]
    words += ["protocol.fd_dinov2=null", "protocol.pr=null", "overwrite=true"]
    words += [f"out={tmp_path / 'out'}"]
    assert main(words) == 0
    assert list(row_of(tmp_path / "out")["metrics"]) == ["fd_inception"]
    for word, text in (
        ("protocol.fid=null", "no metrics chosen"),
        ("protocol.fid.metrics.frechet=null", "no metrics chosen"),
        (
            "protocol.fid.metrics=[frechet,prdc]",
            "leave it out by protocol.fid.metrics.frechet=null",
        ),
        ("protocol.fid.detector=dinov2", "protocol.fid.detector.weights=FILE"),
        ("protocol.fid=frechet", "changed by its keys"),
        ("protocol.fid.fakes=0", "protocol.fid.fakes is 0; it must be a whole number"),
        ("protocol=edm2,adm", "choose one protocol"),
        ("protocol=[edm2,adm]", "choose one protocol"),
        ("protocol.fid.metrics.frechet.seed=null", "protocol.fid.metrics.frechet.seed"),
    ):
        assert main([*words, word]) == 2, word
        assert text in capsys.readouterr().err, word
    np.savez(tmp_path / "stats.npz", mu=np.zeros(2048), sigma=np.eye(2048))
    words = ["eval", str(fakes), f"ref={tmp_path / 'stats.npz'}", "protocol=adm", weights[0]]
    words += ["protocol.sfid=null", "protocol.is=null", f"out={tmp_path / 'adm'}"]
    assert main(words) == 2
    told = capsys.readouterr().err
    assert "protocol.fid: PRDC compares single images" in told
    assert "protocol.fid.ref=… gives it" in told and "protocol.fid.metrics.prdc=null" in told
    assert main([*words, "protocol.fid.metrics.prdc=null"]) == 0
    words = ["eval", str(fakes), f"ref={reals}", f"out={tmp_path / 'pixels'}"]
    assert main([*words, "metrics=[frechet,prdc]", "metrics.frechet=null"]) == 0
    assert not any(name.startswith("fd") for name in row_of(tmp_path / "pixels")["metrics"])
    assert main(["eval", str(fakes), f"ref={reals}", "metrics=[fid]"]) == 2
    assert "did you mean frechet?" in capsys.readouterr().err


def test_experiments_of_the_interval_paper_resize_as_it_does() -> None:
    for name in ("table1", "fig3"):
        protocol = compose("sweep", [f"experiment=interval/{name}"]).config["protocol"]
        assert protocol["fd_dinov2"]["detector"]["resize"] == "pil" and protocol["pr"] is None


def test_parts_of_a_protocol_may_have_their_own_reference(
    sets: tuple[Path, Path], weights: list[str], tmp_path: Path
) -> None:
    reals, fakes = sets
    words = [f"ref={reals}", f"protocol.fid.ref={fakes}", "protocol=edm2", *weights]
    evaluate([str(fakes), *words, f"out={tmp_path / 'own'}"])
    row = row_of(tmp_path / "own")
    assert row["metrics"]["fd_inception"] == pytest.approx(0, abs=1e-6)
    assert row["metrics"]["fd_dinov2_s"] > 0
    assert row["settings"]["reference"] == f"{fakes} (12) (inception), {reals} (12) (dinov2_s)"


def test_adm(
    sets: tuple[Path, Path],
    weights: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    images = np.random.default_rng(2).integers(0, 256, (9, 16, 16, 3), dtype=np.uint8)
    moments = {"mu": np.zeros(2048), "sigma": np.eye(2048)}
    moments |= {"mu_s": np.zeros(2023), "sigma_s": np.eye(2023)}
    np.savez(tmp_path / "virtual.npz", **moments, arr_0=images)
    file = weights[0].partition("=")[2]
    words = [f"protocol.fid.detector.weights={file}"]  # for the three
    words += ["protocol=adm", f"ref={tmp_path / 'virtual.npz'}", f"out={tmp_path / 'out'}"]
    passed, forward = [], Inception.forward

    def count(self: Inception, images: torch.Tensor) -> torch.Tensor:
        if len(self.outputs) == 3:
            passed.append(len(images))
        return forward(self, images)

    monkeypatch.setattr(Inception, "forward", count)
    evaluate([str(sets[1]), *words, "cache=false"])
    assert sum(passed) == 12
    row = row_of(tmp_path / "out")
    expected = "fd_inception precision_inception recall_inception density_inception"
    expected += " coverage_inception fd_inception_spatial is_inception_logits"
    expected += " is_std_inception_logits"
    assert list(row["metrics"]) == expected.split()
    assert row["settings"]["precision/recall"] == "k=3, <=, 9 real, float16 distances (inception)"
    assert "N not recorded" in row["settings"]["reference"]


def test_the_inception_score_needs_no_reference(
    sets: tuple[Path, Path], weights: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["detector=inception_logits", weights[0].replace("protocol.fid.", "")]
    evaluate([str(sets[1]), *words, "metrics=[inception_score]", f"out={tmp_path}"])
    assert 1 <= row_of(tmp_path)["metrics"]["is_inception_logits"] <= 1008
    assert "against nothing" in capsys.readouterr().out
    with pytest.raises(UsageError, match="ref must be given"):
        evaluate([str(sets[1]), *words, "metrics=[frechet]"])
    wrong = [str(sets[1]), "detector=inception", "metrics=[inception_score]"]
    with pytest.raises(UsageError, match="use detector=inception_logits"):
        evaluate(wrong)


@pytest.mark.parametrize("name", options("protocol"))
def test_every_protocol_is_made_without_its_weights(name: str) -> None:
    config = compose("eval", [f"protocol={name}", "images=a", "ref=none"]).config
    with pytest.raises(UsageError, match="ref=none: no such file"):
        Measures(PassSettings()).get(config | {"device": "cpu"}, count=50_000)


def test_by_default_what_is_possible_is_measured(
    sets: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    reals, fakes = sets
    assert main(["eval", str(fakes), f"ref={reals}", f"out={tmp_path / 'a'}"]) == 0
    assert "accuracy is left out" in capsys.readouterr().out
    row = row_of(tmp_path / "a")
    assert "fd_pixels" in row["metrics"] and "accuracy_pixels" not in row["metrics"]
    assert "accuracy" not in row["settings"]
    words = ["eval", str(fakes), f"ref={reals}", "metrics=[frechet,accuracy]"]
    assert main([*words, f"out={tmp_path / 'b'}"]) == 2
    assert "has no labels" in capsys.readouterr().err
    # References that know their classes do not help samples that do not.
    np.savez(tmp_path / "reals.npz", images=np.zeros((9, 2, 2, 3), np.uint8), labels=np.arange(9))
    np.savez(tmp_path / "fakes.npz", images=np.ones((9, 2, 2, 3), np.uint8))
    words = ["eval", str(tmp_path / "fakes.npz"), f"ref={tmp_path / 'reals.npz'}"]
    assert main([*words, f"out={tmp_path / 'c'}"]) == 0
    assert "needs classes of the samples" in capsys.readouterr().out
    assert main([*words, "metrics=[accuracy]", f"out={tmp_path / 'd'}"]) == 2


def test_images_of_another_size_are_refused_at_once(
    sets: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "guidex.commands.evaluate.Samples.features", lambda *_: pytest.fail("too late")
    )
    with pytest.raises(UsageError, match="64 dimensions, fake ones 768"):
        evaluate([str(sets[1]), "ref=digits", f"out={tmp_path}"])


SAMPLE = [
    "sample",
    "eval=true",
    "guidance=cfg",
    "seeds=0-11",
    "block=3",
    "batch=3",
    "sampler.grid.steps=4",
    "gallery=2",
]


def test_samples_go_straight_to_all_detectors(
    weights: list[str], sets: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [*SAMPLE, "protocol=edm2", f"ref={sets[0]}", *weights]
    assert main([*words, f"out={tmp_path / 'straight'}"]) == 0
    row = row_of(tmp_path / "straight")
    assert list(row["metrics"]) == ["fd_inception", "fd_dinov2_s"]
    assert not (tmp_path / "straight" / "images").exists()
    assert "8x8x1" in capsys.readouterr().err  # a doubt, told before sampling
    # The same numbers as by way of files.
    sampled = [word for word in SAMPLE if word.partition("=")[0] not in ("eval", "gallery")]
    assert main([*sampled, f"out={tmp_path / 'files'}"]) == 0
    evaluate(
        [
            str(tmp_path / "files"),
            f"ref={sets[0]}",
            "protocol=edm2",
            *weights,
            f"out={tmp_path / 'by-files'}",
        ]
    )
    by_files = row_of(tmp_path / "by-files")["metrics"]
    assert by_files == pytest.approx(row["metrics"], rel=1e-4)


def torchrun(words: list[str]) -> subprocess.CompletedProcess[str]:
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    return subprocess.run(
        [*launch, "-m", "guidex", *words],
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )


def test_two_processes_measure_as_one(tmp_path: Path) -> None:
    for out in ("one", "two"):
        words = [*SAMPLE, f"out={tmp_path / out}"]
        if out == "one":
            assert main(words) == 0
            continue
        done = torchrun(words)
        assert done.returncode == 0, done.stderr
        assert done.stdout.count("1 point of 12 seeds") == 1
    # Other numbers of threads may round sums in another way.
    expected = pytest.approx(row_of(tmp_path / "one")["metrics"], rel=1e-9)
    assert row_of(tmp_path / "two")["metrics"] == expected


def test_two_processes_evaluate_as_one(
    sets: tuple[Path, Path], weights: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GUIDEX_CACHE", str(tmp_path / "cache"))
    reals, fakes = sets
    words = ["eval", str(fakes), f"ref={reals}", "detector=inception", "metrics=[frechet]"]
    words += [weights[0].replace("protocol.fid.", "")]
    done = torchrun([*words, f"out={tmp_path / 'two'}"])
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("real: ") == done.stdout.count("fake: ") == 1
    assert done.stdout.count("rows.jsonl") == 1
    assert main([*words, f"out={tmp_path / 'one'}"]) == 0
    assert row_of(tmp_path / "one")["metrics"] == row_of(tmp_path / "two")["metrics"]
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert main([*words, "cache=false", f"out={tmp_path / 'none'}"]) == 2
