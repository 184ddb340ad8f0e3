"""Perturbed attention in networks of diffusers (Ahn et al. 2024, arXiv 2403.17377)."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import torch.nn.functional as F
from diffusers.models.attention_processor import Attention
from torch import nn
from torch.overrides import TorchFunctionMode

from guidex.errors import UsageError
from guidex.models.attention import Perturbation


@contextmanager
def replaced(module: nn.Module, forward: Callable[..., Any]) -> Iterator[None]:
    """Another forward for a module; its own afterwards, whatever happens."""
    own = vars(module).get("forward")
    module.forward = forward
    try:
        yield
    finally:
        del module.forward
        if own is not None:
            module.forward = own


def attention_layers(network: nn.Module, names: Sequence[str]) -> dict[str, Attention]:
    """The self-attention layers of these names or patterns; a UsageError for one that is none."""
    known = {}
    for name, layer in network.named_modules():
        if isinstance(layer, Attention) and not layer.is_cross_attention:
            if layer.added_kv_proj_dim is None:  # joint attention looks at the text, too
                known[name] = layer
    return {name: known[name] for name in Perturbation(tuple(names)).chosen(known)}


@contextmanager
def perturbed(network: nn.Module, names: Sequence[str]) -> Iterator[None]:
    """Self-attention layers with the identity for their attention map: values are their output."""
    with ExitStack() as stack:
        for name, layer in attention_layers(network, names).items() if names else ():
            stack.enter_context(replaced(layer, partial(_values_alone, name, layer.forward)))
        yield


def _values_alone(name: str, forward: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    with _Values() as values:
        answer = forward(*args, **kwargs)
    if not values.returned:
        raise UsageError(
            f"the attention of {name} is not PyTorch's scaled_dot_product_attention and cannot be "
            "perturbed; use set_attn_processor(AttnProcessor2_0())"
        )
    return answer


class _Values(TorchFunctionMode):
    returned = False

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is not F.scaled_dot_product_attention:
            return func(*args, **kwargs)
        self.returned = True
        return kwargs["value"] if "value" in kwargs else args[2]
