"""Where results come from and where they go: versions, devices, default folders."""

import datetime
import functools
import hashlib
import platform
import shlex
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

import guidex
from guidex.config.compose import Config
from guidex.config.instantiate import content_key

# Libraries that compute, or read what is computed with; of some runs, not all are installed.
_LIBRARIES = ("torch", "numpy", "pillow", "diffusers", "transformers", "timm", "torch-fidelity")


@functools.cache
def versions() -> dict[str, str]:
    """Versions of guidex and of the libraries that results may depend on."""
    found = {"guidex": guidex.__version__}
    for name in _LIBRARIES:
        with suppress(PackageNotFoundError):
            found[name] = version(name)
    return found


def merged(made_with: Iterable[Mapping[str, str]]) -> dict[str, str]:
    """Versions of all parts of a result; several of one library in one text."""
    found: dict[str, set[str]] = {}
    for part in made_with:
        for name, text in part.items():
            found.setdefault(name, set()).update(text.split(" and "))
    return {name: " and ".join(sorted(texts)) for name, texts in found.items()}


def provenance(config: Config) -> dict[str, str]:
    """Versions and device that results were made with."""
    device = config.get("device", "cpu")
    name = torch.cuda.get_device_name(device) if device.startswith("cuda") else platform.machine()
    return {**versions(), "python": platform.python_version(), "device": f"{device} ({name})"}


def digest(data: object, length: int) -> str:
    """Names plain data: hex digits of a SHA-256 that does not depend on the order of keys."""
    return hashlib.sha256(content_key(data).encode()).hexdigest()[:length]


def made_by(command: str, words: Sequence[str]) -> dict[str, str]:
    """The command line that makes results, and the date."""
    line = shlex.join(["guidex", *command.split(), *words])
    return {"command": line, "date": datetime.date.today().isoformat()}


def output_folder(out: str | None, command: str, name: str, identity: object) -> Path:
    """The folder asked for, or one named after the command, what people call the run, and what
    decides its results: the same command finds the same folder."""
    if out is not None:
        return Path(out).expanduser()
    return Path("outputs") / command / f"{name.replace('/', '-')}-{digest(identity, 6)}"
