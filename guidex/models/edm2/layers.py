"""The magnitude-preserving layers of EDM2: unit-variance inputs give unit-variance outputs.

Karras et al. 2024, "Analyzing and Improving the Training Dynamics of Diffusion Models"
(arXiv 2312.02696), section 2 and appendix B, configuration G, for inference.
"""

from collections.abc import Callable
from math import hypot, sqrt

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from guidex.models.attention import Parts, attention

SILU_MAGNITUDE = 0.596
"""Root mean square of silu(n) for n ~ N(0, 1): mp_silu(x) = silu(x) / 0.596."""

EPSILON = 1e-4


def normalize(x: Tensor, dim: int | tuple[int, ...]) -> Tensor:
    """Scale x to unit root mean square over `dim`; measured in float32, whatever the dtype of x."""
    norm = torch.linalg.vector_norm(x, dim=dim, keepdim=True, dtype=torch.float32)
    rms = norm * sqrt(norm.numel() / x.numel())
    return x / (EPSILON + rms).to(x.dtype)


def mp_sum_weights(balance: float) -> tuple[float, float]:
    """(u, v) of the magnitude-preserving sum u a + v b, in the proportion 1 - balance : balance."""
    length = hypot(1 - balance, balance)
    return (1 - balance) / length, balance / length


def mp_cat(a: Tensor, b: Tensor, balance: float) -> Tensor:
    """Concatenate channels; a and b contribute 1 - balance : balance, whatever their widths."""
    u, v = mp_sum_weights(balance)
    total = a.shape[1] + b.shape[1]
    return torch.cat(
        [a * (u * sqrt(total / a.shape[1])), b * (v * sqrt(total / b.shape[1]))], dim=1
    )


def halve(x: Tensor) -> Tensor:
    """Halve the resolution by the box filter [1, 1]: the mean of 2x2 pixels."""
    return F.avg_pool2d(x, 2)


def double(x: Tensor) -> Tensor:
    """Double the resolution by the box filter [1, 1]: every pixel four times."""
    return F.interpolate(x, scale_factor=2, mode="nearest")


class MPConv(nn.Module):
    """Convolution ("same" zero padding) or linear map whose weight is normalised at every call.

    Arguments:
        kernel: width of the square kernel; None for a linear map of [B, in_channels] tensors.
        gain: constant factor of the output. The network puts the constants of its neighbours here.
        interleave: the outputs belong to this many parts, stored as channel 0 of each part, then
            channel 1 of each part, ...; they are returned part after part.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel: int | None,
        gain: float = 1.0,
        interleave: int = 1,
    ) -> None:
        super().__init__()
        window = () if kernel is None else (kernel, kernel)
        weight = torch.randn(out_channels, in_channels, *window)
        self.weight = nn.Parameter(weight, requires_grad=False)
        self.gain = gain
        self.interleave = interleave

    def effective_weight(self) -> Tensor:
        """The weight of the plain layer that computes the same function, float32."""
        weight = self.weight.float()
        fan_in = weight[0].numel()
        weight = normalize(weight, tuple(range(1, weight.ndim))) * (self.gain / sqrt(fan_in))
        return weight.unflatten(0, (-1, self.interleave)).transpose(0, 1).flatten(0, 1)

    def forward(self, x: Tensor) -> Tensor:
        """[B, in_channels(, H, W)] -> [B, out_channels(, H, W)], in the dtype of x."""
        weight = self.effective_weight().to(x.dtype)
        if weight.ndim == 2:
            return F.linear(x, weight)
        return F.conv2d(x, weight, padding=weight.shape[-1] // 2)


def learned_gain(gain: Tensor, layer: MPConv) -> Tensor:
    """The factor, float32 scalar, that a stored gain puts on the output of its layer.

    The released networks compute gain / sqrt(fan_in) in the dtype in which the gain is stored. For
    their float16 snapshots that moves the factor by up to 5e-4, so it is done here as well.
    """
    root = sqrt(layer.weight[0].numel())
    return (gain / root).float() * root


class Fourier(nn.Module):
    """Random features sqrt(2) cos(2 pi (f x + phi)); `freqs` and `phases` include the 2 pi."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        freqs, phases = torch.randn(channels), torch.rand(channels)
        if not freqs.is_meta:  # where recipes are made, and arithmetic would import a compiler
            freqs, phases = 2 * torch.pi * freqs, 2 * torch.pi * phases
        self.register_buffer("freqs", freqs)
        self.register_buffer("phases", phases)

    def forward(self, x: Tensor) -> Tensor:
        """[B] -> [B, channels], float32."""
        angle = torch.outer(x.float(), self.freqs.float()) + self.phases.float()
        return sqrt(2) * torch.cos(angle)


class Block(nn.Module):
    """Encoder or decoder block: a residual branch, steered by the embedding, then self-attention.

    The constants of the paper's mp_silu and mp_sum are linear factors, so they are part of the gain
    of the convolution beside them: 1/0.596 of the one after mp_silu, a branch's share of mp_sum of
    the last one of the branch.

    Arguments:
        emb_channels: width of the embedding.
        encoder: whether the input is normalised (pixel norm), as in the encoder.
        heads: attention heads; 0 for a block without self-attention.
        res_balance, attn_balance: share, 0 to 1, of the residual branch and of the attention.
        clip_act: bound on the magnitude of the output.
        resample: acts on the input before all else.
        joins_skip: whether the U-Net concatenates a skip connection to the input.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        emb_channels: int,
        *,
        encoder: bool,
        heads: int,
        res_balance: float,
        attn_balance: float,
        clip_act: float,
        resample: Callable[[Tensor], Tensor] | None = None,
        joins_skip: bool = False,
    ) -> None:
        super().__init__()
        self.out_channels = out_channels
        self.encoder = encoder
        self.heads = heads
        self.clip_act = clip_act
        self.resample = resample
        self.joins_skip = joins_skip
        self.res_weight, res_share = mp_sum_weights(res_balance)
        self.attn_weight, attn_share = mp_sum_weights(attn_balance)

        self.emb_gain = nn.Parameter(torch.zeros([]), requires_grad=False)
        width = out_channels if encoder else in_channels
        self.conv_res0 = MPConv(width, out_channels, 3, gain=1 / SILU_MAGNITUDE)
        self.emb_linear = MPConv(emb_channels, out_channels, None, gain=1 / SILU_MAGNITUDE)
        self.conv_res1 = MPConv(out_channels, out_channels, 3, gain=res_share / SILU_MAGNITUDE)
        self.conv_skip = None
        if in_channels != out_channels:
            self.conv_skip = MPConv(in_channels, out_channels, 1)
        if self.heads > 0:
            self.attn_qkv = MPConv(out_channels, 3 * out_channels, 1, interleave=3)
            self.attn_proj = MPConv(out_channels, out_channels, 1, gain=attn_share)

    def modulation(self, emb: Tensor) -> Tensor:
        """[B, E] embedding -> [B, out_channels] factors of the residual branch."""
        return 1 + learned_gain(self.emb_gain, self.emb_linear) * self.emb_linear(emb)

    def forward(self, x: Tensor, modulation: Tensor, parts: Parts | None = None) -> Tensor:
        """x [B, in_channels, H, W], modulation [B, out_channels] -> [B, out_channels, H', W'].

        parts: see `guidex.models.attention.attention`.
        """
        if self.resample is not None:
            x = self.resample(x)
        skip = x if self.conv_skip is None else self.conv_skip(x)
        if self.encoder:
            x = skip = normalize(skip, dim=1)
        y = self.conv_res0(F.silu(x)) * modulation[:, :, None, None]
        x = torch.add(self.conv_res1(F.silu(y)), skip, alpha=self.res_weight)
        if self.heads > 0:
            x = torch.add(self._attend(x, parts), x, alpha=self.attn_weight)
        return x.clamp(-self.clip_act, self.clip_act)

    def _attend(self, x: Tensor, parts: Parts | None) -> Tensor:
        """Cosine self-attention over the pixels of x [B, C, H, W]; q, k and v are normalised."""
        batch, channels, height, width = x.shape
        qkv = self.attn_qkv(x).permute(0, 2, 3, 1)
        qkv = qkv.reshape(batch, height * width, 3, self.heads, channels // self.heads)
        q, k, v = normalize(qkv, dim=-1).transpose(1, 3).unbind(2)
        y = attention(q, k, v, parts)
        y = y.transpose(1, 2).reshape(batch, height, width, channels)
        return self.attn_proj(y.permute(0, 3, 1, 2))
