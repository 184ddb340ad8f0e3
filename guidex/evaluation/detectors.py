"""Detectors: from images, or points, to the features that metrics compare."""

from typing import Protocol

import torch
from torch import Tensor

from guidex.assets.pixels import to_float
from guidex.errors import UsageError
from guidex.evaluation.features import FeatureSet


class Detector(Protocol):
    """The interface: a pure function of one batch or a whole set."""

    def __call__(self, samples: Tensor) -> tuple[str, Tensor]:
        """Name of the detector and features, float32 [N, D].

        Arguments:
            samples: images, uint8 [N, C, H, W], or points, floating [N, d].
        """
        ...


class Pixels:
    """The pixels themselves, scaled to [-1, 1] and flattened; D = C H W. For small images."""

    def __call__(self, samples: Tensor) -> tuple[str, Tensor]:
        if samples.dtype != torch.uint8:
            raise UsageError(
                "detector=pixels looks at images, but these are points; use detector=coordinates"
            )
        return "pixels", to_float(samples, torch.float32).flatten(1)


class Coordinates:
    """The coordinates of a toy's points themselves; D = d."""

    def __call__(self, samples: Tensor) -> tuple[str, Tensor]:
        if samples.dtype == torch.uint8:
            raise UsageError(
                "detector=coordinates looks at points, but these are images; use detector=pixels"
            )
        return "coordinates", samples.float().flatten(1)


class Automatic:
    """Pixels for images, Coordinates for points."""

    def __call__(self, samples: Tensor) -> tuple[str, Tensor]:
        detector = Pixels() if samples.dtype == torch.uint8 else Coordinates()
        return detector(samples)


def detect(
    detector: Detector, samples: Tensor, labels: Tensor | None, batch: int = 1024
) -> FeatureSet:
    """All samples through a detector, `batch` at a time; the result is on the CPU."""
    name, parts = "", []
    for first in range(0, len(samples), batch):
        name, features = detector(samples[first : first + batch])
        parts.append(features.cpu())
    return FeatureSet.from_values(detector=name, values=torch.cat(parts), labels=labels)
