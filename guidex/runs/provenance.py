"""Where results come from and where they go: versions, devices, default folders."""

import datetime
import hashlib
import platform
import shlex
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

import guidex
from guidex.config import Config
from guidex.instantiate import content_key


def provenance(config: Config) -> dict[str, str]:
    """Versions and device that results were made with."""
    device = config.get("device", "cpu")
    name = torch.cuda.get_device_name(device) if device.startswith("cuda") else platform.machine()
    return {
        "guidex": guidex.__version__,
        "torch": torch.__version__,
        "numpy": np.__version__,
        "python": platform.python_version(),
        "device": f"{device} ({name})",
    }


def made_by(command: str, words: Sequence[str]) -> dict[str, str]:
    """The command line that makes results, and the date."""
    line = shlex.join(["guidex", *command.split(), *words])
    return {"command": line, "date": datetime.date.today().isoformat()}


def output_folder(out: str | None, command: str, name: str, identity: object) -> Path:
    """The folder asked for, or one named after what is run: the same command finds the same folder.

    Arguments:
        out: the user's choice, or None.
        command: sample, sweep or eval.
        name: what people call it.
        identity: plain data that decides the results.
    """
    if out is not None:
        return Path(out).expanduser()
    digest = hashlib.sha256(content_key(identity).encode()).hexdigest()[:8]
    return Path("outputs") / command / f"{name.replace('/', '-')}-{digest}"
