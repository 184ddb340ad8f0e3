"""Features on disk: found for the same images and detector, and for no others; made in blocks that
several processes share."""

import os
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from guidex.commands.reference import make_reference
from guidex.data.image_set import ImageSet, array_images
from guidex.errors import GuidexError, UsageError
from guidex.features import feature_cache
from guidex.features import samples as sources
from guidex.features.detectors import Identity, Pixels
from guidex.features.feature_cache import FeatureStore
from guidex.features.networks import NetworkDetector
from guidex.features.samples import PassSettings, image_features, model_features, open_samples
from guidex.features.weights import Weights
from guidex.models.kernel import KernelDenoiser

IDENTITY = Identity("inception", 4, "halves", "ab" * 32, "float32", False)


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("GUIDEX_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "features"


@pytest.fixture
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (feature_cache, sources):
        monkeypatch.setattr(module, "BLOCK", 4)


ONES = torch.ones(3, 4)


def test_kept_once(cache: Path) -> None:
    assert FeatureStore("f", IDENTITY, 3).read() is None
    assert torch.equal(FeatureStore("f", IDENTITY, 3).keep({0: ONES}), ONES)
    assert torch.equal(FeatureStore("f", IDENTITY, 3).read(), ONES)
    assert [file.name[:10] for file in cache.iterdir()] == ["inception-"]


def test_everything_that_features_depend_on_is_in_the_key() -> None:
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
    FeatureStore("f", IDENTITY, 3).keep({0: ONES})
    for name, value in others.items():
        assert FeatureStore("f", replace(IDENTITY, **{name: value}), 3).read() is None
    assert FeatureStore("g", IDENTITY, 3).read() is None
    assert FeatureStore("f", IDENTITY, 3).read() is not None


@pytest.mark.parametrize("damage", ["cut", "empty", "another", "rows", "bit"])
def test_a_damaged_file_is_made_again(
    cache: Path, damage: str, caplog: pytest.LogCaptureFixture
) -> None:
    store = FeatureStore("f", IDENTITY, 3)
    if damage == "rows":
        FeatureStore("f", IDENTITY, 2).keep({0: ONES[:2]})
    else:
        store.keep({0: ONES})
    (file,) = cache.iterdir()
    if damage == "another":  # copied over by someone, say
        FeatureStore("g", IDENTITY, 3).keep({0: ONES})
        (other,) = set(cache.iterdir()) - {file}
        file.write_bytes(other.read_bytes())
    elif damage == "bit":
        data = bytearray(file.read_bytes())
        data[-1] ^= 1  # 1.0 becomes 0.5
        file.write_bytes(data)
    elif damage != "rows":
        file.write_bytes(file.read_bytes()[:-7] if damage == "cut" else b"")
    assert store.read() is None
    assert "making it again" in caplog.text
    store.keep({0: 2 * ONES})
    assert torch.equal(store.read(), 2 * ONES)


def test_a_cache_that_cannot_be_written_costs_a_warning(
    cache: Path, caplog: pytest.LogCaptureFixture
) -> None:
    cache.parent.mkdir()
    cache.write_bytes(b"a file where the folder should be")
    assert torch.equal(FeatureStore("f", IDENTITY, 3).keep({0: ONES}), ONES)
    assert "not kept" in caplog.text


def test_beyond_a_limit_the_longest_unused_are_deleted(
    cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stores = [FeatureStore(name, IDENTITY, 3) for name in "abc"]
    for age, store in enumerate(reversed(stores[:2])):
        store.keep({0: ONES})
        os.utime(store._path, (1000 - age, 1000 - age))
    assert stores[0].read() is not None  # used just now
    monkeypatch.setattr(feature_cache, "LIMIT", 2 * stores[0]._path.stat().st_size)
    stores[2].keep({0: ONES})
    assert [store.read() is not None for store in stores] == [True, False, True]
    monkeypatch.setattr(feature_cache, "LIMIT", 1)
    FeatureStore("d", IDENTITY, 3).keep({0: ONES})
    assert len(list(cache.iterdir())) == 1  # the newest stays, however large


@pytest.mark.usefixtures("small_blocks")
def test_blocks_become_one_file(cache: Path) -> None:
    store, values = FeatureStore("f", IDENTITY, 6), torch.arange(24.0).view(6, 4)
    assert store.read_block(0) is None
    store.keep_block(1, values[4:])
    assert torch.equal(FeatureStore("f", IDENTITY, 6).read_block(1), values[4:])
    assert store.read() is None
    store.keep({1: values[4:], 0: values[:4]})
    assert torch.equal(store.read(), values)
    assert torch.equal(store.read_block(0), values[:4])  # a process that is still at work
    assert [path.suffix for path in cache.iterdir()] == [".safetensors"]


@pytest.mark.usefixtures("small_blocks")
def test_every_block_has_a_checksum_of_its_own(cache: Path) -> None:
    store, values = FeatureStore("f", IDENTITY, 10), torch.arange(40.0).view(10, 4)
    store.keep({0: values[:4], 1: values[4:8], 2: values[8:]})
    (file,) = cache.iterdir()
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)
    assert torch.equal(store.read_block(1), values[4:8])
    assert store.read_block(2) is None


def test_blocks_are_never_joined_in_memory(
    cache: Path, small_blocks: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch, "cat", lambda *_: pytest.fail("a copy of all features"))
    store, values = FeatureStore("f", IDENTITY, 6), torch.arange(24.0).view(6, 4)
    assert store.keep_block(1, values[4:]) and store.keep_block(0, values[:4])
    assert torch.equal(store.keep({1: None, 0: None}), values)


@pytest.mark.usefixtures("small_blocks")
def test_a_block_that_vanishes_is_told(cache: Path) -> None:
    store = FeatureStore("f", IDENTITY, 6)
    store.keep_block(0, torch.zeros(4, 4))
    with pytest.raises(GuidexError, match="000001.safetensors was deleted or damaged"):
        store.keep({0: None, 1: None})
    assert store.read() is None


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


@pytest.mark.usefixtures("small_blocks")
@pytest.mark.parametrize("batch", [1, 3, 4, 100])
def test_the_batch_changes_nothing(tmp_path: Path, batch: int) -> None:
    how = PassSettings(batch=batch, cache=False)
    [features] = image_features(array_images(pixels(10)), [Watched(tmp_path)], how)
    torch.testing.assert_close(features.values, means(pixels(10)))


@pytest.mark.parametrize(("limit", "most"), [(3 * 48, 3), (4 * 48 - 1, 3), (47, 1), (10**9, 4)])
@pytest.mark.usefixtures("small_blocks")
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


@pytest.mark.usefixtures("small_blocks")
def test_images_are_decoded_once_for_all_detectors(tmp_path: Path) -> None:
    decoded: list[int] = []
    images: ImageSet = array_images(pixels(10))
    load = images.load
    images.load = lambda index: decoded.append(index) or load(index)
    detectors = [Watched(tmp_path), Pixels(), Watched(tmp_path, "others")]
    sets = image_features(images, detectors, PassSettings(batch=3))
    assert sorted(decoded) == list(range(10))
    assert [features.detector for features in sets] == ["means", "pixels", "others"]
    for features in (sets[0], sets[2]):
        torch.testing.assert_close(features.values, means(pixels(10)))
    assert sets[1].values.shape == (10, 48)
    # Of two detectors, one of which knows the images, only the other looks at them.
    added = Watched(tmp_path, "third")
    image_features(images, [detectors[0], added], PassSettings())
    assert (detectors[0].seen, added.seen, len(decoded)) == (10, 10, 20)


@pytest.mark.usefixtures("small_blocks")
def test_a_pass_that_was_stopped_goes_on(tmp_path: Path, cache: Path) -> None:
    images, detector = array_images(pixels(18)), Watched(tmp_path)
    detector.most = 11
    with pytest.raises(KeyboardInterrupt):
        image_features(images, [detector], PassSettings(batch=2))
    assert detector.seen == 12
    again = Watched(tmp_path)
    [features] = image_features(images, [again], PassSettings(batch=2))
    assert again.seen == 10  # two blocks of four are there
    torch.testing.assert_close(features.values, means(pixels(18)))
    assert [path.suffix for path in cache.iterdir()] == [".safetensors"]


@pytest.mark.usefixtures("small_blocks")
def test_several_processes_share_blocks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
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


def test_without_a_network_nothing_is_kept(cache: Path) -> None:
    image_features(array_images(pixels(5)), [Pixels()], PassSettings(batch=2))
    assert not cache.exists()


def test_the_versions_of_what_computes_are_told(tmp_path: Path) -> None:
    version = torch.__version__.partition("+")[0]
    assert Watched(tmp_path).identity.versions == f"torch {version}, torch {version}"


def test_weights_that_are_replaced_while_they_are_read_are_refused(tmp_path: Path) -> None:
    torch.save({"a": torch.ones(2)}, tmp_path / "w.pth")
    weights = Weights("it", str(tmp_path / "w.pth"), "https://example.org/w")
    assert list(weights.read()) == ["a"]
    torch.save({"a": torch.zeros(2)}, tmp_path / "w.pth")
    with pytest.raises(GuidexError, match="w.pth was replaced while it was being read"):
        weights.read()


@pytest.mark.parametrize("content", [b"junk", b"\x80\x02e", b"", b"\x93NUMPY"])
def test_weights_that_are_none_are_refused_in_words_of_our_own(
    tmp_path: Path, content: bytes
) -> None:
    (tmp_path / "w.pth").write_bytes(content)
    with pytest.raises(GuidexError) as caught:
        Weights("it", str(tmp_path / "w.pth"), "https://example.org/w").read()
    text = str(caught.value)
    assert "neither a safetensors file nor a file of torch.save" in text
    assert "weights_only" not in text and "(" not in text


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


def test_a_long_pass_says_how_far_it_is_without_a_terminal(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    look = PassSettings(batch=5, cache=False)
    image_features(array_images(pixels(10)), [Watched(tmp_path)], look)
    assert capsys.readouterr().err == ""
    clock = iter(range(0, 10**6, 20))
    monkeypatch.setattr("guidex.files.progress.time.monotonic", lambda: next(clock))
    image_features(array_images(pixels(10)), [Watched(tmp_path)], look)
    assert "features 5/10 images" in capsys.readouterr().err
