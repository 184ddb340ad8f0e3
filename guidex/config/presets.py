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


_OWN: list[Path] = []  # the folder of the user's own presets (--config-dir), if there is one


def config_dir() -> Path:
    """The folder of YAMLs: inside an installed package, else beside the package in a checkout."""
    package = Path(__file__).parents[1]
    installed = package / "configs"
    return installed if installed.is_dir() else package.parent / "configs"


def use(folder: str | None) -> None:
    """Find presets also in a folder of the user's own, with the same subfolders; None: no longer.

    Raises:
        UsageError: there is no preset in it, or one of the name of a built-in one.
    """
    _OWN.clear()
    if folder is None:
        return
    own, groups = Path(folder).expanduser().resolve(), set(KINDS.values())
    for group in groups:
        for name in set(_names(own, group)) & set(_names(config_dir(), group)):
            raise UsageError(f"{own}: {group}={name} is built in; give yours another name")
    if not any(_names(own, group) for group in groups):
        raise UsageError(
            f"--config-dir {folder}: there is no preset in it, such as {own}/model/NAME.yaml; its "
            f"folders are called as the built-in ones, {', '.join(sorted(groups))}"
        )
    _OWN.append(own)


def folders() -> list[Path]:
    """The folders of YAMLs, the built-in one first."""
    return [config_dir(), *_OWN]


def is_group(name: str) -> bool:
    """Whether `name` is a config group, such as model or guidance/schedule."""
    return bool(name) and (config_dir() / name).is_dir()


def options(group: str) -> list[str]:
    """Names of the presets in a group, sorted."""
    return sorted(name for folder in folders() for name in _names(folder, group))


def _names(folder: Path, group: str) -> list[str]:
    """Presets of a group in a folder. Only experiments are nested in folders of their own."""
    files = (folder / group).glob("**/*.yaml" if group == "experiment" else "*.yaml")
    return [file.relative_to(folder / group).with_suffix("").as_posix() for file in files]


def preset_file(group: str, name: str) -> Path:
    """The YAML of a preset."""
    files = [folder / group / f"{name}.yaml" for folder in folders()]
    return next((file for file in files if file.is_file()), files[0])


def describe(group: str, name: str) -> str:
    """The first comment of a preset's YAML, which says in one line what it is."""
    with preset_file(group, name).open(encoding="utf-8") as file:
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
