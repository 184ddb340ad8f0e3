"""Recipes of models: what is known of a network before its weights are there, enough for planning,
costs and checks. Models that are made at once (exact denoisers) are their own recipes."""

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import nn

from guidex.errors import GuidexError
from guidex.models.condition import Conditions
from guidex.models.denoiser import Denoiser, Space
from guidex.models.native_time import NativeUnit


class Source(NamedTuple):
    """A file that a network is made of: path or URL, the SHA-256 that it must have and
    the licence of its weights, if any."""

    place: str
    sha256: str | None = None
    licence: str | None = None


@dataclass(frozen=True, eq=False)
class ModelSpec:
    """A network's recipe: facts as of `Denoiser`. What only its file can tell is None, or NaN.

    Attributes:
        build: makes the network, on the CPU.
        sources: files that it is made of.
    """

    build: Callable[[], Denoiser]
    sources: tuple[Source, ...]
    shape: tuple[int, ...] | None = None
    conditions: Conditions | None = None
    sigma_min: float = 0.0
    sigma_max: float = math.inf
    gflops: float = math.nan
    space: Space | None = None
    attention_layers: tuple[str, ...] | None = None
    native_unit: NativeUnit | None = None
    learned_variance: bool | None = None
    _loaded: dict[str, Denoiser] = field(default_factory=dict)

    @classmethod
    def of(
        cls,
        model: Denoiser,
        build: Callable[[], Denoiser],
        sources: tuple[Source, ...],
        gflops: float | None = None,
    ) -> "ModelSpec":
        """The recipe of networks like this one, which may be without weights (device "meta"); its
        cost is counted where it is not given."""
        names = ("shape", "conditions", "sigma_min", "sigma_max", "space", "attention_layers")
        names += ("native_unit", "learned_variance")
        facts: dict[str, Any] = {name: getattr(model, name) for name in names}
        gflops = model.gflops if gflops is None else gflops
        return cls(build, sources, **facts, gflops=gflops)

    @property
    def num_classes(self) -> int | None:
        """See `Denoiser`."""
        return None if self.conditions is None else self.conditions.count

    def load(self, device: str | torch.device) -> Denoiser:
        """The network on a device, ready for inference; made once for each device. Raises
        UsageError, GuidexError: its files are not to be had, damaged, or of another network."""
        key = str(device)
        if key not in self._loaded:
            network = self.build()
            for name in ("shape", "num_classes"):
                wanted, found = getattr(self, name), getattr(network, name)
                if wanted not in (None, found):
                    raise GuidexError(
                        f"{self.sources[0].place} holds another network than its name says: "
                        f"{name} is {found}, not {wanted}"
                    )
            self._loaded[key] = network.to(device).eval().requires_grad_(False)
        return self._loaded[key]


Model = Denoiser | ModelSpec
"""A model, loaded or not."""


def load(model: Model, device: str | torch.device) -> Denoiser:
    """A model on a device, ready for inference; see `ModelSpec.load`."""
    if isinstance(model, ModelSpec):
        return model.load(device)
    return model.to(device).eval().requires_grad_(False)


def compile_network(model: Denoiser, network: nn.Module) -> None:
    """Use torch.compile for a model's network from now on, anew for each size of batch."""
    from torch._dynamo import config

    # Torch goes on without compiling beyond this number, towards which the sizes of batches of all
    # networks of a process count together: those of a table may be many.
    config.recompile_limit = 64
    network.compile(dynamic=False)
    model.compiled = True
