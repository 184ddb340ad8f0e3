"""Features on disk: found for the same images and detector, and for no others; made in blocks that
several processes share."""

import os
from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from guidex.commands.reference import make_reference
from guidex.data.image_set import ImageSet, array_images
from guidex.errors import UsageError
from guidex.features import feature_cache
from guidex.features import samples as sources
from guidex.features.detectors import Identity, Pixels
from guidex.features.feature_cache import FeatureStore, blocks_of, place_of
from guidex.features.features import FeatureSet
from guidex.features.networks import NetworkDetector
from guidex.features.samples import PassSettings, Samples, open_samples
from guidex.features.weights import Weights

IDENTITY = Identity("inception", 4, "halves", "ab" * 32, "float32", False)
VALUES = torch.arange(1.0, 25.0).view(6, 4)


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("GUIDEX_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(feature_cache, "BLOCK", 4)
    return tmp_path / "cache" / "features"


def opened(images: str = "f") -> FeatureStore:
    return FeatureStore(6, 4, place_of(images, IDENTITY))


def filled(store: FeatureStore, values: Tensor = VALUES) -> FeatureStore:
    for block in blocks_of(6):
        store.keep(block, values[block.start : block.stop])
    return store


def there(store: FeatureStore) -> list[bool]:
    return [store.has(block) for block in blocks_of(6)]


def test_everything_that_features_depend_on_is_in_the_name(cache: Path) -> None:
    others: dict[str, Any] = {
        "name": "dinov2",
        "dim": 5,
        "resize": "thirds",
        "weights": "cd" * 32,
        "precision": "float16",
        "compiled": True,
        "versions": "timm 2",
    }
    assert others.keys() == {field.name for field in fields(Identity)}
    places = {place_of("f", replace(IDENTITY, **{key: value})) for key, value in others.items()}
    assert len(places | {place_of("g", IDENTITY), place_of("f", IDENTITY)}) == 9
    assert {place.parent for place in places} == {cache}


def test_blocks_are_kept_and_mapped(cache: Path) -> None:
    first, blocks = opened(), blocks_of(6)
    assert there(first) == [False, False]
    first.keep(blocks[1], VALUES[4:])
    other = opened()  # another process
    assert there(other) == [False, True]
    other.keep(blocks[0], VALUES[:4])
    assert there(first) == [True, True]  # which is still at work
    for store in (first, other, opened()):
        assert there(store) == [True, True]
        assert torch.equal(store.values, VALUES)
    assert [file.name[:10] for file in cache.iterdir()] == ["inception-"]


def test_features_in_a_file_take_no_memory(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "zeros", None)  # which would write to all that it makes
    assert there(opened()) == [False, False]


def cut(data: bytes) -> bytes:
    return data[:-7]


def flipped(data: bytes) -> bytes:
    at = 4 * 4 * 4 + 3  # 17.0 becomes -17.0
    return data[:at] + bytes([data[at] ^ 0x80]) + data[at + 1 :]


@pytest.mark.parametrize("damage", [cut, flipped])
def test_a_damaged_block_is_made_again(
    cache: Path, damage: Callable[[bytes], bytes], caplog: pytest.LogCaptureFixture
) -> None:
    filled(opened())
    (file,) = cache.iterdir()
    file.write_bytes(damage(file.read_bytes()))
    assert there(opened()) == [True, False]
    assert "is damaged" in caplog.text
    filled(opened(), 2 * VALUES)
    assert there(opened()) == [True, True]
    assert torch.equal(opened().values, 2 * VALUES)


def test_a_cache_that_cannot_be_written_costs_a_warning(
    cache: Path, caplog: pytest.LogCaptureFixture
) -> None:
    cache.parent.mkdir()
    cache.write_bytes(b"a file where the folder should be")
    store = filled(opened())
    assert there(store) == [True, True] and torch.equal(store.values, VALUES)
    assert caplog.text.count("not kept") == 1


@pytest.mark.parametrize("replaced", [False, True])
def test_a_file_that_vanishes_takes_nothing_with_it(cache: Path, replaced: bool) -> None:
    store, blocks = opened(), blocks_of(6)
    store.keep(blocks[0], VALUES[:4])
    next(cache.iterdir()).unlink()
    if replaced:
        assert there(opened()) == [False, False]
    store.keep(blocks[1], VALUES[4:])
    assert there(store) == [True, True] and torch.equal(store.values, VALUES)


def test_beyond_a_limit_the_longest_unused_are_deleted(
    cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for age, name in enumerate("ba"):
        filled(opened(name))
        os.utime(place_of(name, IDENTITY), (1000 - age, 1000 - age))
    opened("a")  # used just now
    monkeypatch.setattr(feature_cache, "LIMIT", 2 * place_of("a", IDENTITY).stat().st_size)
    opened("c")
    assert [place_of(name, IDENTITY).exists() for name in "abc"] == [True, False, True]
    monkeypatch.setattr(feature_cache, "LIMIT", 1)
    opened("d")
    assert list(cache.iterdir()) == [place_of("d", IDENTITY)]  # the newest stays, however large


# In use


class Means(nn.Module):
    def __init__(self, weights: Weights) -> None:
        super().__init__()

    def forward(self, images: Tensor) -> Tensor:
        return images.float().mean(dim=(2, 3))


class Watched(NetworkDetector):
    """A detector that counts the images that it sees, and may fail after some."""

    def __init__(self, folder: Path, name: str = "means") -> None:
        (folder / "w.pth").write_bytes(b"weights")
        self.seen, self.most = 0, 10**9
        super().__init__(
            name=name,
            dim=3,
            resize="none",
            package="torch",
            weights=Weights("means", str(folder / "w.pth"), "https://example.org/w"),
            build=Means,
            prepare=self._count,
        )

    def _count(self, images: Tensor) -> Tensor:
        self.seen += len(images)
        if self.seen > self.most:
            raise KeyboardInterrupt
        return images


def pixels(count: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (count, 4, 4, 3), dtype=np.uint8)


def image_features(
    images: ImageSet, detectors: list[Any], settings: PassSettings
) -> list[FeatureSet]:
    return Samples("images", images).features(detectors, settings)


def means(array: np.ndarray) -> Tensor:
    return torch.from_numpy(array).float().mean(dim=(1, 2))


def test_a_second_look_at_the_same_images_needs_no_network(tmp_path: Path, cache: Path) -> None:
    np.savez(tmp_path / "a.npz", images=pixels(10), labels=np.arange(10))
    np.savez(tmp_path / "copy.npz", images=pixels(10), labels=np.arange(10))
    np.savez(tmp_path / "other.npz", images=pixels(10, seed=1))
    detector = Watched(tmp_path)

    def look(name: str, cache: bool = True) -> Any:
        samples = open_samples(str(tmp_path / name), resize=None, bad="error")
        [features] = samples.features([detector], PassSettings(batch=4, cache=cache))
        return features

    first = look("a.npz")
    assert detector.seen == 10
    assert f"torch {torch.__version__.partition('+')[0]}" in detector.identity.versions
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


@pytest.mark.parametrize(("limit", "most"), [(4 * 48 - 1, 3), (47, 1), (10**9, 4)])
def test_batches_are_bounded_in_bytes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, limit: int, most: int
) -> None:
    monkeypatch.setattr(sources, "BATCH_BYTES", limit)
    images, detector = array_images(pixels(10)), Watched(tmp_path)
    stacks = images.stacks
    groups: list[range] = []
    images.stacks = lambda asked: groups.extend(asked) or stacks(asked)
    [features] = image_features(images, [detector], PassSettings(batch=100, cache=False))
    torch.testing.assert_close(features.values, means(pixels(10)))
    assert max(map(len, groups)) == most
    assert [index for group in groups for index in group] == list(range(10))


def test_images_are_decoded_once_for_all_detectors(tmp_path: Path, cache: Path) -> None:
    decoded: list[int] = []
    images: ImageSet = array_images(pixels(10))
    load = images.load
    images.load = lambda index: decoded.append(index) or load(index)
    detectors = [Watched(tmp_path), Pixels(), Watched(tmp_path, "others")]
    sets = image_features(images, detectors, PassSettings(batch=3))
    assert len(list(cache.iterdir())) == 2  # nothing of Pixels
    assert sorted(decoded) == list(range(10))
    assert [features.detector for features in sets] == ["means", "pixels", "others"]
    for features in (sets[0], sets[2]):
        torch.testing.assert_close(features.values, means(pixels(10)))
    assert sets[1].values.shape == (10, 48)
    # Of two detectors, one of which knows the images, only the other looks at them.
    added = Watched(tmp_path, "third")
    image_features(images, [detectors[0], added], PassSettings())
    assert (detectors[0].seen, added.seen, len(decoded)) == (10, 10, 20)


def test_a_pass_that_was_stopped_goes_on(tmp_path: Path) -> None:
    images, detector = array_images(pixels(18)), Watched(tmp_path)
    detector.most = 11
    with pytest.raises(KeyboardInterrupt):
        image_features(images, [detector], PassSettings(batch=2))
    assert detector.seen == 12
    again = Watched(tmp_path)
    [features] = image_features(images, [again], PassSettings(batch=2))
    assert again.seen == 10  # two blocks of four are there
    torch.testing.assert_close(features.values, means(pixels(18)))


def test_several_processes_share_blocks(tmp_path: Path) -> None:
    images = array_images(pixels(18))
    others = [Watched(tmp_path) for _ in range(2)]
    for rank, detector in enumerate(others, start=1):
        detector.most = 6 if rank == 1 else 4  # all of its own, and then it dies
        with pytest.raises(KeyboardInterrupt):
            image_features(images, [detector], PassSettings(rank=rank, ranks=3, batch=4))
    first = Watched(tmp_path)
    [features] = image_features(images, [first], PassSettings(rank=0, ranks=3, batch=4))
    assert first.seen == 18 - 6 - 4
    torch.testing.assert_close(features.values, means(pixels(18)))


def test_a_rank_that_starts_late_finds_the_reference_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    np.savez(tmp_path / "images.npz", images=pixels(10))
    words = [str(tmp_path / "images.npz"), f"dest={tmp_path / 'r.npz'}", "detector=pixels"]
    monkeypatch.setenv("WORLD_SIZE", "2")
    make_reference(words)
    written = (tmp_path / "r.npz").stat().st_mtime_ns
    monkeypatch.setenv("RANK", "1")
    make_reference(words)
    assert (tmp_path / "r.npz").stat().st_mtime_ns == written
    monkeypatch.setenv("RANK", "0")
    with pytest.raises(UsageError, match=r"r.npz is already there; .* overwrite=true"):
        make_reference(words)


def test_a_long_pass_says_how_far_it_is_without_a_terminal(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    look = PassSettings(batch=2, cache=False)
    image_features(array_images(pixels(10)), [Watched(tmp_path)], look)
    assert capsys.readouterr().err == ""
    clock = iter(range(0, 10**6, 20))
    monkeypatch.setattr("guidex.files.progress.time.monotonic", lambda: next(clock))
    image_features(array_images(pixels(10)), [Watched(tmp_path)], look)
    assert "features 4/10 images" in capsys.readouterr().err
