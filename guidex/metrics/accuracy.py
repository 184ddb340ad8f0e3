"""Does a fake show the class that it was asked for, as its neighbours among the reals tell?"""

from typing import ClassVar

from torch import Tensor

from guidex.features.features import (
    FeatureSet,
    Metric,
    check_comparable,
    check_enough,
    check_whole,
    require_labels,
    require_values,
)
from guidex.metrics.prdc import nearest_neighbours


class KNNAccuracy(Metric):
    """Share of fakes whose k nearest reals vote for the class that was asked for.

    A tie goes to the tied class with the nearest image. Needs labels of reals and fakes. Real
    classes should be about equally frequent, since frequent ones win votes by number.

    Arguments:
        k: voters per fake, 1 or more.
    """

    needs_labels: ClassVar[bool] = True

    def __init__(self, k: int = 5) -> None:
        check_whole("k", k, least=1)
        self.k = k

    def check_counts(self, *, real: int | None, fake: int, dim: int) -> None:
        """Raise UsageError where there are fewer than k reals."""
        check_enough(f"KNNAccuracy with k={self.k}", least=self.k, real=real, instead="a smaller k")

    def __call__(self, *, real: FeatureSet, fake: FeatureSet) -> dict[str, float]:
        """accuracy_<detector>, in 0 ... 1.

        Raises:
            UsageError: sets of different detectors, no features, no labels, fewer than k reals.
        """
        check_comparable(real=real, fake=fake)
        reals = require_values(real, side="real", metric="KNNAccuracy")
        self.check_counts(real=len(reals), fake=fake.count, dim=real.dim)
        accuracy = knn_accuracy(
            real=reals,
            real_labels=require_labels(real, side="real", metric="KNNAccuracy"),
            fake=require_values(fake, side="fake", metric="KNNAccuracy"),
            fake_labels=require_labels(fake, side="fake", metric="KNNAccuracy"),
            k=self.k,
        )
        return {f"accuracy_{real.detector}": accuracy}


def knn_accuracy(
    *, real: Tensor, real_labels: Tensor, fake: Tensor, fake_labels: Tensor, k: int
) -> float:
    """Share of fakes [M, D] whose k-NN vote on real [N, D], N >= k, equals their label [M]."""
    _, indices = nearest_neighbours(queries=fake, points=real, k=k)
    voted = majority(real_labels.to(indices.device)[indices])
    return (voted == fake_labels.to(voted.device)).double().mean().item()


def majority(votes: Tensor) -> Tensor:
    """The most frequent label of each row [M, k] -> [M]; of tied labels the leftmost."""
    counts = (votes[:, :, None] == votes[:, None, :]).sum(dim=2)
    # argmax returns the first of equal maxima, and voters are sorted by distance.
    return votes.gather(1, counts.argmax(dim=1, keepdim=True))[:, 0]
