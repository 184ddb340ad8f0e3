"""CLIP as a detector, beside timm's own way to load it and torch-fidelity's network."""

from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from guidex.errors import GuidexError
from guidex.features import clip as module
from guidex.features.clip import clip, middle_square
from guidex.features.networks import NetworkDetector, timm_vit

timm = pytest.importorskip("timm", reason="timm is not installed")
theirs = pytest.importorskip(
    "torch_fidelity.feature_extractor_clip", reason="torch-fidelity is not installed"
)

WIDTH, DEPTH, HEADS = 48, 2, 3
MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)


# The network of the preset, but narrow and shallow.
tiny = partial(timm.create_model, embed_dim=WIDTH, depth=DEPTH, num_heads=HEADS)


def openai_tensors(side: int = 336) -> dict[str, Tensor]:
    """Random weights by OpenAI's names, such that every one is seen in the features, and something
    of a text encoder."""
    visual = theirs.VisionTransformer(side, 14, WIDTH, DEPTH, HEADS, module.DIM).state_dict()
    generator = torch.Generator().manual_seed(0)
    tensors = {"positional_embedding": torch.ones(77, 5), "logit_scale": torch.tensor(4.6)}
    for name, value in visual.items():
        scale = value.shape[-1] ** -0.5 if value.ndim == 2 else 0.2
        noise = torch.randn(value.shape, generator=generator)
        tensors[f"visual.{name}"] = name.endswith("weight") * (value.ndim == 1) + scale * noise
    return tensors


def detector_of(
    tensors: dict[str, Tensor], folder: Path, monkeypatch: pytest.MonkeyPatch
) -> NetworkDetector:
    from safetensors.torch import save_file

    save_file(tensors, folder / "w.safetensors")
    monkeypatch.setattr(timm, "create_model", tiny)
    return clip(str(folder / "w.safetensors"))


def images(count: int, height: int = 60, width: int = 50, channels: int = 3) -> Tensor:
    generator = torch.Generator().manual_seed(3)
    coarse = torch.rand(count, channels, 4, 5, generator=generator)
    smooth = nn.functional.interpolate(coarse, (height, width), mode="bilinear")
    return (smooth * 255).to(torch.uint8)


def preprocessed(samples: Tensor) -> Tensor:
    """As in the authors' code, image by image: floating [N, 3, 336, 336]."""
    made = []
    for pixels in samples.permute(0, 2, 3, 1).numpy():
        image = Image.fromarray(pixels)
        side = min(image.size)
        left, top = (image.width - side) // 2, (image.height - side) // 2
        image = image.crop((left, top, left + side, top + side))
        image = image.resize((336, 336), resample=Image.BICUBIC)
        x = np.asarray(image).astype(np.float32) / 255.0
        made.append(torch.from_numpy((x - np.float32(MEAN)) / np.float32(STD)).permute(2, 0, 1))
    return torch.stack(made)


def test_features_are_those_of_torch_fidelitys_network(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tensors = openai_tensors()
    network = theirs.VisionTransformer(336, 14, WIDTH, DEPTH, HEADS, 768).eval()
    network.load_state_dict(
        {n.removeprefix("visual."): v for n, v in tensors.items() if n.startswith("visual.")}
    )
    samples = images(2)
    with torch.no_grad():
        expected = network(preprocessed(samples))
    expected /= expected.norm(dim=1, keepdim=True)
    detector = detector_of(tensors, tmp_path, monkeypatch)
    values = detector(samples)
    assert detector.name == detector.identity.name == "clip"
    assert values.dtype == torch.float32
    assert values.shape == (2, detector.identity.dim) == (2, 768)
    torch.testing.assert_close(values, expected, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(values.norm(dim=1), torch.ones(2))
    assert (values[0] - values[1]).norm() > 0.1
    # The activation is seen in the features.
    for block in detector._network.vit.blocks:
        block.mlp.act = nn.GELU()
    assert (detector(samples) - values).norm(dim=1).min() > 1e-3


def test_the_published_network() -> None:
    vit = timm_vit(module.MODEL, num_classes=module.DIM)
    assert (vit.num_features, len(vit.blocks), vit.blocks[0].attn.num_heads) == (1024, 24, 16)
    assert vit.pretrained_cfg["mean"] == MEAN and vit.pretrained_cfg["std"] == STD
    assert f"/{vit.pretrained_cfg['hf_hub_id']}/" in module.URL
    weights = clip().weights
    assert (weights.given, weights.url, weights.prefix) == (None, module.URL, module.SHA256)
    assert len(module.SHA256) == 64


@pytest.mark.parametrize("shape", [(300, 100), (101, 340), (40, 40), (336, 337), (336, 336)])
def test_the_middle_square_is_resized_by_pillow(shape: tuple[int, int]) -> None:
    samples = images(2, *shape)
    mean, std = (torch.tensor(v)[:, None, None] for v in (MEAN, STD))
    expected = ((preprocessed(samples) * std + mean) * 255).round().to(torch.uint8)
    assert torch.equal(middle_square(samples, module.SIDE), expected)


def test_weights_of_other_networks_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tensors = openai_tensors()
    cases = {
        "for 224": (openai_tensors(side=224), r"positional_embedding is \[257, 48\]"),
        "text alone": ({"logit_scale": torch.ones(1)}, "positional_embedding"),
        "one missing": (
            {n: v for n, v in tensors.items() if n != "visual.ln_post.bias"},
            "Missing.*norm.bias",
        ),
        "more": ({**tensors, "visual.attnpool.x": torch.ones(1)}, "Unexpected.*attnpool.x"),
    }
    for case, text in cases.values():
        with pytest.raises(GuidexError, match=f"no weights of CLIP ViT-L/14@336px .*{text}"):
            detector_of(case, tmp_path, monkeypatch)(images(1))
