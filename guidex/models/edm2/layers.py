"""The magnitude-preserving layers of EDM2: unit-variance inputs give unit-variance outputs.

Karras et al. 2024, "Analyzing and Improving the Training Dynamics of Diffusion Models"
(arXiv 2312.02696), section 2 and appendix B, configuration G, for inference.
"""

from math import hypot, sqrt

import torch
import torch.nn.functional as F
from torch import Tensor, nn

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
    u, v = u * sqrt(total / a.shape[1]), v * sqrt(total / b.shape[1])
    return torch.cat([a * u, b * v], dim=1)


class MPConv(nn.Module):
    """Convolution ("same" zero padding) or linear map whose weight is normalised at every call.

    Arguments:
        kernel: width of the square kernel; None for a linear map.
        gain: constant factor of the output. The network puts the constants of its neighbours here.
        interleave: outputs are of this many parts, stored by channel, but returned part by part.
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
