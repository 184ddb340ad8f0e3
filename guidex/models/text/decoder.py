"""The VAEs of text-to-image pipelines as decoders."""

from typing import Literal

import torch
from torch import Tensor

from guidex.data.pixels import to_uint8
from guidex.models.decoders import VAE
from guidex.models.text.load import obtain


class PipelineVAE(VAE):
    """Latents as the VAE's own configuration scales and shifts them, and pixels in [-1, 1].

    Arguments:
        path: a pipeline (see `text_to_image`), or a folder of its VAE alone.
        dtype, batch, compile: see VAE; batch 1 is what diffusers calls slicing.
        variant: of the files.
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
        config, latents = self.vae.config, x.float()
        mean, std = config.get("latents_mean"), config.get("latents_std")
        if mean is not None and std is not None:
            columns = [latents.new_tensor(each).view(-1, 1, 1) for each in (mean, std)]
            return latents * columns[1] / config.scaling_factor + columns[0]
        return latents / config.scaling_factor + (config.get("shift_factor") or 0.0)

    def to_bytes(self, values: Tensor) -> Tensor:
        return to_uint8(values)

    @torch.no_grad()
    def forward(self, x: Tensor) -> Tensor:
        if not self.offload:
            return super().forward(x)
        self.vae.to(x.device)
        try:
            return super().forward(x)
        finally:
            self.vae.to("cpu")

    def _apply(self, *args: object, **options: object) -> "PipelineVAE":
        return self if self.offload else super()._apply(*args, **options)  # what .to() calls
