"""Detectors: from images, or points, to the features that metrics compare."""

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Protocol, Self

import torch
from torch import Tensor

from guidex.data.pixels import to_float
from guidex.errors import UsageError
from guidex.features.features import FeatureSet


@dataclass(frozen=True)
class Identity:
    """What features depend on besides the images.

    Attributes:
        name: of the detector; features of equal names compare, and columns end in it.
        dim: number of features D; None where it depends on the samples.
        resize: how images get to the size that the network takes; "none" without a network.
        weights: SHA-256 of the network's weights; None without a network.
        precision: of the network's arithmetic.
        compiled: whether the network goes through torch.compile.
        versions: of the packages that compute it; "" without a network.
    """

    name: str
    dim: int | None = None
    resize: str = "none"
    weights: str | None = None
    precision: str = "float32"
    compiled: bool = False
    versions: str = ""


class Detector(Protocol):
    """The interface: a pure function of one batch or a whole set.

    Attributes:
        name: features of equal names compare, and columns end in it; None where it depends on the
            samples.
    """

    name: str | None

    @property
    def identity(self) -> Identity | None:
        """What its features depend on; None where that is known only of given samples.

        Raises:
            UsageError, GuidexError: the weights of its network are not to be had.
        """
        ...

    def to(self, device: str | torch.device) -> Self:
        """Itself, working on a device from now on."""
        ...

    def __call__(self, samples: Tensor) -> tuple[str, Tensor]:
        """Name of the detector and features, float32 [N, D].

        Arguments:
            samples: images, uint8 [N, C, H, W], or points, floating [N, d].
        """
        ...


class _WithoutNetwork:
    """What detectors that only rearrange numbers have in common: any device will do."""

    def to(self, device: str | torch.device) -> Self:
        return self


class Pixels(_WithoutNetwork):
    """The pixels themselves, scaled to [-1, 1] and flattened; D = C H W. For small images."""

    name = "pixels"
    identity = Identity("pixels")

    def __call__(self, samples: Tensor) -> tuple[str, Tensor]:
        if samples.dtype != torch.uint8:
            raise UsageError(
                "detector=pixels looks at images, but these are points; use detector=coordinates"
            )
        return "pixels", to_float(samples, torch.float32).flatten(1)


class Coordinates(_WithoutNetwork):
    """The coordinates of a toy's points themselves; D = d."""

    name = "coordinates"
    identity = Identity("coordinates")

    def __call__(self, samples: Tensor) -> tuple[str, Tensor]:
        if samples.dtype == torch.uint8:
            raise UsageError(
                "detector=coordinates looks at points, but these are images; use detector=pixels"
            )
        return "coordinates", samples.float().flatten(1)


class Automatic(_WithoutNetwork):
    """Pixels for images, Coordinates for points."""

    name = identity = None

    def __call__(self, samples: Tensor) -> tuple[str, Tensor]:
        detector = Pixels() if samples.dtype == torch.uint8 else Coordinates()
        return detector(samples)


def look(detectors: Sequence[Detector], samples: Tensor) -> list[tuple[str, Tensor]]:
    """What each detector makes of samples; several outputs of one network are of one pass."""
    groups: dict[Hashable, list[Detector]] = {}
    for detector in detectors:
        groups.setdefault(getattr(detector, "group", detector), []).append(detector)
    found: dict[Detector, tuple[str, Tensor]] = {}
    for first, *others in groups.values():
        if not others:
            found[first] = first(samples)
            continue
        _, features = first.joined(others)(samples)
        parts = features.split([one.identity.dim for one in (first, *others)], dim=1)
        found |= {one: (one.name, part) for one, part in zip((first, *others), parts, strict=True)}
    return [found[detector] for detector in detectors]


def detect_all(
    detectors: Sequence[Detector], samples: Tensor, labels: Tensor | None, batch: int = 1024
) -> list[FeatureSet]:
    """All samples through different detectors, `batch` at a time; the results are on the CPU."""
    parts = [look(detectors, some) for some in samples.split(batch)]
    return [
        FeatureSet.from_values(
            detector=own[0][0], values=torch.cat([part.cpu() for _, part in own]), labels=labels
        )
        for own in zip(*parts, strict=True)
    ]


def detect(
    detector: Detector, samples: Tensor, labels: Tensor | None, batch: int = 1024
) -> FeatureSet:
    """The same through one detector."""
    return detect_all([detector], samples, labels, batch)[0]
