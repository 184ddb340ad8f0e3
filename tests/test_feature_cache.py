"""Features on disk: found for the same images and detector, and for no others."""

from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from guidex.assets.image_set import array_images
from guidex.evaluation.detectors import Identity, Pixels
from guidex.evaluation.feature_cache import cached_features
from guidex.evaluation.networks import NetworkDetector
from guidex.evaluation.sources import file_features, image_features, model_features
from guidex.evaluation.weights import Weights
from guidex.models.kernel import KernelDenoiser

IDENTITY = Identity("inception", 4, "halves", "ab" * 32, "float32", False)


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("GUIDEX_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "features"


class Counting:
    """Computes features, and counts how often."""

    def __init__(self) -> None:
        self.calls = 0

    def __call__(self) -> Tensor:
        self.calls += 1
        return torch.full((3, 4), float(self.calls))


def test_computed_once(cache: Path) -> None:
    compute = Counting()
    for _ in range(3):
        assert torch.equal(cached_features("f", IDENTITY, 3, compute), torch.ones(3, 4))
    assert compute.calls == 1
    assert [file.name[:10] for file in cache.iterdir()] == ["inception-"]


def test_everything_that_features_depend_on_is_in_the_key() -> None:
    compute = Counting()
    others: dict[str, Any] = {
        "name": "dinov2",
        "dim": 4,
        "resize": "thirds",
        "weights": "cd" * 32,
        "precision": "float16",
        "compiled": True,
    }
    assert others.keys() == {field.name for field in fields(Identity)}
    changed = {name for name, value in others.items() if getattr(IDENTITY, name) != value}
    cached_features("f", IDENTITY, 3, compute)
    for name in changed:
        cached_features("f", replace(IDENTITY, **{name: others[name]}), 3, compute)
    cached_features("g", IDENTITY, 3, compute)
    assert compute.calls == 2 + len(changed)
    cached_features("f", IDENTITY, 3, compute)
    assert compute.calls == 2 + len(changed)


@pytest.mark.parametrize("damage", ["cut", "empty", "another"])
def test_a_damaged_file_is_made_again(
    cache: Path, damage: str, caplog: pytest.LogCaptureFixture
) -> None:
    compute = Counting()
    cached_features("f", IDENTITY, 3, compute)
    (file,) = cache.iterdir()
    if damage == "another":  # copied over by someone, say
        cached_features("g", IDENTITY, 3, compute)
        (other,) = set(cache.iterdir()) - {file}
        file.write_bytes(other.read_bytes())
    else:
        file.write_bytes(file.read_bytes()[:-7] if damage == "cut" else b"")
    before = compute.calls
    again = cached_features("f", IDENTITY, 3, compute)
    assert compute.calls == before + 1
    assert torch.equal(again, torch.full((3, 4), float(before + 1)))
    assert "making it again" in caplog.text
    assert torch.equal(cached_features("f", IDENTITY, 3, compute), again)


def test_a_cache_that_cannot_be_written_costs_a_warning(
    cache: Path, caplog: pytest.LogCaptureFixture
) -> None:
    cache.parent.mkdir()
    cache.write_bytes(b"a file where the folder should be")
    assert cached_features("f", IDENTITY, 3, Counting()).shape == (3, 4)
    assert "not kept" in caplog.text


# In use


class Means(nn.Module):
    def __init__(self, weights: Weights) -> None:
        super().__init__()

    def forward(self, images: Tensor) -> Tensor:
        return images.float().mean(dim=(2, 3))


class Watched(NetworkDetector):
    """A detector that counts the images that it sees."""

    def __init__(self, folder: Path) -> None:
        (folder / "w.pth").write_bytes(b"weights")
        self.seen = 0
        super().__init__(
            name="means",
            dim=3,
            resize="none",
            package="torch",
            weights=Weights("means", str(folder / "w.pth"), "https://example.org/w"),
            build=Means,
            prepare=self._count,
            precision="float32",
            compile=False,
        )

    def _count(self, images: Tensor) -> Tensor:
        self.seen += len(images)
        return images


def pixels(count: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (count, 4, 4, 3), dtype=np.uint8)


def test_a_second_look_at_the_same_images_needs_no_network(tmp_path: Path, cache: Path) -> None:
    np.savez(tmp_path / "a.npz", images=pixels(10), labels=np.arange(10))
    np.savez(tmp_path / "copy.npz", images=pixels(10), labels=np.arange(10))
    np.savez(tmp_path / "other.npz", images=pixels(10, seed=1))
    detector = Watched(tmp_path)

    def look(name: str, cache: bool = True) -> Any:
        path = str(tmp_path / name)
        return file_features(path, detector, resize=None, bad="error", batch=4, cache=cache)[0]

    first = look("a.npz")
    assert detector.seen == 10
    second = look("copy.npz")  # the content counts, not the path
    assert detector.seen == 10
    assert second.detector == first.detector == "means"
    assert torch.equal(second.values, first.values)
    assert second.labels.tolist() == list(range(10))
    look("other.npz")
    assert detector.seen == 20
    look("a.npz", cache=False)
    assert detector.seen == 30
    assert len(list(cache.iterdir())) == 2


def test_without_a_network_nothing_is_kept(cache: Path) -> None:
    image_features(array_images(pixels(5)), Pixels(), batch=2, cache=True)
    assert not cache.exists()


def test_references_that_models_know_are_kept(tmp_path: Path) -> None:
    detector = Watched(tmp_path)
    images = torch.from_numpy(pixels(6).transpose(0, 3, 1, 2).copy())
    labels = torch.arange(6) % 2
    found = [
        model_features(KernelDenoiser(batch, labels, h=0.1), detector)
        for batch in (images, images.clone(), 255 - images)
    ]
    assert detector.seen == 12
    assert torch.equal(found[0].values, found[1].values)
    assert torch.equal(found[0].labels, found[1].labels)
    assert not torch.equal(found[0].values, found[2].values)
