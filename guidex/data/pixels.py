"""Between pixels and numbers: uint8 images and samples in [-1, 1]."""

import torch
from torch import Tensor


def to_uint8(x: Tensor) -> Tensor:
    """Samples, nominally in [-1, 1], to uint8 pixels of the same shape: x * 127.5 + 128, clipped,
    truncated.

    That is rounding to the nearest pixel value, in the form that EDM and EDM2 published their
    images with.
    """
    return (x.float() * 127.5 + 128).clip(0, 255).to(torch.uint8)


def to_float(pixels: Tensor, dtype: torch.dtype = torch.float64) -> Tensor:
    """Pixels, uint8, to numbers in [-1, 1] of the same shape: u / 127.5 - 1."""
    return pixels.to(dtype) / 127.5 - 1
