"""Presets and code of the user's own: --config-dir, plugin=, and docs/extending.md as it stands."""

import itertools
import json
import math
import re
import shlex
import shutil
from pathlib import Path

import pytest
import torch

from guidex.cli import main
from guidex.config.compose import compose, split_axes
from guidex.config.presets import use
from guidex.errors import UsageError
from guidex.models.toys import mixture1d

DOCUMENT = Path(__file__).parents[1] / "docs/extending.md"
NAMES = (f"plugin_{n}" for n in itertools.count())  # one per test: modules stay in the process
SCHEDULE = """
from guidex.guidance.schedules import Constant, Schedule
import os
from os import system

open({mark!r}, "a").close()

def twice(w: float = 2.0) -> Schedule:
    return Constant(w=2 * w)

def undeclared(w: float = 2.0):
    return Constant(w=w)
"""


@pytest.fixture(autouse=True)
def forget():
    """A folder of presets is that of one call of the program."""
    yield
    use(None)


@pytest.fixture
def own(tmp_path: Path) -> tuple[Path, Path, Path]:
    """A folder of presets, a plugin, and what the plugin leaves behind when it runs."""
    folder, file, mark = tmp_path / "it's mine", tmp_path / f"{next(NAMES)}.py", tmp_path / "ran"
    (folder / "guidance/schedule").mkdir(parents=True)
    preset = folder / "guidance/schedule/twice.yaml"
    preset.write_text(f"# Twice as much.\n_target_: {file.stem}.twice\nw: ???\n")
    file.write_text(SCHEDULE.format(mark=str(mark)))
    return folder, file, mark


def words(file: Path, *others: str) -> list[str]:
    return ["sample", "guidance=cfg", "guidance.schedule.w=3", f"plugin={file}", *others]


def test_own_presets_are_listed_found_and_run(own, capsys):
    folder, file, mark = own
    chosen = ["--config-dir", str(folder), "guidance/schedule=twice"]
    assert main(["list", "schedules", "--config-dir", str(folder)]) == 0
    assert re.search(r"^twice +Twice as much\.$", capsys.readouterr().out, re.MULTILINE)
    assert main(words(file, *chosen, "--cfg")) == 0
    assert f"_target_: {file.stem}.twice" in capsys.readouterr().out and not mark.exists()
    assert main(words(file, *chosen, "--plan")) == 0
    assert capsys.readouterr().out.endswith("w 6\n") and mark.exists()
    assert main(["sample", *chosen[:2], "guidance=cfg", "guidance/schedule=twise", "--plan"]) == 2
    assert "did you mean twice?" in capsys.readouterr().err
    assert main(["sample", "guidance=cfg", "guidance/schedule=twice", "--plan"]) == 2
    assert "there is no guidance/schedule=twice" in capsys.readouterr().err


def test_code_runs_only_by_name(own, capsys):
    folder, file, mark = own
    chosen = ["guidance=cfg", "guidance/schedule=twice", "guidance.schedule.w=3", "--plan"]
    assert main(["sample", "--config-dir", str(folder), *chosen]) == 2
    assert f"must name something in guidex, not {file.stem}.twice" in capsys.readouterr().err
    for number, text in enumerate(
        (
            f"plugin: {file}",
            f"out: {file}\nplugin: ${{out}}",
            f"model: {{published: {{cfg: {{plugin: {file}}}}}}}",
            f"sweep: {{axes: [{{plugin: ['{file}'], guidance: cfg}}]}}",
        )
    ):
        shutil.copytree(folder, evil := folder.parent / str(number))
        (evil / "experiment").mkdir()
        (evil / "experiment/evil.yaml").write_text(f"# @package _global_\n# Evil.\n{text}\n")
        command = "sweep" if "axes" in text else "sample"
        assert main([command, "--config-dir", str(evil), "experiment=evil", *chosen]) == 2
        said = "a preset names a plugin|plugin is no axis|must name something in guidex"
        assert re.search(said, capsys.readouterr().err)
    with pytest.raises(UsageError, match="plugin is no axis"):
        split_axes([f"plugin={file},b.py"])
    assert not mark.exists()


@pytest.mark.parametrize(
    ("name", "match"),
    [
        ("system", "is no class or function of guidex or plugin="),
        ("nothing", "there is no plugin"),
        ("sub.thing", "there is no plugin"),
        ("undeclared", "has to be declared"),
    ],
)
def test_what_a_plugin_makes_must_fit(own, capsys, name, match):
    folder, file, _ = own
    preset = folder / "guidance/schedule/twice.yaml"
    preset.write_text(f"# Other.\n_target_: {file.stem}.{name}\n")
    chosen = ["guidance=cfg", "guidance/schedule=twice", "--config-dir", str(folder), "--plan"]
    assert main(["sample", f"plugin={file}", *chosen]) == 2
    assert match in capsys.readouterr().err


def test_its_source_is_of_the_identity(own, tmp_path, monkeypatch):
    _, file, _ = own
    first = compose("sample", [f"plugin={file}"]).config["plugin"]
    assert first["module"] == file.stem and len(first["sha256"]) == 64
    assert compose("sample", [f"plugin={file}"]).config["plugin"] == first
    file.write_text(file.read_text() + "\n# changed\n")
    assert compose("sample", [f"plugin={file}"]).config["plugin"] != first
    name = next(NAMES)  # a package is known by all its files
    (tmp_path / name).mkdir()
    (tmp_path / name / "__init__.py").write_text("")
    (tmp_path / name / "inner.py").write_text("x = 1\n")
    monkeypatch.syspath_prepend(tmp_path)
    first = compose("sample", [f"plugin={name}"]).config["plugin"]
    (tmp_path / name / "inner.py").write_text("x = 2\n")
    assert compose("sample", [f"plugin={name}"]).config["plugin"] != first


def test_mistakes(tmp_path, capsys):
    (tmp_path / "json.py").write_text("")
    broken = tmp_path / f"{next(NAMES)}.py"
    broken.write_text("1 / 0\n")
    (tmp_path / "a/model").mkdir(parents=True)
    (tmp_path / "a/model/digits.yaml").write_text("# Mine.\n")
    target = f"guidance.schedule={{_target_:{broken.stem}.x}}"
    for given, said in (
        (["plugin=nowhere.py"], "there is no such file"),
        (["plugin=nowhere.at.all"], "there is no such module"),
        ([f"plugin={tmp_path}/json.py"], "rename the file"),
        ([f"plugin={broken}", target], "ZeroDivisionError: division by zero"),
        (["--config-dir", str(tmp_path)], "there is no preset in it"),
        (["--config-dir", str(tmp_path / "a")], "model=digits is built in"),
    ):
        assert main(["sample", *given, "--plan"]) in (1, 2)
        assert said in capsys.readouterr().err


# The document


def block(language: str) -> str:
    return re.findall(rf"```{language}\n(.*?)```", DOCUMENT.read_text("utf-8"), re.DOTALL)[0]


@pytest.mark.parametrize("predicts", ["epsilon", "v", "flow"])
def test_the_wrapper_is_right(predicts):
    """Of a network that predicts the exact noise, v or flow, it makes the exact denoiser."""
    code: dict = {}
    exec(compile(block("python"), str(DOCUMENT), "exec"), code)
    exact, sigma = mixture1d(), 0.7
    signal = 1 / (1 + sigma) if predicts == "flow" else 1 / math.hypot(1, sigma)

    def network(x: torch.Tensor, noise: float, labels: torch.Tensor | None) -> torch.Tensor:
        assert noise == sigma * signal and x.dtype == torch.float32
        x = x.double() / signal
        x0 = exact(x, sigma, labels)
        n = (x - x0) / sigma
        return {"epsilon": n, "v": signal * n - noise * x0, "flow": n - x0}[predicts]

    wrapped = code["Wrapped"](network, predicts, (1,), 1, 0.0)
    x, labels = torch.linspace(-2, 2, 9, dtype=torch.float64)[:, None], torch.zeros(9).long()
    torch.testing.assert_close(
        wrapped(x, sigma, labels), exact(x, sigma, labels), rtol=1e-5, atol=1e-5
    )


def test_the_document_works_as_it_stands(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Path("my_model.py").write_text(block("python"))
    Path("my_presets/model").mkdir(parents=True)
    Path("my_presets/model/digits_flow.yaml").write_text(block("yaml"))
    lines = re.findall(r"^    guidex (.*)$", DOCUMENT.read_text("utf-8"), re.MULTILINE)
    listed, sampled, swept = map(shlex.split, lines)
    assert main(listed) == 0 and "digits_flow" in capsys.readouterr().out
    steps = "sampler.grid.steps=4"
    assert main([*sampled, "seeds=0-3", steps, "out=a"]) == 0
    assert len(list(Path("a/images").rglob("*.png"))) == 4
    assert main([*swept, "seeds=0-19", "metrics=[frechet]", steps, "out=b"]) == 0
    record = json.loads(Path("b/rows.jsonl").read_text())["config"]["plugin"]
    assert record == compose("sweep", ["plugin=my_model.py"]).config["plugin"]
