"""What metrics compare: sets of images after a detector."""

import dataclasses
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor

from guidex.errors import UsageError
from guidex.features.statistics import GaussianStatistics
from guidex.models.denoiser import ExactDenoiser


@dataclass(frozen=True, eq=False)
class FeatureSet:
    """One set of images after a detector; see `from_values`."""

    detector: str  # name of the detector; columns end in it (fd_<detector>)
    count: int  # number of images N in the set; 0 where a file of statistics does not tell
    # [N, D], float32 or float64, finite, where metrics are computed; None: there are statistics.
    values: Tensor | None
    labels: Tensor | None = None  # class of each image [N], int64 (of fakes: the class asked for)
    given_statistics: GaussianStatistics | None = None  # that came with the set
    truth: ExactDenoiser | None = None  # the exact distribution behind it, known for toys only

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
        """A set whose single images are known, with the statistics of a larger one that they are
        of, or without.

        Raises:
            UsageError: shapes or dtypes that do not fit, NaN or infinity (naming the row).
        """
        if values.ndim != 2 or values.numel() == 0 or values.dtype not in _FLOATS:
            told = f"{detector}: features are {values.dtype} {list(values.shape)}"
            raise UsageError(f"{told}, not float32 or float64 [N, D] with N and D of at least 1.")
        if labels is not None and (labels.shape != values.shape[:1] or labels.dtype != torch.int64):
            told = f"{detector}: labels are {labels.dtype} {list(labels.shape)}"
            raise UsageError(f"{told}, not int64 [{len(values)}].")
        finite = torch.cat([rows.isfinite().all(dim=1) for rows in values.split(_ROWS)])
        if not finite.all():
            raise UsageError(
                f"features: row {int((~finite).nonzero()[0])} (counted from 0) holds NaN or "
                "infinity. Check that image, and the sampler's weights and precision."
            )
        return cls(detector, len(values), values, labels, statistics, truth)

    def to(self, device: str | torch.device) -> "FeatureSet":
        """The same on a device; the truth stays where it is."""
        statistics = self.given_statistics
        return dataclasses.replace(
            self,
            values=None if self.values is None else self.values.to(device),
            labels=None if self.labels is None else self.labels.to(device),
            given_statistics=None if statistics is None else statistics.to(device),
        )

    def rows(self, rows: slice | Tensor) -> "FeatureSet":
        """Some of its images; statistics that came with the set stay."""
        values = self.values[rows]
        labels = None if self.labels is None else self.labels[rows]
        return dataclasses.replace(self, count=len(values), values=values, labels=labels)

    def at_most(self, most: int | None, seed: int = 0) -> "FeatureSet":
        """`most` of its images, chosen at random, or all where there are no more."""
        if most is None or self.values is None or self.count <= most:
            return self
        return self.rows(torch.from_numpy(chosen(self.count, most, seed)).to(self.values.device))

    @cached_property
    def statistics(self) -> GaussianStatistics:
        """Those given, or those of the values; computed once."""
        if self.given_statistics is not None:
            return self.given_statistics
        return GaussianStatistics.from_features(self.values)

    @property
    def dim(self) -> int:
        return self.given_statistics.dim if self.values is None else self.values.shape[1]

    @property
    def has_values(self) -> bool:
        return self.values is not None

    @property
    def has_labels(self) -> bool:
        return self.labels is not None


_FLOATS = (torch.float32, torch.float64)
_ROWS = 4096  # that are checked at a time


@dataclass(eq=False)
class SetDescription:
    """What is known of a set of images, as of the `FeatureSet` to come, before that is made."""

    detector: str
    dim: int
    count: int = 0  # of single images, where there are any
    has_values: bool = True
    has_labels: bool = False
    truth: ExactDenoiser | None = None
    # All there is to know; its count is of the images that statistics are of, None: not recorded.
    about: dict[str, Any] = field(default_factory=dict)
    features: FeatureSet | None = None  # the set itself, as soon as it is made


AnySet = FeatureSet | SetDescription


def chosen(count: int, most: int, seed: int) -> np.ndarray:
    """`most` of the numbers 0 ... count - 1, int64, in order, chosen at random by the seed."""
    return np.sort(np.random.default_rng(seed).permutation(count)[:most])


def check_comparable(*, real: AnySet, fake: AnySet) -> None:
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
