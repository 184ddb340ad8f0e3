"""Perturbed self-attention in diffusers' networks, by processors that are always put back."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from guidex.models.attention import Change, attention
from guidex.models.denoiser import View

# Of U-Nets the self-attention of their transformers, of SD3's blocks what image and text share.
_ENDS = (".attn1.processor", ".attn.processor")


def attention_layers(network: nn.Module) -> tuple[str, ...]:
    """Names of the self-attention layers, in the order of the network."""
    known = network.attn_processors
    found = [name for name, _ in network.named_modules() if f"{name}.processor" in known]
    return tuple(name for name in found if f".{name}.processor".endswith(_ENDS))


@contextmanager
def perturbed(network: nn.Module, layers: Sequence[str], views: Sequence[View]) -> Iterator[None]:
    """Perturb the self-attention in the parts of a batch, one after the other, that their views ask
    it for; what was there is put back, whatever happens."""
    chosen: dict[str, list[int]] = {}
    for number, view in enumerate(views):
        for layer in view.perturbation.chosen(layers) if view.perturbation is not None else ():
            chosen.setdefault(layer, []).append(number)
    before = {layer: network.get_submodule(layer).processor for layer in chosen}
    try:
        for layer, numbers in chosen.items():
            own = [view if number in numbers else None for number, view in enumerate(views)]
            network.get_submodule(layer).set_processor(Perturbed(layer, own))
        yield
    finally:
        for layer, processor in before.items():
            network.get_submodule(layer).set_processor(processor)


class Perturbed:
    """An attention processor of diffusers for one layer; of SD3's, the perturbation is that of
    image tokens among themselves, as in diffusers. `views`: of the parts that it perturbs."""

    def __init__(self, layer: str, views: Sequence[View | None]) -> None:
        self.layer, self.views = layer, views

    def __call__(
        self,
        attn: Any,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        **others: Any,
    ) -> Tensor | tuple[Tensor, Tensor]:
        """As the processors of diffusers: what is attended to [B, N, C], maybe with text
        [B, M, C']."""
        states, text = hidden_states, encoder_hidden_states
        count = 0 if text is None else text.shape[1]
        parts = [self._change(view, attn, states, count) for view in self.views]
        names = ("q", "k", "v")
        heads = [_heads(attn, states, f"to_{name}", f"norm_{name}") for name in names]
        if text is not None:
            added = [_heads(attn, text, f"add_{n}_proj", f"norm_added_{n}") for n in names]
            heads = [torch.cat(pair, dim=2) for pair in zip(heads, added, strict=True)]
        result = attention(*heads, parts).transpose(1, 2).flatten(2)
        own = attn.to_out[1](attn.to_out[0](result[:, : states.shape[1]]))
        if text is None:
            return own
        rest = result[:, states.shape[1] :]
        return own, rest if attn.context_pre_only else attn.to_add_out(rest)

    def _change(self, view: View | None, attn: Any, states: Tensor, text: int) -> Change | None:
        """What happens to the attention map of a part, with text tokens after the image's."""
        if view is None:
            return None
        tokens, device = states.shape[1], states.device
        change = view.perturbation.change(self.layer, attn.heads, tokens, view.sigma, device)
        if text == 0:
            return change
        matrix = change.matrix
        if matrix is None:
            matrix = torch.eye(tokens, dtype=torch.bool, device=device)[None, None]
        whole = torch.zeros if change.mode == "noise" else torch.ones
        size = (1, matrix.shape[1], tokens + text, tokens + text)
        joint = whole(size, dtype=matrix.dtype, device=device)
        joint[:, :, :tokens, :tokens] = matrix
        return Change("noise" if change.mode == "noise" else "mask", joint)


def _heads(attn: Any, states: Tensor, projection: str, norm: str) -> Tensor:
    """Queries, keys or values, [B, heads, N, d]."""
    projected = getattr(attn, projection)(states)
    heads = projected.unflatten(-1, (attn.heads, -1)).transpose(1, 2)
    normalise = getattr(attn, norm, None)
    return heads if normalise is None else normalise(heads)
