"""Folders of runs: damage is noticed, nothing foreign is deleted, no run writes into another."""

import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest

from guidex.cli import main
from guidex.config.compose import compose
from guidex.errors import GuidexError, UsageError
from guidex.features.detectors import Identity
from guidex.models.decoders import StabilityVAE
from guidex.runs import folder as folder_module
from guidex.runs.folder import require_same_inputs, run_folder
from guidex.runs.kinds import SampleKind
from guidex.runs.measure import Measure, Part
from guidex.runs.points import Point, check
from guidex.runs.points_table import plan_table

SAMPLE = ["sample", "seeds=0-11", "block=4", "sampler.grid.steps=3", "guidance=cfg"]
SWEEP = ["sweep", *SAMPLE[1:], "gallery=2"]
Said = pytest.CaptureFixture[str]


@pytest.fixture(autouse=True)
def no_figures(monkeypatch: pytest.MonkeyPatch) -> None:
    """They take most of the time, and are not what is tested here."""
    monkeypatch.setattr("guidex.commands.sweep.draw", lambda *_: [])
    monkeypatch.setattr("guidex.commands.sample.sample_grid", lambda *_: None)


def metrics(folder: Path) -> dict[float, dict[str, float]]:
    """What a sweep over w has measured, by w."""
    rows = [json.loads(line) for line in (folder / "rows.jsonl").read_text().splitlines()]
    return {row["values"]["guidance.schedule.w"]: row["metrics"] for row in rows}


def images(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.glob("images/**/*.png")}


def flip(file: Path, place: int) -> None:
    """Change one bit."""
    content = bytearray(file.read_bytes())
    content[place] ^= 4
    file.write_bytes(content)


# The points of a table


def test_the_order_of_points_changes_no_row(tmp_path: Path, capsys: Said) -> None:
    out = f"out={tmp_path / 'run'}"
    assert main([*SWEEP, "guidance.schedule.w=1,2,4", out]) == 0
    before = metrics(tmp_path / "run")
    assert len({tuple(row.values()) for row in before.values()}) == 3
    capsys.readouterr()
    assert main([*SWEEP, "guidance.schedule.w=4,2,1", out]) == 0
    assert "36 of 36 images are there already" in capsys.readouterr().out
    after = metrics(tmp_path / "run")
    assert after == before and list(after) == [4, 2, 1]


def test_words_of_one_value_are_a_table_of_one_point() -> None:
    table = plan_table(["guidance=cfg", "guidance.schedule.w=2"])
    assert [entry.planned.method for entry in table.entries] == ["cfg"]
    assert len(plan_table(["seeds=0-9"]).entries) > 9  # nothing said of what to sample


@pytest.mark.parametrize(
    ("words", "name"),
    [
        (["guidance=cfg", "guidance.schedule.w=1,2,3"], "cfg-w1+2+3"),
        (["guidance=none,cfg,interval"], "none+cfg+interval"),
        (["guidance.schedule.lo=0,0.1", "guidance.schedule.hi=1"], "interval-lo0+0.1"),
    ],
)
def test_a_folder_is_named_after_what_is_swept(words: list[str], name: str) -> None:
    assert plan_table(words).name == name


# Damage


def test_a_flipped_bit_of_a_block_or_row_is_noticed(tmp_path: Path, capsys: Said) -> None:
    run = tmp_path / "run"
    words = [*SWEEP, "guidance.schedule.w=2,3", f"out={run}"]
    assert main(words) == 0
    before = metrics(run)
    blocks = sorted(run.glob("points/*/0*.features-*.record"))
    assert len(blocks) == 2 * 3
    # With the rows gone, features are read again.
    for row in run.glob("points/*/measured-*"):
        row.unlink()
    flip(blocks[4], -300)
    assert main(words) == 1
    assert f"{blocks[4]} was damaged" in capsys.readouterr().err
    assert main(words) == 0 and metrics(run) == before
    for row in run.glob("points/*/measured-*"):
        flip(row, -5)
    assert main(words) == 0 and metrics(run) == before


def test_a_flipped_bit_of_a_part_is_noticed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Said
) -> None:
    words = [*SAMPLE, "format=npz"]
    assert main([*words, f"out={tmp_path / 'whole'}"]) == 0
    run = tmp_path / "run"
    with monkeypatch.context() as stopped:
        stopped.setattr("guidex.commands.sample._finish", lambda *_: None)
        assert main([*words, f"out={run}"]) == 0
    [part] = run.glob("points/*/000004-000007.images")
    flip(part, -1)
    assert main([*words, f"out={run}"]) == 1
    assert "000004-000007" in capsys.readouterr().err
    part.unlink()  # and another one is lost
    assert main([*words, f"out={run}"]) == 0
    assert (run / "images.npz").read_bytes() == (tmp_path / "whole" / "images.npz").read_bytes()


@pytest.mark.parametrize("form", ["png", "zip", "npz"])
def test_images_of_a_finished_run_are_made_again(tmp_path: Path, form: str) -> None:
    run = tmp_path / "run"
    words = [*SAMPLE, f"format={form}", f"out={run}"]
    assert main(words) == 0
    files = sorted(run.glob("images/*/*.png")) or [run / f"images.{form}"]
    before = [file.read_bytes() for file in files]
    files[-1].write_bytes(before[-1][:-9])
    assert main(words) == 0
    assert [file.read_bytes() for file in files] == before
    files[0].unlink()
    assert main(words) == 0
    assert [file.read_bytes() for file in files] == before


def test_eval_misses_the_images_that_are_gone(tmp_path: Path, capsys: Said) -> None:
    run = tmp_path / "run"
    assert main([*SAMPLE, f"out={run}"]) == 0
    (run / "images" / "000000" / "000003.png").unlink()
    for path in (run, run / "images"):
        assert main(["eval", str(path), "ref=digits", f"out={tmp_path / 'eval'}"]) == 1
        said = capsys.readouterr().err
        assert "lists images that are gone" in said and "000003.png" in said


# What a run was begun with


def test_files_of_one_name_are_told_apart(tmp_path: Path) -> None:
    begun = [("main a/net.pkl", "1"), ("cfg b/net.pkl", "2"), ("ref p.npz", "3")]
    require_same_inputs(tmp_path, begun)
    require_same_inputs(tmp_path, reversed(begun))
    with pytest.raises(UsageError, match="main a/net.pkl"):
        require_same_inputs(tmp_path, [("main a/net.pkl", "2"), ("cfg b/net.pkl", "1")])
    with pytest.raises(UsageError, match="ref p.npz"):
        require_same_inputs(tmp_path, [("ref p.npz", "4")])


def test_detectors_of_other_weights_are_told_apart() -> None:
    inputs = []
    for weights, sha256 in (("a.pt", "1"), ("b.pt", "2")):
        part = Part(detector={"weights": weights}, metrics={}, ref=None, device="cpu")
        detector = SimpleNamespace(identity=Identity("inception", weights=sha256))
        inputs += Measure(part, detector, {}).inputs
    assert inputs == [("detector inception a.pt", "1"), ("detector inception b.pt", "2")]


def test_a_decoder_is_an_input() -> None:
    torch = pytest.importorskip("torch")
    settings = check(compose("sample", []), {})
    guidance = SimpleNamespace(terms={})
    shas = []
    for bias in (0.0, 0.0, 1.0):
        decoder = StabilityVAE.__new__(StabilityVAE)
        torch.nn.Module.__init__(decoder)
        decoder.register_buffer("bias", torch.tensor(bias))
        kind = SampleKind((1, 8, 8), decoder)
        point = Point(settings, SimpleNamespace(origin={}), guidance, kind)
        [(name, sha256)] = point.inputs
        assert name == "decoder"
        shas.append(sha256)
    assert shas[0] == shas[1] != shas[2]


def test_versions_are_told_and_recorded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Said
) -> None:
    run = tmp_path / "run"
    words = [*SWEEP, "guidance.schedule.w=2,3", f"out={run}"]
    assert main(words) == 0 and "begun with" not in capsys.readouterr().err
    next(run.glob("points/*/000000-000003.features-*.record")).unlink()
    now = folder_module.versions() | {"numpy": "9.9"}
    before = folder_module.versions()["numpy"]
    monkeypatch.setattr(folder_module, "versions", lambda: now)
    for row in run.glob("points/*/measured-*"):
        row.unlink()
    assert main(words) == 0
    assert f"begun with numpy {before} (now 9.9)" in capsys.readouterr().err
    rows = [json.loads(line) for line in (run / "rows.jsonl").read_text().splitlines()]
    assert f"{before} and 9.9" in {row["provenance"]["numpy"] for row in rows}


# Other runs and other processes


def test_a_run_does_not_write_into_the_next_one(tmp_path: Path) -> None:
    place, identity = tmp_path / "run", {"command": "x"}
    with run_folder(place, identity, False) as orphan:
        orphan.write(place / "a", b"1")
        assert orphan.read(place / "a")[0] == b"1"
        shutil.rmtree(place)
        with run_folder(place, identity, False) as new:
            assert new.run != orphan.run
            new.write(place / "a", b"2")
            for write in (orphan.check, lambda: orphan.write(place / "a", b"3")):
                with pytest.raises(GuidexError, match="no longer the folder"):
                    write()
            assert new.read(place / "a")[0] == b"2"
            assert orphan.header(place / "a") is None and orphan.read(place / "a") is None


def test_a_folder_moved_away_is_not_written_to(tmp_path: Path) -> None:
    with run_folder(tmp_path / "run", {"command": "x"}, False) as held:
        (tmp_path / "run").rename(tmp_path / "moved")
        with pytest.raises(GuidexError, match="moved"):
            held.write(tmp_path / "run" / "a", b"1")
        assert not (tmp_path / "run").exists()


def test_what_killed_processes_were_writing_is_removed(tmp_path: Path) -> None:
    identity = {"command": "x"}
    with run_folder(tmp_path / "run", identity, False) as held:
        held.write(tmp_path / "run" / "blocks" / "a", b"1")
    stale = tmp_path / "run" / "blocks" / ".guidex-0123.tmp"
    stale.write_text("a part")
    with run_folder(tmp_path / "run", identity, False):
        assert not stale.exists()
        stale.write_text("of the rank at work")
        with run_folder(tmp_path / "run", identity, False):
            assert stale.exists()


# Nothing foreign is deleted


@pytest.mark.parametrize("content", ["{", "[1]", '{"run": 3}'])
def test_the_run_json_of_others_is_left_alone(tmp_path: Path, content: str, capsys: Said) -> None:
    (tmp_path / "run.json").write_text(content)
    for more in ([], ["overwrite=true"]):
        assert main([*SAMPLE, f"out={tmp_path}", *more]) == 2
        assert "no run of this guidex" in capsys.readouterr().err
        assert (tmp_path / "run.json").read_text() == content
    (tmp_path / "thesis.txt").write_text("do not delete")
    assert main([*SAMPLE, f"out={tmp_path}", "overwrite=true"]) == 2
    assert (tmp_path / "thesis.txt").exists()


@pytest.mark.parametrize("out", ["run", "run/images/.."])
def test_what_is_to_be_measured_is_not_deleted(tmp_path: Path, out: str, capsys: Said) -> None:
    run = tmp_path / "run"
    assert main([*SAMPLE, f"out={run}"]) == 0
    before = images(run)
    for measured in (run, run / "images"):
        words = ["eval", str(measured), "ref=digits", f"out={tmp_path / out}", "overwrite=true"]
        assert main(words) == 2
        assert "holds what is to be read, images=" in capsys.readouterr().err
    sweep = [*SWEEP, f"ref={run / 'images'}", f"out={run}", "overwrite=true"]
    assert main(sweep) == 2
    assert "ref=" in capsys.readouterr().err
    assert images(run) == before and len(before) == 12


def test_clearing_that_was_killed_is_gone_on_with(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = tmp_path / "run"
    words = [*SAMPLE, f"out={run}"]
    assert main(words) == 0
    before = images(run)

    def killed(path: Path) -> None:
        if path.name == "images":
            (path / "000000" / "000003.png").unlink()
        raise KeyboardInterrupt

    monkeypatch.setattr(folder_module, "shutil", SimpleNamespace(rmtree=killed))
    assert main([*words, "overwrite=true"]) == 130
    monkeypatch.undo()
    (run / "points" / "left").write_text("by the other run")
    assert main(words) == 0
    assert images(run) == before and not (run / "points" / "left").exists()


# Names that mean two things


def test_a_folder_named_like_a_model_is_written_with_a_slash(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Said
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main([*SAMPLE, "out=digits"]) == 0
    assert main(["eval", "digits", "ref=digits", "out=a"]) == 0
    said = capsys.readouterr()
    assert "real: digits: 1,797 samples" in said.out
    assert main(["eval", "digits", "ref=./digits", "out=b"]) == 0
    assert "real: digits: 12 images" in capsys.readouterr().out


def test_a_sweep_has_no_images_to_measure(tmp_path: Path, capsys: Said) -> None:
    assert main([*SWEEP, "guidance.schedule.w=2,3", f"out={tmp_path / 'run'}"]) == 0
    assert main(["eval", str(tmp_path / "run"), "ref=digits"]) == 2
    assert "guidex sweep wrote" in capsys.readouterr().err
