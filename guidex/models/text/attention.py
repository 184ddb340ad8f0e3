"""Perturbed self-attention in diffusers' networks: PyTorch's attention is replaced in the call of a
layer, so that all around it (projections, norms, texts beside the image) is the layer's own."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from guidex.errors import UsageError
from guidex.models.attention import Change, attention
from guidex.models.denoiser import View, by_layer


def attention_layers(network: nn.Module) -> tuple[str, ...]:
    """Names of the self-attention layers, in the order of the network: those of images alone, and
    SD3's, of image and text."""
    from diffusers.models.attention_processor import Attention, JointAttnProcessor2_0

    return tuple(
        name
        for name, layer in network.named_modules()
        if isinstance(layer, Attention)
        and not layer.is_cross_attention
        and (layer.added_kv_proj_dim is None or type(layer.processor) is JointAttnProcessor2_0)
    )


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


@contextmanager
def perturbed(network: nn.Module, layers: Sequence[str], views: Sequence[View]) -> Iterator[None]:
    """Perturb the self-attention in the parts of a batch, one after the other, that their views ask
    it for; afterwards, the network is as it was."""
    with ExitStack() as stack:
        for name, own in by_layer(views, layers).items():
            layer = network.get_submodule(name)
            forward = partial(_forward, layer.forward, name, own)
            stack.enter_context(replaced(layer, forward))
        yield


def _forward(
    forward: Callable[..., Any], name: str, views: Sequence[View | None], *args: Any, **kwargs: Any
) -> Any:
    """What a layer answers while it attends as the views ask it to."""
    text = kwargs.get("encoder_hidden_states")
    with _Attention(name, views, 0 if text is None else text.shape[1]) as perturbed_attention:
        answer = forward(*args, **kwargs)
    if not perturbed_attention.called:
        raise UsageError(
            f"the attention of {name} is not PyTorch's scaled_dot_product_attention and cannot be "
            "perturbed; use set_attn_processor(AttnProcessor2_0())"
        )
    return answer


class _Attention(TorchFunctionMode):
    """Attends in place of PyTorch's function, with text tokens after the image's."""

    def __init__(self, layer: str, views: Sequence[View | None], text: int) -> None:
        super().__init__()
        self.layer, self.views, self.text = layer, views, text
        self.called = False

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is not F.scaled_dot_product_attention:
            return func(*args, **(kwargs or {}))
        self.called = True
        return self._attend(*args, **(kwargs or {}))

    def _attend(
        self, query: Tensor, key: Tensor, value: Tensor, attn_mask: None = None, **_: Any
    ) -> Tensor:
        if attn_mask is not None:
            raise UsageError(f"the attention of {self.layer} is masked and cannot be perturbed")
        parts = [None if view is None else self._change(view, query) for view in self.views]
        return attention(query, key, value, parts)

    def _change(self, view: View, query: Tensor) -> Change:
        """What happens to the attention map of a part: of SD3's, as in diffusers, to that of image
        tokens among themselves."""
        _, heads, total, _ = query.shape
        tokens = total - self.text
        change = view.perturbation.change(self.layer, heads, tokens, view.sigma, query.device)
        if self.text == 0:
            return change
        matrix = change.matrix
        if matrix is None:
            matrix = torch.eye(tokens, dtype=torch.bool, device=query.device)[None, None]
        whole = torch.zeros if change.mode == "noise" else torch.ones
        joint = whole((1, matrix.shape[1], total, total), dtype=matrix.dtype, device=query.device)
        joint[:, :, :tokens, :tokens] = matrix
        return Change("noise" if change.mode == "noise" else "mask", joint)
