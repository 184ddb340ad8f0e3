"""Does a fake show the class that it was asked for, as its neighbours among the reals tell?"""

from dataclasses import dataclass

from torch import Tensor

from guidex.features.features import FeatureSet
from guidex.metrics.metric import Column, Fewest, Metric
from guidex.metrics.prdc import nearest_neighbours


def majority(votes: Tensor) -> Tensor:
    """The most frequent label of each row [M, k] -> [M]; of tied labels the leftmost."""
    counts = (votes[:, :, None] == votes[:, None, :]).sum(dim=2)
    # argmax returns the first of equal maxima, and voters are sorted by distance.
    return votes.gather(1, counts.argmax(dim=1, keepdim=True))[:, 0]


@dataclass(frozen=True)
class KNNAccuracy(Metric):
    """Share of fakes whose k nearest reals vote for the class that was asked for.

    A tie goes to the tied class with the nearest image. Real classes should be about equally
    frequent, since frequent ones win votes by number.

    Attributes:
        k: voters per fake, 1 or more.
    """

    k: int = 5

    columns = (Column("accuracy", "Accuracy", "higher", digits=3, is_share=True),)
    least = {"k": 1}
    needs_labels = True

    def fewest(self, dim: int) -> Fewest:
        return Fewest(real=self.k, options=f"k={self.k}", instead="a smaller k")

    def caption(self, *, real: int | None, recorded: int | None) -> dict[str, str]:
        return {"accuracy": f"k={self.k}"}

    def compute(self, real: FeatureSet, fake: FeatureSet) -> dict[str, Tensor]:
        _, indices = nearest_neighbours(queries=fake.values, points=real.values, k=self.k)
        voted = majority(real.labels.to(indices.device)[indices])
        return {"accuracy": voted == fake.labels.to(voted.device)}
