"""DINOv2 (Oquab et al. 2023, arXiv 2304.07193), the network of FD_DINOv2 (Stein et al. 2023, arXiv
2306.04675): the normalised class token of a ViT with patches of 14 x 14, for images of 224 x 224.

The network is timm's, but its position embeddings are brought from 37 x 37 to 16 x 16 patches as
the authors' own code on torch.hub does it, which published numbers were computed with. timm does it
in another way, and its features differ.

Two ways of resizing images are in use, and their numbers do not compare: "torch" (EDM2: bicubic
with antialiasing on floating-point pixels) and "pil" (dgm-eval: Pillow's bicubic on 8-bit pixels).
"""

from functools import partial
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from guidex.features.networks import NetworkDetector, Precision, TimmNetwork, pil_resized, timm_vit
from guidex.features.weights import Weights

SIDE = 224
GRID = SIDE // 14

# What torch.hub's code adds to the number of patches before it divides by that of the weights.
_OFFSET = 0.1

# timm's word for the size of a network, and its number of features D.
SIZES = {"s": ("small", 384), "b": ("base", 768), "l": ("large", 1024), "g": ("giant", 1536)}

_RESIZES = {
    "torch": "bicubic with antialiasing to 224 (torch)",
    "pil": "bicubic on 8 bits to 224 (Pillow)",
}


def dinov2(
    weights: str | None = None,
    size: Literal["s", "b", "l", "g"] = "l",
    resize: Literal["torch", "pil"] = "torch",
    precision: Precision = "float32",
    compile: bool = False,
) -> NetworkDetector:
    """The detector; its name is dinov2, with _s, _b or _g for other sizes than L (published
    FD_DINOv2 are of L), and with _pil. `weights` is a path or URL of a file like the published one,
    or None for that one (85 MB for S, 1.2 GB for L, 4.5 GB for g)."""
    word, dim = SIZES[size]
    model = f"dinov2_vit{size}14"
    url = f"https://dl.fbaipublicfiles.com/dinov2/{model}/{model}_pretrain.pth"
    name = "dinov2" + ("" if size == "l" else f"_{size}") + ("" if resize == "torch" else "_pil")
    return NetworkDetector(
        name=name,
        dim=dim,
        resize=_RESIZES[resize],
        package="timm",
        weights=Weights(f"DINOv2 ViT-{size}/14", weights, url),
        build=partial(DINOv2, f"vit_{word}_patch14_dinov2"),
        prepare=partial(pil_resized, side=SIDE) if resize == "pil" else None,
        precision=precision,
        compile=compile,
    )


class DINOv2(TimmNetwork):
    """timm's network of a name with weights by torch.hub's names. Raises as `TimmNetwork`."""

    def __init__(self, model: str, weights: Weights) -> None:
        vit = timm_vit(model, img_size=SIDE, num_classes=0)
        tensors = {
            name.replace(".mlp.w12.", ".mlp.fc1.").replace(".mlp.w3.", ".mlp.fc2."): value
            for name, value in weights.read().items()
            if name != "mask_token"  # for training only
        }
        embedding = tensors.get("pos_embed", torch.empty(1, 0, 0))
        patches = embedding.shape[1] - 1
        if patches < 1 or round(patches**0.5) ** 2 != patches:
            raise weights.mismatch(f"its position embedding is {list(embedding.shape)}, no square")
        tensors["pos_embed"] = _interpolated(embedding)
        super().__init__(vit, weights, tensors)

    def forward(self, images: Tensor) -> Tensor:
        """Class tokens [B, D], float32, of images uint8 [B, 3, H, W] of any size."""
        x = images.float()
        if images.shape[2:] != (SIDE, SIDE):
            x = F.interpolate(x, (SIDE, SIDE), mode="bicubic", antialias=True)
        return super().forward(x)


def _interpolated(embedding: Tensor) -> Tensor:
    """Position embeddings [1, 1 + n^2, D] for n x n patches to [1, 1 + 16^2, D].

    As torch.hub's `interpolate_pos_encoding`: bicubic, not antialiased, by a scale factor that is
    0.1 patches too large. The sampling points depend on that factor, and not only on the size.
    """
    first, patches = embedding[:, :1].float(), embedding[:, 1:].float()
    side = round(patches.shape[1] ** 0.5)
    if side == GRID:
        return embedding.float()
    factor = (GRID + _OFFSET) / side
    grid = patches.unflatten(1, (side, side)).permute(0, 3, 1, 2)
    grid = F.interpolate(grid, scale_factor=(factor, factor), mode="bicubic", antialias=False)
    return torch.cat([first, grid.permute(0, 2, 3, 1).flatten(1, 2)], dim=1)
