"""Shells complete commands, options, keys, groups and presets: tried in the shells themselves."""

import shutil
import subprocess
from pathlib import Path

import pytest

from guidex.cli import main

# A line up to the cursor, some of what completes it, and something that does not.
CASES = [
    ("guidex sw", {"sweep"}, "sample"),
    ("guidex sample --pl", {"--plan"}, "--cfg"),
    ("guidex sample guidance=c", {"guidance=cfg", "guidance=classifier"}, "guidance=none"),
    ("guidex sample model=digits guidance/sch", {"guidance/schedule="}, "guidance="),
    ("guidex sweep experiment=interval/fig", {"experiment=interval/fig2"}, "guidance=cfg"),
    ("guidex sweep tracker=j", {"tracker=jsonl"}, "tracker=wandb"),
    ("guidex sweep see", {"seeds="}, "ref="),
    ("guidex eval protocol=e", {"protocol=edm2"}, "model=edm2"),
    ("guidex list sch", {"schedules"}, "models"),
    ("guidex models edm2-img512-x", {"edm2-img512-xs"}, "digits"),
    ("guidex completion b", {"bash"}, "zsh"),
]
BASH = """
{script}
COMP_LINE={line!r}; COMP_POINT=${{#COMP_LINE}}
read -ra COMP_WORDS <<< "${{COMP_LINE//=/ = }}"  # as readline cuts it
COMP_CWORD=$(( ${{#COMP_WORDS[@]}} - 1 ))
_guidex
printf '%s\\n' "${{COMPREPLY[@]}}"
"""
ZSH = """
compdef() {{ }}; _files() {{ }}
compadd() {{ print -l -- $@ }}
{script}
words=(${{=:-{line}}}); CURRENT=$#words; PREFIX=$words[-1]
_guidex
"""
FISH = "{script}\ncomplete -C {line!r}"


@pytest.fixture(scope="module")
def scripts(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    made = {}
    with pytest.MonkeyPatch.context() as patch:
        for shell in ("bash", "zsh", "fish"):
            lines: list[str] = []
            patch.setattr("builtins.print", lambda text, lines=lines, **_: lines.append(text))
            assert main(["completion", shell]) == 0
            made[shell] = "".join(lines)
    return made


@pytest.mark.parametrize(("line", "expected", "other"), CASES)
@pytest.mark.parametrize(("shell", "form"), [("bash", BASH), ("zsh", ZSH), ("fish", FISH)])
def test_a_shell_completes(
    shell: str, form: str, line: str, expected: set[str], other: str, scripts: dict[str, str]
) -> None:
    if shutil.which(shell) is None:
        pytest.skip(f"{shell} is not installed")
    program = form.format(script=scripts[shell], line=line)
    options = {"bash": ["--norc"], "zsh": ["-f"], "fish": ["--no-config"]}[shell]
    done = subprocess.run([shell, *options, "-c", program], capture_output=True, text=True)
    assert done.stderr == ""
    found = set(done.stdout.split())
    if shell == "bash":  # of a preset, what follows the last "="
        typed = line.split(" ")[-1]
        expected = {word.partition("=")[2] if "=" in typed else word for word in expected}
        assert all(word.startswith(typed.partition("=")[2]) for word in found)
    assert expected <= found
    if shell != "zsh":  # which sorts out by itself what was typed
        assert other not in found


def test_other_shells_are_refused(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert main(["completion", "bahs"]) == 2
    assert "did you mean bash?" in capsys.readouterr().err
    assert main(["completion"]) == 2
    assert "there are bash, fish, zsh" in capsys.readouterr().err
    (tmp_path / "guidance").mkdir()
    (tmp_path / "guidance" / "own.yaml").write_text("# One's own.\n")
    assert main(["completion", "bash", "--config-dir", str(tmp_path)]) == 0
    assert "guidance=own" in capsys.readouterr().out
