"""Weights of published networks: a local file, the cache, or the publisher's URL; never code."""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import safetensors.torch
import torch
from torch import Tensor

from guidex.errors import GuidexError
from guidex.files.cache import fetch, file_sha256


@dataclass(frozen=True)
class Weights:
    """A file of weights; nothing is fetched or read before it is asked for."""

    what: str  # the network, for messages
    given: str | None  # path or URL that the user chose, or None for the published file
    url: str  # of the published file
    prefix: str | None = None  # first hex digits of its SHA-256, as its publisher tells them

    @property
    def source(self) -> str:
        return self.url if self.given is None else self.given

    @cached_property
    def path(self) -> Path:
        """The file, which is downloaded into the cache where it is not there. Raises as `fetch`."""
        expected = self.prefix if self.source == self.url else None
        return fetch(self.source, sha256=expected)

    @cached_property
    def sha256(self) -> str:
        return file_sha256(self.path)

    def read(self) -> dict[str, Tensor]:
        """The tensors by name, on the CPU; nothing that the file holds is run. Raises GuidexError
        where it is damaged, or no plain table of tensors."""
        path = self.path
        try:
            if path.suffix == ".safetensors":
                tensors = safetensors.torch.load_file(path)
            else:
                tensors = torch.load(path, map_location="cpu", weights_only=True)
            if not all(isinstance(value, Tensor) for value in tensors.values()):
                raise TypeError
            return tensors
        # torch.load answers damaged and hostile files with exceptions of more than five types.
        # They are not quoted: some are a number, others advise to load the file unsafely.
        except Exception as error:
            raise GuidexError(
                f"{path}: not readable weights of {self.what}: neither a safetensors file nor a "
                "file of torch.save that holds a table of tensors alone, or damaged. Nothing in "
                f"the file was run; get it anew from {self.url}."
            ) from error

    def mismatch(self, reason: object) -> GuidexError:
        """The complaint that these are the weights of another network."""
        return GuidexError(
            f"{self.source} holds no weights of {self.what} ({' '.join(str(reason).split()):.300})."
            f" The published file is {self.url}"
        )
