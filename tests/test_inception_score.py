"""The Inception score against closed forms."""

import pytest
import torch
from torch import Tensor

from guidex.features.features import FeatureSet
from guidex.metrics.inception_score import InceptionScore, inception_score


def logits_of(values: Tensor, detector: str = "inception_logits") -> FeatureSet:
    return FeatureSet.from_values(detector=detector, values=values)


def sure(classes: Tensor, count: int) -> Tensor:
    """Logits of images that are surely of their class."""
    return torch.nn.functional.one_hot(classes, count) * 1000.0


def test_sure_images_of_all_classes_score_the_number_of_classes() -> None:
    logits = sure(torch.arange(40) % 8, 8)
    assert float(inception_score(logits)) == pytest.approx(8, rel=1e-12)


def test_images_that_are_all_alike_score_one() -> None:
    assert float(inception_score(sure(torch.zeros(5, dtype=torch.int64), 8))) == pytest.approx(1)
    assert float(inception_score(torch.randn(1, 8).expand(5, 8))) == pytest.approx(1, abs=1e-12)


def test_a_constant_added_to_all_logits_of_an_image_changes_nothing() -> None:
    logits = torch.randn(30, 6, dtype=torch.float64)
    shifted = logits + torch.linspace(-500, 500, 30, dtype=torch.float64)[:, None]
    assert float(inception_score(shifted)) == pytest.approx(float(inception_score(logits)))


def test_parts_are_shuffled_unless_told_otherwise() -> None:
    # Sorted by class, every part would hold one class only, and score 1.
    fake = logits_of(sure(torch.arange(400) // 100, 4))
    found = InceptionScore(splits=4)(real=fake, fake=fake)
    assert list(found) == ["is_inception_logits", "is_std_inception_logits"]
    assert 3.8 < found["is_inception_logits"] < 4
    assert 0 < found["is_std_inception_logits"] < 0.1
    sorted_parts = InceptionScore(splits=4, shuffle=False)(real=fake, fake=fake)
    assert sorted_parts["is_inception_logits"] == pytest.approx(1)
    whole = InceptionScore(splits=1)(real=fake, fake=fake)
    assert whole == {
        "is_inception_logits": pytest.approx(4),
        "is_std_inception_logits": pytest.approx(0),
    }


def test_every_image_is_in_one_part() -> None:
    # 10 images in 3 parts: 3, 3 and 4 of them. Parts of one class each score 1.
    fake = logits_of(sure(torch.tensor([0, 0, 0, 1, 1, 1, 2, 2, 2, 2]), 3))
    found = InceptionScore(splits=3, shuffle=False)(real=fake, fake=fake)
    assert found["is_inception_logits"] == pytest.approx(1)
    assert found["is_std_inception_logits"] == pytest.approx(0, abs=1e-12)


def test_adm_takes_parts_of_a_size_in_order() -> None:
    fake = logits_of(torch.randn(25, 4, generator=torch.Generator().manual_seed(0)))
    found = InceptionScore(size=10, shuffle=False)(real=fake, fake=fake)
    parts = [float(inception_score(part)) for part in fake.values.split([10, 10, 5])]
    assert found["is_inception_logits"] == pytest.approx(sum(parts) / 3)
    InceptionScore(size=10).check_counts(real=None, fake=1, dim=4)
