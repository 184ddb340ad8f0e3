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
from guidex.errors import GuidexError, UsageError
from guidex.features import references
from guidex.features.detectors import Coordinates, Detector, Pixels, detector_record
from guidex.features.features import FeatureSet
from guidex.features.networks import NetworkDetector
from guidex.features.references import NOT_RECORDED, describe, doubts_of_sides
from guidex.features.samples import PassSettings, Samples, open_samples
from guidex.features.statistics import GaussianStatistics
from guidex.features.statistics_files import read_statistics, write_statistics
from guidex.features.weights import Weights
from guidex.files import cache
from guidex.metrics.frechet import Frechet, frechet_distance
from guidex.metrics.frechet_infinity import FrechetInfinity
from guidex.metrics.inception_score import InceptionScore
from guidex.metrics.kid import KID
from guidex.metrics.metric import Metric
from guidex.metrics.prdc import PRDC
from guidex.runs.measure import Measures, make_detector, parts_of, reference_of

DIM = 6
HOW = PassSettings(batch=8, cache=False)


def reference_features(path: str, detector: Detector) -> tuple[FeatureSet, dict[str, Any]]:
    reference = references.open_reference(path, resize=None, bad="error")
    real = reference.expected(detector)
    [features] = reference.features([(detector, True)], HOW)
    for name in ("detector", "dim", "count", "truth", "about"):  # known before
        assert getattr(real, name) == getattr(features, name)
    for name in ("values", "labels"):
        assert (getattr(real, name) is None) == (getattr(features, name) is None)
    return features, features.about


def opened(path: str | Path) -> Samples:
    return open_samples(str(path), resize=None, bad="error")


def file_features(path: str, detector: Detector) -> tuple[FeatureSet, dict[str, Any]]:
    samples = opened(path)
    [features] = samples.features([detector], HOW)
    return features, features.about


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
        [doubt] = doubts_of_sides(real=about, fake={"detector": {"precision": "float16"}})
        assert "differ in precision: float32 and float16" in doubt
        told = describe(about)
        for part in ("img512.pkl (EDM2)", "50,000 images", name):
            assert part in told
        assert "halves" in told and "SHA-256" in told


def test_edm2_compares_with_pillows_resize_as_the_interval_paper_does(tmp_path: Path) -> None:
    detector = network(tmp_path, "dinov2_pil")
    features, about = reference_features(str(edm2(tmp_path / "img512.pkl")), detector)
    assert features.detector == "dinov2_pil"
    assert_moments(features, moments(2))
    [doubt] = doubts_of_sides(real=about, fake=detector_record(detector))
    assert "differ in resize: that of EDM2 (torch) and halves" in doubt


def test_statistics_are_not_for_other_detectors(tmp_path: Path) -> None:
    path = edm2(tmp_path / "img512.pkl")
    for detector in (network(tmp_path, "dinov2_s"), Pixels(), Coordinates()):
        told = f"inception and dinov2, not of {detector.name}.*Use detector=inception or detector="
        with pytest.raises(UsageError, match=told):
            reference_features(str(path), detector)


def test_statistics_of_another_dimension_are_refused(tmp_path: Path) -> None:
    path = edm2(tmp_path / "a.pkl", fid=moments(dim=7))
    with pytest.raises(UsageError, match=r"another number of features \(7 there, 6 here\)"):
        reference_features(str(path), network(tmp_path))


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"fid": None, "fd_dinov2": None}, "no reference of EDM2"),
        ({"num_images": "many"}, "number of images is 'many'"),
        ({"fid": {"mu": [1.0], "sigma": np.eye(1)}}, "its mu or sigma is no array"),
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
    with pytest.raises(UsageError, match="not statistics alone"):
        PRDC().check(real=features, fake=FeatureSet.expected("inception", 9, DIM, False))
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
    expected = detector(torch.from_numpy(images.transpose(0, 3, 1, 2).copy()))
    assert torch.equal(features.values, expected)
    assert features.count == 9
    assert about["count"] is None  # of the statistics, which are of more images
    assert "single features of 9, array" in describe(about)

    features, about = reference_features(str(path), network(tmp_path, "dinov2"))
    assert features.given_statistics is None
    assert about["count"] == 9


def test_statistics_for_sfid(tmp_path: Path) -> None:
    spatial, detector = moments(5), network(tmp_path, "inception_spatial")
    of_spatial = {"mu_s": spatial["mu"], "sigma_s": spatial["sigma"]}
    # Without images, there are only statistics; without those for sFID, it is refused.
    np.savez(tmp_path / "a.npz", **moments(4), **of_spatial)
    features, _ = reference_features(str(tmp_path / "a.npz"), detector)
    assert_moments(features, spatial)
    np.savez(tmp_path / "a.npz", **moments(4), mu_s=spatial["mu"])
    with pytest.raises(UsageError, match="of inception, not of inception_spatial"):
        reference_features(str(tmp_path / "a.npz"), detector)
    np.savez(tmp_path / "a.npz", **moments(4), **{**of_spatial, "sigma_s": np.eye(DIM, dtype=int)})
    with pytest.raises(GuidexError, match=r"a\.npz: its mu or sigma is no array"):
        reference_features(str(tmp_path / "a.npz"), detector)


def test_images_go_through_networks_only_where_single_features_are_needed(tmp_path: Path) -> None:
    path, passes = tmp_path / "virtual.npz", []

    class Watched(Halves):
        def forward(self, images: Tensor) -> Tensor:
            passes.append(self)
            return super().forward(images)

    of_spatial = {"mu_s": moments(5)["mu"], "sigma_s": moments(5)["sigma"]}
    np.savez(path, **moments(4), **of_spatial, arr_0=pixels(9))
    detectors = [network(tmp_path, name) for name in ("inception", "inception_spatial", "dinov2")]
    for detector in detectors:
        detector.build = Watched
    reference = references.open_reference(str(path), resize=None, bad="error")
    for detector in detectors:
        assert reference.expected(detector).values.is_meta
    assert passes == []
    # Of ADM's, precision and recall are of Inception; sFID needs statistics alone. Detectors
    # without statistics there take the images; all that do, in one pass.
    stacked, stacks = [], reference.samples.images.stacks
    reference.samples.images.stacks = lambda ranges: stacked.append(1) or stacks(ranges)
    asked = [(detectors[2], False), (detectors[1], False), (detectors[0], True)]
    sets = reference.features(asked, PassSettings(cache=False))
    assert [one.values is None for one in sets] == [False, True, False]
    assert (len(passes), len(stacked)) == (2, 1)
    assert torch.equal(sets[0].values, sets[2].values)
    assert sets[0].given_statistics is None
    assert_moments(sets[1], moments(5))
    assert_moments(sets[2], moments(4))


def test_a_url_is_fetched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = edm2(tmp_path / "img512.pkl")
    asked = []
    monkeypatch.setattr(references, "fetch", lambda url: asked.append(url) or path)
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


@pytest.mark.parametrize(
    ("mu", "text"),
    [
        (np.array([object()] * DIM), "cannot be read"),
        (np.zeros(DIM, dtype=np.int64), "its mu or sigma is no array"),
    ],
)
def test_npz_with_other_arrays(tmp_path: Path, mu: np.ndarray, text: str) -> None:
    np.savez(tmp_path / "a.npz", **{**moments(), "mu": mu})
    with pytest.raises(GuidexError, match=rf"a\.npz.*{text}"):
        reference_features(str(tmp_path / "a.npz"), network(tmp_path))


# Our own


def write_own(path: Path, images: Path, detector: object, keep_features: bool = False) -> None:
    features, _ = file_features(str(images), detector)
    write_statistics(path, features, keep_features=keep_features)


@pytest.mark.parametrize("keep_features", [False, True])
def test_own_files_are_what_they_were_made_of(tmp_path: Path, keep_features: bool) -> None:
    detector, images = network(tmp_path), tmp_path / "images.npz"
    np.savez(images, images=pixels(20), labels=np.arange(20) % 2)
    write_own(tmp_path / "a.npz", images, detector, keep_features)
    direct, _ = file_features(str(images), detector)
    found, about = reference_features(str(tmp_path / "a.npz"), detector)
    assert (found.detector, found.count) == ("inception", 20)
    torch.testing.assert_close(found.statistics.mean, direct.statistics.mean)
    torch.testing.assert_close(found.statistics.covariance, direct.statistics.covariance)
    if keep_features:
        assert torch.equal(found.values, direct.values)
        assert torch.equal(found.labels, direct.labels)
    else:
        assert found.values is None and found.labels is None
    told = "a.npz (guidex): 20 images, 8x8, array, inception, halves, float32, weights "
    assert told in describe(about)
    # Others read it, too.
    with np.load(tmp_path / "a.npz", allow_pickle=False) as file:
        assert file["mu"].shape == (DIM,)
        np.testing.assert_allclose(file["sigma"], np.cov(direct.values.double().T), rtol=1e-9)


def test_own_files_of_other_weights_or_resizes_are_refused(tmp_path: Path) -> None:
    images = folder_of(tmp_path / "images", pixels(20))
    write_own(tmp_path / "a.npz", images, network(tmp_path))
    with pytest.raises(UsageError, match="another weights"):
        reference_features(str(tmp_path / "a.npz"), network(tmp_path, scale=2.0))
    other = network(tmp_path)
    other.resize = "thirds"
    with pytest.raises(UsageError, match=r"another way to resize \(halves there, thirds here\)"):
        reference_features(str(tmp_path / "a.npz"), other)
    with pytest.raises(UsageError, match="statistics of inception, not of dinov2"):
        reference_features(str(tmp_path / "a.npz"), network(tmp_path, "dinov2"))
    with pytest.raises(UsageError, match="Use detector=inception, or"):
        reference_features(str(tmp_path / "a.npz"), Pixels())


def test_statistics_of_another_detector_are_refused_before_its_weights_are_downloaded(
    tmp_path: Path,
) -> None:
    np.savez(tmp_path / "a.npz", **moments(3))
    detector = network(tmp_path, "dinov2")
    detector.weights = Weights("halves", str(tmp_path / "not-there.pth"), "https://example.org/h")
    with pytest.raises(UsageError, match="statistics of inception, not of dinov2"):
        reference_features(str(tmp_path / "a.npz"), detector)


def test_the_automatic_detector_is_that_of_the_samples(tmp_path: Path) -> None:
    images = folder_of(tmp_path / "images", pixels(20, size=2))
    detector = make_detector(config_with("detector=auto"))
    assert type(make_detector(config_with("detector=auto"), points=True)) is Coordinates
    write_own(tmp_path / "a.npz", images, detector)
    features, about = reference_features(str(tmp_path / "a.npz"), detector)
    assert (features.detector, features.dim) == ("pixels", 12)
    assert about["detector"] == {"name": "pixels"}


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"guidex": np.array("{")}, "cannot be read"),
        ({"guidex": np.array(json.dumps({"format": 2}))}, "format 1"),
        ({"guidex": np.array(json.dumps({"format": 1, "name": "x"}))}, "cannot be read"),
        ({"features": np.zeros((19, DIM), np.float32)}, r"features are \(19, 6\), not"),
        ({"labels": np.zeros(20, np.int32)}, "labels are torch.int32"),
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


def doubts(real: dict[str, Any], fake: dict[str, Any]) -> list[str]:
    real, fake = {"count": 50_000, **real}, {"count": 50_000, **fake}
    counts, look = {"real": real["count"], "fake": fake["count"]}, {"dim": 100}
    return Frechet().doubts(**counts, **look, network=True) + doubts_of_sides(real=real, fake=fake)


SHAPE = {"shape": [3, 64, 64]}


@pytest.mark.parametrize(
    ("real", "fake", "text"),
    [
        ({"formats": ["png"], **SHAPE}, {"formats": ["array"], **SHAPE}, None),
        ({"count": None}, {"formats": ["jpeg"]}, None),
        ({"count": 1_281_167}, {}, None),
        ({}, {"count": 49_999}, "49,999 fake images: published distances are of 50,000"),
        ({"count": 10_000}, {}, "10,000 real images: published"),
        ({}, {"count": 50_001}, "50,001 fake images: published distances"),
        ({"formats": ["jpeg"]}, {"formats": ["png"]}, "JPEG meets .*real jpeg, fake png"),
        ({"formats": ["png"]}, {"formats": ["jpeg", "png"]}, "JPEG meets"),
        (SHAPE, {"shape": [3, 256, 256]}, "64x64x3 and 256x256x3"),
    ],
)
def test_doubts(real: dict[str, Any], fake: dict[str, Any], text: str | None) -> None:
    told = doubts(real, fake)
    assert len(told) == (text is not None)
    assert text is None or re.search(text, told[0])


@pytest.mark.parametrize(
    ("metric", "real", "fake", "text"),
    [
        (KID(subset_size=50), 90, 90, None),
        (PRDC(), 90, 50_000, "precision and recall are of 50,000"),
        (PRDC(), 1_281_167, 50_000, "^1,281,167 real images"),
        (PRDC(), 50_000, 50_000, None),
        # Of more, a protocol takes what it says.
        (PRDC(reals=10_000, fakes=10_000), 10_000, 20_000, None),
        (FrechetInfinity(tenth=True), 50_000, 50_000, None),
        (FrechetInfinity(tenth=True), 50_000, 1500, "begins with 150 fakes for 100 features"),
        (InceptionScore(), None, 50_000, None),
        (InceptionScore(), None, 1800, "1,800 fake images: published scores are of 50,000"),
        (InceptionScore(), None, 60_000, "60,000 fake images"),
        (InceptionScore(size=5000), None, 11_000, "a last part of 1,000"),
    ],
)
def test_doubts_of_counts_of_images(
    metric: Metric, real: int | None, fake: int, text: str | None
) -> None:
    told = metric.doubts(real=real, fake=fake, dim=100, network=True)
    assert (told == []) == (text is None)
    assert text is None or re.search(text, told[0])


# Commands


def config_with(*words: str) -> dict[str, Any]:
    return compose("eval", ["images=a", "ref=b", *words]).config | {"device": "cpu"}


@pytest.mark.parametrize("name", ["pixels", "inception", "dinov2_pil", "clip", "vgg16"])
def test_detectors_are_made_once_and_without_their_weights(name: str) -> None:
    measures, config = Measures(PassSettings()), config_with(f"detector={name}", "metrics=[]")
    again, other = config | {"ref": "c"}, config | {"device": "meta"}
    [detector], same, different = (
        [measure.detector for measure in measures.detected(each)] for each in (config, again, other)
    )
    assert same == [detector] != different
    assert detector.name == name  # the column says which preset it was


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
    with pytest.raises(UsageError, match="does not exist; give"):
        make_reference([str(tmp_path / "nowhere"), f"dest={tmp_path / 'x.npz'}"])
    make_reference([str(reals), f"dest={tmp_path / 'there.npz'}", "overwrite=true", "bad=skip"])
    assert read_statistics(tmp_path / "there.npz").sets["pixels"].about["count"] == 3


def test_a_reference_is_not_measured_as_if_it_were_the_fakes(tmp_path: Path) -> None:
    arrays = {"mu": np.zeros(2), "sigma": np.eye(2), "arr_0": np.zeros((4, 8, 8, 3), np.uint8)}
    np.savez(tmp_path / "virtual.npz", **arrays)
    with pytest.raises(UsageError, match=r"did you mean guidex eval fakes ref=.*virtual.npz\?"):
        evaluate([str(tmp_path / "virtual.npz"), "ref=fakes", "detector=pixels"])


def test_statistics_of_an_unknown_number_of_images_are_whole(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", mu=np.zeros(64), sigma=np.eye(64))
    found = read_statistics(tmp_path / "a.npz").sets["inception"].statistics
    other = GaussianStatistics.from_moments(
        count=50_000, mean=torch.ones(64).double(), covariance=4 * torch.eye(64).double()
    )
    assert frechet_distance(real=other, fake=found) == pytest.approx(64 * (1 + (2 - 1) ** 2))


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
@pytest.mark.parametrize("keys", [("samples", "labels"), ("mu", "sigma")])
def test_damaged_arrays_are_told_and_never_escape(tmp_path: Path, save: Any, keys: Any) -> None:
    content, told, path = io.BytesIO(), 0, tmp_path / "x.npz"
    save(content, **{keys[0]: np.ones((4, 4)), keys[1]: np.arange(4)})
    whole = content.getvalue()
    for at in range(0, len(whole), 13):
        for damaged in (whole[:at], whole[:at] + bytes([whole[at] ^ 0x44]) + whole[at + 1 :]):
            path.write_bytes(damaged)
            for read in (read_statistics, opened):
                try:
                    read(path)
                except GuidexError as error:
                    told += 1
                    assert "pickle" not in str(error)
    assert told > 9


def test_points_hold_no_python_objects(tmp_path: Path) -> None:
    np.savez(tmp_path / "x.npz", samples=np.ones((3, 2), object))
    with pytest.raises(GuidexError, match="Python objects") as caught:
        opened(tmp_path / "x.npz")
    assert "allow_pickle" not in str(caught.value)


def test_edm2s_references_are_found_by_their_names(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GUIDEX_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    url = "https://nvlabs-fi-cdn.nvidia.com/edm2/dataset-refs/img512.pkl"
    place = cache._locate(url)[1]
    place.parent.mkdir()
    place.write_bytes(pickle.dumps({"fid": moments(), "num_images": 100}))
    Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(tmp_path / "a.png")
    config = compose("eval", ["images=.", "ref=img512.pkl", "detector=inception"]).config
    for ref in ("img512.pkl", url):
        [part] = parts_of(config | {"ref": ref})
        assert reference_of(part, None, "").path == place
