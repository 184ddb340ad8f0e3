"""The Inception score against closed forms."""

import pytest
import torch
from helpers import feature_set
from torch import Tensor

from guidex.features.features import FeatureSet
from guidex.metrics.inception_score import InceptionScore, inception_score


def score(logits: Tensor, **options: int | bool) -> tuple[float, float]:
    """The score and its deviation."""
    fake = feature_set(logits, detector="inception_logits")
    mean, deviation = InceptionScore(**options)(real=None, fake=fake).values()
    return mean, deviation


def sure(classes: Tensor, count: int) -> Tensor:
    """Logits of images that are surely of their class."""
    return torch.nn.functional.one_hot(classes, count) * 1000.0


def test_known_scores() -> None:
    """Sure images of all classes score the number of classes; images that are alike score one."""
    assert float(inception_score(sure(torch.arange(40) % 8, 8))) == pytest.approx(8, rel=1e-12)
    assert float(inception_score(sure(torch.zeros(5, dtype=torch.int64), 8))) == pytest.approx(1)
    assert float(inception_score(torch.randn(1, 8).expand(5, 8))) == pytest.approx(1, abs=1e-12)


def test_a_constant_added_to_all_logits_of_an_image_changes_nothing() -> None:
    logits = torch.randn(30, 6, dtype=torch.float64)
    shifted = logits + torch.linspace(-500, 500, 30, dtype=torch.float64)[:, None]
    assert float(inception_score(shifted)) == pytest.approx(float(inception_score(logits)))


def test_parts_are_shuffled_unless_told_otherwise() -> None:
    # Sorted by class, every part would hold one class only, and score 1.
    logits = sure(torch.arange(400) // 100, 4)
    shuffled, deviation = score(logits, splits=4)
    assert 3.8 < shuffled < 4 and 0 < deviation < 0.1
    assert score(logits, splits=4, shuffle=False) == pytest.approx((1, 0), abs=1e-12)
    assert score(logits, splits=1) == pytest.approx((4, 0))


def test_every_image_is_in_one_part() -> None:
    # 10 images in 3 parts: 3, 3 and 4 of them. Parts of one class each score 1.
    logits = sure(torch.tensor([0, 0, 0, 1, 1, 1, 2, 2, 2, 2]), 3)
    assert score(logits, splits=3, shuffle=False) == pytest.approx((1, 0), abs=1e-12)


def test_adm_takes_parts_of_a_size_in_order() -> None:
    logits = torch.randn(25, 4, generator=torch.Generator().manual_seed(0))
    parts = [float(inception_score(part)) for part in logits.split([10, 10, 5])]
    assert score(logits, size=10, shuffle=False)[0] == pytest.approx(sum(parts) / 3)
    one = FeatureSet.expected("inception_logits", 1, 4, labelled=False)
    InceptionScore(size=10).check(real=None, fake=one)
