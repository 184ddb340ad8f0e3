"""Perturbed attention in networks of diffusers."""

from collections.abc import Callable, Collection, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch.nn.functional as F
from diffusers.models.attention_processor import Attention
from torch import nn
from torch.overrides import TorchFunctionMode

from guidex.errors import UsageError
from guidex.models.attention import Perturbation


@contextmanager
def replaced(module: nn.Module, forward: Callable[..., Any]) -> Iterator[None]:
    """Another forward for a module, for a while."""
    own = vars(module).get("forward")
    module.forward = forward
    try:
        yield
    finally:
        if own is None:
            del module.forward
        else:
            module.forward = own


def attention_layers(network: nn.Module, patterns: Collection[str]) -> dict[str, Attention]:
    """The self-attention layers of those names; a UsageError where a name is none of them."""
    if not patterns:
        return {}
    known = {
        name: module
        for name, module in network.named_modules()
        if isinstance(module, Attention)
        and not module.is_cross_attention
        and module.added_kv_proj_dim is None  # joint attention looks at the text, too
    }
    return {name: known[name] for name in Perturbation(tuple(patterns)).chosen(known)}


@contextmanager
def perturbed(network: nn.Module, patterns: Collection[str]) -> Iterator[None]:
    """Self-attention layers that look at nothing but their own place (the attention map is the
    identity; Ahn et al. 2024, arXiv 2403.17377); as they were afterwards, whatever happens."""
    with ExitStack() as stack:
        for name, layer in attention_layers(network, patterns).items():
            stack.enter_context(replaced(layer, _own_place(name, layer.forward)))
        yield


def _own_place(name: str, forward: Callable[..., Any]) -> Callable[..., Any]:
    def perturbed_forward(*args: Any, **kwargs: Any) -> Any:
        with _Values() as values:
            answer = forward(*args, **kwargs)
        if not values.returned:
            raise UsageError(
                f"the attention layer {name} does without scaled_dot_product_attention and cannot "
                "be perturbed: use unet.set_attn_processor(AttnProcessor2_0())"
            )
        return answer

    return perturbed_forward


class _Values(TorchFunctionMode):
    """The values in place of attention."""

    returned = False

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is F.scaled_dot_product_attention:
            self.returned = True
            return kwargs["value"] if "value" in kwargs else args[2]
        return func(*args, **kwargs)
