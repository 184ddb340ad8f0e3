"""Detectors that are networks: what they have in common, whatever the network."""

from collections.abc import Callable, Hashable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from importlib.metadata import PackageNotFoundError, version
from typing import Literal, Self

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from guidex.data.codec import from_pixels
from guidex.data.image_set import default_workers
from guidex.features.detectors import Identity, require_images
from guidex.features.weights import Weights
from guidex.models.pretrained import library, unusable

Precision = Literal["float32", "float16", "bfloat16"]

# Images per pass, whatever the batch, so that features do not depend on it: enough to keep a large
# GPU busy; on a CPU, what its cache holds.
PASS, CPU_PASS = 128, 16


@dataclass(eq=False, kw_only=True)
class NetworkDetector:
    """Images through a network: in float32, without TF32, as published numbers are computed, or in
    another precision by autocast. Nothing is read before it is needed: the weights' hash by
    `identity`, the network by the first call. What is not explained is as of `Identity`.
    """

    name: str
    dim: int
    resize: str
    package: str  # Python package that the network comes from
    weights: Weights
    # From weights and `outputs` to the network: uint8 [B, 3, H, W] to features float32 [B, D].
    build: Callable[..., nn.Module]
    prepare: Callable[[Tensor], Tensor] | None = None  # images, before they go to the device
    precision: Precision = "float32"  # features are float32 in any case
    compile: bool = False  # by torch.compile: slow at first, faster for many images
    outputs: tuple[str, ...] = ()  # of a network with several, those to take, side by side
    _device: torch.device = torch.device("cpu")
    _network: Callable[[Tensor], Tensor] | None = field(default=None, init=False)
    _joined: dict[tuple[str, ...], "NetworkDetector"] = field(default_factory=dict, init=False)

    @property
    def identity(self) -> Identity:
        """What its features depend on; reads the weights' file, but builds nothing. Raises
        UsageError and GuidexError where package or weights are not there."""
        try:
            # Without the part that tells builds of torch for devices apart.
            versions = [f"{p} {version(p).partition('+')[0]}" for p in (self.package, "torch")]
        except PackageNotFoundError as error:
            extra = "diffusers" if self.package == "transformers" else "eval"
            raise unusable(self.package, error, extra) from error
        return Identity(
            name=self.name,
            dim=self.dim,
            resize=self.resize,
            weights=self.weights.sha256,
            precision=self.precision,
            compiled=self.compile,
            versions=", ".join(versions),
        )

    def to(self, device: str | torch.device) -> Self:
        """Itself, working on a device from now on."""
        if torch.device(device) != self._device:
            self._device, self._network = torch.device(device), None
        return self

    @torch.no_grad()
    def __call__(self, samples: Tensor) -> Tensor:
        """Features of images uint8 [N, C, H, W], float32 [N, D], on its device. Grey images (C = 1)
        are repeated to RGB. Raises UsageError for points, and as `identity`."""
        require_images(self.name, samples)
        if self._network is None:
            network = self.build(self.weights, *self.outputs)
            network = network.eval().requires_grad_(False).to(self._device)
            self._network = torch.compile(network) if self.compile else network
        images = samples.expand(-1, 3, -1, -1)
        dtype = getattr(torch, self.precision)
        autocast = torch.autocast(self._device.type, dtype, enabled=dtype != torch.float32)
        parts = []
        with full_float32(), autocast:
            for part in images.split(CPU_PASS if self._device.type == "cpu" else PASS):
                prepared = part if self.prepare is None else self.prepare(part)
                parts.append(self._network(prepared.to(self._device, non_blocking=True)))
        return torch.cat(parts)

    @property
    def group(self) -> Hashable:
        """Equal for detectors whose outputs one network can give."""
        if not self.outputs:
            return self
        return (self.build, self.weights.source, self.precision, self.compile, self._device)

    def joined(self, group: Sequence["NetworkDetector"]) -> "NetworkDetector":
        """One detector with the features of all of a group, side by side."""
        outputs = sum((each.outputs for each in group), ())
        if outputs not in self._joined:
            self._joined[outputs] = replace(self, outputs=outputs)
        return self._joined[outputs]


@contextmanager
def full_float32() -> Iterator[None]:
    """Let float32 products be of float32, not of TF32 with its 10 bits, inside the context."""
    cudnn, matmul = torch.backends.cudnn, torch.backends.cuda.matmul
    before = cudnn.allow_tf32, matmul.allow_tf32
    cudnn.allow_tf32 = matmul.allow_tf32 = False
    try:
        yield
    finally:
        cudnn.allow_tf32, matmul.allow_tf32 = before


class TimmNetwork(nn.Module):
    """A ViT as `timm_vit` gives it, with the tensors of `weights` by timm's names, on pixels
    normalised as it was trained with. Raises GuidexError: they are those of another network."""

    def __init__(self, vit: nn.Module, weights: Weights, tensors: dict[str, Tensor]) -> None:
        super().__init__()
        try:
            vit.load_state_dict({name: each.float() for name, each in tensors.items()}, assign=True)
        except RuntimeError as error:
            raise weights.mismatch(error) from error
        self.vit = vit
        for name in ("mean", "std"):  # in 0 ... 1, per channel
            values = torch.tensor(vit.pretrained_cfg[name])[:, None, None]
            self.register_buffer(name, values, persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        """Features [B, D], float32, of images uint8 or float32 [B, 3, side, side], 0 ... 255."""
        return self.vit((images.float() / 255 - self.mean) / self.std).float()


def timm_vit(model: str, **options: object) -> nn.Module:
    """timm's network of that name, without weights. Raises UsageError where timm is not there."""
    # Of shapes alone: drawing random weights takes seconds.
    with torch.device("meta"):
        return library("timm", "eval").create_model(model, pretrained=False, **options)


def pil_resized(images: Tensor, side: int) -> Tensor:
    """Images uint8 [B, 3, H, W] to [B, 3, side, side], uint8, by Pillow's bicubic filter."""

    def resized(pixels: np.ndarray) -> np.ndarray:
        image = from_pixels(pixels).resize((side, side), Image.Resampling.BICUBIC)
        return np.asarray(image).transpose(2, 0, 1)

    if images.shape[2:] == (side, side):
        return images
    # Pillow lets go of Python's lock while it resizes.
    with ThreadPoolExecutor(default_workers()) as pool:
        return torch.from_numpy(np.stack(list(pool.map(resized, images.cpu().numpy()))))
