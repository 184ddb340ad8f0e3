"""The inference form of an EDM2 network: the same function with everything constant worked out.

Into the weights of plain layers go the normalisation and the gains of `MPConv`, `out_gain`, and the
order of q, k and v; the modulations of all blocks become one linear layer with a bias.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from guidex.models.edm2.layers import MPConv, learned_gain
from guidex.models.edm2.network import EDM2, UNet

LANES = 8  # tensor cores take the channels of half precision by eights; zeros fill them up


def fold(model: EDM2) -> EDM2:
    """Turn a network into its inference form, in place, on the device of its weights: the same
    Denoiser up to rounding, whose `unet` no longer takes the weights of a checkpoint."""
    unet = model.unet
    unet.modulation = _modulation(unet)
    for block in unet.blocks():
        block.emb_gain = block.emb_linear = None
    first = next(iter(unet.enc.values()))
    for name, layer in list(unet.named_modules()):
        if not isinstance(layer, MPConv):
            continue
        weight = layer.effective_weight()
        if layer is first:
            missing = -weight.shape[1] % LANES
            weight = F.pad(weight, (0, 0, 0, 0, 0, missing))
            unet.constants += missing
        if layer is unet.out_conv:
            weight = weight * learned_gain(unet.out_gain, layer)
            weight = F.pad(weight, (0, 0, 0, 0, 0, 0, 0, -weight.shape[0] % LANES))
        unet.set_submodule(name, _plain(weight, model.dtype))
    unet.out_gain = None
    return model


def _modulation(unet: UNet) -> nn.Linear:
    """One layer for 1 + gain * emb_linear(emb) of all blocks, in the order of unet.blocks()."""
    weights = [
        block.emb_linear.effective_weight() * learned_gain(block.emb_gain, block.emb_linear)
        for block in unet.blocks()
    ]
    layer = _plain(torch.cat(weights), torch.float32)
    layer.bias = nn.Parameter(layer.weight.new_ones(layer.out_features), requires_grad=False)
    return layer


def _plain(weight: Tensor, dtype: torch.dtype) -> nn.Conv2d | nn.Linear:
    """The plain layer with this weight: linear in float32, convolution in `dtype`."""
    out_channels, in_channels, *window = weight.shape
    options = {"bias": False, "device": "meta"}
    if window:
        layer = nn.Conv2d(in_channels, out_channels, window, padding=window[0] // 2, **options)
        weight = weight.to(dtype, memory_format=torch.channels_last)
    else:
        layer = nn.Linear(in_channels, out_channels, **options)
    layer.weight = nn.Parameter(weight, requires_grad=False)
    return layer
