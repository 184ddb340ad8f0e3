"""DINOv2 (Oquab et al. 2023, arXiv 2304.07193), the network of FD_DINOv2 (Stein et al. 2023, arXiv
2306.04675): the normalised class token of a ViT with patches of 14 x 14, for images of 224 x 224.

The network is timm's, but its position embeddings are brought from 37 x 37 to 16 x 16 patches as
the authors' own code on torch.hub does it, which published numbers were computed with. timm does it
in another way, and its features differ.

Two ways of resizing images are in use, and their numbers do not compare: "torch" (EDM2: bicubic
with antialiasing on floating-point pixels) and "pil" (dgm-eval: Pillow's bicubic on 8-bit pixels).
"""

from dataclasses import dataclass
from functools import partial
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from guidex.features.networks import NetworkDetector, Precision, resize_by_pillow
from guidex.features.weights import Weights, optional

SIDE = 224
PATCH = 14
GRID = SIDE // PATCH

# The mean and deviation of ImageNet's pixels, in 0 ... 1, per channel.
MEAN = (0.485, 0.456, 0.406)
STD = (0.229, 0.224, 0.225)

# What torch.hub's code adds to the number of patches before it divides by that of the weights.
_OFFSET = 0.1

_RESIZES = {
    "torch": "bicubic with antialiasing to 224 (torch)",
    "pil": "bicubic on 8 bits to 224 (Pillow)",
}


@dataclass(frozen=True)
class Architecture:
    """The size of a ViT.

    Attributes:
        width: D.
        depth: number of blocks.
        heads: of the attention.
        gated: whether its MLPs are SwiGLU.
    """

    width: int
    depth: int
    heads: int
    gated: bool = False


ARCHITECTURES = {
    "s": Architecture(384, 12, 6),
    "b": Architecture(768, 12, 12),
    "l": Architecture(1024, 24, 16),
    "g": Architecture(1536, 40, 24, gated=True),
}


def dinov2(
    weights: str | None = None,
    size: Literal["s", "b", "l", "g"] = "l",
    resize: Literal["torch", "pil"] = "torch",
    precision: Precision = "float32",
    compile: bool = False,
) -> NetworkDetector:
    """The detector; its name is dinov2, with _s, _b or _g for other sizes than L, and with _pil.

    Arguments:
        weights: path or URL of a file like the published one, or None for that one (85 MB for S,
            1.2 GB for L, 4.5 GB for g).
        size: of the network; published FD_DINOv2 are of L.
        resize: "torch" or "pil", see above.
        precision, compile: see `NetworkDetector`.
    """
    architecture = ARCHITECTURES[size]
    model = f"dinov2_vit{size}14"
    url = f"https://dl.fbaipublicfiles.com/dinov2/{model}/{model}_pretrain.pth"
    name = "dinov2" + ("" if size == "l" else f"_{size}") + ("" if resize == "torch" else "_pil")
    return NetworkDetector(
        name=name,
        dim=architecture.width,
        resize=_RESIZES[resize],
        package="timm",
        weights=Weights(f"DINOv2 ViT-{size}/14", weights, url),
        build=lambda file: DINOv2(file, architecture),
        prepare=partial(resize_by_pillow, side=SIDE) if resize == "pil" else None,
        precision=precision,
        compile=compile,
    )


class DINOv2(nn.Module):
    """timm's ViT with the weights of torch.hub's.

    Arguments:
        weights: by torch.hub's names, with position embeddings for any square grid.
        architecture: that the weights are of.

    Raises:
        UsageError: timm cannot be imported.
        GuidexError: the weights are those of another network.
    """

    def __init__(self, weights: Weights, architecture: Architecture) -> None:
        super().__init__()
        with torch.device("meta"):  # shapes only; drawing random weights for L takes seconds
            self.vit = _vit(architecture)
        weights.load_into(self.vit, _timm_names(weights.read(), weights, architecture))
        self.register_buffer("mean", torch.tensor(MEAN)[:, None, None], persistent=False)
        self.register_buffer("std", torch.tensor(STD)[:, None, None], persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        """Class tokens [B, D], float32, of images uint8 [B, 3, H, W] of any size."""
        x = images.float()
        if images.shape[2:] != (SIDE, SIDE):
            x = F.interpolate(x, (SIDE, SIDE), mode="bicubic", antialias=True)
        return self.vit((x / 255 - self.mean) / self.std).float()


def _vit(architecture: Architecture) -> nn.Module:
    """timm's network, whose own weights are of no use."""
    module = optional("timm.models.vision_transformer")
    layers = optional("timm.layers")
    # Of the packed SwiGLU, timm counts the hidden features of both halves: 8192 for g.
    gated = {
        "mlp_ratio": 2 * swiglu_width(architecture.width) / architecture.width,
        "mlp_layer": layers.SwiGLUPacked,
        "act_layer": nn.SiLU,
    }
    return module.VisionTransformer(
        img_size=SIDE,
        patch_size=PATCH,
        embed_dim=architecture.width,
        depth=architecture.depth,
        num_heads=architecture.heads,
        init_values=1.0,  # any, for the layer scales to be there
        num_classes=0,
        global_pool="token",
        **(gated if architecture.gated else {}),
    )


def swiglu_width(width: int) -> int:
    """Hidden features of torch.hub's SwiGLU: two thirds of 4 x width, rounded up to 8."""
    return (4 * width * 2 // 3 + 7) // 8 * 8


def _timm_names(
    tensors: dict[str, Tensor], weights: Weights, architecture: Architecture
) -> dict[str, Tensor]:
    """torch.hub's tensors under timm's names, for 16 x 16 patches."""
    embedding = tensors.get("pos_embed", torch.empty(0))
    patches = embedding.shape[1] - 1 if embedding.ndim == 3 else 0
    square = patches > 0 and round(patches**0.5) ** 2 == patches
    if not square or embedding.shape[::2] != (1, architecture.width):
        raise weights.mismatch(
            f"its position embedding is {list(embedding.shape)}, and [1, 1 + a square, "
            f"{architecture.width}] is needed"
        )
    renamed = {
        name.replace(".mlp.w12.", ".mlp.fc1.").replace(".mlp.w3.", ".mlp.fc2."): value
        for name, value in tensors.items()
        if name != "mask_token"  # for training only
    }
    return {**renamed, "pos_embed": _interpolated(embedding)}


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
