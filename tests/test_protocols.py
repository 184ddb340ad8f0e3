"""Protocols: several detectors on the same images, told apart in one row; and evaluation by several
processes, and straight from sampling. Small stand-ins take the places of the published networks."""

import json
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from guidex.cli import main
from guidex.config.compose import compose
from guidex.config.presets import options
from guidex.errors import UsageError
from guidex.features import dinov2, inception
from guidex.features.networks import NetworkDetector
from guidex.features.samples import PassSettings
from guidex.runs.measure import Measures

pytest.importorskip("torch_fidelity", reason="torch-fidelity is not installed")
pytest.importorskip("timm", reason="timm is not installed")

DIMS = {"pool3": 2048, "logits": 1008, "spatial": 2023, "dinov2": 384}
Said = pytest.CaptureFixture[str]


class StandIn(nn.Module):
    """Random projections of 4x4 pixels, one for each output."""

    def __init__(self, *given: object) -> None:
        super().__init__()
        lists = (each if isinstance(each, list | tuple) else [each] for each in given)
        names = [name for each in lists for name in each if isinstance(name, str)]
        self.outputs = [name for name in names if name in DIMS] or ["dinov2"]

    def forward(self, images: Tensor) -> Tensor:
        small = F.adaptive_avg_pool2d(images.float() / 255, 4).flatten(1)
        parts = []
        for output in self.outputs:
            generator = torch.Generator().manual_seed(DIMS[output])
            parts.append(small @ torch.randn(48, DIMS[output], generator=generator))
        return torch.cat(parts, dim=1)


@pytest.fixture(autouse=True)
def passes(
    monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory
) -> list[tuple[str, int]]:
    """Stand-ins, and a cache of each test's own; returns the passes: detector and images."""
    monkeypatch.setenv("GUIDEX_CACHE", str(tmp_path_factory.mktemp("cache")))
    monkeypatch.setattr(inception, "Inception", StandIn)
    monkeypatch.setattr(dinov2, "DINOv2", StandIn)
    seen: list[tuple[str, int]] = []
    called = NetworkDetector.__call__

    def call(self: NetworkDetector, samples: Tensor) -> tuple[str, Tensor]:
        seen.append((self.name, len(samples)))
        return called(self, samples)

    monkeypatch.setattr(NetworkDetector, "__call__", call)
    return seen


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Words that name weights of EDM2's two detectors, which the stand-ins do not read."""
    file = tmp_path_factory.mktemp("weights") / "any.pth"
    file.write_bytes(b"weights")
    return [
        f"protocol.fid.detector.weights={file}",
        f"protocol.fd_dinov2.detector.weights={file}",
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


def row_of(folder: Path) -> dict[str, Any]:
    (row,) = (folder / "rows.jsonl").read_text(encoding="utf-8").splitlines()
    return json.loads(row)


def test_both_distances_in_one_row(sets, weights, tmp_path: Path, capsys: Said) -> None:
    reals, fakes = sets
    words = ["eval", str(fakes), f"ref={reals}"]
    protocol = ["protocol=fbg", *weights, "protocol.pr.reals=11"]
    assert main([*words, *protocol, f"out={tmp_path / 'both'}"]) == 0
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
    assert "12 fake images and 384 features" in captured.err

    file = weights[1].replace("protocol.fd_dinov2.", "")
    alone = ["detector=dinov2_s", file, "metrics=[frechet]", f"out={tmp_path / 'alone'}"]
    assert main([*words, *alone]) == 0
    metrics = row_of(tmp_path / "alone")["metrics"]
    assert metrics == {name: row["metrics"][name] for name in metrics}
    assert metrics["fd_dinov2_s"] > 0


def test_the_intervals_features_are_of_pillows_resize_with_references_of_their_own(
    sets, weights, tmp_path: Path, passes: list[tuple[str, int]], capsys: Said
) -> None:
    reals, fakes = sets
    edm2 = {"num_images": 50_000}
    for name, dim in (("fid", 2048), ("fd_dinov2", 384)):
        edm2[name] = {"mu": np.zeros(dim), "sigma": np.eye(dim)}
    (tmp_path / "img512.pkl").write_bytes(pickle.dumps(edm2))
    words = ["eval", str(fakes), f"ref={tmp_path / 'img512.pkl'}", "protocol=interval", *weights]
    words += [f"protocol.pr.ref={reals}", f"protocol.fd_dinov2.ref={reals}"]
    assert main([*words, "protocol.fid.fakes=5", f"out={tmp_path / 'out'}"]) == 0
    assert sorted(passes) == [("dinov2_s_pil", 12), ("dinov2_s_pil", 12), ("inception", 12)]
    row = row_of(tmp_path / "out")
    expected = ["fd_inception", "fd_dinov2_s_pil", "precision_dinov2_s_pil", "recall_dinov2_s_pil"]
    assert list(row["metrics"])[:4] == expected
    references = f"{tmp_path / 'img512.pkl'} (50000) (fid), {reals} (12) (fd_dinov2), "
    assert row["settings"]["reference"].startswith(references)
    assert row["settings"]["fakes"] == "5, chosen at random (fid)"
    assert "5 fake images and 2,048 features" in capsys.readouterr().err


def test_parts_and_metrics_of_a_protocol_can_be_left_out(
    sets, weights, tmp_path: Path, capsys: Said
) -> None:
    reals, fakes = sets
    words = ["eval", str(fakes), f"ref={reals}", "protocol=interval", *weights]
    words += ["protocol.fd_dinov2=null", "protocol.pr=null", f"out={tmp_path / 'out'}"]
    assert main(words) == 0
    assert list(row_of(tmp_path / "out")["metrics"]) == ["fd_inception"]
    for word, text in (
        ("protocol.fid=null", "no metrics chosen"),
        ("protocol.fid.metrics.frechet=null", "no metrics chosen"),
        ("protocol.fid.metrics=[frechet]", "protocol.fid.metrics.frechet=null"),
        ("protocol.fid.detector=dinov2", "protocol.fid.detector.weights=FILE"),
        ("protocol.fid=frechet", "changed by its keys"),
        ("protocol.fid.fakes=0", "protocol.fid.fakes is 0; it must be a whole number"),
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
    assert "metrics=fid; did you mean frechet?" in capsys.readouterr().err


def test_no_metric_is_measured_twice_by_one_detector() -> None:
    words = ["protocol=edm2", "images=a", "ref=b"]
    config = compose("eval", words).config
    config["protocol"]["fd_dinov2"]["detector"] = config["protocol"]["fid"]["detector"]
    with pytest.raises(UsageError, match="two parts of the protocol measure frechet"):
        Measures(PassSettings()).get(config | {"device": "cpu"}, count=9)


def test_experiments_of_the_interval_paper_resize_as_it_does() -> None:
    for name in ("table1", "fig3"):
        protocol = compose("sweep", [f"experiment=interval/{name}"]).config["protocol"]
        assert protocol["fd_dinov2"]["detector"]["resize"] == "pil" and protocol["pr"] is None


def test_adm(sets, weights, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One pass of one network for all three detectors, against statistics and single images."""
    images = np.random.default_rng(2).integers(0, 256, (9, 16, 16, 3), dtype=np.uint8)
    moments = {"mu": np.zeros(2048), "sigma": np.eye(2048)}
    moments |= {"mu_s": np.zeros(2023), "sigma_s": np.eye(2023)}
    np.savez(tmp_path / "virtual.npz", **moments, arr_0=images)
    words = ["eval", str(sets[1]), "protocol=adm", weights[0], "cache=false"]
    passed, forward = [], StandIn.forward

    def count(self: StandIn, images: Tensor) -> Tensor:
        if len(self.outputs) == 3:
            passed.append(len(images))
        return forward(self, images)

    monkeypatch.setattr(StandIn, "forward", count)
    ref, out = tmp_path / "virtual.npz", tmp_path / "out"
    assert main([*words, f"ref={ref}", f"out={out}"]) == 0
    assert sum(passed) == 12
    row = row_of(out)
    expected = "fd_inception precision_inception recall_inception density_inception"
    expected += " coverage_inception fd_inception_spatial is_inception_logits"
    expected += " is_std_inception_logits"
    assert list(row["metrics"]) == expected.split()
    assert row["settings"]["precision/recall"] == "k=3, <=, 9 real, float16 distances (inception)"
    assert "N not recorded" in row["settings"]["reference"]


def test_the_inception_score_needs_no_reference(
    sets, weights, tmp_path: Path, capsys: Said
) -> None:
    words = ["eval", str(sets[1]), f"out={tmp_path}", "detector=inception_logits"]
    words.append(weights[0].replace("protocol.fid.", ""))
    assert main([*words, "metrics=[inception_score]"]) == 0
    assert 1 <= row_of(tmp_path)["metrics"]["is_inception_logits"] <= 1008
    assert "against nothing" in capsys.readouterr().out
    assert main([*words, "metrics=[frechet]"]) == 2
    assert "ref must be given" in capsys.readouterr().err
    assert main([*words, "metrics=[inception_score]", "detector=inception"]) == 2
    assert "use detector=inception_logits" in capsys.readouterr().err


# CLIP of "text" is read when it is made: tests/test_text_models.py.
@pytest.mark.parametrize("name", sorted(set(options("protocol")) - {"text"}))
def test_every_protocol_is_made_without_its_weights(name: str) -> None:
    config = compose("eval", [f"protocol={name}", "images=a", "ref=none"]).config
    with pytest.raises(UsageError, match="ref=none: no such file"):
        Measures(PassSettings()).get(config | {"device": "cpu"}, count=50_000)


def test_by_default_what_is_possible_is_measured(sets, tmp_path: Path, capsys: Said) -> None:
    reals, fakes = sets
    words = ["eval", str(fakes), f"ref={reals}"]
    assert main([*words, f"out={tmp_path / 'a'}"]) == 0
    assert "accuracy is left out" in capsys.readouterr().out
    row = row_of(tmp_path / "a")
    assert "fd_pixels" in row["metrics"] and "accuracy_pixels" not in row["metrics"]
    assert "accuracy" not in row["settings"]
    assert main([*words, "metrics=[frechet,accuracy]", f"out={tmp_path / 'b'}"]) == 2
    assert "has no labels" in capsys.readouterr().err
    # References that know their classes do not help samples that do not.
    np.savez(tmp_path / "reals.npz", images=np.zeros((9, 2, 2, 3), np.uint8), labels=np.arange(9))
    np.savez(tmp_path / "fakes.npz", images=np.ones((9, 2, 2, 3), np.uint8))
    words = ["eval", str(tmp_path / "fakes.npz"), f"ref={tmp_path / 'reals.npz'}"]
    assert main([*words, f"out={tmp_path / 'c'}"]) == 0
    assert "KNNAccuracy compares classes, but the fake set" in capsys.readouterr().out


def test_images_of_another_size_are_refused_at_once(
    sets, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Said
) -> None:
    features = "guidex.commands.evaluate.Samples.features"
    monkeypatch.setattr(features, lambda *_: pytest.fail("too late"))
    assert main(["eval", str(sets[1]), "ref=digits", f"out={tmp_path}"]) == 2
    assert "64 dimensions, fake ones 768" in capsys.readouterr().err


SAMPLE = ["sample", "guidance=cfg", "seeds=0-11", "block=3", "batch=3", "sampler.grid.steps=4"]


def test_samples_go_straight_to_all_detectors(weights, sets, tmp_path: Path, capsys: Said) -> None:
    protocol = ["protocol=edm2", f"ref={sets[0]}", *weights]
    words = [*SAMPLE, "eval=true", "gallery=2", *protocol]
    assert main([*words, f"out={tmp_path / 'straight'}"]) == 0
    row = row_of(tmp_path / "straight")
    assert list(row["metrics"]) == ["fd_inception", "fd_dinov2_s"]
    assert not (tmp_path / "straight" / "images").exists()
    assert "8x8x1" in capsys.readouterr().err  # a doubt, told before sampling
    # The same numbers as by way of files.
    assert main([*SAMPLE, f"out={tmp_path / 'files'}"]) == 0
    words = ["eval", str(tmp_path / "files"), *protocol, f"out={tmp_path / 'by-files'}"]
    assert main(words) == 0
    by_files = row_of(tmp_path / "by-files")["metrics"]
    assert by_files == pytest.approx(row["metrics"], rel=1e-4)


@pytest.mark.parametrize("command", ["sample", "eval"])
def test_several_processes_measure_as_one(
    command: str,
    weights,
    sets,
    tmp_path: Path,
    passes: list[tuple[str, int]],
    monkeypatch: pytest.MonkeyPatch,
    capsys: Said,
) -> None:
    """One process after the other, as torchrun starts them; tests/test_writing.py has torchrun."""
    words = {
        "sample": [*SAMPLE, "eval=true", "gallery=2"],
        "eval": ["eval", str(sets[1]), "metrics=[frechet]", "detector=inception"],
    }[command]
    words += [weights[0].replace("protocol.fid.", "")] if command == "eval" else []
    words.append(f"ref={'digits' if command == 'sample' else sets[0]}")
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "1")
    assert main([*words, f"out={tmp_path / 'two'}"]) == 0
    assert "real: " not in capsys.readouterr().out
    # The first one measures images; of samples, whoever has all.
    assert (tmp_path / "two" / "rows.jsonl").exists() == (command == "sample")
    passed = len(passes)
    monkeypatch.setenv("RANK", "0")
    assert main([*words, f"out={tmp_path / 'two'}"]) == 0
    assert len(passes) == passed and "rows.jsonl" in capsys.readouterr().out
    if command == "eval":
        assert main([*words, "cache=false", f"out={tmp_path / 'none'}"]) == 2
    monkeypatch.delenv("WORLD_SIZE")
    assert main([*words, f"out={tmp_path / 'one'}"]) == 0
    # Other numbers of threads may round sums in another way.
    expected = pytest.approx(row_of(tmp_path / "one")["metrics"], rel=1e-9)
    assert row_of(tmp_path / "two")["metrics"] == expected
