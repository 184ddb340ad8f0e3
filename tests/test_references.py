"""Published statistics, our own, images, and what refuses or doubts a comparison."""

import io
import json
import os
import pickle
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from guidex.commands.evaluate import evaluate
from guidex.commands.reference import make_reference
from guidex.config.compose import compose
from guidex.config.presets import options
from guidex.errors import GuidexError, UsageError
from guidex.features import references
from guidex.features.detectors import Automatic, Detector, Identity, Pixels, detector_record
from guidex.features.doubts import NOT_RECORDED, doubts_of_sides
from guidex.features.features import FeatureSet
from guidex.features.networks import NetworkDetector
from guidex.features.references import describe
from guidex.features.samples import PassSettings, open_samples
from guidex.features.statistics import GaussianStatistics
from guidex.features.statistics_files import read_statistics, write_statistics
from guidex.features.weights import Weights, published_reference
from guidex.files import cache
from guidex.metrics.frechet import Frechet, frechet_distance
from guidex.metrics.frechet_infinity import FrechetInfinity
from guidex.metrics.inception_score import InceptionScore
from guidex.metrics.kid import KID
from guidex.metrics.metric import Metric
from guidex.metrics.prdc import PRDC
from guidex.runs.measure import Detectors, Measures, parts_of

DIM = 6
HOW = PassSettings(batch=8, cache=False)


def reference_features(path: str, detector: Detector) -> tuple[FeatureSet, dict[str, Any]]:
    reference = references.open_reference(path, resize=None, bad="error")
    real = reference.description(detector)
    [features] = reference.features([(detector, True)], HOW)
    described = ("detector", "dim", "count", "has_values", "has_labels", "truth")
    for name in described:  # known before
        assert getattr(real, name) == getattr(features, name)
    return features, real.about


def file_features(path: str, detector: Detector) -> tuple[FeatureSet, dict[str, Any]]:
    samples = open_samples(path, resize=None, bad="error")
    [features] = samples.features([detector], HOW)
    return features, samples.about | detector_record(detector)


class Halves(nn.Module):
    """Mean of the upper and of the lower half of each channel, times what the weights say."""

    def __init__(self, weights: Weights) -> None:
        super().__init__()
        self.scale = float(weights.read()["scale"])

    def forward(self, images: Tensor) -> Tensor:
        return self.scale * images.float().unflatten(2, (2, -1)).mean(dim=(3, 4)).flatten(1)


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GUIDEX_CACHE", str(tmp_path / "cache"))


def network(folder: Path, name: str = "inception", scale: float = 1.0) -> NetworkDetector:
    """A detector that goes by the name of a published one."""
    path = folder / f"scale-{scale}.pth"
    torch.save({"scale": torch.tensor(scale)}, path)
    return NetworkDetector(
        name=name,
        dim=DIM,
        resize="halves",
        package="torch",
        weights=Weights("halves", str(path), "https://example.org/halves.pth"),
        build=Halves,
    )


def pixels(count: int, seed: int = 0, size: int = 8) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (count, size, size, 3), dtype=np.uint8)


def folder_of(path: Path, images: np.ndarray, suffix: str = "png") -> Path:
    path.mkdir()
    for index, image in enumerate(images):
        Image.fromarray(image).save(path / f"{index:04d}.{suffix}")
    return path


def moments(seed: int = 0, dim: int = DIM, dtype: type = np.float64) -> dict[str, np.ndarray]:
    values = np.random.default_rng(seed).normal(size=(50, dim))
    return {"mu": values.mean(0).astype(dtype), "sigma": np.cov(values.T).astype(dtype)}


def edm2(path: Path, dtype: type = np.float64, **more: object) -> Path:
    content = {
        "num_images": 50_000,
        "fid": moments(1, dtype=dtype),
        "fd_dinov2": moments(2, dtype=dtype),
        **more,
    }
    path.write_bytes(pickle.dumps(content))
    return path


def assert_moments(features: FeatureSet, expected: dict[str, np.ndarray]) -> None:
    np.testing.assert_allclose(features.statistics.mean, expected["mu"], rtol=1e-12)
    np.testing.assert_allclose(features.statistics.covariance, expected["sigma"], rtol=1e-12)


# Files of others


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
def test_edm2(tmp_path: Path, dtype: type) -> None:
    path = edm2(tmp_path / "img512.pkl", dtype)
    for name, seed in (("inception", 1), ("dinov2", 2)):
        features, about = reference_features(str(path), network(tmp_path, name))
        assert (features.detector, features.count, features.values) == (name, 50_000, None)
        assert_moments(features, moments(seed, dtype=dtype))
        assert about["count"] == 50_000
        told = describe(about)
        for part in ("img512.pkl (EDM2)", "50,000 images", "resolution not recorded", name):
            assert part in told
        assert "halves" in told and "SHA-256" in told


@pytest.mark.parametrize("detector", ["dinov2_s", "inception_logits"])
def test_edm2_is_refused_for_other_detectors_and_resizes(tmp_path: Path, detector: str) -> None:
    path = edm2(tmp_path / "img512.pkl")
    with pytest.raises(UsageError, match="inception and dinov2, not of " + detector):
        reference_features(str(path), network(tmp_path, detector))


def test_edm2_compares_with_pillows_resize_as_the_interval_paper_does(tmp_path: Path) -> None:
    detector = network(tmp_path, "dinov2_pil")
    features, about = reference_features(str(edm2(tmp_path / "img512.pkl")), detector)
    assert features.detector == "dinov2_pil"
    assert_moments(features, moments(2))
    [doubt] = doubts_of_sides(real=about, fake=detector_record(detector))
    assert "resized in two ways: that of EDM2 (torch) and halves" in doubt


def test_statistics_are_not_for_pixels(tmp_path: Path) -> None:
    path = edm2(tmp_path / "img512.pkl")
    with pytest.raises(UsageError, match="choose detector=inception or detector=dinov2"):
        reference_features(str(path), Automatic())
    with pytest.raises(UsageError, match="not of pixels"):
        reference_features(str(path), Pixels())


def test_statistics_of_another_dimension_are_refused(tmp_path: Path) -> None:
    path = edm2(tmp_path / "a.pkl", fid=moments(dim=7))
    with pytest.raises(UsageError, match="statistics of 7 features, and inception has 6"):
        reference_features(str(path), network(tmp_path))


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"fid": None, "fd_dinov2": None}, "no reference of EDM2"),
        ({"num_images": "many"}, "number of images is 'many'"),
        ({"num_images": 1}, "number of images is 1"),
        ({"fid": {"mu": [1.0], "sigma": np.eye(1)}}, "its mu is no array"),
        ({"fid": {"mu": np.zeros(3), "sigma": np.eye(2)}}, "do not fit"),
        ({"fid": {"mu": np.zeros(2), "sigma": np.full((2, 2), np.nan)}}, "NaN"),
        ({"fid": {"mu": np.zeros(2), "sigma": np.array([[1.0, 1.0], [0.0, 1.0]])}}, "symmetric"),
    ],
)
def test_damaged_edm2(tmp_path: Path, change: dict[str, object], text: str) -> None:
    path = edm2(tmp_path / "a.pkl", **change)
    with pytest.raises(GuidexError, match=rf"a\.pkl.*{text}"):
        reference_features(str(path), network(tmp_path))


def test_nothing_in_a_pickle_is_run(tmp_path: Path) -> None:
    class Malicious:
        def __reduce__(self) -> tuple[object, ...]:
            return os.mkdir, (str(tmp_path / "made"),)

    path = edm2(tmp_path / "a.pkl", extra=Malicious())
    with pytest.raises(GuidexError, match="Nothing in the file was run"):
        reference_features(str(path), network(tmp_path))
    assert not (tmp_path / "made").exists()


def test_edm_and_pytorch_fid_are_of_inception(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", **moments(3))
    features, about = reference_features(str(tmp_path / "a.npz"), network(tmp_path))
    assert_moments(features, moments(3))
    assert features.values is None
    assert features.count == 0
    with pytest.raises(UsageError, match=r"detector inception, number of images not known\)"):
        PRDC().check_reference(features)
    assert about["count"] is None
    assert "number of images not recorded" in describe(about)
    assert NOT_RECORDED in describe(about)
    [doubt] = doubts_of_sides(real=about, fake=detector_record(network(tmp_path)))
    assert "does not tell how its images were resized" in doubt
    with pytest.raises(UsageError, match="statistics of inception, not of dinov2"):
        reference_features(str(tmp_path / "a.npz"), network(tmp_path, "dinov2"))


def test_adm_has_statistics_and_images(tmp_path: Path) -> None:
    images, path = pixels(9), tmp_path / "virtual.npz"
    np.savez(path, **moments(4), mu_s=np.zeros(3), sigma_s=np.eye(3), arr_0=images)
    detector = network(tmp_path)
    features, about = reference_features(str(path), detector)
    assert_moments(features, moments(4))
    expected = detector(torch.from_numpy(images.transpose(0, 3, 1, 2).copy()))[1]
    assert torch.equal(features.values, expected)
    assert features.count == 9
    assert about["count"] is None  # of the statistics, which are of more images
    assert "single features of 9, array" in describe(about)

    features, about = reference_features(str(path), network(tmp_path, "dinov2"))
    assert features.given_statistics is None
    assert about["count"] == 9


def test_adm_has_statistics_for_sfid(tmp_path: Path) -> None:
    images, path, spatial = pixels(9), tmp_path / "virtual.npz", moments(5)
    of_spatial = {"mu_s": spatial["mu"], "sigma_s": spatial["sigma"]}
    np.savez(path, **moments(4), **of_spatial, arr_0=images)
    detector = network(tmp_path, "inception_spatial")
    features, _ = reference_features(str(path), detector)
    assert features.detector == "inception_spatial"
    assert_moments(features, spatial)
    expected = detector(torch.from_numpy(images.transpose(0, 3, 1, 2).copy()))[1]
    assert torch.equal(features.values, expected)
    features, _ = reference_features(str(path), network(tmp_path))
    assert_moments(features, moments(4))

    # Without images, there are only statistics; without those for sFID, it is refused.
    np.savez(tmp_path / "a.npz", **moments(4), **of_spatial)
    features, _ = reference_features(str(tmp_path / "a.npz"), detector)
    assert_moments(features, spatial)
    np.savez(tmp_path / "a.npz", **moments(4), mu_s=spatial["mu"])
    with pytest.raises(UsageError, match="of inception, not of inception_spatial"):
        reference_features(str(tmp_path / "a.npz"), detector)
    np.savez(tmp_path / "a.npz", **moments(4), **{**of_spatial, "sigma_s": np.eye(DIM, dtype=int)})
    with pytest.raises(GuidexError, match=r"a\.npz: its sigma_s is no array"):
        reference_features(str(tmp_path / "a.npz"), detector)


def test_images_go_through_networks_only_where_single_features_are_needed(tmp_path: Path) -> None:
    path, passes = tmp_path / "virtual.npz", []

    class Watched(Halves):
        def forward(self, images: Tensor) -> Tensor:
            passes.append(self)
            return super().forward(images)

    of_spatial = {"mu_s": moments(5)["mu"], "sigma_s": moments(5)["sigma"]}
    np.savez(path, **moments(4), **of_spatial, arr_0=pixels(9))
    names = ("inception", "inception_spatial", "dinov2")
    detectors = [network(tmp_path, name) for name in names]
    for detector in detectors:
        detector._build = Watched
    reference = references.open_reference(str(path), resize=None, bad="error")
    assert [reference.description(detector).has_values for detector in detectors] == [True] * 3
    assert passes == []

    # Of ADM's, precision and recall are of Inception; sFID needs statistics alone.
    sets = reference.features(
        [(detectors[0], True), (detectors[1], False)], PassSettings(cache=False)
    )
    assert len(passes) == 1
    assert sets[0].values is not None and sets[1].values is None
    assert_moments(sets[0], moments(4))
    assert_moments(sets[1], moments(5))
    # Detectors without statistics there take the images; all that do, in one pass.
    passes.clear()
    stacked, stacks = [], reference.samples.images.stacks
    reference.samples.images.stacks = lambda ranges: stacked.append(1) or stacks(ranges)
    asked = [(detectors[2], False), (detectors[1], False), (detectors[0], True)]
    sets = reference.features(asked, PassSettings(cache=False))
    assert [one.values is None for one in sets] == [False, True, False]
    assert (len(passes), len(stacked)) == (2, 1)
    assert torch.equal(sets[0].values, sets[2].values)
    assert sets[0].given_statistics is None


def test_a_url_is_fetched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = edm2(tmp_path / "img512.pkl")
    asked = []
    monkeypatch.setattr(references, "fetch", lambda url, progress: asked.append(url) or path)
    url = "https://example.org/img512.pkl"
    features, about = reference_features(url, network(tmp_path))
    assert asked == [about["path"]] == [url]
    assert features.count == 50_000


def test_images_are_images(tmp_path: Path) -> None:
    detector = network(tmp_path)
    np.savez(tmp_path / "a.npz", pixels(5))
    path = folder_of(tmp_path / "folder", pixels(5))
    one, about = reference_features(str(path), detector)
    other, _ = reference_features(str(tmp_path / "a.npz"), detector)
    assert torch.equal(one.values, other.values)
    assert about["count"] == 5
    assert about["shape"] == [3, 8, 8]
    assert "5 images, 8x8, png, inception, halves, float32, weights " in describe(about)


@pytest.mark.parametrize("case", ["cut", "objects", "integers", "no zip"])
def test_damaged_npz(tmp_path: Path, case: str) -> None:
    path = tmp_path / "a.npz"
    arrays: dict[str, np.ndarray] = moments()
    if case == "objects":
        arrays["mu"] = np.array([object()] * DIM)
    elif case == "integers":
        arrays["mu"] = np.zeros(DIM, dtype=np.int64)
    np.savez(path, **arrays)
    if case == "cut":
        path.write_bytes(path.read_bytes()[:-60])
    elif case == "no zip":
        path.write_bytes(b"PK nothing")
    texts = {"integers": "its mu is no array", "objects": "Python objects"}
    with pytest.raises(GuidexError, match=rf"a\.npz.*{texts.get(case, 'cannot be read')}"):
        reference_features(str(path), network(tmp_path))


# Our own


def write_own(path: Path, images: Path, detector: object, keep_features: bool = False) -> None:
    features, about = file_features(str(images), detector)
    write_statistics(path, features, about, keep_features=keep_features)


@pytest.mark.parametrize("keep_features", [False, True])
def test_own_files_are_what_they_were_made_of(tmp_path: Path, keep_features: bool) -> None:
    detector, images = network(tmp_path), folder_of(tmp_path / "images", pixels(20))
    write_own(tmp_path / "a.npz", images, detector, keep_features)
    direct, _ = file_features(str(images), detector)
    found, about = reference_features(str(tmp_path / "a.npz"), detector)
    assert (found.detector, found.count) == ("inception", 20)
    torch.testing.assert_close(found.statistics.mean, direct.statistics.mean)
    torch.testing.assert_close(found.statistics.covariance, direct.statistics.covariance)
    assert torch.equal(found.values, direct.values) if keep_features else found.values is None
    told = describe(about)
    for part in ("a.npz (guidex): 20 images, 8x8, png, inception, halves, float32, weights ",):
        assert part in told
    # Others read it, too.
    with np.load(tmp_path / "a.npz", allow_pickle=False) as file:
        assert file["mu"].shape == (DIM,)
        np.testing.assert_allclose(file["sigma"], np.cov(direct.values.double().T), rtol=1e-9)


def test_labels_are_kept_with_features(tmp_path: Path) -> None:
    np.savez(tmp_path / "images.npz", images=pixels(6), labels=np.arange(6) % 2)
    for keep in (True, False):
        write_own(tmp_path / "a.npz", tmp_path / "images.npz", network(tmp_path), keep)
        file = read_statistics(tmp_path / "a.npz")
        assert (None if file.labels is None else file.labels.tolist()) == (
            [0, 1, 0, 1, 0, 1] if keep else None
        )


def test_own_files_of_other_weights_or_resizes_are_refused(tmp_path: Path) -> None:
    images = folder_of(tmp_path / "images", pixels(20))
    write_own(tmp_path / "a.npz", images, network(tmp_path))
    with pytest.raises(UsageError, match="another weights"):
        reference_features(str(tmp_path / "a.npz"), network(tmp_path, scale=2.0))
    other = network(tmp_path)
    other._resize = "thirds"
    with pytest.raises(UsageError, match=r"another way to resize \(halves there, thirds here\)"):
        reference_features(str(tmp_path / "a.npz"), other)
    with pytest.raises(UsageError, match="statistics of inception, not of dinov2"):
        reference_features(str(tmp_path / "a.npz"), network(tmp_path, "dinov2"))
    with pytest.raises(UsageError, match="choose detector=inception"):
        reference_features(str(tmp_path / "a.npz"), Automatic())


def test_own_files_of_pixels_go_with_the_automatic_detector(tmp_path: Path) -> None:
    images = folder_of(tmp_path / "images", pixels(20, size=2))
    write_own(tmp_path / "a.npz", images, Automatic())
    for detector in (Automatic(), Pixels()):
        features, _ = reference_features(str(tmp_path / "a.npz"), detector)
        assert (features.detector, features.dim) == ("pixels", 12)


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"guidex": np.array("{")}, "cannot be read"),
        ({"guidex": np.array(json.dumps({"format": 2}))}, "format 1"),
        ({"guidex": np.array(json.dumps({"format": 1, "name": "x"}))}, "cannot be read"),
        ({"features": np.zeros((19, DIM), np.float32)}, r"features are float32 \(19, 6\)"),
        ({"features": np.zeros((20, DIM))}, "features are float64"),
        ({"labels": np.zeros(20, np.int32)}, "labels are int32"),
    ],
)
def test_damaged_own_files(tmp_path: Path, change: dict[str, np.ndarray], text: str) -> None:
    images = folder_of(tmp_path / "images", pixels(20))
    write_own(tmp_path / "a.npz", images, network(tmp_path), keep_features=True)
    with np.load(tmp_path / "a.npz") as file:
        arrays = {**file, **change}
    np.savez(tmp_path / "a.npz", **arrays)
    with pytest.raises(GuidexError, match=rf"a\.npz.*({text})"):
        reference_features(str(tmp_path / "a.npz"), network(tmp_path))


# Doubts


def doubts(
    real: dict[str, Any],
    fake: dict[str, Any],
    *metrics: Metric,
    network: bool = True,
) -> list[str]:
    real, fake = {"count": 50_000, **real}, {"count": 50_000, **fake}
    look = {"detector": "inception", "dim": 100, "network": network}
    counts = {"real": real["count"], "fake": fake["count"]}
    found = [doubt for one in metrics or [Frechet()] for doubt in one.doubts(**counts, **look)]
    return found + doubts_of_sides(real=real, fake=fake)


def test_no_doubts() -> None:
    shape = [3, 64, 64]
    assert (
        doubts({"formats": ["png"], "shape": shape}, {"formats": ["array"], "shape": shape}) == []
    )
    assert doubts({"count": None}, {"formats": ["jpeg"]}) == []
    assert doubts({"count": 500}, {"count": 500}, network=False) == []


@pytest.mark.parametrize(
    ("real", "fake", "text"),
    [
        ({}, {"count": 49_999}, "49,999 fake images: published distances are of 50,000"),
        ({"count": 10_000}, {}, "10,000 real images: published"),
        ({}, {"count": 50_001}, "50,001 fake images: published distances .* come out smaller"),
        ({"formats": ["jpeg"]}, {"formats": ["png"]}, "JPEG meets .*real jpeg, fake png"),
        ({"formats": ["png"]}, {"formats": ["jpeg", "png"]}, "JPEG meets"),
        ({"shape": [3, 64, 64]}, {"shape": [3, 256, 256]}, "64x64x3 and 256x256x3"),
        ({"shape": [1, 8, 8]}, {"shape": [3, 8, 8]}, "colour"),
        (
            {"detector": {"precision": "float32"}},
            {"detector": {"precision": "float16"}},
            "precision: float32 and float16",
        ),
    ],
)
def test_doubts(real: dict[str, Any], fake: dict[str, Any], text: str) -> None:
    (doubt,) = doubts(real, fake)
    assert re.search(text, doubt)


def test_more_features_than_images_are_doubted() -> None:
    assert len(doubts({}, {"count": 100}, network=False)) == 1
    assert doubts({}, {"count": 101}, network=False) == []


def test_doubts_are_those_of_the_metrics() -> None:
    few: dict[str, Any] = {"count": 90}
    assert doubts(few, few, KID(subset_size=50)) == []
    told = doubts(few, few, PRDC())
    assert len(told) == 2 and all("precision and recall are of 50,000" in one for one in told)
    assert doubts(few, few, PRDC(), network=False) == []
    assert doubts({}, {}, PRDC()) == []
    [more] = doubts({"count": 1_281_167}, {}, PRDC())
    assert more.startswith("1,281,167 real images")
    # Of more, a protocol takes what it says.
    assert doubts({"count": 10_000}, {"count": 20_000}, PRDC(reals=10_000, fakes=10_000)) == []


def test_more_real_images_than_published_are_no_doubt_of_distances() -> None:
    assert doubts({"count": 1_281_167}, {}) == []


def test_the_subsets_of_an_extrapolation_are_doubted() -> None:
    def told(count: int, **options: Any) -> list[str]:
        return doubts({}, {"count": count}, FrechetInfinity(**options))

    assert told(50_000) == told(50_000, tenth=True) == []
    assert "begins with 150 fakes for 100 features" in told(1500, tenth=True)[0]
    assert "100 fake images and 100 features" in told(1000, tenth=True)[0]


# Commands


def config_with(*words: str) -> dict[str, Any]:
    return compose("eval", ["images=a", "ref=b", *words]).config | {"device": "cpu"}


@pytest.mark.parametrize("name", options("detector"))
def test_every_detector_is_made_without_its_weights(name: str) -> None:
    detectors, config = Detectors(), config_with(f"detector={name}")
    detector = detectors.get(config)
    assert detectors.get(config_with(f"detector={name}")) is detector
    assert detectors.get(config | {"device": "meta"}) is not detector
    if isinstance(detector, NetworkDetector):
        assert detector.name == name  # the column says which preset it was


def test_detectors_of_other_settings_are_others() -> None:
    detectors = Detectors()
    made = [
        detectors.get(config_with("detector=dinov2", *more))
        for more in ([], ["detector.precision=float16"], ["detector.resize=pil"])
    ]
    assert len(set(map(id, made))) == 3
    with pytest.raises(UsageError, match="detector.precision must be 'float32' or"):
        detectors.get(config_with("detector=dinov2", "detector.precision=float64"))


def test_ref_then_eval(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    reals = folder_of(tmp_path / "reals", pixels(30, size=2))
    fakes = folder_of(tmp_path / "fakes", pixels(30, seed=1, size=2) // 2)
    make_reference([str(reals), f"dest={tmp_path / 'real.npz'}", "features=true"])
    assert f"{reals}: 30 images, 2x2, png" in capsys.readouterr().out
    numbers = {}
    for ref in (reals, tmp_path / "real.npz"):
        out = tmp_path / f"out-{ref.name}"
        evaluate([str(fakes), f"ref={ref}", f"out={out}", "metrics=[frechet,prdc]"])
        (row,) = (json.loads(line) for line in (out / "rows.jsonl").read_text().splitlines())
        numbers[ref.name] = row["metrics"]
        printed = capsys.readouterr().out
        assert f"fake: {fakes}: 30 images, 2x2, png" in printed
        assert f"real: {ref}" in printed
    assert numbers["reals"] == pytest.approx(numbers["real.npz"], rel=1e-9)
    assert numbers["reals"]["fd_pixels"] > 0.1


def test_eval_says_what_it_doubts(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    reals = folder_of(tmp_path / "reals", pixels(4, size=2))
    fakes = folder_of(tmp_path / "fakes", pixels(30, size=2), suffix="jpg")
    evaluate([str(fakes), f"ref={reals}", f"out={tmp_path / 'out'}", "metrics=[frechet]"])
    said = capsys.readouterr().err
    assert "warning: 4 real images and 12 features of pixels" in said
    assert "warning: JPEG meets" in said
    assert "JPEG meets" in (tmp_path / "out" / "rows.jsonl").read_text()


def test_scores_of_few_images_are_doubted() -> None:
    def told(count: int, **options: Any) -> list[str]:
        look = {"detector": "inception_logits", "dim": 1008, "network": True}
        return InceptionScore(**options).doubts(real=None, fake=count, **look)

    assert told(50_000) == told(10_000, size=5000) == []
    assert told(1800)[0].startswith("1,800 fake images: published scores are of 50,000")
    assert "larger" in told(60_000)[0]
    assert "a last part of 1,000" in told(11_000, size=5000)[0]


def test_published_statistics_are_of_float32(tmp_path: Path) -> None:
    identity = Identity("inception", 4, "some", "0" * 64, "float16", False)
    file = read_statistics(edm2(tmp_path / "img512.pkl"))
    told = doubts_of_sides(
        real={"detector": references._by_convention("inception", identity, file)},
        fake={"detector": {"precision": "float16"}},
    )
    assert told == ["real and fake features differ in precision: float32 and float16."]


def test_eval_refuses_statistics_without_single_features_at_once(tmp_path: Path) -> None:
    reals = folder_of(tmp_path / "reals", pixels(30, size=2))
    make_reference([str(reals), f"dest={tmp_path / 'real.npz'}"])
    with pytest.raises(UsageError, match="PRDC compares single images"):
        words = [str(reals), f"ref={tmp_path / 'real.npz'}", f"out={tmp_path / 'out'}"]
        evaluate([*words, "metrics=[prdc]"])
    assert not (tmp_path / "out").exists()


def test_ref_checks_its_destination_first(tmp_path: Path) -> None:
    (tmp_path / "there.npz").write_bytes(b"")
    reals = folder_of(tmp_path / "reals", pixels(3))
    (reals / "broken.png").write_bytes(b"not an image")  # would be an error of its own
    for dest, text in (
        ("there.npz", "already there"),
        ("x.pkl", "ends in .npz"),
        ("a/b.npz", "no folder"),
    ):
        with pytest.raises(UsageError, match=text):
            make_reference([str(reals), f"dest={tmp_path / dest}"])
    with pytest.raises(UsageError, match="nothing at"):
        make_reference([str(tmp_path / "nowhere"), f"dest={tmp_path / 'x.npz'}"])
    make_reference([str(reals), f"dest={tmp_path / 'there.npz'}", "overwrite=true", "bad=skip"])
    assert read_statistics(tmp_path / "there.npz").count == 3


@pytest.mark.parametrize("with_images", [False, True])
def test_a_reference_is_not_measured_as_if_it_were_the_fakes(
    tmp_path: Path, with_images: bool
) -> None:
    arrays = {"mu": np.zeros(2048), "sigma": np.eye(2048)}
    if with_images:
        arrays["arr_0"] = np.zeros((4, 8, 8, 3), np.uint8)
    np.savez(tmp_path / "virtual.npz", **arrays)
    with pytest.raises(UsageError, match=r"did you mean guidex eval fakes ref=.*virtual.npz\?"):
        evaluate([str(tmp_path / "virtual.npz"), "ref=fakes", "detector=pixels"])


def test_statistics_of_an_unknown_number_of_images_are_whole(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", mu=np.zeros(2048), sigma=np.eye(2048))
    found = read_statistics(tmp_path / "a.npz").statistics["inception"]
    other = GaussianStatistics.from_moments(
        count=50_000, mean=torch.ones(2048).double(), covariance=4 * torch.eye(2048).double()
    )
    assert frechet_distance(real=other, fake=found) == pytest.approx(2048 * (1 + (2 - 1) ** 2))


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
@pytest.mark.parametrize("keys", [("samples", "labels"), ("mu", "sigma"), ("images", "labels")])
def test_damaged_arrays_are_told_and_never_escape(tmp_path: Path, save: Any, keys: Any) -> None:
    shape = (3, 4, 4, 3) if keys[0] == "images" else (4, 4)
    array = np.ones(shape, np.uint8 if keys[0] == "images" else np.float64)
    content = io.BytesIO()
    save(content, **{keys[0]: array, keys[1]: np.arange(len(array))})
    whole, told, path = content.getvalue(), 0, tmp_path / "x.npz"
    for at in range(0, len(whole), 13):
        for damaged in (whole[:at], whole[:at] + bytes([whole[at] ^ 0x44]) + whole[at + 1 :]):
            path.write_bytes(damaged)
            for read in (
                read_statistics,
                lambda one: open_samples(str(one), resize=None, bad="error"),
            ):
                try:
                    read(path)
                except GuidexError as error:
                    told += 1
                    assert "pickle" not in str(error)
    assert told > 9


@pytest.mark.parametrize(
    ("samples", "labels", "said"),
    [
        (np.ones((3, 2)), np.array(["a", "b", "c"]), "labels must be integers"),
        (np.ones((3, 2)), np.arange(2), "labels must be integers"),
        (np.ones((3, 2), object), np.arange(3), "Python objects"),
        (np.ones(3), np.arange(3), "floating point"),
    ],
)
def test_points_of_another_kind_are_refused(
    tmp_path: Path, samples: np.ndarray, labels: np.ndarray, said: str
) -> None:
    np.savez(tmp_path / "x.npz", samples=samples, labels=labels)
    with pytest.raises(GuidexError, match=said) as caught:
        open_samples(str(tmp_path / "x.npz"), resize=None, bad="error")
    assert "allow_pickle" not in str(caught.value)


@pytest.mark.parametrize("kind", [">f8", "g", "f2"])
def test_points_of_any_floating_type_are_read(tmp_path: Path, kind: str) -> None:
    np.savez(tmp_path / "x.npz", samples=np.ones((3, 2)).astype(kind))
    samples = open_samples(str(tmp_path / "x.npz"), resize=None, bad="error")
    assert samples.points[0].double().sum() == 6


def test_edm2s_references_are_found_by_their_names(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GUIDEX_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    url = "https://nvlabs-fi-cdn.nvidia.com/edm2/dataset-refs/img512.pkl"
    for name in ("img512.pkl", "refs/img512.pkl"):
        with pytest.raises(UsageError, match=f"there is no {name}; give ref={re.escape(url)}"):
            published_reference(name)
    assert published_reference("mine.pkl") is None
    place = cache._locate(url)[1]
    place.parent.mkdir()
    place.write_bytes(pickle.dumps({"fid": moments(), "num_images": 100}))
    assert published_reference("img512.pkl") == url
    Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(tmp_path / "a.png")
    config = compose("eval", ["images=.", "ref=img512.pkl", "detector=inception"]).config
    for ref in ("img512.pkl", url):
        [part] = parts_of(config | {"ref": ref})
        assert Measures(PassSettings()).open_reference(part, None, "").path == place
