"""The kernel Inception distance (Bińkowski et al. 2018, arXiv 1801.01401): the squared maximum mean
discrepancy of two sets of features under the kernel (x . y / D + 1)^3."""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from guidex.features.features import FeatureSet
from guidex.metrics.metric import Column, Fewest, Metric


def squared_mmd(real: Tensor, fake: Tensor) -> Tensor:
    """Unbiased squared MMD of float64 features [n, D] and [m, D] (Gretton et al. 2012, eq. 3)."""
    within = _mean_of_pairs(real) + _mean_of_pairs(fake)
    return within - 2 * _kernel(real @ fake.T, real.shape[1]).mean()


def _mean_of_pairs(values: Tensor) -> Tensor:
    """Mean of the kernel over pairs of different images."""
    count, dim = values.shape
    total = _kernel(values @ values.T, dim).sum()
    diagonal = _kernel(values.square().sum(dim=1), dim).sum()
    return (total - diagonal) / (count * (count - 1))


def _kernel(products: Tensor, dim: int) -> Tensor:
    return (products / dim + 1) ** 3


@dataclass(frozen=True)
class KID(Metric):
    """Mean and deviation of the unbiased estimate over random subsets, as torch-fidelity does it.

    Being unbiased, it does not depend on the number of images, and is slightly negative at times.
    The deviation is that of single subsets, not of their mean. Equal features and options give
    torch-fidelity's numbers, but for its rounding to float32; here all is in float64.
    """

    subsets: int = 100  # number of pairs of subsets
    subset_size: int = 1000  # images in each, at most as many as in either set
    seed: int = 2020  # of the subsets; torch-fidelity's

    columns = (Column("kid", "KID", "lower"), Column("kid_std", "KID deviation of one subset"))
    least = {"subsets": 1, "subset_size": 2, "seed": 0}

    def fewest(self, dim: int) -> Fewest:
        size = self.subset_size
        return Fewest(size, size, f"subset_size={size}", "a smaller subset_size")

    def compute(self, real: FeatureSet, fake: FeatureSet) -> dict[str, float]:
        # NumPy's old generator, whose numbers never change.
        generator = np.random.RandomState(self.seed)
        estimates = torch.empty(self.subsets, dtype=torch.float64)
        for index in range(self.subsets):
            of_fake = self._subset(fake.values, generator)
            estimates[index] = squared_mmd(self._subset(real.values, generator), of_fake)
        return {"kid": estimates.mean().item(), "kid_std": estimates.std(correction=0).item()}

    def _subset(self, values: Tensor, generator: np.random.RandomState) -> Tensor:
        drawn = generator.choice(len(values), self.subset_size, replace=False)
        return values[torch.from_numpy(drawn).to(values.device)].double()
