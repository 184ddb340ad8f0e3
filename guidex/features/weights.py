"""Weights of published networks: a local file, the cache, or the publisher's URL; never code."""

import importlib.util
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from types import ModuleType

import safetensors.torch
import torch
from torch import Tensor, nn

from guidex.errors import GuidexError, UsageError
from guidex.files.cache import cached, fetch, file_sha256
from guidex.files.progress import download_bar

_STATISTICS = "https://nvlabs-fi-cdn.nvidia.com/edm2/dataset-refs"
REFERENCES = {name: f"{_STATISTICS}/{name}" for name in ("img512.pkl", "img64.pkl")}
"""Published statistics that papers compare with, by the names that people know them by."""


def published_reference(name: str) -> str | None:
    """Where a file of statistics that is not there is published, if it is in the cache; None for
    names that are not of published files.

    Raises:
        UsageError: it is not in the cache.
    """
    url = REFERENCES.get(Path(name).name)
    if url is not None and (cached(url) is None or name not in REFERENCES):
        raise UsageError(f"there is no {name}; give ref={url}, which is downloaded once")
    return url


@dataclass(frozen=True)
class Weights:
    """A file of weights; nothing is fetched or read before it is asked for.

    Attributes:
        what: the network, for messages.
        given: path or URL that the user chose, or None for the published file.
        url: of the published file.
        prefix: hexadecimal digits that the SHA-256 of the published file begins with, where its
            publisher tells any; else "".
    """

    what: str
    given: str | None
    url: str
    prefix: str = ""

    @property
    def source(self) -> str:
        """Path or URL."""
        return self.url if self.given is None else self.given

    @property
    def path(self) -> Path:
        """The file on this machine; downloaded into the cache where it is not there yet.

        Raises:
            UsageError, GuidexError: as `guidex.files.cache.fetch`, and where the cache holds
                another file than the publisher named.
        """
        return self._verified[0]

    @property
    def sha256(self) -> str:
        """Of the file, 64 hexadecimal digits. Raises as `path`."""
        return self._verified[1]

    @cached_property
    def _verified(self) -> tuple[Path, str]:
        with download_bar(self.what) as progress:
            path = fetch(self.source, progress=progress)
        sha256 = file_sha256(path)
        if self.source == self.url and not sha256.startswith(self.prefix):
            raise GuidexError(
                f"{path} is not the published file {self.url}: its SHA-256 is {sha256}, and that "
                f"of the publisher begins with {self.prefix}. Delete it to download it again."
            )
        return path, sha256

    def read(self) -> dict[str, Tensor]:
        """The tensors by name, on the CPU.

        A file of torch.save is read with weights_only, which runs nothing that the file holds.

        Raises:
            GuidexError: damaged, not a plain table of tensors, or replaced since it was hashed.
        """
        path = self.path
        try:
            if path.suffix == ".safetensors":
                tensors = safetensors.torch.load_file(path)
            else:
                tensors = torch.load(path, map_location="cpu", weights_only=True)
        # torch.load answers damaged and hostile files with exceptions of more than five types.
        # They are not quoted: some are a number, others advise to load the file unsafely.
        except Exception as error:
            raise GuidexError(
                f"{path}: not readable weights of {self.what}: neither a safetensors file nor a "
                "file of torch.save that holds tensors alone, or damaged. Nothing in the file was "
                f"run; get it anew from {self.url}."
            ) from error
        if file_sha256(path) != self.sha256:
            raise GuidexError(f"{path} was replaced while it was being read; start again.")
        if not isinstance(tensors, dict) or not all(
            isinstance(name, str) and isinstance(value, Tensor) for name, value in tensors.items()
        ):
            raise GuidexError(
                f"{path}: not a table of tensors by name, as the weights of {self.what} are."
            )
        return tensors

    def load_into(self, network: nn.Module, tensors: dict[str, Tensor]) -> None:
        """Make tensors the float32 weights of a network, which may be on the meta device.

        Raises:
            GuidexError: other names or shapes than the network's, naming some.
        """
        floats = {name: tensor.float() for name, tensor in tensors.items()}
        try:
            network.load_state_dict(floats, assign=True)
        except RuntimeError as error:
            raise self.mismatch(error) from error

    def mismatch(self, reason: object) -> GuidexError:
        """The complaint that these are the weights of another network."""
        return GuidexError(
            f"{self.path} holds no weights of {self.what} ({' '.join(str(reason).split()):.300}). "
            f"The published file is {self.url}"
        )


def check_installed(module: str) -> None:
    """Raise UsageError unless there is a package of this name; it is not imported yet."""
    if importlib.util.find_spec(module) is None:
        raise _not_installed(module)


def optional(module: str) -> ModuleType:
    """A module of an optional package.

    Raises:
        UsageError: it is not installed, or cannot be imported.
    """
    package = module.partition(".")[0]
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        raise _not_installed(error.name or package) from error
    # A torchvision built for another torch, which both packages import, fails in several ways.
    except (ImportError, RuntimeError, OSError) as error:
        raise UsageError(
            f"{package} cannot be imported ({str(error).splitlines()[0]:.200}); torch and "
            "torchvision must come from the same index: reinstall both together"
        ) from error


def _not_installed(module: str) -> UsageError:
    return UsageError(
        f"this detector needs the Python package {module}, which is not installed; "
        "install what detectors need in the clone of guidex: pip install '.[eval]'"
    )
