"""What `guidex sample` has written is read again, in whichever form it was written."""

import csv
import json
import shutil
from dataclasses import asdict
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
from edm2_networks import TINY, tiny_model
from pickle_builder import recorded_module, snapshot
from PIL import Image

from guidex.cli import main
from guidex.commands import sample as sample_module
from guidex.data.images import open_images
from guidex.errors import GuidexError, UsageError
from guidex.features.samples import Samples, open_samples
from guidex.runs import drawings

SAMPLE = ["sample", "seeds=990-1009", "block=6", "batch=4", "sampler.grid.steps=4"]
FORMS = ("png", "zip", "npz")


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Runs of the same samples in all forms, and one of a toy."""
    root = tmp_path_factory.mktemp("runs")
    for form in FORMS:
        words = [*SAMPLE, "guidance=cfg", f"format={form}", f"out={root / form}"]
        assert main(words) == 0
        assert main(words) == 0  # nothing left to do, and nothing spoilt
        parts = {path.suffix for path in (root / form).glob("points/*/*")}
        assert parts == {".record"}  # those of zip and npz are gone
    assert main([*SAMPLE, "model=fractal2d", "guidance=none", f"out={root / 'toy'}"]) == 0
    return root


@pytest.fixture
def png(runs: Path, tmp_path: Path) -> Path:
    """A copy, to be spoilt."""
    return shutil.copytree(runs / "png", tmp_path / "run")


def opened(path: Path) -> Samples:
    return open_samples(str(path), resize=None, bad="error")


def column(run: Path, name: str) -> list[str]:
    with open(run / "labels.csv", newline="") as file:
        return [row[name] for row in csv.DictReader(file)]


def test_every_form_gives_the_same_pixels_and_labels(runs: Path) -> None:
    table = [int(label) for label in column(runs / "png", "label")]
    assert len(set(table)) > 1
    expected = open_images(runs / "png" / "images").read(range(20))
    for name in (*FORMS, "png/images", "zip/images.zip", "npz/images.npz"):
        samples = opened(runs / name)
        assert samples.about["path"] == str(runs / name)
        np.testing.assert_array_equal(samples.images.read(range(20)), expected)
        assert samples.images.labels.tolist() == table
    # A zip of files is known again as the folder of them, and their features with it.
    prints = {opened(runs / form).images.fingerprint() for form in ("png", "zip")}
    assert len(prints) == 1
    assert len({(runs / form / "grid.png").read_bytes() for form in FORMS}) == 1
    with np.load(runs / "npz" / "images.npz") as file:
        assert file["arr_0"].shape == (20, 8, 8, 1) and file["arr_0"].dtype == np.uint8


@pytest.mark.parametrize("name", FORMS)
def test_the_folder_of_a_run_is_measured(
    runs: Path, name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["ref=digits", "detector=pixels", f"out={tmp_path / 'eval'}"]
    assert main(["eval", str(runs / name), *words]) == 0
    assert "20 images" in capsys.readouterr().out
    row = json.loads((tmp_path / "eval" / "rows.jsonl").read_text())
    assert row["images"] == 20
    assert "accuracy" in " ".join(row["metrics"])  # which takes labels


def test_the_folder_of_a_toy_is_its_points(runs: Path, tmp_path: Path) -> None:
    samples = opened(runs / "toy")
    points, labels, images = samples.content.values, samples.content.labels, samples.images
    assert images is None and points.shape == (20, 2)
    assert labels.tolist() == [int(label) for label in column(runs / "toy", "label")]
    assert (runs / "toy" / "grid.png").stat().st_size > 10_000
    words = ["ref=fractal2d", "metrics=[frechet,toy]", "metrics.toy.min_expected=1"]
    words.append(f"out={tmp_path / 'eval'}")
    assert main(["eval", str(runs / "toy"), *words]) == 0
    row = json.loads((tmp_path / "eval" / "rows.jsonl").read_text())
    assert 0 <= row["metrics"]["outliers_coordinates"] <= 1


def test_a_run_that_was_copied_without_its_record_is_still_one(png: Path) -> None:
    (png / "run.json").unlink()
    assert len(opened(png).images) == 20
    shutil.move(png / "images", png / "kept")
    # Not known as a run any more: a folder with a table, which lists other images.
    with pytest.raises(GuidexError, match="no label for"):
        opened(png)


def test_a_run_that_is_not_finished(png: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (png / "labels.csv").unlink()
    assert main(["eval", str(png), "ref=digits"]) == 2
    error = capsys.readouterr().err
    assert "not finished" in error
    assert len(opened(png / "images").images) == 20
    shutil.rmtree(png / "images")
    with pytest.raises(UsageError, match="not finished, .*give its command again$"):
        open_images(png)
    (png / "labels.csv").write_text("seed,label,file\n")
    with pytest.raises(UsageError, match="has none of images, images.zip, images.npz"):
        opened(png)


@pytest.mark.parametrize("content", [b"{", b'{"command": "eval"}', b"\xff", b"[" * 10**5])
def test_a_run_json_of_others_is_left_alone(png: Path, content: bytes) -> None:
    (png / "labels.csv").unlink()
    (png / "run.json").write_bytes(content)
    (png / "grid.png").unlink()
    assert len(opened(png).images) == 20


def test_tables_beside_a_zip(runs: Path, tmp_path: Path) -> None:
    archive = shutil.copy(runs / "zip" / "images.zip", tmp_path / "moved.zip")
    assert open_images(archive).labels is None
    table = tmp_path / "labels.csv"
    table.write_text("seed,label,file\n0,3,others/000000.png\n")
    assert open_images(archive).labels is None
    table.write_text("seed,label,file\n990,3,images/000000/000990.png\n")
    with pytest.raises(GuidexError, match=r"labels.csv has no label for 19 of 20 images"):
        open_images(archive)
    table.write_text('seed,label,file\n"')
    with pytest.raises(GuidexError, match=r"labels.csv cannot be read as CSV"):
        open_images(archive)


def test_latents_are_told_from_images(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("GUIDEX_OFFLINE", "1")
    monkeypatch.setenv("GUIDEX_CACHE", str(tmp_path / "cache"))
    network = recorded_module(tiny_model().half(), **asdict(TINY))
    (tmp_path / "net.pkl").write_bytes(snapshot(ema=network))
    run = tmp_path / "run"
    words = ["model=edm2", f"model.checkpoint={tmp_path / 'net.pkl'}", "guidance=none"]
    words += ["seeds=0-2", "sampler.grid.steps=2", "device=cpu", f"out={run}"]
    words += ["sampler.dtype=float32", f"decoder.latents.path={tmp_path / 'no-vae'}"]
    assert main(["sample", *words]) == 2
    assert "decoder=sd_vae decoder.path=" in capsys.readouterr().err or not find_spec("diffusers")
    assert main(["sample", *words, "latents=true"]) == 0
    assert "images are not made, latents are" in capsys.readouterr().err
    with np.load(run / "latents.npz") as file:
        assert file["latents"].shape == (3, 4, 16, 16) and file["latents"].dtype == np.float32
        assert file["seeds"].tolist() == [0, 1, 2] and file["labels"].shape == (3,)
    assert not (run / "grid.png").exists()
    for path in (run, run / "latents.npz"):
        assert main(["eval", str(path), "ref=digits"]) == 1
        error = capsys.readouterr().err
        assert "latents.npz: it holds no images" in error and "decoder=sd_vae" in error


def test_classes_have_the_names_of_folders(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for k, name in enumerate(["circle", "star"] * 6):
        (tmp_path / "data" / name).mkdir(parents=True, exist_ok=True)
        image = Image.fromarray(np.full((4, 4), 20 * k, np.uint8))
        image.save(tmp_path / "data" / name / f"{k}.png")
    drawn: list[list[str]] = []
    for module, name in ((sample_module, "sample_grid"), (drawings, "image_grid")):
        monkeypatch.setattr(module, name, lambda *given, **_: drawn.append(given[-2]))
    words = ["model=kernel", f"model.data={tmp_path / 'data'}", "seeds=0-2"]
    words += ["labels=[star,0]", "sampler.grid.steps=4"]
    assert main(["sample", *words, f"out={tmp_path / 'run'}"]) == 0
    rows = (tmp_path / "run" / "labels.csv").read_text().splitlines()
    assert [row.split(",")[1] for row in rows[1:]] == ["1", "0", "1"]
    table = ["metrics=[]", "guidance=none,cfg", f"out={tmp_path / 'table'}"]
    assert main(["sweep", *words, *table]) == 0
    captions = ["seed 0 · class star", "seed 1 · class circle", "seed 2 · class star"]
    assert drawn == [captions, [captions]]
    assert main(["sample", *words, "labels=sta", f"out={tmp_path / 'other'}"]) == 2
    assert "labels=sta: the classes of this model are 0 … 1; did you mean star?" in (
        capsys.readouterr().err
    )
