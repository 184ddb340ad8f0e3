"""The inference form of an EDM2 network: the same function with everything constant worked out.

What is folded, once, when the network is loaded:

- weight normalisation, 1/sqrt(fan_in) and the gains of `MPConv` (which hold mp_silu's 1/0.596, the
  shares of mp_sum and sqrt(classes) of the one-hot labels) into the weights of plain layers;
- `out_gain` into the weights of the last convolution;
- the order of q, k and v into the weights of their convolution, so that each is one slice;
- the `emb_gain`, `emb_linear` and "+ 1" of all blocks into one linear layer with a bias.

The weights are channels-last in the network's dtype; the embedding stays in float32. The few
channels of a sample, in and out, are filled up to eight with weights of zero. What remains between
the convolutions is elementwise, and its factors cost nothing once a compiler fuses it.
"""

import copy
from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from guidex.models.attention import Parts
from guidex.models.edm2.layers import MPConv, learned_gain
from guidex.models.edm2.network import EDM2, UNet

# Tensor cores take the channels of half precision by eights.
LANES = 8


class FoldedUNet(nn.Module):
    """A U-Net of plain layers; one linear layer makes the modulations of all its blocks."""

    def __init__(self, unet: UNet, modulation: nn.Linear) -> None:
        super().__init__()
        self.unet = unet
        self.modulation = modulation
        self.widths = [block.out_channels for block in unet.blocks()]

    def forward(
        self, x: Tensor, c_noise: Tensor, classes: Tensor, parts: Mapping[str, Parts] | None = None
    ) -> Tensor:
        """x [B, C, H, W], c_noise [B], classes [B, label_dim] -> [B, C, H, W], as UNet.forward."""
        emb = self.unet.embed(c_noise, classes)
        modulations = self.modulation(emb).to(x.dtype).split(self.widths, dim=1)
        channels = x.shape[1]
        x = x.contiguous(memory_format=torch.channels_last)
        return self.unet.trunk(x, modulations, parts)[:, :channels].contiguous()


def fold(model: EDM2) -> EDM2:
    """Make the inference form of a network, on the device of its weights; `model` is left as it is.

    It is the same Denoiser, equal up to the rounding of its dtype, but its `unet` cannot load or
    save the weights of a checkpoint, and later changes of `model` do not reach it.
    """
    with torch.device("meta"):
        folded = EDM2(model.config, model.dtype)
    folded.origin = model.origin
    folded.logvar_fourier = copy.deepcopy(model.logvar_fourier)
    folded.logvar_linear = copy.deepcopy(model.logvar_linear)
    unet = folded.unet
    unet.emb_fourier = copy.deepcopy(model.unet.emb_fourier)
    for name, layer in model.unet.named_modules():
        if isinstance(layer, MPConv):
            unet.set_submodule(name, _plain(layer.effective_weight(), model.dtype))
    _fill_lanes(unet, model)
    unet.out_gain = None
    for block in unet.blocks():
        block.emb_gain = block.emb_linear = None
    folded.unet = FoldedUNet(unet, _modulation(model.unet))
    return folded


def _fill_lanes(unet: UNet, model: EDM2) -> None:
    """Make the first and the last convolution, with `out_gain`, of multiples of LANES channels."""
    name, first = next(iter(model.unet.enc.items()))
    weight = first.effective_weight()
    missing = -weight.shape[1] % LANES
    unet.constants = 1 + missing
    unet.enc[name] = _plain(F.pad(weight, (0, 0, 0, 0, 0, missing)), model.dtype)
    weight = model.unet.out_conv.effective_weight()
    weight = weight * learned_gain(model.unet.out_gain, model.unet.out_conv)
    missing = -weight.shape[0] % LANES
    unet.out_conv = _plain(F.pad(weight, (0, 0, 0, 0, 0, 0, 0, missing)), model.dtype)


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
    if not window:
        layer = nn.Linear(in_channels, out_channels, bias=False, device="meta")
    else:
        kernel, padding = window[0], window[0] // 2
        layer = nn.Conv2d(
            in_channels, out_channels, kernel, padding=padding, bias=False, device="meta"
        )
        weight = weight.to(dtype, memory_format=torch.channels_last)
    layer.weight = nn.Parameter(weight, requires_grad=False)
    return layer
