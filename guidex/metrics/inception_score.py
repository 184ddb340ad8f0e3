"""The Inception score (Salimans et al. 2016, arXiv 1606.03498): exp of the mean KL divergence
between the class probabilities of an image and those of all images."""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from guidex.features.features import FeatureSet
from guidex.metrics.metric import Column, Fewest, Metric, doubts_of_count


def inception_score(logits: Tensor) -> Tensor:
    """exp E_x KL(p(y|x) || p(y)) of logits [N, classes], computed in float64."""
    log_p = logits.double().log_softmax(dim=1)
    p = log_p.exp()
    # Entropies may be 0 log 0, which xlogy takes as the limit 0.
    entropy_of_mean = -torch.xlogy(p.mean(dim=0), p.mean(dim=0)).sum()
    mean_of_entropies = -torch.xlogy(p, p).sum(dim=1).mean()
    return (entropy_of_mean - mean_of_entropies).exp()


@dataclass(frozen=True)
class InceptionScore(Metric):
    """Mean and deviation over parts of the fakes: equal ones of the shuffled fakes, as
    torch-fidelity does it, or parts of 5,000 in order, as ADM does it.

    Larger parts have larger scores; published numbers are of 50,000 images in 10 parts, by the
    logits (without bias) of Inception-v3.
    """

    splits: int = 10  # number of parts, where `size` is None
    size: int | None = None  # images in each part, fewer in the last one
    shuffle: bool = True  # first, since images often come sorted by class
    seed: int = 2020  # of the order; torch-fidelity's

    columns = (Column("is", "IS", "higher"), Column("is_std", "IS deviation of one part"))
    least = {"splits": 1, "size": 1, "seed": 0}
    needs_reference = False
    needs_detector = "inception_logits"

    def fewest(self, dim: int) -> Fewest:
        fewest = Fewest(0, self.splits, f"splits={self.splits}", "fewer splits")
        return fewest if self.size is None else Fewest()

    def doubts(self, *, real: int | None, fake: int, dim: int, network: bool) -> list[str]:
        if self.size is not None:
            last = fake % self.size
            told = f"scores of parts of {self.size:,} have a last part of {last:,}, which comes out"
            return [f"{fake:,} fake images: {told} smaller."] if last > 0 else []
        return doubts_of_count("fake", fake, "scores")

    def compute(self, real: FeatureSet | None, fake: FeatureSet) -> dict[str, float]:
        logits, count = fake.values, fake.count
        if self.shuffle:
            order = np.random.RandomState(self.seed).permutation(count)
            logits = logits[torch.from_numpy(order).to(logits.device)]
        if self.size is None:
            cuts = [part * count // self.splits for part in range(1, self.splits)]
            parts = logits.tensor_split(cuts)
        else:
            parts = logits.split(self.size)
        scores = torch.stack([inception_score(part) for part in parts])
        return {"is": scores.mean().item(), "is_std": scores.std(correction=0).item()}
