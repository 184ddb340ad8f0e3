"""Does a fake show the class that it was asked for, as its neighbours among the reals tell?"""

from typing import ClassVar

from torch import Tensor

from guidex.features.features import FeatureSet
from guidex.metrics.metric import Column, Fewest, Metric, check_whole
from guidex.metrics.prdc import nearest_neighbours


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


class KNNAccuracy(Metric):
    """Share of fakes whose k nearest reals vote for the class that was asked for.

    A tie goes to the tied class with the nearest image. Needs labels of reals and fakes. Real
    classes should be about equally frequent, since frequent ones win votes by number.

    Arguments:
        k: voters per fake, 1 or more.
    """

    columns = (Column("accuracy", "Accuracy", "higher", digits=3, is_share=True),)
    needs_labels: ClassVar[bool] = True

    def __init__(self, k: int = 5) -> None:
        check_whole("k", k, least=1)
        self.k = k

    def fewest(self, dim: int) -> list[Fewest]:
        return [Fewest(real=self.k, options=f"k={self.k}", instead="a smaller k")]

    def caption(self, *, real: int | None, recorded: int | None) -> dict[str, str]:
        return {"accuracy": f"k={self.k}"}

    def compute(self, real: FeatureSet, fake: FeatureSet) -> dict[str, float]:
        accuracy = knn_accuracy(
            real=real.values,
            real_labels=real.labels,
            fake=fake.values,
            fake_labels=fake.labels,
            k=self.k,
        )
        return {"accuracy": accuracy}
