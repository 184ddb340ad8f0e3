"""What several test files share: golden numbers, small exact models, a grid, a counter."""

import functools
import inspect
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from guidex.data.codec import write_png
from guidex.features.features import FeatureSet
from guidex.models.mixture import GaussianMixture
from guidex.sampling.grids import Bounded
from guidex.sampling.seeds import Start, start
from guidex.sampling.solver import Solver

GOLDEN = Path(__file__).parent / "golden"
CPU = torch.device("cpu")


def golden(name: str) -> dict[str, np.ndarray]:
    """The arrays of a golden file."""
    path = GOLDEN / name
    if not path.exists():
        pytest.skip(f"tests/golden/{name} is not in this checkout")
    with np.load(path, allow_pickle=False) as file:
        return dict(file)


def concrete(base: type) -> Iterator[type]:
    """All classes under `base` that can be made, so that a new one is tested by existing."""
    for child in base.__subclasses__():
        if not inspect.isabstract(child) and child.__module__.startswith("guidex."):
            yield child
        yield from concrete(child)


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    """Standard normal numbers, float64."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def feature_set(
    values: torch.Tensor, labels: torch.Tensor | None = None, detector: str = "d"
) -> FeatureSet:
    return FeatureSet(detector, values, labels)


def one_image_per_class(folder: Path) -> str:
    """A folder of images, a sub-folder for each of two classes."""
    for value, name in enumerate(("circle", "square")):
        path = folder / "classes" / name / "0.png"
        path.parent.mkdir(parents=True)
        write_png(path, np.full((1, 4, 4), 255 * value, np.uint8))
    return str(folder / "classes")


def gaussian(mean: float = 0.0, std: float = 0.5) -> GaussianMixture:
    """N(mean, std^2) in one dimension."""
    return GaussianMixture([1.0], [[mean]], [[[std**2]]], [0], [0], conditional=False)


def two_classes(conditional: bool = True, blur: float = 0.0) -> GaussianMixture:
    """Two clusters of three Gaussians each in the plane, labelled 0 and 1."""
    means = [[-0.6, 0.1], [-0.3, 0.5], [-0.2, -0.4], [0.2, 0.3], [0.5, -0.2], [0.7, 0.6]]
    covariances = [[[0.02, 0.01], [0.01, 0.03]]] * 6
    return GaussianMixture(
        [1, 2, 3, 3, 2, 1], means, covariances, [0, 0, 0, 1, 1, 1], [0] * 6, conditional, blur
    )


def starts(model: nn.Module, seeds: list[int], solver: Solver) -> Start:
    """Noise and labels of some seeds."""
    return start(seeds, model.shape, model.conditions, None, CPU, CPU, solver.stochastic)


@dataclass(frozen=True, kw_only=True)
class Open(Bounded):
    """Even in the square root of sigma, and ending at sigma_min instead of 0."""

    def levels(self, progress: np.ndarray) -> np.ndarray:
        high, low = self.sigma_max**0.5, self.sigma_min**0.5
        return (high + progress * (low - high)) ** 2

    def sigmas(self) -> np.ndarray:
        return self.levels(np.arange(self.steps + 1) / self.steps)


class Calls:
    """Counts the images that watched networks are called with: of an EDM2 its U-Net, of
    text-to-image models their network, which take several predictions of an image at once."""

    def __init__(self) -> None:
        self.images: Counter[int] = Counter()

    def watch(self, network: nn.Module) -> nn.Module:
        """Count from now on."""
        called = getattr(network, "unet", getattr(network, "network", network))
        called.register_forward_pre_hook(functools.partial(self._count, id(network)))
        return network

    def __getitem__(self, network: nn.Module) -> int:
        return self.images[id(network)]

    def _count(self, network: int, module: nn.Module, arguments: tuple) -> None:
        self.images[network] += len(arguments[0])
