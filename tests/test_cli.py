"""The command line as people use it: help, lists, mistakes and exit codes."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from helpers import one_image_per_class
from PIL import Image

import guidex
from guidex.cli import main
from guidex.config.presets import KINDS, config_dir


def fails(words: list[str], capsys: pytest.CaptureFixture[str], code: int = 2) -> str:
    """Run a command that must fail with a clean message; returns the message."""
    assert main(words) == code
    error = capsys.readouterr().err
    assert error.startswith("guidex: ") and "Traceback" not in error
    return error


@pytest.mark.parametrize(
    "words", [["--help"], ["sample", "--help"], ["sweep", "--help"], ["eval", "--help"]]
)
def test_help_has_examples(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit:
        main(words)
    assert exit.value.code == 0
    text = capsys.readouterr().out
    assert "guidex" in text
    assert len(words) == 1 or f"examples:\n  guidex {words[0]}" in text


def examples() -> list[list[str]]:
    """The commands shown in the help texts."""
    texts = (guidex.cli._SAMPLE, guidex.cli._SWEEP)
    lines = [line.strip() for text in texts for line in text.splitlines()]
    return [line.split()[1:] for line in lines if line.startswith("guidex ")]


@pytest.mark.parametrize("words", examples(), ids=" ".join)
def test_examples_of_the_help_can_be_planned(words: list[str], tmp_path: Path) -> None:
    images = one_image_per_class(tmp_path)
    words = [word.replace("MY_IMAGES", images) for word in words if word != "--plan"]
    assert main([*words, "--plan"]) == 0


def test_light_commands_and_typing_errors_do_not_import_torch() -> None:
    typo = [sys.executable, "-X", "importtime", "-m", "guidex", "sweep", "guidance.schedule.ww=1,2"]
    out = subprocess.run(typo, capture_output=True, text=True)
    assert out.returncode == 2 and "did you mean guidance.schedule.w" in out.stderr
    assert not any(line.endswith(" torch") for line in out.stderr.splitlines())
    code = (
        "import sys; from guidex.cli import main\n"
        "try: main(sys.argv[1:])\nexcept SystemExit: pass\n"
        "print(sorted({'torch', 'hydra', 'numpy', 'omegaconf'} & set(sys.modules)))"
    )
    for words in (["--version"], ["list"], ["sweep", "--help"]):
        out = subprocess.run(
            [sys.executable, "-c", code, *words], capture_output=True, text=True, check=True
        )
        assert out.stdout.splitlines()[-1] == "[]"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["smaple"], "there is no command smaple; did you mean sample?"),
        (["sample", "--pln"], "there is no option --pln; did you mean --plan?"),
        (["convert", "--plan"], "there is no option --plan; there are --help"),
    ],
)
def test_mistakes_in_commands_and_options(
    words: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert said in fails(words, capsys)


def test_list_names_every_preset(capsys: pytest.CaptureFixture[str]) -> None:
    assert "models" in fails(["list", "modles"], capsys)
    assert main(["list"]) == 0
    everything = capsys.readouterr().out
    for kind, group in KINDS.items():
        assert main(["list", kind]) == 0
        lines = capsys.readouterr().out.splitlines()
        files = (config_dir() / group).glob("*.yaml")
        names = {path.stem for path in files if path.suffixes == [".yaml"]}
        assert names <= {line.split()[0] for line in lines}
        assert all(len(line.split(maxsplit=1)) == 2 for line in lines)
        assert all(line in everything for line in lines)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["guidance.schedule.w=abc"], "guidance.schedule.w must be a number"),
        (["guidance.schedule.lo=2", "guidance.schedule.hi=1"], "lo must be below hi"),
        (["seeds=5-2"], "must increase"),
        (["seeds=ten"], "whole numbers"),
        (["labels=[0,-1]"], "labels must be"),
        (["labels=[0,x]"], "labels=x: the classes of this model are 0 … 9; there are 0, 1, 2"),
        (["labels=10"], "0 … 9"),
        (["batch=0"], "batch must be"),
        (["device=tpu"], "device"),
        (["sampler.grid.steps=0"], "at least one step"),
        (["model=kernel", "model.data=/no/such/folder"], "/no/such/folder"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_mistakes_in_sample(
    words: list[str], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert said in fails(["sample", *words, f"out={tmp_path / 'run'}"], capsys)
    assert not list(tmp_path.rglob("*.png"))


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["guidance.schedule.w=1,abc"], "at the point"),
        (["guidance.schedule.w=1,2", "ref=nowhere"], "ref=nowhere"),
        (["guidance.schedule.w=1,2", "ref=mixture1d"], "detector"),
        (["guidance.schedule.w=1,2", "metrics=[frechet,toy]"], "closed form"),
        (
            ["guidance.schedule.w=1,2", "metrics=[fid]"],
            "metrics=fid; did you mean frechet",
        ),
        (["sweep.mode=random", "guidance.schedule.w=1,2"], "grid or zip"),
        (["repeats=0", "guidance.schedule.w=1,2"], "repeats must be"),
        (["guidance.schedule.lo=3,4", "guidance.schedule.hi=1,2"], "lo must be below hi"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_mistakes_in_sweep(
    words: list[str], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert said in fails(["sweep", *words, "seeds=0-9", f"out={tmp_path / 'run'}"], capsys)
    assert not list(tmp_path.rglob("*.npz"))


def test_mistakes_in_eval(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    fakes = tmp_path / "fakes"
    fakes.mkdir()
    grey = np.zeros((8, 8), np.uint8)
    for k in range(8):
        Image.fromarray(grey + k).save(fakes / f"{k}.png")
    out = f"out={tmp_path / 'run'}"
    assert "does not exist; give" in fails(
        ["eval", str(tmp_path / "nowhere"), "ref=digits", out], capsys
    )
    assert "ref must be given" in fails(["eval", str(fakes), out], capsys)
    assert "no metrics chosen" in fails(["eval", str(fakes), "ref=digits", "metrics=[]"], capsys)
    assert "coordinates" in fails(["eval", str(fakes), "ref=fractal2d", out], capsys)
    Image.fromarray(np.zeros((9, 9), np.uint8)).save(fakes / "larger.png")
    assert "9x9" in fails(["eval", str(fakes), "ref=digits", out], capsys, code=1)
    (fakes / "larger.png").write_bytes((fakes / "0.png").read_bytes()[:40])
    assert "larger.png" in fails(["eval", str(fakes), "ref=digits", out], capsys, code=1)
    words = ["eval", str(fakes), "ref=digits", "bad=skip", "metrics=[frechet,prdc]", out]
    assert main(words) == 0


@pytest.mark.parametrize("words", [["eval", "."], ["ref", ".", "dest=x.npz"]])
def test_cfg_takes_the_path_that_the_command_takes(
    words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*words, "--cfg"]) == 0
    key = "images" if words[0] == "eval" else "data"
    assert f"\n{key}: .  # folder, zip or npz" in capsys.readouterr().out


def test_plan_of_the_published_interval(capsys: pytest.CaptureFixture[str]) -> None:
    """Options may stand between the words."""
    words = ["guidance.schedule.lo=0.19", "guidance.schedule.hi=1.61", "guidance.schedule.w=2"]
    assert main(["sample", *words, "--plan", "guidance=interval"]) == 0
    expected = "guided steps 17–22 of 32, sigma 1.609 → 0.189; 63 + 12 evaluations per image; w 2\n"
    assert capsys.readouterr().out == expected


def test_missing_points_are_listed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["guidance=interval", "guidance.schedule.lo=0.1,2", "guidance.schedule.hi=1,3"]
    words += ["metrics=[frechet]", "sampler.grid.steps=6", f"out={tmp_path / 'run'}"]
    assert main(["sweep", *words, "seeds=0-19"]) == 0
    assert "lo must be below hi" in capsys.readouterr().out
    table = (tmp_path / "run" / "table.csv").read_text().splitlines()
    assert len(table) == 5
    assert sum("lo must be below hi" in line for line in table) == 1


def test_an_interval_without_a_step_is_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["guidance=interval", "guidance.schedule.lo=1.3", "guidance.schedule.hi=1.35"]
    said = "guidance.schedule acts at no step of the sampler, so nothing is guided by it\n"
    assert main(["sample", "--plan", *words]) == 0
    assert said in capsys.readouterr().err
    words[2] += ",5"
    words += ["seeds=0-19", "sampler.grid.steps=12", "metrics=[frechet]"]
    assert main(["sweep", *words, f"out={tmp_path / 'run'}"]) == 0
    out, err = capsys.readouterr()
    assert err.count(said) == 1
    note = "Point 0 (guidance interval, hi 1.35): not guided: no step of the sampler"
    assert note in out and note in (tmp_path / "run" / "table.md").read_text()
    assert "point 1" not in out


def test_axes_on_the_command_line_replace_those_of_an_experiment(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(["sweep", "experiment=interval/fig2", "guidance.schedule.w=2,3", "--plan"]) == 2
    capsys.readouterr()
    words = ["sweep", "experiment=interval/digits", "sampler.grid.steps=8,16", "--plan"]
    assert main(words) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines[: lines.index("")]) == 1 + 1 + 2 * 19
