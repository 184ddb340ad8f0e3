"""Self-attention, and what perturbed-attention guidance does to it (Ahn et al. 2024, arXiv
2403.17377): an argument of a network's call, for some rows of the batch."""

import hashlib
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Literal, NamedTuple, get_args

import torch
import torch.nn.functional as F
from torch import Tensor

from guidex.config.presets import nearest
from guidex.errors import UsageError

Mode = Literal["identity", "mask", "off_diagonal", "noise"]

NO_LAYERS = "this model has no self-attention layers that could be perturbed; EDM2 models have some"


class Change(NamedTuple):
    """A perturbation worked out for one layer of N tokens; matrix [1, heads, N, N]: where to look
    (bool) for the two masks, what to add to the attention map (float32) for noise, else None."""

    mode: Mode
    matrix: Tensor | None


Parts = Sequence[Change | None]
"""How the equal parts of a batch attend, one after the other; None: as usual."""


@dataclass(frozen=True)
class Perturbation:
    """What happens to the attention maps A = softmax(q k^T / sqrt(d)) of some layers.

    - "identity": A becomes the identity, so that the output is the values. The published method.
    - "mask": every entry is left out with probability `ratio` before the softmax, so that rows
      still sum to 1. A row without entries looks at its diagonal.
    - "off_diagonal": the same, except for the diagonal, which stays; ratio 1 is the identity.
    - "noise": A + `std` * n with n ~ N(0, 1).

    The last three are the paper's ablations (table 9). Random numbers depend on `seed`, the layer
    and the noise level alone, and are the same for all images of a batch (the authors draw new ones
    for each), so that an image does not depend on its batch. They are drawn on the CPU, equal for
    all devices. `layers` are names, or patterns with * and ?.
    """

    layers: tuple[str, ...]
    mode: Mode = "identity"
    ratio: float = 0.25
    std: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        ranges = 0 <= self.ratio <= 1 and 0 <= self.std < float("inf")
        if self.mode not in get_args(Mode) or not ranges:
            raise UsageError(
                f"perturbed attention takes a mode of {', '.join(get_args(Mode))}, a ratio of "
                f"0 ... 1 and a std of 0 or more, not {self.mode}, {self.ratio} and {self.std}"
            )

    def chosen(self, known: Collection[str]) -> list[str]:
        """The perturbed ones of a network's layers; a UsageError where a name is none of them."""
        if not known:
            raise UsageError(NO_LAYERS)
        for name in self.layers:
            if not any(fnmatchcase(layer, name) for layer in known):
                raise UsageError(f"no self-attention layer is called {name}{nearest(name, known)}")
        return [layer for layer in known if any(fnmatchcase(layer, name) for name in self.layers)]

    def change(
        self, layer: str, heads: int, tokens: int, sigma: float, device: torch.device
    ) -> Change:
        """What it is at a layer for a noise level."""
        if self.mode == "identity":
            return Change(self.mode, None)
        digest = hashlib.sha256(f"{self.seed} {layer} {float(sigma)!r}".encode()).digest()
        # 32 bits are all that PyTorch's CPU generators look at.
        generator = torch.Generator().manual_seed(int.from_bytes(digest[:4], "big"))
        shape = (1, heads, tokens, tokens)
        if self.mode == "noise":
            matrix = self.std * torch.randn(shape, generator=generator)
        else:
            matrix = torch.rand(shape, generator=generator) >= self.ratio
            empty = ~matrix.any(dim=-1)
            kept = empty if self.mode == "mask" else torch.ones_like(empty)
            matrix.diagonal(dim1=-2, dim2=-1).logical_or_(kept)
        if device.type == "cuda":
            matrix = matrix.pin_memory()  # from where the copy is not waited for
        return Change(self.mode, matrix.to(device, non_blocking=True))


def attention(q: Tensor, k: Tensor, v: Tensor, parts: Parts | None = None) -> Tensor:
    """softmax(q k^T / sqrt(d)) v, each [B, heads, N, d], changed for some parts of the batch."""
    if parts is None:
        return F.scaled_dot_product_attention(q, k, v)
    chunks = zip(parts, *(whole.chunk(len(parts)) for whole in (q, k, v)), strict=True)
    return torch.cat([_attend(change, *chunk) for change, *chunk in chunks])


def _attend(change: Change | None, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    if change is not None and change.mode == "identity":
        return v
    if change is not None and change.mode == "noise":
        return F.scaled_dot_product_attention(q, k, v) + change.matrix.to(v.dtype) @ v
    mask = None if change is None else change.matrix
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
