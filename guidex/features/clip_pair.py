"""Both towers of a CLIP (Radford et al. 2021, arXiv 2103.00020), from a folder of transformers or
by its id on huggingface.co: embeddings of length 1 of images and of texts.

Images are cropped to the square in their middle, and resized by Pillow's bicubic filter on 8-bit
pixels, as OpenAI's and transformers' preprocessing does for square images.
"""

import json
import re
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from guidex.errors import UsageError
from guidex.features.clip import middle_square
from guidex.features.networks import NetworkDetector, Precision, full_float32
from guidex.features.weights import Weights
from guidex.models.pretrained import library, local_first, read_part

MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
FILES = ["*.json", "model.safetensors", "merges.txt"]


def clip_pair(
    weights: str, precision: Precision = "float32", compile: bool = False
) -> NetworkDetector:
    """The detector: projected embeddings of images; its name is that of the network. `weights` is
    a folder, or an id. Raises UsageError where they are not to be had."""
    folder = folder_of(weights)
    try:
        config = json.loads((folder / "config.json").read_bytes())
        dim, side = int(config["projection_dim"]), int(config["vision_config"]["image_size"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UsageError(f"{folder} is no CLIP as transformers saves it: {error!r}") from error
    return NetworkDetector(
        name=network_name(weights),
        dim=dim,
        resize=f"middle square, bicubic on 8 bits to {side} (Pillow)",
        package="transformers",
        weights=Weights(
            "CLIP", str(folder / "model.safetensors"), f"https://huggingface.co/{weights}"
        ),
        build=Images,
        prepare=partial(middle_square, side=side),
        precision=precision,
        compile=compile,
    )


class Images(nn.Module):
    """Images uint8 [B, 3, side, side] to embeddings, float32 [B, D]."""

    def __init__(self, weights: Weights) -> None:
        super().__init__()
        model = _read("CLIPModel", Path(weights.source).parent, None, torch.float32)
        self.tower, self.projection = model.vision_model, model.visual_projection
        for name, values in (("mean", MEAN), ("std", STD)):
            self.register_buffer(name, torch.tensor(values)[:, None, None], persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        pixels = (images.float() / 255 - self.mean) / self.std
        return F.normalize(self.projection(self.tower(pixels).pooler_output).float(), dim=1)


@lru_cache(maxsize=8)
@torch.no_grad()
def embed_texts(weights: str, texts: tuple[str, ...], device: torch.device) -> Tensor:
    """Embeddings of texts, float32 [N, D] on a device; what is beyond CLIP's 77 tokens is cut."""
    folder = folder_of(weights)
    model = _read("CLIPModel", folder, None, torch.float32).eval().to(device)
    tokenizer = _read("CLIPTokenizer", folder)
    length, parts = model.config.text_config.max_position_embeddings, []
    with full_float32():
        for first in range(0, len(texts), 256):
            some = list(texts[first : first + 256])
            given = {"padding": "max_length", "truncation": True, "return_tensors": "pt"}
            tokens = tokenizer(some, max_length=length, **given).to(device)
            pooled = model.text_model(**tokens).pooler_output
            parts.append(F.normalize(model.text_projection(pooled).float(), dim=1))
    return torch.cat(parts)


def network_name(weights: str) -> str:
    """What a CLIP is called in columns: the last part of its path or id."""
    return re.sub(r"[^\w.]+", "_", Path(weights).name)


def folder_of(weights: str) -> Path:
    """Where it lies on this machine, downloaded if need be. Raises UsageError."""
    if (folder := Path(weights).expanduser()).is_dir():
        return folder
    get = partial(library("huggingface_hub").snapshot_download, weights, allow_patterns=FILES)
    advice = f"Download https://huggingface.co/{weights} on a machine that can; give the folder"
    return Path(local_first(lambda local_only: get(local_files_only=local_only), weights, advice))


def _read(name: str, folder: Path, *how: Any) -> Any:
    """The network or the tokenizer, by the name of its class, on the CPU."""
    return local_first(lambda _: read_part(name, folder, *how, local_files_only=True), folder)
