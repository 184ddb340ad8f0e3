"""CLIP ViT-L/14 at 336 x 336 (Radford et al. 2021, arXiv 2103.00020), the network of CMMD
(Jayasumana et al. 2024, arXiv 2401.09603): image embeddings of length 1.

As in the authors' code, images are cropped to the square in their middle, and resized by Pillow's
bicubic filter (which antialiases) on 8-bit pixels.

The network is timm's, with the activation x sigmoid(1.702 x) that OpenAI trained it with. The
weights are the file of all of CLIP in the repository that timm and OpenCLIP name for it; the text
encoder in it is left aside.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from guidex.features.networks import NetworkDetector, Precision, resize_by_pillow
from guidex.features.weights import Weights, optional

MODEL = "vit_large_patch14_clip_quickgelu_336"
SIDE = 336
DIM = 768

# The mean and deviation of the pixels that CLIP was trained on, in 0 ... 1, per channel.
MEAN = (0.48145466, 0.4578275, 0.40821073)
STD = (0.26862954, 0.26130258, 0.27577711)

URL = (
    "https://huggingface.co/timm/vit_large_patch14_clip_336.openai/resolve/"
    "81e38efc4637de5023b10e75a7f9bd1c6fa6b010/open_clip_model.safetensors"
)
SHA256 = "fbc415c3d0d7b79faed8f5ccfb740c32b7c4f5ffe7283b851f89c6231c01a8e0"

# OpenAI's names of what is in the image encoder, and timm's.
_VISUAL = "visual."
_NAMES = (
    ("conv1.", "patch_embed.proj."),
    ("ln_pre.", "norm_pre."),
    ("ln_post.", "norm."),
    ("transformer.resblocks.", "blocks."),
    ("ln_1.", "norm1."),
    ("ln_2.", "norm2."),
    ("attn.in_proj_", "attn.qkv."),
    ("attn.out_proj.", "attn.proj."),
    ("mlp.c_fc.", "mlp.fc1."),
    ("mlp.c_proj.", "mlp.fc2."),
)


def clip(
    weights: str | None = None, precision: Precision = "float32", compile: bool = False
) -> NetworkDetector:
    """The detector: the projected class token, 768 numbers, normalised.

    Arguments:
        weights: path or URL of a file like the published one (CLIP under OpenAI's names), or None
            for that one (1.7 GB).
        precision, compile: see `NetworkDetector`.
    """
    return NetworkDetector(
        name="clip",
        dim=DIM,
        resize="middle square, bicubic on 8 bits to 336 (Pillow)",
        package="timm",
        weights=Weights("CLIP ViT-L/14@336px", weights, URL, SHA256),
        build=CLIP,
        prepare=crop_and_resize,
        precision=precision,
        compile=compile,
    )


class CLIP(nn.Module):
    """timm's ViT with OpenAI's weights.

    Arguments:
        weights: by OpenAI's names.

    Raises:
        UsageError: timm cannot be imported.
        GuidexError: the weights are those of another network.
    """

    def __init__(self, weights: Weights) -> None:
        super().__init__()
        with torch.device("meta"):  # shapes only; drawing random weights takes seconds
            self.vit = _vit()
        weights.load_into(self.vit, _timm_names(weights.read()))
        self.register_buffer("mean", torch.tensor(MEAN)[:, None, None], persistent=False)
        self.register_buffer("std", torch.tensor(STD)[:, None, None], persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        """Embeddings [B, D], float32, of length 1, of images uint8 [B, 3, 336, 336]."""
        embeddings = self.vit((images.float() / 255 - self.mean) / self.std)
        return F.normalize(embeddings.float(), dim=1)


def crop_and_resize(images: Tensor) -> Tensor:
    """Images uint8 [B, 3, H, W] to [B, 3, 336, 336], uint8: their middle squares, resized."""

    height, width = images.shape[2:]
    side = min(height, width)
    top, left = (height - side) // 2, (width - side) // 2
    squares = images[:, :, top : top + side, left : left + side]
    return resize_by_pillow(squares, SIDE)


def _vit() -> nn.Module:
    """timm's network, whose own weights are of no use."""
    return optional("timm").create_model(MODEL, pretrained=False, num_classes=DIM)


def _timm_names(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """OpenAI's tensors of the image encoder under timm's names."""
    renamed = {}
    for name, value in tensors.items():
        if not name.startswith(_VISUAL):
            continue  # of the text encoder
        name = name.removeprefix(_VISUAL)
        for theirs, timms in _NAMES:
            name = name.replace(theirs, timms)
        match name:
            case "class_embedding":
                renamed["cls_token"] = value[None, None]
            case "positional_embedding":
                renamed["pos_embed"] = value[None]
            case "proj":
                renamed["head.weight"] = value.T
                renamed["head.bias"] = torch.zeros(value.shape[-1])  # timm's has one, OpenAI's none
            case _:
                renamed[name] = value
    return renamed
