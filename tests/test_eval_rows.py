"""What `guidex eval` says of how it measured: parts, resizing, images left out."""

import json
from pathlib import Path

import numpy as np
import pytest

from guidex.commands.evaluate import evaluate
from guidex.data.codec import write_png
from guidex.errors import UsageError


def images(folder: Path, count: int, seed: int, side: int = 4, sub: str = "") -> Path:
    (folder / sub).mkdir(parents=True, exist_ok=True)
    generator = np.random.default_rng(seed)
    for k in range(count):
        pixels = generator.integers(0, 256, (1, side, side), dtype=np.uint8)
        write_png(folder / sub / f"{k:03d}.png", pixels)
    return folder


def row_of(folder: Path) -> dict:
    return json.loads((folder / "rows.jsonl").read_text())


def measured(tmp_path: Path, *words: str) -> dict:
    out = tmp_path / "out"
    evaluate([*words, "detector=pixels", "metrics=[frechet]", f"out={out}", "overwrite=true"])
    return row_of(out)


def test_repeats_are_equal_parts_in_order(tmp_path: Path) -> None:
    fakes, reals = images(tmp_path / "fakes", 60, 0), images(tmp_path / "reals", 50, 1)
    row = measured(tmp_path, str(fakes), f"ref={reals}", "repeats=3")
    assert (row["images"], row["repeats"]) == (20, 3)
    parts = []
    for part in range(3):
        folder = tmp_path / f"part{part}"
        folder.mkdir()
        for k in range(20 * part, 20 * part + 20):
            (folder / f"{k:03d}.png").hardlink_to(fakes / f"{k:03d}.png")
        parts.append(measured(tmp_path, str(folder), f"ref={reals}")["metrics"]["fd_pixels"])
    found = row["metrics"]
    assert found["fd_pixels"] == pytest.approx(np.median(parts))
    assert found["fd_pixels_min"] == pytest.approx(min(parts))
    assert found["fd_pixels_std"] == pytest.approx(np.std(parts, ddof=1))


def test_doubts_are_of_the_parts(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    fakes, reals = images(tmp_path / "fakes", 60, 0), images(tmp_path / "reals", 50, 1)
    measured(tmp_path, str(fakes), f"ref={reals}")
    assert "fake images and" not in capsys.readouterr().err
    measured(tmp_path, str(fakes), f"ref={reals}", "repeats=6")
    assert "10 fake images and 16 features" in capsys.readouterr().err


def test_parts_that_are_no_repeats_are_refused(tmp_path: Path) -> None:
    reals = images(tmp_path / "reals", 12, 1)
    fakes = images(tmp_path / "fakes", 12, 0)
    with pytest.raises(UsageError, match="cuts images into equal parts.*there are 12"):
        measured(tmp_path, str(fakes), f"ref={reals}", "repeats=5")
    with pytest.raises(UsageError, match="repeats must be a whole number of at least 1"):
        measured(tmp_path, str(fakes), f"ref={reals}", "repeats=0")
    for name in ("a", "b"):
        images(tmp_path / "classes", 6, 2, sub=name)
    with pytest.raises(UsageError, match="sorted by class"):
        measured(tmp_path, str(tmp_path / "classes"), f"ref={reals}", "repeats=2")


def test_the_table_says_how_images_were_read(tmp_path: Path) -> None:
    reals, fakes = images(tmp_path / "reals", 12, 1, side=8), images(tmp_path / "fakes", 12, 0)
    assert "read as" not in measured(tmp_path, str(fakes), f"ref={fakes}")["settings"]
    words = [str(fakes), f"ref={reals}"]
    assert measured(tmp_path, *words, "resize=4")["settings"]["read as"] == "images resized to 4x4"
    (fakes / "x.png").write_bytes(b"no image")
    row = measured(tmp_path, *words, "resize=4", "crop=true", "bad=skip")
    assert row["settings"]["read as"] == "central squares resized to 4x4"
    assert row["settings"]["left out"] == "1 unreadable image"
    assert "left out 1 unreadable image" in (tmp_path / "out" / "table.md").read_text()


def test_pixels_of_another_size_say_what_to_do(tmp_path: Path) -> None:
    reals, fakes = images(tmp_path / "reals", 12, 1, side=8), images(tmp_path / "fakes", 12, 0)
    with pytest.raises(UsageError, match=r"64 dimensions, fake ones 16.*resize=N"):
        measured(tmp_path, str(fakes), f"ref={reals}")
