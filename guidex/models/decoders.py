"""Decoders: from what a model samples to the images that people and metrics look at."""

import re
from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any, Literal, Self

import torch
from torch import Tensor, nn

from guidex.data.codec import to_uint8
from guidex.errors import GuidexError, UsageError
from guidex.models.memory import Halving
from guidex.models.pretrained import library, local_first, read_part

SD_VAE = "stabilityai/sd-vae-ft-mse"  # the one that EDM2's latents are of


class Decoder(nn.Module, ABC):
    """The interface; `space` is what it takes, as `Denoiser.space` says what a sample is."""

    space: Literal["pixels", "latents"]

    @abstractmethod
    def image_shape(self, shape: tuple[int, ...]) -> tuple[int, int, int]:
        """Shape [C, H, W] of the image, C = 1 or 3, of a sample of this shape; a UsageError where
        it does not decode such samples."""

    @abstractmethod
    def forward(self, x: Tensor) -> Tensor:
        """Decode: samples [B, *shape], float32 or float64, to images uint8 [B, C, H, W]."""


class Pixels(Decoder):
    """For models of pixels in [-1, 1], which are images already: x * 127.5 + 128, clipped."""

    space = "pixels"

    def image_shape(self, shape: tuple[int, ...]) -> tuple[int, int, int]:
        if len(shape) != 3 or shape[0] not in (1, 3):
            raise UsageError(
                f"decoder=pixels shows samples [1 or 3, H, W], but these are {list(shape)}; "
                "decoder=sd_vae decodes latents"
            )
        return shape

    def forward(self, x: Tensor) -> Tensor:
        return to_uint8(x)


class VAE(Decoder):
    """The decoder of an AutoencoderKL of diffusers, for latents as the VAE's own configuration
    scales and shifts them, and pixels in [-1, 1]; subclasses have other conventions.

    Arguments:
        path: folder with the VAE as diffusers saves it, or its name on huggingface.co; also that of
            a pipeline, in whose part vae it is.
        dtype: of the VAE. Published numbers are of float32; float16 is faster, and can overflow.
        batch: latents that are decoded at once, 1 or more; halved when memory is too small. 1 is
            what diffusers calls slicing.
        compile: use torch.compile, which takes its time once: smaller batches are filled up.
        variant: of the file, such as fp16, where there are several.
        tiling: decode large images in overlapping tiles, which takes less memory and may be seen.
        offload: let the VAE wait in the CPU's memory between batches.

    Raises:
        UsageError, GuidexError: no diffusers, or no such VAE at the path.
    """

    space = "latents"

    def __init__(
        self,
        path: str = SD_VAE,
        dtype: Literal["float32", "float16"] = "float32",
        batch: int = 8,
        compile: bool = False,
        variant: str | None = None,
        tiling: bool = False,
        offload: bool = False,
    ) -> None:
        super().__init__()
        if batch < 1:
            raise UsageError(f"batch is {batch}; it must be at least 1")
        self.dtype = getattr(torch, dtype)
        self.batch = Halving(batch)
        self.compiled, self.offload = compile, offload
        vae = _read_vae(path, self.dtype, variant).eval().requires_grad_(False)
        self.vae = vae.to(memory_format=torch.channels_last)
        if tiling:
            vae.enable_tiling()
        if compile:
            vae.decoder.compile(dynamic=False)

    def raw(self, x: Tensor) -> Tensor:
        """Samples [B, C, H, W] to the VAE's latents, the same shape, float32."""
        config = self.vae.config
        return x.float() / config.scaling_factor + (config.get("shift_factor") or 0.0)

    def to_bytes(self, values: Tensor) -> Tensor:
        """What the VAE decodes, float32 [B, C, H, W], to uint8."""
        return to_uint8(values)

    def image_shape(self, shape: tuple[int, ...]) -> tuple[int, int, int]:
        channels = self.vae.config.latent_channels
        if len(shape) != 3 or shape[0] != channels:
            raise UsageError(
                f"this VAE decodes latents [{channels}, H, W], but these samples are "
                f"{list(shape)}; for pixels, use decoder=pixels"
            )
        factor = 2 ** (len(self.vae.config.block_out_channels) - 1)
        return self.vae.config.out_channels, factor * shape[1], factor * shape[2]

    @torch.no_grad()
    def forward(self, x: Tensor) -> Tensor:
        self.vae.to(x.device)
        latents = self.raw(x)
        parts = self.batch.fit(lambda size: [self._decode(x, size) for x in latents.split(size)])
        if self.offload:
            self.vae.to("cpu")
        # Asked once: every answer is waited for until the device has done all that it was given.
        if not torch.stack([finite for _, finite in parts]).all():
            raise GuidexError(
                "the VAE made values that are infinite or not a number"
                + ("; use decoder.dtype=float32" if self.dtype == torch.float16 else "")
            )
        return torch.cat([images for images, _ in parts])

    def _decode(self, latents: Tensor, size: int) -> tuple[Tensor, Tensor]:
        """Images, uint8, of at most `size` latents, and whether their values were finite."""
        count = len(latents)
        if self.compiled and count < size:
            latents = torch.cat([latents, latents[-1:].expand(size - count, -1, -1, -1)])
        values = self.vae.decode(latents.to(self.dtype)).sample[:count].float()
        return self.to_bytes(values), values.isfinite().all()

    def _apply(self, *args: Any, **options: Any) -> Self:  # what .to() calls
        super()._apply(*args, **options)
        if self.offload:
            self.vae.to("cpu")
        return self


class StabilityVAE(VAE):
    """The decoder of Stable Diffusion's VAE, with EDM2's conventions for latents and pixels.

    Its latents are standardised, channel by channel, to mean 0 and standard deviation 0.5. Its VAE
    sees pixels in [0, 1], where nearly all others use [-1, 1], so what comes out is clipped to
    [0, 1], multiplied by 255 and truncated (Karras et al. 2024, arXiv 2312.02696).
    """

    RAW_MEAN = (5.81, 3.25, 0.12, -2.15)
    RAW_STD = (4.17, 4.62, 3.71, 3.28)
    FINAL_STD = 0.5

    def __init__(
        self,
        path: str = SD_VAE,
        dtype: Literal["float32", "float16"] = "float32",
        batch: int = 8,
        compile: bool = False,
    ) -> None:
        super().__init__(path, dtype, batch, compile)
        scale = self.FINAL_STD / torch.tensor(self.RAW_STD)
        self.register_buffer("scale", scale.view(-1, 1, 1))
        self.register_buffer("bias", (-torch.tensor(self.RAW_MEAN) * scale).view(-1, 1, 1))

    def raw(self, x: Tensor) -> Tensor:
        return (x.float() - self.bias) / self.scale

    def to_bytes(self, values: Tensor) -> Tensor:
        return (values.clamp(0, 1) * 255).to(torch.uint8)


def _read_vae(path: str, dtype: torch.dtype, variant: str | None) -> Any:
    """A diffusers AutoencoderKL from a folder, the cache of Hugging Face, or its site."""
    library("diffusers", "latents")
    folder = Path(path).expanduser()
    folder = folder / "vae" if (folder / "vae").is_dir() else folder
    options = {"name": "AutoencoderKL", "variant": variant, "dtype": dtype}

    def read(local_only: bool) -> Any:
        if folder.is_dir():
            return read_part(place=folder, **options)
        try:
            return read_part(place=path, local_files_only=local_only, **options)
        except OSError:  # a pipeline
            return read_part(place=path, local_files_only=local_only, subfolder="vae", **options)

    published = path if re.fullmatch(r"[\w.-]+/[\w.-]+", path) else SD_VAE
    chosen = "decoder=sd_vae " if published == SD_VAE else ""
    advice = (
        "Download config.json and diffusion_pytorch_model.safetensors from "
        f"https://huggingface.co/{published}/tree/main on a machine that can, put both into one "
        f"folder, and give {chosen}decoder.path=FOLDER"
    )
    return local_first(read, path, advice)
