"""CLIP ViT-L/14 at 336 x 336 (Radford et al. 2021, arXiv 2103.00020), the network of CMMD
(Jayasumana et al. 2024, arXiv 2401.09603): image embeddings of length 1.

As in the authors' code, images are cropped to the square in their middle, and resized by Pillow's
bicubic filter (which antialiases) on 8-bit pixels. The network is timm's, with the activation
x sigmoid(1.702 x) that OpenAI trained it with. The text encoder in the file is left aside.
"""

from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from guidex.features.networks import NetworkDetector, Precision, TimmNetwork, pil_resized, timm_vit
from guidex.features.weights import Weights
from guidex.models.pretrained import library

MODEL = "vit_large_patch14_clip_quickgelu_336"
SIDE = 336
DIM = 768

URL = (
    "https://huggingface.co/timm/vit_large_patch14_clip_336.openai/resolve/"
    "81e38efc4637de5023b10e75a7f9bd1c6fa6b010/open_clip_model.safetensors"
)
SHA256 = "fbc415c3d0d7b79faed8f5ccfb740c32b7c4f5ffe7283b851f89c6231c01a8e0"


def clip(
    weights: str | None = None, precision: Precision = "float32", compile: bool = False
) -> NetworkDetector:
    """The detector: the projected class token, 768 numbers, normalised; `weights` is a path or URL
    of a file like the published one (CLIP under OpenAI's names), or None for that one (1.7 GB)."""
    return NetworkDetector(
        name="clip",
        dim=DIM,
        resize="middle square, bicubic on 8 bits to 336 (Pillow)",
        package="timm",
        weights=Weights("CLIP ViT-L/14@336px", weights, URL, SHA256),
        build=CLIP,
        prepare=partial(middle_square, side=SIDE),
        precision=precision,
        compile=compile,
    )


class CLIP(TimmNetwork):
    """timm's network with weights by OpenAI's names. Raises as `TimmNetwork`."""

    def __init__(self, weights: Weights) -> None:
        vit = timm_vit(MODEL, num_classes=DIM)
        tensors = weights.read()
        # timm would interpolate the embeddings of a network for images of another size.
        embedding = tensors.get("visual.positional_embedding", torch.empty(0))
        if embedding.shape != vit.pos_embed.shape[1:]:
            raise weights.mismatch(f"visual.positional_embedding is {list(embedding.shape)}")
        rename = library("timm.models.vision_transformer", "eval").checkpoint_filter_fn
        super().__init__(vit, weights, rename(tensors, vit))

    def forward(self, images: Tensor) -> Tensor:
        """Embeddings [B, D], float32, of length 1, of images uint8 [B, 3, 336, 336]."""
        return F.normalize(super().forward(images), dim=1)


def middle_square(images: Tensor, side: int) -> Tensor:
    """Images uint8 [B, 3, H, W] to [B, 3, side, side], uint8: their middle squares, resized."""
    height, width = images.shape[2:]
    least = min(height, width)
    top, left = (height - least) // 2, (width - least) // 2
    return pil_resized(images[:, :, top : top + least, left : left + least], side)
