"""The kernel Inception distance (Bińkowski et al. 2018, arXiv 1801.01401): the squared maximum mean
discrepancy of two sets of features under the kernel (x . y / D + 1)^3."""

import numpy as np
import torch
from torch import Tensor

from guidex.features.features import FeatureSet
from guidex.metrics.metric import Column, Fewest, Metric, check_whole


def kernel_distances(
    *, real: Tensor, fake: Tensor, subsets: int, subset_size: int, seed: int
) -> Tensor:
    """The estimate for each pair of subsets, [subsets], float64.

    Arguments:
        real, fake: features [N, D] and [M, D] on one device, with N and M of at least subset_size.
        subsets, subset_size, seed: see `KID`.
    """
    # NumPy's old generator, whose numbers never change.
    generator = np.random.RandomState(seed)
    estimates = torch.empty(subsets, dtype=torch.float64)
    for index in range(subsets):
        chosen = [
            values[torch.from_numpy(drawn).to(values.device)].double()
            for values in (fake, real)
            for drawn in [generator.choice(len(values), subset_size, replace=False)]
        ]
        estimates[index] = squared_mmd(chosen[1], chosen[0])
    return estimates


def squared_mmd(real: Tensor, fake: Tensor) -> Tensor:
    """Unbiased squared MMD of float64 features [n, D] and [m, D] (Gretton et al. 2012, eq. 3)."""
    within = [_mean_of_pairs(values) for values in (real, fake)]
    return within[0] + within[1] - 2 * _kernel(real @ fake.T, real.shape[1]).mean()


def _mean_of_pairs(values: Tensor) -> Tensor:
    """Mean of the kernel over pairs of different images."""
    count, dim = values.shape
    total = _kernel(values @ values.T, dim).sum()
    diagonal = _kernel(values.square().sum(dim=1), dim).sum()
    return (total - diagonal) / (count * (count - 1))


def _kernel(products: Tensor, dim: int) -> Tensor:
    return (products / dim + 1) ** 3


class KID(Metric):
    """Mean and deviation of the unbiased estimate over random subsets, as torch-fidelity does it.

    Being unbiased, it does not depend on the number of images as the Fréchet distance does, and it
    is slightly negative at times. The deviation is that of single subsets, not of their mean.

    Subsets are drawn as torch-fidelity draws them, so that equal features and options give its
    numbers; those that it computes from float32 features differ by its rounding, since here
    products and sums are in float64.

    Arguments:
        subsets: number of pairs of subsets.
        subset_size: images in each, at most as many as in either set.
        seed: of the subsets; torch-fidelity's is 2020.
    """

    columns = (Column("kid", "KID", "lower"), Column("kid_std", "KID deviation of one subset"))

    def __init__(self, subsets: int = 100, subset_size: int = 1000, seed: int = 2020) -> None:
        check_whole("subsets", subsets, least=1)
        check_whole("subset_size", subset_size, least=2)
        check_whole("seed", seed, least=0)
        self.subsets, self.subset_size, self.seed = subsets, subset_size, seed

    def fewest(self, dim: int) -> list[Fewest]:
        size = self.subset_size
        return [Fewest(size, size, f"subset_size={size}", "a smaller subset_size")]

    def compute(self, real: FeatureSet, fake: FeatureSet) -> dict[str, float]:
        estimates = kernel_distances(
            real=real.values,
            fake=fake.values,
            subsets=self.subsets,
            subset_size=self.subset_size,
            seed=self.seed,
        )
        return {"kid": estimates.mean().item(), "kid_std": estimates.std(correction=0).item()}
