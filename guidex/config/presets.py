"""The YAML folder as a list: what can be chosen, and in one line what it is. Imports nothing
heavy.

A preset is a file NAME.yaml, or a row of a table: in a file *.table.yaml, every key is the name of
a preset, and its value what the file would say, with the line that describes it as `text`.
"""

import difflib
import functools
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import yaml

from guidex.errors import UsageError

# What `guidex list KIND` shows, and the config group that holds it.
KINDS = {
    "models": "model",
    "guidance": "guidance",
    "schedules": "guidance/schedule",
    "rules": "guidance/rule",
    "samplers": "sampler",
    "grids": "sampler/grid",
    "decoders": "decoder",
    "detectors": "detector",
    "metrics": "metrics",
    "protocols": "protocol",
    "launchers": "launcher",
    "trackers": "tracker",
    "experiments": "experiment",
}

_OWN: list[Path] = []  # the folder of the user's own presets (--config-dir), if there is one


@functools.cache
def config_dir() -> Path:
    """The folder of YAMLs: inside an installed package, else beside the package in a checkout."""
    package = Path(__file__).parents[1]
    installed = package / "configs"
    return installed if installed.is_dir() else package.parent / "configs"


def use(folder: str | None) -> None:
    """Find presets also in a folder of the user's own, with the same subfolders; None: no more."""
    _OWN.clear()
    preset.cache_clear()
    _presets.cache_clear()
    if folder is not None:
        _OWN.append(Path(folder).expanduser().resolve())
        if not any((_OWN[0] / group).is_dir() for group in KINDS.values()):
            raise UsageError(
                f"--config-dir {folder}: there is no preset in it, such as model/NAME.yaml; its "
                f"folders are called as the built-in ones, {', '.join(sorted(KINDS.values()))}"
            )


def own_folder() -> Path | None:
    """The folder of the user's own presets."""
    return _OWN[0] if _OWN else None


def is_group(name: str) -> bool:
    """Whether `name` is a config group, such as model or guidance/schedule."""
    return name in KINDS.values()


@functools.cache
def _presets(group: str) -> dict[str, str | dict[str, Any]]:
    """The presets of a group: YAML of files, and rows of tables, whose heads are NAME.table. Only
    experiments are nested in folders of their own."""
    presets: dict[str, str | dict[str, Any]] = {}
    for folder in (config_dir(), *_OWN):
        found: dict[str, str | dict[str, Any]] = {}
        for file in (folder / group).glob("**/*.yaml" if group == "experiment" else "*.yaml"):
            name = file.relative_to(folder / group).as_posix().removesuffix(".yaml")
            found[name] = file.read_text(encoding="utf-8")
            found |= yaml.safe_load(found[name]) if name.endswith(".table") else {}
        for name in presets.keys() & found.keys():
            raise UsageError(f"{folder}: {group}={name} is built in; give yours another name")
        presets |= found
    return presets


def options(group: str) -> list[str]:
    """Names of the presets in a group, sorted."""
    return sorted(name for name in _presets(group) if not name.endswith(".table"))


def table_rows() -> list[tuple[str, str, dict[str, Any]]]:
    """Group, name and content of all presets that are rows of tables."""
    presets = [(group, *each) for group in KINDS.values() for each in _presets(group).items()]
    return [
        (group, name, preset(group, name)) for group, name, row in presets if isinstance(row, dict)
    ]


@functools.cache
def preset(group: str, name: str) -> dict[str, Any]:
    """What a preset says; empty where there is none. Group "" has the keys of commands."""
    found = _presets(group).get(name, "")
    content = yaml.safe_load(found) if isinstance(found, str) else found
    return {key: value for key, value in (content or {}).items() if key != "text"}


def preset_text(group: str, name: str) -> str:
    """The YAML of a preset."""
    found = _presets(group).get(name, "")
    if isinstance(found, str):
        return found
    return f"# {found['text']}\n{yaml.safe_dump(preset(group, name), sort_keys=False)}"


def describe(group: str, name: str) -> str:
    """The first comment of a preset's YAML, which says in one line what it is."""
    for line in preset_text(group, name).splitlines():
        text = line.strip().removeprefix("#").strip()
        if line.startswith("#") and not text.startswith("@package"):
            return text
    return ""


def listing(kind: str) -> list[tuple[str, str]]:
    """Name and description of every preset of a kind."""
    if kind not in KINDS:
        raise UsageError(f"nothing called {kind!r} to list{nearest(kind, KINDS)}")
    group = KINDS[kind]
    return [(name, describe(group, name)) for name in options(group)]


def nearest(given: str, allowed: Iterable[str], most: int = 12) -> str:
    """The end of an error message: the names close to what was given, or all of a short list."""
    names = sorted(allowed)
    close = difflib.get_close_matches(given, names, n=3, cutoff=0.6)
    if close:
        return f"; did you mean {' or '.join(close)}?"
    if not names:
        return ""
    shown = ", ".join(names[:most])
    return f"; there are {shown}{', …' if len(names) > most else ''}"
