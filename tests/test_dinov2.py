"""DINOv2 as a detector: golden features, and timm's own way to load weights beside ours."""

import importlib
from functools import partial
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from helpers import golden as golden_file
from torch import Tensor

from guidex.errors import GuidexError, UsageError
from guidex.features import dinov2 as module
from guidex.features import networks
from guidex.features.dinov2 import DINOv2, dinov2
from guidex.features.networks import NetworkDetector, TimmNetwork
from guidex.features.weights import Weights

timm = pytest.importorskip("timm", reason="timm is not installed")


class Architecture(NamedTuple):
    """The size of a ViT: D, number of blocks, heads of the attention, and whether its MLPs are
    SwiGLU."""

    width: int
    depth: int
    heads: int
    gated: bool = False


SMALL = Architecture(384, 12, 6)
TINY = Architecture(48, 2, 3)
GATED = Architecture(48, 2, 3, gated=True)


def golden() -> dict[str, Tensor]:
    return {name: torch.from_numpy(array) for name, array in golden_file("dinov2-tiny.npz").items()}


def hub_tensors(architecture: Architecture, seed: int = 0, grid: int = 37) -> dict[str, Tensor]:
    """Random weights by torch.hub's names, such that every one of them is seen in the features."""
    width, depth, heads, gated = architecture
    with torch.device("meta"):
        network = timm.create_model(
            f"vit_{'giant' if gated else 'small'}_patch14_dinov2",
            num_classes=0,
            img_size=14 * grid,
            embed_dim=width,
            depth=depth,
            num_heads=heads,
        )
    generator = torch.Generator().manual_seed(seed)
    tensors = {"mask_token": torch.zeros(1, width)}
    for name, like in network.state_dict().items():
        if gated:
            name = name.replace("fc1", "w12").replace("fc2", "w3")
        scale = {1: 0.2, 2: 2 * like.shape[-1] ** -0.5, 3: 1, 4: 0.05}[like.ndim]
        around = like.ndim == 1 and not name.endswith("bias")  # of norms and layer scales
        tensors[name] = around + scale * torch.randn(like.shape, generator=generator)
    return tensors


def detector_of(
    tensors: dict[str, Tensor],
    architecture: Architecture,
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    resize: str = "torch",
) -> NetworkDetector:
    """The detector with a small network of the user's in place of S, or of g."""
    torch.save(tensors, folder / "w.pth")
    sizes = {"embed_dim": architecture.width, "depth": architecture.depth}
    make = partial(timm.create_model, **sizes, num_heads=architecture.heads)
    monkeypatch.setattr(timm, "create_model", make)
    size = "g" if architecture.gated else "s"
    return dinov2(str(folder / "w.pth"), size=size, resize=resize)


def golden_detector(folder: Path, monkeypatch: pytest.MonkeyPatch, resize: str) -> NetworkDetector:
    arrays = golden()
    tensors = {name[2:]: value for name, value in arrays.items() if name.startswith("w_")}
    return detector_of(
        tensors, Architecture(*arrays["config"].tolist()), folder, monkeypatch, resize
    )


def images(count: int, height: int = 60, width: int = 50, channels: int = 3) -> Tensor:
    generator = torch.Generator().manual_seed(3)
    return torch.randint(
        0, 256, (count, channels, height, width), generator=generator, dtype=torch.uint8
    )


@pytest.mark.parametrize("resize", ["torch", "pil"])
def test_golden_features(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, resize: str) -> None:
    arrays, detector = golden(), golden_detector(tmp_path, monkeypatch, resize)
    values, expected = detector(arrays["images"]), arrays[f"features_{resize}"]
    error = (values - expected).abs().max()
    # The golden layer scales are small, so that all images have nearly the same features: errors
    # must be small against what one way of resizing and the other differ by, too.
    assert error < 1e-6 * expected.abs().max()
    assert error < 0.1 * (arrays["features_torch"] - arrays["features_pil"]).abs().max()


@pytest.mark.parametrize("change", ["no offset", "timm"])
def test_golden_features_need_the_hubs_interpolation(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: str
) -> None:
    arrays = golden()
    detector = golden_detector(tmp_path, monkeypatch, "torch")
    if change == "no offset":
        monkeypatch.setattr(module, "_OFFSET", 0.0)
    else:
        from timm.layers import resample_abs_pos_embed

        monkeypatch.setattr(module, "_interpolated", lambda e: resample_abs_pos_embed(e, [16, 16]))
    values, expected = detector(arrays["images"]), arrays["features_torch"]
    assert (values - expected).abs().max() > 2e-6 * expected.abs().max()


@pytest.mark.parametrize("architecture", [TINY, GATED], ids=["mlp", "swiglu"])
def test_tensors_are_renamed_as_by_timm(
    architecture: Architecture, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from timm.models.vision_transformer import checkpoint_filter_fn

    tensors = hub_tensors(architecture, grid=16)  # as many patches as there are: used as they are
    detector = detector_of(tensors, architecture, tmp_path, monkeypatch)
    word = "giant" if architecture.gated else "small"
    network = timm.create_model(f"vit_{word}_patch14_dinov2", img_size=224, num_classes=0).eval()
    network.load_state_dict(checkpoint_filter_fn(tensors, network))
    samples = images(3, 224, 224)
    # The mean and deviation of ImageNet's pixels.
    mean, std = torch.tensor([[0.485, 0.456, 0.406], [0.229, 0.224, 0.225]])[..., None, None]
    with torch.no_grad():
        expected = network((samples / 255 - mean) / std)
    assert (expected[0] - expected[1]).abs().max() > 0.1
    torch.testing.assert_close(detector(samples), expected, rtol=1e-4, atol=1e-4)


def test_names_and_sizes() -> None:
    for size, (word, dim) in module.SIZES.items():
        detector, name = dinov2(size=size, resize="pil"), f"dinov2_vit{size}14"
        assert detector.name == f"dinov2{'' if size == 'l' else f'_{size}'}_pil"
        assert dinov2(size=size).name == detector.name.removesuffix("_pil")
        folder = "https://dl.fbaipublicfiles.com/dinov2"
        assert detector.weights.url == f"{folder}/{name}/{name}_pretrain.pth"
        defaults = networks.timm_vit(f"vit_{word}_patch14_dinov2", depth=1)
        assert defaults.num_features == detector.dim == dim
        assert defaults.pretrained_cfg["mean"] == (0.485, 0.456, 0.406)


def test_compiled_features_are_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = detector_of(hub_tensors(TINY), TINY, tmp_path, monkeypatch)
    compiled = dinov2(str(tmp_path / "w.pth"), size="s", compile=True)
    asked = []
    monkeypatch.setattr(torch, "compile", lambda network: asked.append(network) or network)
    assert torch.equal(compiled(images(2)), plain(images(2)))
    assert isinstance(asked[0], DINOv2)
    by_pillow = dinov2(str(tmp_path / "w.pth"), size="s", resize="pil")
    assert len({each.identity for each in (plain, compiled, by_pillow)}) == 3


# Weights


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (hub_tensors(GATED), "blocks.0.mlp.fc1.weight"),
        ({"register_tokens": torch.zeros(1, 4, 48)}, "register_tokens"),
        (hub_tensors(Architecture(96, 2, 3)), r"\[1, 257, 96\]"),
        ({"pos_embed": torch.zeros(1, 100, 48)}, "no square"),
    ],
    ids=["gated", "registers", "width", "grid"],
)
def test_weights_of_other_networks_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: dict[str, Tensor], text: str
) -> None:
    detector = detector_of(hub_tensors(TINY) | change, TINY, tmp_path, monkeypatch)
    with pytest.raises(GuidexError, match=f"no weights of DINOv2 ViT-s/14 .*{text}"):
        detector(images(1))


def test_a_package_that_cannot_be_used_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    detector = detector_of(hub_tensors(TINY), TINY, tmp_path, monkeypatch)
    detector.package = "none-such"
    with pytest.raises(UsageError, match=r"package none-such, .*pip install '\.\[eval\]'"):
        detector.identity  # noqa: B018

    def broken(name: str) -> None:
        raise RuntimeError("operator torchvision::nms does not exist\nmore")

    monkeypatch.setattr(importlib, "import_module", broken)
    with pytest.raises(UsageError, match=r"timm, .*nms does not exist\).*same index"):
        detector(images(1))


def test_float16_weights_are_computed_in_float32() -> None:
    network = torch.nn.Linear(2, 1)
    network.pretrained_cfg = {"mean": (0.5,), "std": (0.5,)}
    tensors = {name: value.half() for name, value in network.state_dict().items()}
    TimmNetwork(network, Weights("it", "x", "y"), tensors)
    assert {p.dtype for p in network.parameters()} == {torch.float32}
