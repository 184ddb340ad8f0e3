"""The VAEs of text-to-image pipelines as decoders."""

from typing import Literal

import torch
from torch import Tensor

from guidex.data.codec import to_uint8
from guidex.models.decoders import VAE
from guidex.models.text.load import obtain


class PipelineVAE(VAE):
    """Latents as the VAE's own configuration scales and shifts them, and pixels in [-1, 1].

    Arguments:
        path: a pipeline (see `text_to_image`), or a folder of its VAE alone.
        dtype, batch, compile, variant: see VAE; batch 1 is what diffusers calls slicing.
        tiling: decode large images in overlapping tiles, which takes less memory and may be seen.
        offload: let the VAE wait in the CPU's memory between batches.
    """

    def __init__(
        self,
        path: str,
        dtype: Literal["float32", "float16"] = "float32",
        batch: int = 8,
        compile: bool = False,
        variant: str | None = None,
        tiling: bool = False,
        offload: bool = False,
    ) -> None:
        folder = obtain(path, variant)
        place = folder / "vae" if (folder / "vae").is_dir() else folder
        self.offload = offload
        super().__init__(str(place), dtype, batch, compile, variant)
        if tiling:
            self.vae.enable_tiling()

    def raw(self, x: Tensor) -> Tensor:
        config = self.vae.config
        return x.float() / config.scaling_factor + (config.get("shift_factor") or 0.0)

    def to_bytes(self, values: Tensor) -> Tensor:
        return to_uint8(values)

    @torch.no_grad()
    def forward(self, x: Tensor) -> Tensor:
        self.vae.to(x.device)
        try:
            return super().forward(x)
        finally:
            self.vae.to("cpu" if self.offload else x.device)

    def _apply(self, *args: object, **options: object) -> "PipelineVAE":
        return self if self.offload else super()._apply(*args, **options)  # what .to() calls
