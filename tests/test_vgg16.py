"""VGG16 as a detector: torch-fidelity's features."""

from pathlib import Path

import pytest
import torch
from torch import nn

from guidex.features.vgg16 import PREFIX, URL, vgg16
from guidex.features.weights import Weights

pytest.importorskip("torch_fidelity", reason="torch-fidelity is not installed")


def narrow() -> nn.Module:
    """Something like torchvision's network, with less than its 138 million weights."""
    network = nn.Sequential(nn.Conv2d(3, 8, 9, 5), nn.ReLU(), nn.AdaptiveAvgPool2d(4), nn.Flatten())
    sizes = (nn.Linear(128, 4096), nn.ReLU(), nn.Dropout(), nn.Linear(4096, 4096))
    network.classifier = nn.Sequential(*sizes, nn.ReLU(), nn.Dropout(), nn.Linear(4096, 10))
    return network


def test_features_are_those_of_torch_fidelity(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from torch_fidelity.feature_extractor_vgg16 import FeatureExtractorVGG16

    monkeypatch.setattr("torchvision.models.vgg16", narrow)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        torch.save(narrow().state_dict(), tmp_path / "weights.pth")
        images = torch.randint(0, 256, (5, 3, 20, 28), dtype=torch.uint8)
    # The layer that torch-fidelity takes for precision and recall.
    layer = FeatureExtractorVGG16.get_default_feature_layer_for_metric("prc")
    extractor = FeatureExtractorVGG16(
        "vgg16", [layer], feature_extractor_weights_path=tmp_path / "weights.pth"
    )
    with torch.no_grad():
        theirs = extractor(images)[0]
    detector = vgg16(str(tmp_path / "weights.pth"))
    ours = detector(images)
    assert detector.name == detector.identity.name == "vgg16"
    assert ours.dtype == torch.float32 and ours.shape == (5, detector.identity.dim) == (5, 4096)
    assert (ours >= 0).all() and ours.std(dim=0).max() > 0.01
    torch.testing.assert_close(ours, theirs)


def test_the_published_file_is_torchvisions() -> None:
    from torchvision.models import VGG16_Weights

    assert VGG16_Weights.IMAGENET1K_V1.url == URL
    assert PREFIX in URL
    assert vgg16().weights == Weights("VGG16 (torchvision)", None, URL, PREFIX)
