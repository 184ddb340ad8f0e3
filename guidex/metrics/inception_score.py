"""The Inception score (Salimans et al. 2016, arXiv 1606.03498): exp of the mean KL divergence
between the class probabilities of an image and those of all images."""

from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from guidex.features.features import FeatureSet
from guidex.metrics.metric import PUBLISHED_IMAGES, Column, Fewest, Metric, check_whole


def inception_score(logits: Tensor) -> Tensor:
    """exp E_x KL(p(y|x) || p(y)) of logits [N, classes], computed in float64."""
    log_p = logits.double().log_softmax(dim=1)
    p = log_p.exp()
    # Entropies may be 0 log 0, which xlogy takes as the limit 0.
    entropy_of_mean = -torch.xlogy(p.mean(dim=0), p.mean(dim=0)).sum()
    mean_of_entropies = -torch.xlogy(p, p).sum(dim=1).mean()
    return (entropy_of_mean - mean_of_entropies).exp()


def _parts(values: Tensor, splits: int) -> list[Tensor]:
    count = len(values)
    edges = [index * count // splits for index in range(splits + 1)]
    return [values[start:end] for start, end in zip(edges, edges[1:], strict=False)]


class InceptionScore(Metric):
    """Mean and deviation over parts of the fakes: equal ones of the shuffled fakes, as
    torch-fidelity does it, or parts of 5,000 in order, as ADM does it.

    It takes the fakes alone, by the logits (without bias) of Inception-v3 for them:
    detector=inception_logits. Larger parts have larger scores, so published numbers are of 50,000
    images in 10 parts.

    Arguments:
        splits: number of parts, where `size` is None.
        size: images in each part, fewer in the last one; None for `splits` equal parts.
        shuffle: whether images are shuffled first, since they often come sorted by class.
        seed: of the order; torch-fidelity's is 2020.
    """

    columns = (Column("is", "IS", "higher"), Column("is_std", "IS deviation of one part"))
    needs_reference: ClassVar[bool] = False
    needs_detector: ClassVar[str] = "inception_logits"

    def __init__(
        self, splits: int = 10, size: int | None = None, shuffle: bool = True, seed: int = 2020
    ) -> None:
        check_whole("splits", splits, least=1)
        if size is not None:
            check_whole("size", size, least=1)
        check_whole("seed", seed, least=0)
        self.splits, self.size, self.shuffle, self.seed = splits, size, shuffle, seed

    def fewest(self, dim: int) -> list[Fewest]:
        if self.size is not None:
            return []
        return [Fewest(0, self.splits, f"splits={self.splits}", "fewer splits")]

    def doubts(
        self, *, real: int | None, fake: int, detector: str, dim: int, network: bool
    ) -> list[str]:
        if self.size is not None:
            if fake % self.size == 0:
                return []
            return [
                f"{fake:,} fake images: scores of parts of {self.size:,} have a last part of "
                f"{fake % self.size:,}, which comes out smaller."
            ]
        if fake == PUBLISHED_IMAGES:
            return []
        more = fake > PUBLISHED_IMAGES
        return [
            f"{fake:,} fake images: published scores are of {PUBLISHED_IMAGES:,}, and with "
            f"{'more' if more else 'fewer'} they come out {'larger' if more else 'smaller'}."
        ]

    def compute(self, real: FeatureSet | None, fake: FeatureSet) -> dict[str, float]:
        logits = fake.values
        if self.shuffle:
            order = np.random.RandomState(self.seed).permutation(len(logits))
            logits = logits[torch.from_numpy(order).to(logits.device)]
        parts = _parts(logits, self.splits) if self.size is None else logits.split(self.size)
        scores = torch.stack([inception_score(part) for part in parts])
        return {"is": scores.mean().item(), "is_std": scores.std(correction=0).item()}
