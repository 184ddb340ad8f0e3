"""What metrics compare: sets of images as a detector sees them.

The way of the data is images -> features (detector) -> statistics -> metric. A metric is an object
called as metric(real=..., fake=...) that returns named numbers and keeps nothing.
"""

import dataclasses
from abc import ABC, abstractmethod
from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar, Protocol

import numpy as np
import torch
from torch import Tensor

from guidex.errors import UsageError
from guidex.features.statistics import GaussianStatistics, refuse_nonfinite
from guidex.models.denoiser import ExactDenoiser


@dataclass(frozen=True, eq=False)
class FeatureSet:
    """One set of images after a detector. Made by `from_values` or `from_statistics`.

    Attributes:
        detector: name of the detector; columns end in it (fd_<detector>).
        count: number of images N in the set; 0 where a file of statistics does not tell.
        values: features [N, D], float32 or float64, finite; None where only statistics are known.
            On the CPU, or wherever they were put: metrics run on the device of the values.
        labels: class of each image [N], int64 (for fakes: the class asked for); None if unknown.
        given_statistics: statistics that came with the set, or None.
        truth: the exact distribution behind the set, known for toys only.
    """

    detector: str
    count: int
    values: Tensor | None
    labels: Tensor | None
    given_statistics: GaussianStatistics | None
    truth: ExactDenoiser | None

    def __post_init__(self) -> None:
        if self.detector == "":
            raise UsageError("a feature set needs the name of its detector.")
        if self.values is None and self.given_statistics is None:
            raise UsageError(f"{self.detector}: neither features nor statistics are given.")
        if self.values is not None:
            self._check_values(self.values)
        if self.labels is not None and self.labels.shape != (self.count,):
            raise UsageError(
                f"{self.detector}: labels {list(self.labels.shape)} for {self.count} images."
            )
        if self.labels is not None and self.labels.dtype != torch.int64:
            raise UsageError(f"{self.detector}: labels are {self.labels.dtype}, int64 needed.")

    def _check_values(self, values: Tensor) -> None:
        if values.ndim != 2 or values.shape[0] != self.count or values.numel() == 0:
            raise UsageError(
                f"{self.detector}: features {list(values.shape)} for {self.count} images; "
                "needed are [N, D] with N and D of at least 1."
            )
        if values.dtype not in (torch.float32, torch.float64):
            raise UsageError(
                f"{self.detector}: features are {values.dtype}, float32 or float64 needed."
            )
        refuse_nonfinite(values)
        if self.given_statistics is not None and self.given_statistics.dim != values.shape[1]:
            raise UsageError(
                f"{self.detector}: features have {values.shape[1]} dimensions, "
                f"their statistics {self.given_statistics.dim}."
            )

    @classmethod
    def from_values(
        cls,
        *,
        detector: str,
        values: Tensor,
        labels: Tensor | None = None,
        statistics: GaussianStatistics | None = None,
        truth: ExactDenoiser | None = None,
    ) -> "FeatureSet":
        """A set whose single images are known.

        Arguments:
            values: features [N, D], float32 or float64.
            labels: classes [N], int64.
            statistics: given where they are not those of `values` but of a larger set that
                `values` was drawn from (ADM's reference files); otherwise computed when asked for.
            truth: the exact distribution, for toys.

        Raises:
            UsageError: shapes or dtypes that do not fit, NaN or infinity (naming the row).
        """
        return cls(detector, values.shape[0], values, labels, statistics, truth)

    @classmethod
    def from_statistics(cls, *, detector: str, statistics: GaussianStatistics) -> "FeatureSet":
        """A reference of which only mean and covariance are known."""
        return cls(detector, statistics.count, None, None, statistics, None)

    def to(self, device: str | torch.device) -> "FeatureSet":
        """The same on a device, where metrics of it are then computed; the truth stays where it
        is."""
        held = (self.values, self.labels, self.given_statistics and self.given_statistics.mean)
        if all(tensor is None or tensor.device == torch.device(device) for tensor in held):
            return self
        return dataclasses.replace(
            self,
            values=None if self.values is None else self.values.to(device),
            labels=None if self.labels is None else self.labels.to(device),
            given_statistics=self.given_statistics and self.given_statistics.to(device),
        )

    def at_most(self, most: int | None) -> "FeatureSet":
        """`most` of its images, chosen at random, or all where there are no more; statistics that
        came with the set stay."""
        if most is None or self.values is None or self.count <= most:
            return self
        rows = torch.from_numpy(chosen(self.count, most, seed=0)).to(self.values.device)
        labels = None if self.labels is None else self.labels[rows]
        return dataclasses.replace(self, count=most, values=self.values[rows], labels=labels)

    @cached_property
    def statistics(self) -> GaussianStatistics:
        """Those given, or those of the values; computed once."""
        if self.given_statistics is not None:
            return self.given_statistics
        return GaussianStatistics.from_features(self.values)

    @property
    def dim(self) -> int:
        """Number of features D."""
        return self.statistics.dim if self.values is None else self.values.shape[1]

    @property
    def has_values(self) -> bool:
        """Whether single features are known."""
        return self.values is not None

    @property
    def has_labels(self) -> bool:
        """Whether classes are known."""
        return self.labels is not None


class Kind(Protocol):
    """What features of two sets must have in common: the detector, and their number D."""

    detector: str
    dim: int


class Known(Kind, Protocol):
    """What can be said of a set before its features are made, or after: a `FeatureSet` is one.

    Attributes:
        count, has_values, has_labels, truth: as of `FeatureSet`.
    """

    count: int
    has_values: bool
    has_labels: bool
    truth: ExactDenoiser | None


class Metric(ABC):
    """A metric: a pure function of two feature sets, with what it needs of them.

    The needs are known without any image, so that sets which lack something are refused by
    `check_reference` and `check_counts` before the first image is made or looked at.

    Attributes:
        needs_reference: whether it looks at the real set at all.
        needs_values, needs_labels, needs_truth: whether it needs single features of the real set,
            its labels, or its exact distribution.
        needs_detector: name of the only detector that it is defined for, or None for any.
    """

    needs_reference: ClassVar[bool] = True
    needs_values: ClassVar[bool] = True
    needs_labels: ClassVar[bool] = False
    needs_truth: ClassVar[bool] = False
    needs_detector: ClassVar[str | None] = None

    @abstractmethod
    def check_counts(self, *, real: int | None, fake: int, dim: int) -> None:
        """Raise UsageError where there are too few images.

        Arguments:
            real: number of real images: of single ones, where it needs_values; None where it is
                not recorded, or no reference is needed.
            fake: number of fakes.
            dim: number of features D.
        """

    def doubts(
        self, *, real: int | None, fake: int, detector: str, dim: int, network: bool
    ) -> list[str]:
        """What the numbers of images do to a comparison with published values, in whole sentences.

        Arguments:
            real, fake, dim: as for `check_counts`.
            detector: name of the detector.
            network: whether that is a published network.
        """
        return []

    @abstractmethod
    def __call__(self, *, real: FeatureSet | None, fake: FeatureSet) -> dict[str, float]:
        """Numbers by column name, in the order of the columns; real may be None where it needs no
        reference."""


def chosen(count: int, most: int, seed: int) -> np.ndarray:
    """`most` of the numbers 0 ... count - 1, int64, in order, chosen at random by the seed."""
    return np.sort(np.random.default_rng(seed).permutation(count)[:most])


def check_whole(name: str, value: int, *, least: int) -> None:
    """Raise UsageError unless an option is a whole number of at least `least`."""
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise UsageError(f"{name} is {value!r}; it must be a whole number of at least {least}.")


def check_share(name: str, value: float) -> None:
    """Raise UsageError unless an option is a number between 0 and 1."""
    if not isinstance(value, float) or not 0 < value < 1:
        raise UsageError(f"{name} is {value!r}; it must be a number above 0 and below 1.")


def check_enough(
    metric: str, *, least: int, real: int | None = None, fake: int | None = None, instead: str
) -> None:
    """Raise UsageError where a side has fewer images than a metric needs.

    Arguments:
        metric: its name, with the options that ask for so many.
        least: images needed.
        real, fake: images that there are; None for any number.
        instead: what else can be done than to use more images.
    """
    for side, count in (("real", real), ("fake", fake)):
        if count is not None and count < least:
            there = "there is 1" if count == 1 else f"there are {count}"
            raise UsageError(
                f"{metric} needs at least {least} {side} images, but {there}; "
                f"use more images or {instead}."
            )


def check_detector(metric: Metric, detector: str | None) -> None:
    """Raise UsageError where the metric is defined for another detector alone.

    Arguments:
        detector: its name; None where it depends on the samples.
    """
    if metric.needs_detector is not None:
        require_detector(detector, metric.needs_detector, metric=type(metric).__name__)


def check_reference(metric: Metric, real: Known) -> None:
    """Raise UsageError where the real set lacks features, labels or truth that the metric needs."""
    name = type(metric).__name__
    if metric.needs_values:
        _check_has_values(real, "real", name)
    if metric.needs_labels:
        _check_has_labels(real, "real", name)
    if metric.needs_truth:
        require_truth(real, metric=name)


def check_comparable(*, real: Kind, fake: Kind) -> None:
    """Raise UsageError unless both sets come from one detector and have one dimension."""
    if real.detector != fake.detector:
        raise UsageError(
            f"real features are of detector {real.detector!r}, fake ones of {fake.detector!r}; "
            "only features of one detector compare. Evaluate both with the same one."
        )
    if real.dim != fake.dim:
        raise UsageError(
            f"{real.detector}: real features have {real.dim} dimensions, fake ones {fake.dim}. "
            "Pixels compare for images of one size and colour (resize=N); other features, if one "
            "detector made both."
        )


def require_detector(detector: str | None, needed: str, *, metric: str) -> None:
    """Raise UsageError unless a detector, by its name, is the one that a metric is defined for."""
    if detector != needed:
        raise UsageError(
            f"{metric} is defined for features of {needed}, and these are of "
            f"{detector or 'another detector'}; use detector={needed}, or leave the metric out."
        )


def require_values(features: FeatureSet, *, side: str, metric: str) -> Tensor:
    """The features [N, D]; raises UsageError where only statistics are known."""
    _check_has_values(features, side, metric)
    return features.values


def require_labels(features: FeatureSet, *, side: str, metric: str) -> Tensor:
    """The labels [N]; raises UsageError where there are none."""
    _check_has_labels(features, side, metric)
    return features.labels


def require_truth(features: Known, *, metric: str) -> ExactDenoiser:
    """The exact distribution; raises UsageError where it is not known."""
    if features.truth is None:
        raise UsageError(
            f"{metric} needs a distribution known in closed form, and the real set (detector "
            f"{features.detector}) has none. Use it with a toy model, or leave the metric out."
        )
    return features.truth


def _check_has_values(features: Known, side: str, metric: str) -> None:
    if not features.has_values:
        raise UsageError(
            f"{metric} compares single images, but of the {side} set only statistics are known "
            f"({_described(features)}). Give the images or their features, or leave the metric out."
        )


def _check_has_labels(features: Known, side: str, metric: str) -> None:
    if not features.has_labels:
        raise UsageError(
            f"{metric} compares classes, but the {side} set ({_described(features)}) has no "
            "labels. Give a labelled set, or leave the metric out."
        )


def _described(features: Known) -> str:
    images = "number of images not known" if features.count == 0 else f"{features.count} images"
    return f"detector {features.detector}, {images}"
