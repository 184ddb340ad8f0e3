"""Detectors: from images, or points, to the features that metrics compare."""

from collections.abc import Hashable, Sequence
from dataclasses import asdict, dataclass
from typing import Protocol, Self

import torch
from torch import Tensor

from guidex.data.codec import to_float
from guidex.errors import UsageError
from guidex.features.features import FeatureSet


@dataclass(frozen=True)
class Identity:
    """What features depend on besides the images."""

    name: str  # of the detector; features of equal names compare, and columns end in it
    dim: int | None = None  # number of features D; None where it depends on the samples
    resize: str = "none"  # how images get to the size that the network takes
    weights: str | None = None  # SHA-256 of the network's; None without a network
    precision: str = "float32"  # of the network's arithmetic
    compiled: bool = False  # whether the network goes through torch.compile
    versions: str = ""  # of the packages that compute it; "" without a network


class Detector(Protocol):
    """A pure function of one batch or a whole set."""

    name: str  # that of `identity`, known without the weights

    @property
    def identity(self) -> Identity:
        """Raises UsageError and GuidexError where weights are not to be had."""

    def to(self, device: str | torch.device) -> Self:
        """Itself, working on a device from now on; without a network, on that of the samples."""
        return self

    def __call__(self, samples: Tensor) -> Tensor:
        """Features, float32 [N, D], of images uint8 [N, C, H, W] or points, floating [N, d]."""


def require_images(detector: str, samples: Tensor) -> None:
    """Refuse points, by a UsageError."""
    if samples.dtype != torch.uint8:
        raise UsageError(
            f"detector={detector} takes images, but these are points; use detector=coordinates"
        )


class Pixels(Detector):
    """The pixels themselves, scaled to [-1, 1] and flattened; D = C H W. For small images."""

    name, identity = "pixels", Identity("pixels")

    def __call__(self, samples: Tensor) -> Tensor:
        require_images(self.name, samples)
        return to_float(samples, torch.float32).flatten(1)


class Coordinates(Detector):
    """The coordinates of a toy's points themselves; D = d."""

    name, identity = "coordinates", Identity("coordinates")

    def __call__(self, samples: Tensor) -> Tensor:
        if samples.dtype == torch.uint8:
            raise UsageError(
                "detector=coordinates takes points, but these are images; use detector=pixels"
            )
        return samples.float().flatten(1)


class Automatic(Pixels):
    """Stands for Coordinates of points, and is Pixels of images; see `resolved`."""


def resolved(detector: Detector, points: bool) -> Detector:
    """The detector that Automatic stands for; any other is itself."""
    return Coordinates() if points and isinstance(detector, Automatic) else detector


def run_detectors(detectors: Sequence[Detector], samples: Tensor) -> dict[Detector, Tensor]:
    """Features by each detector; several outputs of one network are of one pass."""
    groups: dict[Hashable, list[Detector]] = {}
    for detector in dict.fromkeys(detectors):
        groups.setdefault(getattr(detector, "group", detector), []).append(detector)
    features: dict[Detector, Tensor] = {}
    for group in groups.values():
        if len(group) == 1:
            features[group[0]] = group[0](samples)
        else:
            parts = group[0].joined(group)(samples).split([each.dim for each in group], dim=1)
            features |= zip(group, parts, strict=True)
    return features


def detect(
    detector: Detector, samples: Tensor, labels: Tensor | None = None, batch: int = 1024
) -> FeatureSet:
    """All samples through a detector, `batch` at a time; the result is on the CPU."""
    values = torch.cat([detector(part).cpu() for part in samples.split(batch)])
    return FeatureSet(detector.name, values, labels)


def features_of(detector: Detector, sample: Tensor) -> int:
    """Number of features D of samples like one, [1, ...]; no network is run to tell. Raises
    UsageError where the detector does not take them."""
    dim = detector.identity.dim if sample.dtype == torch.uint8 else None
    return detector(sample).shape[1] if dim is None else dim


def detector_record(detector: Detector) -> dict[str, object]:
    """What there is to know of a network, as plain data; nothing where there is no network."""
    identity = detector.identity
    return {} if identity.weights is None else {"detector": asdict(identity)}
