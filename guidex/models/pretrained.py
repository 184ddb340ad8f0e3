"""Files of networks: .safetensors, and parts of pipelines as diffusers and transformers save them,
in a folder or by an id on huggingface.co.

Of pipelines, weights are read from safetensors alone, by classes that are named here and not by the
folder; none of its code is run.
"""

import importlib
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any, TypeVar

import torch
from safetensors import SafetensorError, safe_open

from guidex.errors import GuidexError, UsageError
from guidex.files.cache import offline
from guidex.files.pickles import open_file

Result = TypeVar("Result")


@contextmanager
def safetensors_file(path: Path) -> Iterator[safe_open]:
    """A .safetensors file to read from, on the CPU. Raises UsageError: there is none; GuidexError:
    it is damaged, which may be noticed while it is read."""
    open_file(path).close()
    try:
        with safe_open(path, framework="pt", device="cpu") as file:
            yield file
    except (SafetensorError, OSError) as error:
        raise GuidexError(f"{path}: not a readable safetensors file ({error}).") from error


def library(name: str, extra: str = "diffusers") -> ModuleType:
    """A module of an optional package. Raises UsageError: it cannot be imported."""
    try:
        module = importlib.import_module(name)
    # A torchvision built for another torch, which packages import, fails in several ways.
    except (ImportError, RuntimeError, OSError) as error:
        raise unusable(name, error, extra) from error
    if name == "transformers":
        module.utils.logging.disable_progress_bar()
    return module


def unusable(name: str, error: Exception, extra: str) -> UsageError:
    """What to do about a package that is not installed, or cannot be imported."""
    return UsageError(
        f"this needs the Python package {name.partition('.')[0]}, which cannot be used "
        f"({str(error).splitlines()[0]:.200}); install it in the clone of guidex: "
        f"pip install '.[{extra}]', with torch and torchvision from the same index"
    )


def local_first(get: Callable[[bool], Result], path: str | Path, advice: str = "") -> Result:
    """What get(local_only) makes of a folder, or of an id: at first of what is on this machine,
    without waiting for a site. `advice` tells how to do without the site.

    Raises:
        UsageError: the id is not to be had.
        GuidexError: the folder cannot be read.
    """
    here = Path(path).expanduser().is_dir()
    for local_only in (True,) if here or offline() else (True, False):
        try:
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", module=r"huggingface_hub\.")
                return get(local_only)
        except Exception as error:  # every library on the way has its own
            reason = " ".join(str(error).split())[:300]
    if here:
        raise GuidexError(f"{path} cannot be read: {reason}")
    raise UsageError(f"{path} is not to be had ({reason}). {advice}")


def read_part(
    name: str,
    place: str | Path,
    variant: str | None = None,
    dtype: torch.dtype | None = None,
    **options: Any,
) -> Any:
    """A part of a pipeline on the CPU, by the name of its class in diffusers or transformers: a
    network with its weights in a dtype, or, without one, what has no weights."""
    diffusers = library("diffusers")
    home = diffusers if hasattr(diffusers, name) else library("transformers")
    if dtype is not None:
        options |= {"use_safetensors": True, "variant": variant}
    if home is diffusers:
        quick = diffusers.utils.is_accelerate_available()
        options |= {"low_cpu_mem_usage": quick, "torch_dtype": dtype}
    made = getattr(home, name).from_pretrained(str(place), **options)
    return made if dtype is None or made.dtype == dtype else made.to(dtype)
