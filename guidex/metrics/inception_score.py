"""The Inception score (Salimans et al. 2016, arXiv 1606.03498): exp of the mean KL divergence
between the class probabilities of an image and those of all images."""

from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from guidex.features.doubts import PUBLISHED_IMAGES
from guidex.features.features import (
    FeatureSet,
    Metric,
    check_enough,
    check_whole,
    require_detector,
    require_values,
)

DETECTOR = "inception_logits"


class InceptionScore(Metric):
    """Mean and deviation over parts of the fakes: equal ones of the shuffled fakes, as
    torch-fidelity does it, or parts of 5,000 in order, as ADM does it.

    It looks at fakes alone, at the logits (without bias) of Inception-v3 for them:
    detector=inception_logits. Larger parts have larger scores, so published numbers are of 50,000
    images in 10 parts.

    Arguments:
        splits: number of parts, where `size` is None.
        size: images in each part, fewer in the last one; None for `splits` equal parts.
        shuffle: whether images are shuffled first, since they often come sorted by class.
        seed: of the order; torch-fidelity's is 2020.
    """

    needs_reference: ClassVar[bool] = False
    needs_values: ClassVar[bool] = False
    needs_detector: ClassVar[str | None] = DETECTOR

    def __init__(
        self, splits: int = 10, size: int | None = None, shuffle: bool = True, seed: int = 2020
    ) -> None:
        check_whole("splits", splits, least=1)
        if size is not None:
            check_whole("size", size, least=1)
        check_whole("seed", seed, least=0)
        self.splits, self.size = splits, size
        self.shuffle = shuffle
        self.seed = seed

    def check_counts(self, *, real: int | None, fake: int, dim: int) -> None:
        """Raise UsageError where fakes are fewer than parts."""
        if self.size is None:
            check_enough(
                f"InceptionScore with splits={self.splits}",
                least=self.splits,
                fake=fake,
                instead="fewer splits",
            )

    def doubts(
        self, *, real: int | None, fake: int, detector: str, dim: int, network: bool
    ) -> list[str]:
        """Larger parts have larger scores."""
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

    def __call__(self, *, real: FeatureSet | None, fake: FeatureSet) -> dict[str, float]:
        """is_inception_logits, 1 ... 1008, and is_std_inception_logits; of the fakes.

        Raises:
            UsageError: features that are not logits, or fewer images than parts.
        """
        require_detector(fake.detector, DETECTOR, metric="InceptionScore")
        logits = require_values(fake, side="fake", metric="InceptionScore")
        self.check_counts(real=None, fake=len(logits), dim=fake.dim)
        if self.shuffle:
            order = np.random.RandomState(self.seed).permutation(len(logits))
            logits = logits[torch.from_numpy(order).to(logits.device)]
        parts = _parts(logits, self.splits) if self.size is None else logits.split(self.size)
        scores = torch.stack([inception_score(part) for part in parts])
        return {
            f"is_{fake.detector}": scores.mean().item(),
            f"is_std_{fake.detector}": scores.std(correction=0).item(),
        }


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
