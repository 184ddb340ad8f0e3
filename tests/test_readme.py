"""The README's code and claims, as they stand there."""

import re
import shlex
import sys
import types
from pathlib import Path

import pytest
import yaml
from helpers import one_image_per_class

from guidex.cli import main
from guidex.config.compose import split_axes
from guidex.config.instantiate import Models, instantiate
from guidex.guidance.guidance import Guidance
from guidex.runs.points_table import plan_table
from guidex.tuning.space import ranges_of

ROOT = Path(__file__).parents[1]
README = ROOT / "README.md"


def blocks(language: str) -> list[str]:
    """Fenced blocks of a language."""
    return re.findall(rf"```{language}\n(.*?)```", README.read_text(encoding="utf-8"), re.DOTALL)


def commands() -> list[list[str]]:
    """The guidex commands shown in indented lines, without comments."""
    lines = re.findall(r"^    (guidex .*)$", README.read_text(encoding="utf-8"), re.MULTILINE)
    return [shlex.split(line, comments=True)[1:] for line in lines]


def test_the_python_example_runs(capsys: pytest.CaptureFixture[str]) -> None:
    example = blocks("python")[0].replace("range(600)", "range(80)")
    exec(compile(example, "README.md", "exec"), {})
    plan, distance = capsys.readouterr().out.splitlines()
    assert plan.startswith("guided steps 18–23 of 32")
    assert 0 < float(distance) < 5


def test_the_method_of_ones_own_works(monkeypatch: pytest.MonkeyPatch) -> None:
    module = types.ModuleType("guidex.guidance.truncation")
    monkeypatch.setitem(sys.modules, "guidex.guidance.truncation", module)
    exec(compile(blocks("python")[1], "README.md", "exec"), module.__dict__)
    preset = yaml.safe_load(blocks("yaml")[0])
    schedule = {"_target_": "guidex.guidance.schedules.Constant", "w": 1.4}
    rule = {"_target_": "guidex.guidance.rules.Extrapolate"}
    assert preset.pop("defaults") == [{"schedule": "constant"}, {"rule": "extrapolate"}]
    config = {**preset, "schedule": schedule, "rule": rule}
    guidance = instantiate(config, "guidance", Models(), Guidance)
    import torch

    x, main_prediction = torch.randn(2, 3), torch.randn(2, 3)
    direction = guidance.terms["direction"].direction(x, 1.0, None, main_prediction)
    torch.testing.assert_close(direction, main_prediction - x)


@pytest.mark.parametrize("words", commands(), ids=" ".join)
def test_commands_of_the_readme_are_understood(
    words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command, *rest = words
    images = one_image_per_class(tmp_path)
    rest = [word.replace("MY_IMAGES", images) for word in rest if word != "--plan"]
    if command == "sweep":
        plan_table(rest)
    elif command == "sample" and "--cfg" not in rest:
        assert main(["sample", "--plan", *rest]) == 0
    elif words == ["models"]:  # all of them take ten seconds
        assert main(["models", "edm2-img512-xs", "sit-xl-256"]) == 0
    elif command == "fetch":
        assert main(["fetch", "--plan", *rest]) == 0
    elif command == "tune":
        ranges_of([word for word in rest if word.partition("=")[0] not in ("metric", "budget")])
    elif command == "eval":
        assert split_axes(rest[1:])[1] == {}
    elif command in ("ref", "convert", "ema", "status", "table", "compare", "report"):
        # All is well with the words but that there is no such file.
        assert main([command, *rest]) == 2
        assert rest[0].rstrip("/") in capsys.readouterr().err
    else:
        assert main([command, *rest]) == 0


def test_every_package_is_on_the_map() -> None:
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    folders = [path.parent.name for path in (ROOT / "guidex").glob("*/__init__.py")]
    assert [name for name in folders if f"\n      {name}/ " not in text] == []


def test_images_of_the_readme_exist() -> None:
    for target in re.findall(r"!\[.*?\]\((.*?)\)", README.read_text(encoding="utf-8")):
        assert (ROOT / target).is_file(), target
