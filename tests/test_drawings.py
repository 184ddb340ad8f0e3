"""What a sweep draws: which points stand side by side, and what their captions say."""

import json
from pathlib import Path

import pytest
from helpers import two_classes

from guidex.cli import main
from guidex.models.condition import Conditions
from guidex.models.mixture import GaussianMixture
from guidex.runs import drawings
from guidex.runs.drawings import captions

FEW = ["sampler.grid.steps=3", "gallery=2", "seeds=0-3", "metrics=[]", "guidance=cfg"]


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[tuple]:
    """The arguments of every image grid and figure of a toy."""
    calls: list[tuple] = []
    for name in ("image_grid", "toy_figure"):
        monkeypatch.setattr(drawings, name, lambda *one, **options: calls.append(one) or True)
    return calls


def test_solvers_are_seen_side_by_side(
    tmp_path: Path, drawn: list[tuple], capsys, monkeypatch: pytest.MonkeyPatch
) -> None:
    plotted: list[int] = []
    monkeypatch.setattr(drawings, "write_plots", lambda rows, _: plotted.append(len(rows)) or [])
    words = ["sweep", *FEW, "sampler=heun,euler", "guidance.schedule.w=1,2"]
    assert main([*words, f"out={tmp_path}"]) == 0
    assert plotted == [4]
    ((images, rows, [columns], path),) = drawn
    assert rows == [
        "heun w = 1",
        "heun w = 2",
        "euler w = 1",
        "euler w = 2",
    ]
    assert images.shape[:2] == (4, 2) and path.name == "grid.png"
    assert [column[:14] for column in columns] == ["seed 0 · class", "seed 1 · class"]
    assert "4 points of 4 seeds" in capsys.readouterr().out
    made = json.loads((tmp_path / "rows.jsonl").read_text().splitlines()[0])["provenance"]
    assert made["command"] == f"guidex {' '.join(words)} out={tmp_path}".replace(
        "metrics=[]", "'metrics=[]'"
    )
    assert made["presets"]["sampler"] == "heun" and made["presets"]["model"] == "digits"


def test_toys_of_one_truth_are_seen_side_by_side(
    tmp_path: Path, drawn: list[tuple], capsys
) -> None:
    words = ["sweep", "model=mixture1d,fractal2d", "sampler=heun,euler", *FEW, f"out={tmp_path}"]
    assert main(words) == 0
    assert [len(panels) for panels, *_ in drawn] == [2, 2]
    assert [path.name for _, _, path, *_ in drawn] == ["toy_0.png", "toy_1.png"]
    assert "16/16 samples" in capsys.readouterr().err
    assert json.loads((tmp_path / "rows.jsonl").read_text().splitlines()[0])["unit"] == "samples"


def test_a_toy_is_drawn_beside_what_it_is_guided_away_from(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[tuple] = []
    monkeypatch.setattr(drawings, "toy_figure", lambda *one, **_: calls.append(one))
    assert main(["sweep", "model=mixture1d", *FEW, f"out={tmp_path}"]) == 0
    ((_, _, _, reference),) = calls
    assert isinstance(reference, GaussianMixture) and reference.num_classes == 0


def test_one_point_is_one_point(tmp_path: Path, drawn: list[tuple], capsys) -> None:
    assert main(["sample", "eval=true", *FEW, f"out={tmp_path}"]) == 0
    assert "1 point of 4 seeds" in capsys.readouterr().out
    made = json.loads((tmp_path / "rows.jsonl").read_text())["provenance"]
    assert made["command"].startswith("guidex sample eval=true sampler.grid.steps=3 ")


def test_captions_name_classes() -> None:
    model = two_classes()
    model.conditions = Conditions(2, ("circle", "square"))
    assert captions([4, 5], [1, 0], model) == ["seed 4 · class square", "seed 5 · class circle"]
    assert captions([4], [7], two_classes()) == ["seed 4 · class 7"]
    assert captions([4, 5], None, model) == ["seed 4", "seed 5"]
