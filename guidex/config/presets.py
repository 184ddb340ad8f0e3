"""The YAML folder as a list: what can be chosen, and in one line what it is. Imports nothing
heavy."""

import difflib
from collections.abc import Iterable
from pathlib import Path

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
    "experiments": "experiment",
}


def config_dir() -> Path:
    """The folder of YAMLs: inside an installed package, else beside the package in a checkout."""
    package = Path(__file__).parents[1]
    installed = package / "configs"
    return installed if installed.is_dir() else package.parent / "configs"


def is_group(name: str) -> bool:
    """Whether `name` is a config group, such as model or guidance/schedule."""
    return bool(name) and (config_dir() / name).is_dir()


def options(group: str) -> list[str]:
    """Names of the presets in a group, sorted. Only experiments are nested in folders of their
    own."""
    folder = config_dir() / group
    files = folder.rglob("*.yaml") if group == "experiment" else folder.glob("*.yaml")
    return sorted(file.relative_to(folder).with_suffix("").as_posix() for file in files)


def describe(group: str, name: str) -> str:
    """The first comment of a preset's YAML, which says in one line what it is."""
    with (config_dir() / group / f"{name}.yaml").open(encoding="utf-8") as file:
        for line in file:
            text = line.strip().removeprefix("#").strip()
            if line.startswith("#") and not text.startswith("@package"):
                return text
    return ""


def listing(kind: str) -> list[tuple[str, str]]:
    """Name and description of every preset of a kind.

    Raises:
        UsageError: no such kind.
    """
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
