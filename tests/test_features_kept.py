"""Features of a sweep stay for further metrics, or go once all is measured."""

from pathlib import Path

import pytest

from guidex.cli import main

Captured = pytest.CaptureFixture[str]

WORDS = ["sweep", "guidance=cfg", "guidance.schedule.w=1,2", "seeds=0-11", "sampler.grid.steps=3"]
WORDS += ["device=cpu", "gallery=0", "block=6"]


def records(folder: Path) -> list[Path]:
    return list(folder.glob("points/*/*features-*.record"))


def rows(folder: Path) -> list[str]:
    """The table, without seconds."""
    return [line.rpartition(",")[0] for line in (folder / "table.csv").read_text().splitlines()]


def test_features_are_dropped_after_measuring(tmp_path: Path, capsys: Captured) -> None:
    kept, dropped = tmp_path / "kept", tmp_path / "dropped"
    assert main([*WORDS, f"out={kept}", "metrics=[frechet]"]) == 0
    size = sum(record.stat().st_size for record in records(kept))
    assert len(records(kept)) == 4
    drop = [*WORDS, f"out={dropped}", "features=drop"]
    assert main([*drop, "metrics=[frechet]"]) == 0
    assert records(dropped) == []
    assert f"features: {size / 1e6:.1f} MB deleted" in capsys.readouterr().out
    assert rows(dropped) == rows(kept)
    # The same again has all it needs, and so have the other commands.
    assert main([*drop, "metrics=[frechet]"]) == 0
    text = capsys.readouterr().out
    assert "24 of 24 images are there already" in text or "sampling" not in text
    assert "are again" not in text
    assert main(["table", str(dropped)]) == 0
    assert main(["status", str(dropped)]) == 0
    assert "2 of 2 points, 24 of 24 samples" in capsys.readouterr().out
    assert rows(dropped) == rows(kept)
    # What was dropped is made again for another metric, which is said.
    assert main([*drop, "metrics=[frechet,prdc]"]) == 0
    assert "24 images were sampled without features of pixels, and are again" in (
        capsys.readouterr().out
    )
    assert records(dropped) == []
    assert main([*WORDS, f"out={kept}", "metrics=[frechet,prdc]"]) == 0
    assert "are again" not in capsys.readouterr().out
    assert rows(dropped) == rows(kept)


def test_features_are_kept_or_dropped(capsys: Captured) -> None:
    assert main([*WORDS, "features=delete"]) == 2
    assert "features must be keep or drop" in capsys.readouterr().err
