"""The YAML folder as a list: what can be chosen, and in one line what it is. Imports nothing
heavy.

A preset is a file NAME.yaml, or a row of a table: in a file *.table.yaml, every key is the name of
a preset, and its value what the file would say, with the line that describes it as `text`.
"""

import difflib
import functools
import re
from collections.abc import Iterable, Iterator
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


class _Loader(getattr(yaml, "CSafeLoader", yaml.SafeLoader)):
    """As `yaml.safe_load`, in C where it can be, and 1e-3 is a number."""


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"[-+]?[0-9.]+[eE][-+]?[0-9]+$"), list("-+.0123456789")
)

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
    if folder is None:
        return
    own, groups = Path(folder).expanduser().resolve(), set(KINDS.values())
    for group in groups:
        for name in _presets(own, group).keys() & _presets(config_dir(), group).keys():
            raise UsageError(f"{own}: {group}={name} is built in; give yours another name")
    if not any(_presets(own, group) for group in groups):
        raise UsageError(
            f"--config-dir {folder}: there is no preset in it, such as {own}/model/NAME.yaml; its "
            f"folders are called as the built-in ones, {', '.join(sorted(groups))}"
        )
    _OWN.append(own)


def is_group(name: str) -> bool:
    """Whether `name` is a config group, such as model or guidance/schedule."""
    return bool(name) and (config_dir() / name).is_dir()


def options(group: str) -> list[str]:
    """Names of the presets in a group, sorted."""
    return sorted(name for folder in (config_dir(), *_OWN) for name in _presets(folder, group))


@functools.cache
def _presets(folder: Path, group: str) -> dict[str, Path | dict[str, Any]]:
    """The presets of a group in a folder: files, and rows of tables. Only experiments are nested in
    folders of their own."""
    presets: dict[str, Path | dict[str, Any]] = {}
    for file in (folder / group).glob("**/*.yaml" if group == "experiment" else "*.yaml"):
        if file.name.endswith(".table.yaml"):
            presets |= _read(file)
        else:
            presets[file.relative_to(folder / group).with_suffix("").as_posix()] = file
    return presets


def _read(file: Path) -> dict[str, Any]:
    with file.open("rb") as stream:
        return yaml.load(stream, _Loader) or {}


def own_folder() -> Path | None:
    """The folder of the user's own presets."""
    return _OWN[0] if _OWN else None


def contents() -> Iterator[tuple[str, str, dict[str, Any]]]:
    """Group, name and content of all presets, of rows without their texts; group "" has the keys of
    commands."""
    for folder in (*_OWN, config_dir()):
        for group in ("", *KINDS.values()):
            for name, found in _presets(folder, group).items():
                if isinstance(found, Path):
                    yield group, name, _read(found)
                else:
                    yield group, name, {key: found[key] for key in found if key != "text"}


@functools.cache
def preset(group: str, name: str) -> dict[str, Any]:
    """What a preset says; empty where there is none. Group "" has the keys of commands."""
    return yaml.load(preset_text(group, name), _Loader) or {}


def preset_text(group: str, name: str) -> str:
    """The YAML of a preset."""
    for folder in (config_dir(), *_OWN):
        match _presets(folder, group).get(name):
            case Path() as file:
                return file.read_text(encoding="utf-8")
            case {"text": text, **content}:
                return f"# {text}\n{yaml.safe_dump(content, sort_keys=False)}"
        if (file := folder / group / f"{name}.yaml").is_file():  # a table's own head
            return file.read_text(encoding="utf-8")
    return ""


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
