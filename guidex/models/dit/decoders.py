"""VAEs with the conventions of DiT, SiT, REPA, LightningDiT and REPA-E."""

from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from guidex.errors import GuidexError, UsageError
from guidex.files.cache import fetch
from guidex.files.pickles import read_weights
from guidex.models.decoders import VAE

SD_VAE_EMA = "stabilityai/sd-vae-ft-ema"


class LatentVAE(VAE):
    """Latents that were scaled, or standardised channel by channel, and pixels in [-1, 1].

    Arguments:
        path, dtype, batch, compile: see VAE.
        factor: by which latents were multiplied, 0.18215 for Stable Diffusion's.
        statistics: path or URL of a file of torch.save with their mean and standard deviation, in
            place of a factor: `mean` and `std` (VA-VAE's latents_stats.pt), `latents_bias` and
            `latents_scale` (1 / std), or `bn.running_mean` and `bn.running_var` (a checkpoint of
            REPA-E). None: there is only the factor.
        middle: grey level of 0 before truncation: 128 in DiT, SiT and LightningDiT, 127.5 in REPA
            and REPA-E, whose images are half a level darker.

    Raises:
        UsageError, GuidexError: see VAE; statistics that are not to be had, not of these names, or
            not of so many channels.
    """

    def __init__(
        self,
        path: str = SD_VAE_EMA,
        dtype: Literal["float32", "float16"] = "float32",
        batch: int = 8,
        compile: bool = False,
        factor: float = 1.0,
        statistics: str | None = None,
        middle: float = 128.0,
    ) -> None:
        super().__init__(path, dtype, batch, compile)
        self.middle = middle
        mean, std = torch.zeros(1), torch.full([1], 1 / factor)
        if statistics is not None:
            mean, std = _statistics(fetch(statistics))
            if len(mean) != self.vae.config.latent_channels or len(std) != len(mean):
                raise UsageError(
                    f"{statistics}: statistics of {len(mean)} channels, but the VAE at {path} has "
                    f"{self.vae.config.latent_channels}"
                )
        self.register_buffer("mean", mean.view(-1, 1, 1))
        self.register_buffer("std", std.view(-1, 1, 1))

    def raw(self, x: Tensor) -> Tensor:
        return x.float() * self.std + self.mean

    def to_bytes(self, values: Tensor) -> Tensor:
        return (values * 127.5 + self.middle).clamp(0, 255).to(torch.uint8)


def _statistics(path: Path) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of channels, float32 [C]."""
    found = {name: tensor.float().flatten() for name, tensor in read_weights(path).items()}
    match found:
        case {"mean": mean, "std": std}:
            return mean, std
        case {"latents_bias": mean, "latents_scale": scale}:
            return mean, 1 / scale
        case {"bn.running_mean": mean, "bn.running_var": variance}:
            return mean, variance.sqrt()
    raise GuidexError(
        f"{path}: no statistics of latents: neither mean and std, nor latents_bias and "
        "latents_scale, nor bn.running_mean and bn.running_var"
    )
