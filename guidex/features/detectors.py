"""Detectors: from images, or points, to the features that metrics compare."""

from collections.abc import Hashable, Sequence
from dataclasses import asdict, dataclass
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
    """A pure function of one batch or a whole set.

    Attributes:
        name: features of equal names compare, and columns end in it; None where it depends on the
            samples.
        identity: what its features depend on; None where that is known only of given samples.
            UsageError and GuidexError: the weights of its network are not to be had.
    """

    name: str | None

    @property
    def identity(self) -> Identity | None: ...

    def to(self, device: str | torch.device) -> Self:
        """Itself, working on a device from now on."""

    def __call__(self, samples: Tensor) -> tuple[str, Tensor]:
        """Name of the detector and features, float32 [N, D].

        Arguments:
            samples: images, uint8 [N, C, H, W], or points, floating [N, d].
        """


class _WithoutNetwork:
    def to(self, device: str | torch.device) -> Self:
        return self


class Pixels(_WithoutNetwork):
    """The pixels themselves, scaled to [-1, 1] and flattened; D = C H W. For small images."""

    name = "pixels"
    identity = Identity("pixels")

    def __call__(self, samples: Tensor) -> tuple[str, Tensor]:
        if samples.dtype != torch.uint8:
            raise UsageError(
                "detector=pixels takes images, but these are points; use detector=coordinates"
            )
        return "pixels", to_float(samples, torch.float32).flatten(1)


class Coordinates(_WithoutNetwork):
    """The coordinates of a toy's points themselves; D = d."""

    name = "coordinates"
    identity = Identity("coordinates")

    def __call__(self, samples: Tensor) -> tuple[str, Tensor]:
        if samples.dtype == torch.uint8:
            raise UsageError(
                "detector=coordinates takes points, but these are images; use detector=pixels"
            )
        return "coordinates", samples.float().flatten(1)


class Automatic(_WithoutNetwork):
    """Pixels for images, Coordinates for points."""

    name = identity = None

    def __call__(self, samples: Tensor) -> tuple[str, Tensor]:
        detector = Pixels() if samples.dtype == torch.uint8 else Coordinates()
        return detector(samples)


def run_detectors(
    detectors: Sequence[Detector], samples: Tensor
) -> dict[Detector, tuple[str, Tensor]]:
    """Name and features by each detector; several outputs of one network are of one pass."""
    groups: dict[Hashable, list[Detector]] = {}
    for detector in dict.fromkeys(detectors):
        groups.setdefault(getattr(detector, "group", detector), []).append(detector)
    outputs: dict[Detector, tuple[str, Tensor]] = {}
    for first, *others in groups.values():
        if not others:
            outputs[first] = first(samples)
            continue
        group = (first, *others)
        _, features = first.joined(others)(samples)
        parts = features.split([detector.identity.dim for detector in group], dim=1)
        outputs |= {d: (d.name, part) for d, part in zip(group, parts, strict=True)}
    return outputs


def detect_all(
    detectors: Sequence[Detector], samples: Tensor, labels: Tensor | None, batch: int = 1024
) -> list[FeatureSet]:
    """All samples through different detectors, `batch` at a time; the results are on the CPU."""
    outputs = [run_detectors(detectors, part) for part in samples.split(batch)]
    return [
        FeatureSet.from_values(
            detector=outputs[0][detector][0],
            values=torch.cat([output[detector][1].cpu() for output in outputs]),
            labels=labels,
        )
        for detector in detectors
    ]


def detect(
    detector: Detector, samples: Tensor, labels: Tensor | None, batch: int = 1024
) -> FeatureSet:
    """The same through one detector."""
    return detect_all([detector], samples, labels, batch)[0]


def output_of(detector: Detector, sample: Tensor) -> tuple[str, int]:
    """Name of the detector and number of features D for samples; no network is run to tell.

    Arguments:
        sample: something like them, uint8 [1, C, H, W] or floating [1, d].

    Raises:
        UsageError: the detector does not take such samples.
    """
    identity = detector.identity
    if identity is not None and identity.dim is not None and sample.dtype == torch.uint8:
        return identity.name, identity.dim
    name, features = detector(sample)
    return name, features.shape[1]


def detector_record(detector: Detector) -> dict[str, object]:
    """What there is to know of a network, as plain data; nothing where there is no network."""
    identity = detector.identity
    return {} if identity is None or identity.weights is None else {"detector": asdict(identity)}
