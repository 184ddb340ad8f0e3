"""The vote of nearest neighbours against known answers and scikit-learn's classifier."""

import pytest
import torch
from helpers import feature_set, normal
from sklearn.neighbors import KNeighborsClassifier
from torch import Tensor

from guidex.metrics.accuracy import KNNAccuracy, majority


def accuracy(real: Tensor, labels: Tensor, fake: Tensor, asked: Tensor, k: int = 5) -> float:
    metric = KNNAccuracy(k)
    return metric(real=feature_set(real, labels), fake=feature_set(fake, asked))["accuracy_d"]


def test_separate_classes_count_the_fakes_of_the_wrong_class() -> None:
    labels = torch.arange(3).repeat(20)
    centres = 100 * normal(3, 6)[labels]
    asked = labels.clone()
    asked[:9] = (asked[:9] + 1) % 3
    real, fake = centres + normal(60, 6, seed=1), centres + normal(60, 6, seed=2)
    assert accuracy(real, labels, fake, asked) == pytest.approx(51 / 60)


def test_overlapping_classes_agree_with_scikit_learn() -> None:
    # Two classes and an odd k: no ties, so that all implementations must agree.
    labels, asked = torch.arange(300) % 2, torch.arange(200) // 100
    real = normal(300, 4) + labels[:, None]
    fake = normal(200, 4, seed=1) + asked[:, None]
    reference = KNeighborsClassifier(n_neighbors=7).fit(real.numpy(), labels.numpy())
    expected = reference.score(fake.numpy(), asked.numpy())
    assert 0.6 < expected < 0.95
    assert accuracy(real, labels, fake, asked, k=7) == pytest.approx(expected)


def test_a_tie_goes_to_the_class_of_the_nearest() -> None:
    votes = torch.tensor([[4, 9, 9, 4, 1], [1, 4, 4, 9, 9], [3, 1, 1, 1, 3], [0, 1, 2, 3, 4]])
    assert majority(votes).tolist() == [4, 4, 1, 0]
    real, labels = torch.tensor([[1.0], [2], [3], [4]]), torch.tensor([0, 1, 1, 0])
    fake = torch.tensor([[0.0], [2.4]])
    assert accuracy(real, labels, fake, torch.tensor([0, 1]), k=4) == 1.0
