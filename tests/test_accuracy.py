"""The vote of nearest neighbours against known answers and scikit-learn's classifier."""

import pytest
import torch
from sklearn.neighbors import KNeighborsClassifier
from torch import Tensor

from guidex.features.features import FeatureSet
from guidex.metrics.accuracy import KNNAccuracy, knn_accuracy, majority


def normal(*shape: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def feature_set(values: Tensor, labels: Tensor | None) -> FeatureSet:
    return FeatureSet.from_values(detector="d", values=values, labels=labels)


def test_separate_classes_count_the_fakes_of_the_wrong_class() -> None:
    centres = 100 * normal(3, 6)
    labels = torch.arange(3).repeat(20)
    real = feature_set(centres[labels] + normal(60, 6, seed=1), labels)
    asked = labels.clone()
    asked[:9] = (asked[:9] + 1) % 3
    fake = feature_set(centres[labels] + normal(60, 6, seed=2), asked)
    assert KNNAccuracy()(real=real, fake=fake) == {"accuracy_d": pytest.approx(51 / 60)}


def test_overlapping_classes_agree_with_scikit_learn() -> None:
    # Two classes and an odd k: no ties, so that all implementations must agree.
    labels, asked = torch.arange(300) % 2, torch.arange(200) // 100
    real = normal(300, 4) + labels[:, None]
    fake = normal(200, 4, seed=1) + asked[:, None]
    reference = KNeighborsClassifier(n_neighbors=7).fit(real.numpy(), labels.numpy())
    expected = reference.score(fake.numpy(), asked.numpy())
    assert 0.6 < expected < 0.95
    value = knn_accuracy(real=real, real_labels=labels, fake=fake, fake_labels=asked, k=7)
    assert value == pytest.approx(expected)


def test_a_tie_goes_to_the_class_of_the_nearest() -> None:
    votes = torch.tensor([[4, 9, 9, 4, 1], [1, 4, 4, 9, 9], [3, 1, 1, 1, 3], [0, 1, 2, 3, 4]])
    assert majority(votes).tolist() == [4, 4, 1, 0]
    real = torch.tensor([[1.0], [2], [3], [4]])
    labels = torch.tensor([0, 1, 1, 0])
    value = knn_accuracy(
        real=real,
        real_labels=labels,
        fake=torch.tensor([[0.0], [2.4]]),
        fake_labels=torch.tensor([0, 1]),
        k=4,
    )
    assert value == 1.0
