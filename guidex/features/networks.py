"""Detectors that are networks: what they have in common, whatever the network."""

from collections.abc import Callable, Hashable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from importlib.metadata import version
from typing import Literal, Self

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from guidex.data.codec import from_pixels
from guidex.data.image_set import default_workers
from guidex.errors import UsageError
from guidex.features.detectors import Identity
from guidex.features.weights import Weights, check_installed

Precision = Literal["float32", "float16", "bfloat16"]

# Images per pass: enough to keep a large GPU busy, in a few GB of memory. However many come at
# once, they go through in passes of this size, so that features do not depend on a batch size.
PASS = 128

# On a CPU more than a few images take longer, and twice the memory, since the numbers between two
# layers no longer fit into its cache.
CPU_PASS = 16


class NetworkDetector:
    """Images through a network, on a device and in a precision.

    Nothing is read before it is needed: the weights' hash by `identity`, the network by the first
    call. float32 is what published numbers are computed in, and TF32 is switched off for it, which
    PyTorch otherwise uses in convolutions on GPUs; float16 and bfloat16 are by autocast.

    Arguments:
        name: of the detector; features of equal names compare.
        dim: number of features D.
        resize: how images get to the size that the network takes, in words.
        package: Python package that the network comes from.
        weights: of the network.
        build: makes the network from its weights: uint8 or floating [B, 3, H, W], as `prepare`
            gives them, to float32 features [B, D].
        prepare: what happens to images, uint8 [B, 3, H, W], before they go to the device.
        precision: of the network; features are float32 in any case.
        compile: whether torch.compile is used: slow at first, faster for many images.
        join: makes one network of the weights whose features are those of several detectors side by
            side, given their outputs; None where there is no such network.
        output: of this detector.
    """

    def __init__(
        self,
        *,
        name: str,
        dim: int,
        resize: str,
        package: str,
        weights: Weights,
        build: Callable[[Weights], nn.Module],
        prepare: Callable[[Tensor], Tensor] | None = None,
        precision: Precision = "float32",
        compile: bool = False,
        join: Callable[[Weights, Sequence[str]], nn.Module] | None = None,
        output: str = "",
    ) -> None:
        self.name, self._dim, self._resize = name, dim, resize
        self._package = package
        self._weights, self._build = weights, build
        self._prepare = prepare or (lambda images: images)
        self._precision, self._compile = precision, compile
        self._join, self._output = join, output
        self._joined: dict[tuple[str, ...], NetworkDetector] = {}
        self._device = torch.device("cpu")
        self._network: Callable[[Tensor], Tensor] | None = None

    @property
    def identity(self) -> Identity:
        """What its features depend on; reads the weights' file, but builds nothing.

        Raises:
            UsageError, GuidexError: the package is not installed, or the weights are not to be had.
        """
        check_installed(self._package)
        return Identity(
            name=self.name,
            dim=self._dim,
            resize=self._resize,
            weights=self._weights.sha256,
            precision=self._precision,
            compiled=self._compile,
            # Without the part that tells builds of torch for devices apart.
            versions=", ".join(
                f"{package} {version(package).partition('+')[0]}"
                for package in (self._package, "torch")
            ),
        )

    def to(self, device: str | torch.device) -> Self:
        """Itself, working on a device from now on."""
        if torch.device(device) != self._device:
            self._device, self._network = torch.device(device), None
        return self

    @torch.no_grad()
    def __call__(self, samples: Tensor) -> tuple[str, Tensor]:
        """Its name and the features of images uint8 [N, C, H, W], float32 [N, D], on its device.

        Grey images (C = 1) are repeated to RGB.

        Raises:
            UsageError: these are points, or a package that the network needs is not there.
            GuidexError: the weights are not to be had.
        """
        if samples.dtype != torch.uint8 or samples.ndim != 4 or samples.shape[1] not in (1, 3):
            raise UsageError(
                f"detector={self.name} takes images, but these are "
                f"{str(samples.dtype).removeprefix('torch.')} {list(samples.shape)}; "
                "use detector=coordinates for points"
            )
        if self._network is None:
            network = self._build(self._weights).eval().requires_grad_(False).to(self._device)
            self._network = torch.compile(network) if self._compile else network
        images = samples.expand(-1, 3, -1, -1)
        dtype = getattr(torch, self._precision)
        autocast = torch.autocast(self._device.type, dtype, enabled=dtype != torch.float32)
        with full_float32(), autocast:
            parts = [
                self._network(self._prepare(part).to(self._device, non_blocking=True))
                for part in images.split(CPU_PASS if self._device.type == "cpu" else PASS)
            ]
        return self.name, torch.cat(parts)

    @property
    def group(self) -> Hashable:
        """Equal for detectors that one network can be made of."""
        if self._join is None:
            return self
        return (self._join, self._weights.source, self._precision, self._compile, self._device)

    def joined(self, others: Sequence["NetworkDetector"]) -> "NetworkDetector":
        """One detector with the features of itself and of others of its group side by side."""
        outputs = (self._output, *(other._output for other in others))
        if outputs not in self._joined:
            made = NetworkDetector(
                name="+".join([self.name, *(other.name for other in others)]),
                dim=self._dim + sum(other._dim for other in others),
                resize=self._resize,
                package=self._package,
                weights=self._weights,
                build=lambda file: self._join(file, outputs),
                prepare=self._prepare,
                precision=self._precision,
                compile=self._compile,
            )
            self._joined[outputs] = made.to(self._device)
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


def resize_by_pillow(images: Tensor, side: int) -> Tensor:
    """Images uint8 [B, 3, H, W] to [B, 3, side, side], uint8, by Pillow's bicubic filter."""

    def resized(pixels: np.ndarray) -> np.ndarray:
        image = from_pixels(pixels).resize((side, side), Image.Resampling.BICUBIC)
        return np.asarray(image).transpose(2, 0, 1)

    if images.shape[2:] == (side, side):
        return images
    # Pillow lets go of Python's lock while it resizes.
    with ThreadPoolExecutor(default_workers()) as pool:
        return torch.from_numpy(np.stack(list(pool.map(resized, images.cpu().numpy()))))
