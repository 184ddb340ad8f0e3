"""Mean and covariance of features, gathered batch by batch in float64.

Two sets of statistics merge exactly (Chan, Golub and LeVeque 1983, "Algorithms for computing the
sample variance", eq. 2.1), so a set may be cut into batches, blocks and ranks in any way.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from guidex.errors import UsageError

# Rows converted to float64 at a time: 64 MiB at 2048 features.
_ROWS = 4096

# Reference files often hold float32 covariances, symmetric to about 1e-7 only.
_ASYMMETRY = 1e-4


def refuse_nonfinite(values: Tensor, *, first_row: int = 0) -> None:
    """Raise UsageError naming the first row of values [N, D] that holds NaN or infinity.

    Arguments:
        values: features [N, D].
        first_row: number of values[0] in the set that the message speaks of.
    """
    for start, block in _blocks(values):
        finite = torch.isfinite(block).all(dim=1)
        if not bool(finite.all()):
            row = first_row + start + int(torch.nonzero(~finite)[0])
            raise UsageError(
                f"features: row {row} (counted from 0) holds NaN or infinity; all features must be "
                "finite. Look at that image, and at the sampler's weights and precision."
            )


def gram(values: Tensor) -> Tensor:
    """values^T values, [D, D], of float64 values [N, D].

    On a CPU by NumPy, which computes one half of it, and is nearly twice as fast as torch.
    """
    if values.device.type != "cpu":
        return values.T @ values
    array = values.numpy()
    return torch.from_numpy(array.T @ array)


@dataclass(frozen=True, eq=False)
class GaussianStatistics:
    """What a Gaussian fit needs to know of N feature vectors.

    Attributes:
        count: N >= 0.
        mean: [D], float64, on the CPU, or wherever it was put.
        scatter: sum of (x - mean)(x - mean)^T, [D, D], float64, on the same device.
    """

    count: int
    mean: Tensor
    scatter: Tensor

    def __post_init__(self) -> None:
        shape = tuple(self.mean.shape)
        if len(shape) != 1 or shape == (0,) or self.scatter.shape != 2 * shape:
            raise UsageError(
                f"statistics: mean {list(shape)} and covariance {list(self.scatter.shape)} do not "
                "fit; needed are [D] and [D, D] with D of at least 1."
            )
        if self.count < 0:
            raise UsageError(f"statistics: count {self.count} is negative.")
        if not (torch.isfinite(self.mean).all() and torch.isfinite(self.scatter).all()):
            raise UsageError("statistics: the mean or the covariance holds NaN or infinity.")

    @classmethod
    def empty(cls, dim: int) -> "GaussianStatistics":
        """Statistics of no images at all, to merge others into."""
        return cls(
            0,
            torch.zeros(dim, dtype=torch.float64),
            torch.zeros(dim, dim, dtype=torch.float64),
        )

    @classmethod
    def from_features(cls, values: Tensor, *, first_row: int = 0) -> "GaussianStatistics":
        """Statistics of features [N, D] of any floating dtype on any device, N >= 0. They are on
        the device of the features, or on the CPU where that device has no float64.

        Arguments:
            values: one batch, or the whole set.
            first_row: number of values[0] in the whole set, for messages.

        Raises:
            UsageError: values is not [N, D], or holds NaN or infinity (naming the row).
        """
        if values.ndim != 2 or not values.is_floating_point():
            raise UsageError(
                f"features: {values.dtype} {list(values.shape)} given, but floating-point numbers "
                "[N, D] are needed."
            )
        refuse_nonfinite(values, first_row=first_row)
        device = "cpu" if values.device.type == "mps" else values.device
        mean = torch.zeros(values.shape[1], dtype=torch.float64, device=device)
        scatter = mean.new_zeros(len(mean), len(mean))
        for start, block in _blocks(values):
            block = block.to(device=device, dtype=torch.float64)
            own = block.mean(dim=0)
            # As in merge, but in place.
            shift, share = own - mean, len(block) / (start + len(block))
            scatter += gram(block - own)
            scatter.addr_(shift, shift, alpha=start * share)
            mean += shift * share
        return cls(values.shape[0], mean, scatter)

    @classmethod
    def from_moments(cls, *, count: int, mean: Tensor, covariance: Tensor) -> "GaussianStatistics":
        """Statistics from a reference's mean [D] and (N - 1) covariance [D, D], any float dtype.

        Raises:
            UsageError: fewer than 2 images, shapes that do not fit, not symmetric, not finite.
        """
        if count < 2:
            raise UsageError(f"statistics: count {count} given, at least 2 images needed.")
        covariance = covariance.detach().to(device="cpu", dtype=torch.float64)
        statistics = cls(
            count,
            mean.detach().to(device="cpu", dtype=torch.float64),
            (covariance + covariance.mT) * (0.5 * (count - 1)),
        )
        asymmetry = (covariance - covariance.mT).abs().max()
        if asymmetry > _ASYMMETRY * covariance.abs().max():
            raise UsageError(
                "statistics: the covariance is not symmetric "
                f"(entries differ by up to {float(asymmetry):.3g}); is it another matrix?"
            )
        return statistics

    def to(self, device: str | torch.device) -> "GaussianStatistics":
        """The same on a device, which must have float64."""
        return GaussianStatistics(self.count, self.mean.to(device), self.scatter.to(device))

    @property
    def dim(self) -> int:
        """Number of features D."""
        return self.mean.shape[0]

    @property
    def covariance(self) -> Tensor:
        """Unbiased covariance scatter / (N - 1), [D, D]. Raises UsageError below 2 images."""
        if self.count < 2:
            raise UsageError(f"a covariance needs at least 2 images, but there is {self.count}.")
        return self.scatter / (self.count - 1)

    def merge(self, other: "GaussianStatistics") -> "GaussianStatistics":
        """Statistics of both sets together, exact but for rounding."""
        self._refuse_other_dim(other)
        count = self.count + other.count
        if count == 0:
            return self
        shift = other.mean - self.mean
        between = torch.outer(shift, shift) * (self.count * other.count / count)
        return GaussianStatistics(
            count,
            self.mean + shift * (other.count / count),
            self.scatter + other.scatter + between,
        )

    def without(self, part: "GaussianStatistics") -> "GaussianStatistics":
        """Statistics of what is left when `part` of this set is taken out: merge, undone.

        Digits are lost where the part is nearly everything: meant for parts of up to a half.

        Raises:
            UsageError: the part is as large as the set, or larger.
        """
        self._refuse_other_dim(part)
        count = self.count - part.count
        if count < 1:
            raise UsageError(f"cannot take {part.count} images out of {self.count}.")
        shift = (part.mean - self.mean) * (self.count / count)
        between = torch.outer(shift, shift) * (count * part.count / self.count)
        return GaussianStatistics(
            count,
            self.mean - shift * (part.count / self.count),
            self.scatter - part.scatter - between,
        )

    def _refuse_other_dim(self, other: "GaussianStatistics") -> None:
        if other.dim != self.dim:
            raise UsageError(
                f"statistics of {self.dim} and of {other.dim} features cannot be combined."
            )


def _blocks(values: Tensor) -> Iterator[tuple[int, Tensor]]:
    for start in range(0, values.shape[0], _ROWS):
        yield start, values[start : start + _ROWS]
