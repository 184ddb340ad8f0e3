"""VGG16 as a detector: torch-fidelity's features, precision and recall."""

import os
from pathlib import Path

import pytest
import torch
from torch import Tensor

from guidex.features.features import FeatureSet
from guidex.features.networks import NetworkDetector
from guidex.features.vgg16 import PREFIX, URL, vgg16
from guidex.features.weights import Weights
from guidex.metrics.prdc import PRDC

pytest.importorskip("torch_fidelity", reason="torch-fidelity is not installed")

REALS, FAKES = 6, 5


def random_weights(seed: int = 0) -> dict[str, Tensor]:
    """Weights of the published shapes that keep signals at the same size from layer to layer.

    Of the large layers each row is the row above, moved by one: torch.save writes what they share
    once, and the file is of 60 MB and not of 553.
    """
    from torchvision.models import vgg16 as layout

    with torch.device("meta"):
        shapes = {name: value.shape for name, value in layout().state_dict().items()}
    generator = torch.Generator().manual_seed(seed)
    made = {}
    for name, shape in shapes.items():
        scale = (2 / shape[1:].numel()) ** 0.5
        if name.endswith("bias"):
            made[name] = torch.randn(shape, generator=generator) * 0.1
        elif name.startswith("features"):
            made[name] = torch.randn(shape, generator=generator) * scale
        else:
            values = torch.randn(shape[0] + shape[1] - 1, generator=generator) * scale
            made[name] = values.as_strided(shape, (1, 1))
    return made


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("vgg16") / "weights.pth"
    torch.save(random_weights(), path)
    assert path.stat().st_size < 2**26
    return path


def images() -> Tensor:
    """Reals and fakes: smooth, the fakes with less contrast."""
    generator = torch.Generator().manual_seed(1)
    coarse = torch.rand(REALS + FAKES, 3, 4, 4, generator=generator)
    coarse[REALS:] = 0.1 + 0.8 * coarse[REALS:]
    smooth = torch.nn.functional.interpolate(coarse, (20, 28), mode="bilinear")
    return (smooth * 255).to(torch.uint8)


@pytest.fixture(scope="module")
def detector(file: Path) -> NetworkDetector:
    return vgg16(str(file))


@pytest.fixture(scope="module")
def ours(detector: NetworkDetector) -> Tensor:
    name, values = detector(images())
    assert name == detector.identity.name == "vgg16"
    return values


@pytest.fixture(scope="module")
def theirs(file: Path) -> Tensor:
    from torch_fidelity.feature_extractor_vgg16 import FeatureExtractorVGG16

    # The layer that torch-fidelity takes for precision and recall.
    layer = FeatureExtractorVGG16.get_default_feature_layer_for_metric("prc")
    extractor = FeatureExtractorVGG16("vgg16", [layer], feature_extractor_weights_path=file)
    with torch.no_grad():
        return extractor(images())[0]


def test_features_are_those_of_torch_fidelity(
    detector: NetworkDetector, ours: Tensor, theirs: Tensor
) -> None:
    assert ours.dtype == torch.float32
    assert ours.shape == (REALS + FAKES, detector.identity.dim) == (11, 4096)
    assert (ours >= 0).all() and ours.std(dim=0).max() > 0.1
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5 * theirs.abs().max().item())


def test_precision_and_recall_are_those_of_torch_fidelity(ours: Tensor, theirs: Tensor) -> None:
    from torch_fidelity.metric_prc import prc_features_to_metric

    expected = prc_features_to_metric(
        theirs[REALS:], theirs[:REALS], prc_neighborhood=1, verbose=False
    )
    real, fake = (
        FeatureSet.from_values(detector="vgg16", values=values)
        for values in (ours[:REALS], ours[REALS:])
    )
    found = PRDC(k=1, rule="<=")(real=real, fake=fake)
    assert found["precision_vgg16"] == pytest.approx(expected["precision"], rel=1e-6)
    assert found["recall_vgg16"] == pytest.approx(expected["recall"], rel=1e-6)
    assert 0 < expected["recall"] < expected["precision"] < 1


class Malicious:
    def __init__(self, path: str) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, ...]:
        return os.mkdir, (self.path,)


def test_the_published_file_is_torchvisions() -> None:
    from torchvision.models import VGG16_Weights

    assert VGG16_Weights.IMAGENET1K_V1.url == URL
    assert PREFIX in URL
    assert vgg16()._weights == Weights("VGG16 (torchvision)", None, URL, PREFIX)
