"""Mean and covariance of features, gathered batch by batch in float64 (Chan, Golub and LeVeque
1983, "Algorithms for computing the sample variance", eq. 2.1)."""

from dataclasses import dataclass

import torch
from torch import Tensor

from guidex.errors import UsageError

# Rows converted to float64 at a time: 64 MiB at 2048 features.
_ROWS = 4096

# Reference files often hold float32 covariances, symmetric to about 1e-7 only.
_ASYMMETRY = 1e-4


def gram(values: Tensor) -> Tensor:
    """values^T values, [D, D], of float64 values [N, D]; by NumPy on a CPU, which computes one half
    of it, and is nearly twice as fast as torch."""
    if values.device.type != "cpu":
        return values.T @ values
    array = values.numpy()
    return torch.from_numpy(array.T @ array)


@dataclass(frozen=True, eq=False)
class GaussianStatistics:
    """What a Gaussian fit needs to know of N feature vectors. Raises UsageError: shapes that do not
    fit, NaN or infinity."""

    count: int  # N >= 0
    mean: Tensor  # [D], float64, on the CPU, or wherever it was put
    scatter: Tensor  # sum of (x - mean)(x - mean)^T, [D, D], float64, on the same device

    def __post_init__(self) -> None:
        shape = tuple(self.mean.shape)
        if len(shape) != 1 or shape == (0,) or self.scatter.shape != 2 * shape:
            raise UsageError(
                f"statistics: mean {list(shape)} and covariance {list(self.scatter.shape)} do not "
                "fit; needed are [D] and [D, D] with D of at least 1."
            )
        if not (torch.isfinite(self.mean).all() and torch.isfinite(self.scatter).all()):
            raise UsageError("statistics: the mean or the covariance holds NaN or infinity.")

    @classmethod
    def from_features(cls, values: Tensor) -> "GaussianStatistics":
        """Statistics of features [N, D] of any floating dtype on any device, N >= 0. They are on
        the device of the features, or on the CPU where that device has no float64."""
        device = "cpu" if values.device.type == "mps" else values.device
        mean = torch.zeros(values.shape[1], dtype=torch.float64, device=device)
        scatter = mean.new_zeros(len(mean), len(mean))
        for start in range(0, len(values), _ROWS):
            block = values[start : start + _ROWS].to(device=device, dtype=torch.float64)
            block_mean = block.mean(dim=0)
            shift, share = block_mean - mean, len(block) / (start + len(block))
            scatter += gram(block - block_mean)
            scatter.addr_(shift, shift, alpha=start * share)
            mean += shift * share
        return cls(values.shape[0], mean, scatter)

    @classmethod
    def from_moments(cls, *, count: int, mean: Tensor, covariance: Tensor) -> "GaussianStatistics":
        """Statistics from a reference's mean [D] and (N - 1) covariance [D, D], any float dtype,
        of at least 2 images. Raises UsageError where it is not symmetric, and as the class."""
        covariance = covariance.double()
        statistics = cls(count, mean.double(), (covariance + covariance.mT) * (0.5 * (count - 1)))
        asymmetry = (covariance - covariance.mT).abs().max()
        if asymmetry > _ASYMMETRY * covariance.abs().max():
            raise UsageError(
                f"statistics: the covariance is not symmetric: entries differ by {asymmetry:.3g}."
            )
        return statistics

    def to(self, device: str | torch.device) -> "GaussianStatistics":
        """The same on a device, which must have float64."""
        return GaussianStatistics(self.count, self.mean.to(device), self.scatter.to(device))

    @property
    def dim(self) -> int:
        return self.mean.shape[0]

    @property
    def covariance(self) -> Tensor:
        """Unbiased covariance scatter / (N - 1), [D, D]. Raises UsageError below 2 images."""
        if self.count < 2:
            raise UsageError(f"a covariance needs at least 2 images, but there is {self.count}.")
        return self.scatter / (self.count - 1)

    def without(self, part: "GaussianStatistics") -> "GaussianStatistics":
        """Statistics of what is left when a part of up to a half of this set is taken out; digits
        are lost where it is nearly everything."""
        count = self.count - part.count
        shift = (part.mean - self.mean) * (self.count / count)
        between = torch.outer(shift, shift) * (count * part.count / self.count)
        return GaussianStatistics(
            count,
            self.mean - shift * (part.count / self.count),
            self.scatter - part.scatter - between,
        )
