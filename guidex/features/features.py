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

_FLOATS = (torch.float32, torch.float64)
_ROWS = 4096  # that are checked at a time


@dataclass(frozen=True, eq=False)
class FeatureSet:
    """One set of images after a detector. What such a set will be is told by one whose tensors are
    on torch's meta device, where they have a shape and no numbers (see `expected`).

    Raises UsageError: shapes or dtypes that do not fit, NaN or infinity (naming the row).
    """

    detector: str  # name of the detector; columns end in it (fd_<detector>)
    values: Tensor | None = None  # [N, D], float32 or float64, finite; None: there are statistics
    labels: Tensor | None = None  # class of each image [N], int64 (of fakes: the class asked for)
    given_statistics: GaussianStatistics | None = None  # of a larger set that these are of
    truth: ExactDenoiser | None = None  # the exact distribution behind it, known for toys only
    # All there is to know of the images, as plain data, where it was asked for. Its count is of the
    # images that statistics are of, None: not recorded.
    about: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        values, labels = self.values, self.labels
        if values is None:
            return
        if values.ndim != 2 or values.numel() == 0 or values.dtype not in _FLOATS:
            told = f"{self.detector}: features are {values.dtype} {list(values.shape)}"
            raise UsageError(f"{told}, not float32 or float64 [N, D] with N and D of at least 1.")
        if labels is not None and (labels.shape != values.shape[:1] or labels.dtype != torch.int64):
            told = f"{self.detector}: labels are {labels.dtype} {list(labels.shape)}"
            raise UsageError(f"{told}, not int64 [{len(values)}].")
        if values.is_meta:
            return
        finite = torch.cat([rows.isfinite().all(dim=1) for rows in values.split(_ROWS)])
        if not finite.all():
            raise UsageError(
                f"features: row {int((~finite).nonzero()[0])} (counted from 0) holds NaN or "
                "infinity. Check that image, and the sampler's weights and precision."
            )

    @classmethod
    def expected(cls, detector: str, count: int, dim: int, labelled: bool) -> "FeatureSet":
        """What a set of N images will be before there are features."""
        labels = torch.empty(count, dtype=torch.int64, device="meta") if labelled else None
        return cls(detector, torch.empty(count, dim, device="meta"), labels)

    def to(self, device: str | torch.device) -> "FeatureSet":
        """The same on a device; the truth stays where it is."""
        parts = {name: getattr(self, name) for name in ("values", "labels", "given_statistics")}
        moved = {name: part.to(device) for name, part in parts.items() if part is not None}
        return dataclasses.replace(self, **moved)

    def rows(self, rows: slice | Tensor) -> "FeatureSet":
        """Some of its images; statistics that came with the set stay."""
        labels = None if self.labels is None else self.labels[rows]
        return dataclasses.replace(self, values=self.values[rows], labels=labels)

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
    def count(self) -> int:
        """Number N of single images; where there are none, of those that the statistics are of."""
        return self.given_statistics.count if self.values is None else len(self.values)

    @property
    def dim(self) -> int:
        return self.given_statistics.dim if self.values is None else self.values.shape[1]


def chosen(count: int, most: int, seed: int) -> np.ndarray:
    """`most` of the numbers 0 ... count - 1, int64, in order, chosen at random by the seed."""
    return np.sort(np.random.default_rng(seed).permutation(count)[:most])


def check_comparable(*, real: FeatureSet, fake: FeatureSet) -> None:
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
