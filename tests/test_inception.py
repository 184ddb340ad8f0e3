"""Inception-v3 as a detector: torch-fidelity's features, from weights that are data only."""

import io
import os
import pickle
from pathlib import Path

import pytest
import torch
from PIL import Image
from torch import Tensor

from guidex.errors import GuidexError, UsageError
from guidex.features import weights as weights_module
from guidex.features.detectors import Pixels, run_detectors
from guidex.features.inception import PREFIX, URL, inception
from guidex.features.networks import NetworkDetector
from guidex.features.weights import Weights
from guidex.metrics.frechet import frechet_distance

pytest.importorskip("torch_fidelity", reason="torch-fidelity is not installed")


def random_weights(seed: int = 0) -> dict[str, Tensor]:
    """Weights in the published layout that keep signals at the same size from layer to layer."""
    from torch_fidelity import feature_extractor_inceptionv3 as module

    class Bare(module.FeatureExtractorInceptionV3):
        def load_state_dict(self, state: object) -> None:
            """Keep torch's own initialisation."""

    empty = io.BytesIO()
    torch.save({}, empty)
    empty.seek(0)
    layout = Bare("bare", ["2048"], feature_extractor_weights_path=empty).state_dict()
    generator = torch.Generator().manual_seed(seed)
    made = {}
    for name, value in layout.items():
        if name.endswith("conv.weight"):
            scale = (2 / value[0].numel()) ** 0.5
            made[name] = torch.randn(value.shape, generator=generator) * scale
        elif name.endswith(("bn.bias", "fc.weight", "fc.bias")):
            made[name] = torch.randn(value.shape, generator=generator) * 0.1
        else:  # BatchNorm as it begins: weight 1, mean 0, variance 1
            made[name] = value
    return made


@pytest.fixture(scope="module")
def tensors() -> dict[str, Tensor]:
    return random_weights()


@pytest.fixture(scope="module")
def file(tensors: dict[str, Tensor], tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("inception") / "weights.pth"
    torch.save(tensors, path)
    return path


def images(count: int, size: int = 40, channels: int = 3, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(
        0, 256, (count, channels, size, size), generator=generator, dtype=torch.uint8
    )


@pytest.fixture(scope="module")
def reference(file: Path) -> tuple[Tensor, Tensor]:
    """What torch-fidelity itself makes of three images: pool3 and logits."""
    from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

    extractor = FeatureExtractorInceptionV3(
        "reference", ["2048", "logits_unbiased"], feature_extractor_weights_path=file
    )
    with torch.no_grad():
        return extractor(images(3))


@pytest.fixture(scope="module")
def detector(file: Path) -> NetworkDetector:
    return inception(str(file))


def test_pool3_is_that_of_torch_fidelity(
    detector: NetworkDetector, reference: tuple[Tensor, Tensor]
) -> None:
    name, values = detector(images(3))
    assert name == detector.identity.name == "inception"
    assert values.dtype == torch.float32
    assert values.shape == (3, detector.identity.dim) == (3, 2048)
    assert reference[0].std() > 0.1  # the random network tells images apart
    torch.testing.assert_close(values, reference[0], rtol=1e-6, atol=1e-6)


def test_logits_are_those_of_torch_fidelity(file: Path, reference: tuple[Tensor, Tensor]) -> None:
    detector = inception(str(file), features="logits")
    name, values = detector(images(3))
    assert name == detector.identity.name == "inception_logits"
    assert values.shape == (3, detector.identity.dim) == (3, 1008)
    torch.testing.assert_close(values, reference[1], rtol=1e-6, atol=1e-6)


@pytest.fixture(scope="module")
def spatial(file: Path) -> NetworkDetector:
    return inception(str(file), features="spatial")


def test_spatial_features_are_seven_channels_of_mixed_6(
    file: Path, spatial: NetworkDetector
) -> None:
    from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

    extractor = FeatureExtractorInceptionV3(
        "reference", ["2048"], feature_extractor_weights_path=file
    )
    # The TensorFlow graph's blocks by its own names, in the order in which images pass them.
    blocks = [name for name, _ in extractor.named_children() if name.startswith("Mixed")]
    names = ["mixed", *(f"mixed_{number}" for number in range(1, 11))]
    block = getattr(extractor, dict(zip(names, blocks, strict=True))["mixed_6"])
    seen = []
    block.branch1x1.register_forward_hook(lambda module, inputs, output: seen.append(output))
    with torch.no_grad():
        extractor(images(3))
    assert seen[0].shape == (3, 192, 17, 17)
    expected = seen[0].permute(0, 2, 3, 1)[..., :7].reshape(3, 2023)  # as ADM: NHWC, [..., :7]

    name, values = spatial(images(3))
    assert name == spatial.identity.name == "inception_spatial"
    assert values.dtype == torch.float32
    assert values.shape == (3, spatial.identity.dim) == (3, 2023)
    assert values[1, 7 * (17 * 4 + 5) + 6] == pytest.approx(float(seen[0][1, 6, 4, 5]), rel=1e-5)
    assert (values >= 0).all() and values.std() > 0.1
    torch.testing.assert_close(values, expected, rtol=1e-6, atol=1e-6)


def test_one_pass_gives_the_features_of_all_three(
    file: Path, detector: NetworkDetector, spatial: NetworkDetector
) -> None:
    logits = inception(str(file), features="logits")
    others = [inception(str(file), precision="bfloat16"), Pixels()]
    outputs = run_detectors([logits, *others, spatial, detector], images(2))
    for one in (logits, spatial, detector):
        name, values = outputs[one]
        assert name == one.name
        torch.testing.assert_close(values, one(images(2))[1], rtol=1e-6, atol=1e-6)
    assert outputs[others[0]][1].shape == (2, 2048) and outputs[others[1]][0] == "pixels"
    [joined] = logits._joined.values()
    assert joined.name == "inception_logits+inception_spatial+inception"
    assert not detector._joined and not spatial._joined


def test_half_precision_of_a_single_image_keeps_its_shape(
    file: Path, spatial: NetworkDetector, monkeypatch: pytest.MonkeyPatch
) -> None:
    exact = spatial(images(1))[1]
    half = inception(str(file), features="spatial", precision="bfloat16")
    monkeypatch.setattr(half, "_network", spatial._network)
    rounded = half(images(1))[1]
    assert (rounded.dtype, rounded.shape) == (torch.float32, (1, 2023))
    assert 1e-4 < (rounded - exact).norm() / exact.norm() < 0.05


def test_the_same_folder_has_the_distance_that_torch_fidelity_tells(
    file: Path, detector: NetworkDetector, tmp_path: Path
) -> None:
    from torch_fidelity import calculate_metrics

    from guidex.features.samples import PassSettings, open_samples

    for side, seed in (("real", 1), ("fake", 2)):
        (tmp_path / side).mkdir()
        batch = images(6, seed=seed)
        if side == "fake":
            batch[:, :, ::2] //= 2
        for index, pixels in enumerate(batch.numpy()):
            Image.fromarray(pixels.transpose(1, 2, 0)).save(tmp_path / side / f"{index}.png")
    theirs = calculate_metrics(
        input1=str(tmp_path / "fake"),
        input2=str(tmp_path / "real"),
        fid=True,
        feature_extractor_weights_path=str(file),
        cuda=False,
        cache=False,
        save_cpu_ram=True,  # no worker processes
        verbose=False,
    )["frechet_inception_distance"]
    sets = {}
    for side in ("real", "fake"):
        samples = open_samples(str(tmp_path / side), resize=None, bad="error")
        [sets[side]] = samples.features([detector], PassSettings(batch=4, cache=False))
    ours = frechet_distance(real=sets["real"].statistics, fake=sets["fake"].statistics)
    assert theirs > 1
    assert ours == pytest.approx(theirs, rel=1e-6)


def test_grey_images_are_repeated(detector: NetworkDetector) -> None:
    grey = images(2, channels=1)
    assert torch.equal(detector(grey)[1], detector(grey.repeat(1, 3, 1, 1))[1])


def test_points_are_refused(detector: NetworkDetector) -> None:
    with pytest.raises(UsageError, match="detector=coordinates"):
        detector(torch.zeros(4, 2))


def test_features_do_not_depend_on_how_many_images_come_at_once(
    detector: NetworkDetector, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = detector(images(5))[1]
    monkeypatch.setattr("guidex.features.networks.PASS", 2)
    torch.testing.assert_close(detector(images(5))[1], whole, rtol=1e-5, atol=1e-6)


def test_half_precision_is_near_and_gives_float32(
    file: Path, detector: NetworkDetector, monkeypatch: pytest.MonkeyPatch
) -> None:
    exact = detector(images(2))[1]
    half = inception(str(file), precision="bfloat16")
    monkeypatch.setattr(half, "_network", detector._network)  # spares building it again
    rounded = half(images(2))[1]
    assert rounded.dtype == torch.float32
    error = (rounded - exact).norm() / exact.norm()
    assert 1e-4 < error < 0.05
    assert half.identity != detector.identity


def test_float32_is_not_tf32(detector: NetworkDetector, monkeypatch: pytest.MonkeyPatch) -> None:
    detector(images(1))
    seen = []

    def network(batch: Tensor) -> Tensor:
        seen.append((torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32))
        return batch.float().flatten(1)

    monkeypatch.setattr(detector, "_network", network)
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", True)
    detector(images(1))
    assert seen == [(False, False)]
    assert torch.backends.cudnn.allow_tf32 is True


# Weights


def test_identity_holds_the_hash_and_reads_no_network(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "any.pth").write_bytes(b"abc")
    identity = inception(str(tmp_path / "any.pth")).identity
    assert identity.weights == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"


class Malicious:
    def __reduce__(self) -> tuple[object, ...]:
        return os.mkdir, (self.path,)

    def __init__(self, path: str) -> None:
        self.path = path


def test_no_code_in_a_weights_file_is_run(tmp_path: Path) -> None:
    target = tmp_path / "made"
    for name in ("bare.pth", "torch.pth"):
        with open(tmp_path / name, "wb") as stream:
            if name == "bare.pth":
                pickle.dump(Malicious(str(target)), stream)
            else:
                torch.save({"x": Malicious(str(target))}, stream)
        with pytest.raises(GuidexError, match="Nothing in the file was run"):
            inception(str(tmp_path / name))(images(1))
    assert not target.exists()


def faulty(kind: str, tensors: dict[str, Tensor]) -> object:
    match kind:
        case "missing":
            return {name: value for name, value in tensors.items() if name != "fc.weight"}
        case "shape":
            return {**tensors, "fc.weight": torch.zeros(10, 2048)}
        case "nested":
            return {"model": {"a": torch.zeros(1)}}
        case _:
            return [torch.zeros(1)]


@pytest.mark.parametrize(
    ("kind", "text"),
    [
        ("missing", "fc.weight"),
        ("shape", "fc.weight"),
        ("nested", "not a table of tensors"),
        ("list", "not a table of tensors"),
    ],
)
def test_other_files_are_refused(
    tensors: dict[str, Tensor], tmp_path: Path, kind: str, text: str
) -> None:
    torch.save(faulty(kind, tensors), tmp_path / "w.pth")
    with pytest.raises(GuidexError, match=text):
        inception(str(tmp_path / "w.pth"))(images(1))


def test_safetensors_are_read(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    tensors = {"a": torch.arange(3.0)}
    save_file(tensors, tmp_path / "w.safetensors")
    found = Weights("it", str(tmp_path / "w.safetensors"), URL).read()
    assert torch.equal(found["a"], tensors["a"])
    (tmp_path / "bad.safetensors").write_bytes(b"\xff" * 100)
    with pytest.raises(GuidexError, match="not readable weights"):
        Weights("it", str(tmp_path / "bad.safetensors"), URL).read()


def test_the_published_file_must_have_its_checksum(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert PREFIX in URL
    asked = []

    def fetch(source: str, progress: object) -> Path:
        asked.append(source)
        return file

    monkeypatch.setattr(weights_module, "fetch", fetch)
    with pytest.raises(GuidexError, match="not the published file"):
        inception()(images(1))
    assert asked == [URL]
    assert Weights("it", None, URL, Weights("it", str(file), URL).sha256[:8]).path == file


def test_without_network_the_message_says_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GUIDEX_OFFLINE", "1")
    monkeypatch.setenv("GUIDEX_CACHE", str(tmp_path))
    with pytest.raises(UsageError, match="6726825d.pth.*put it at"):
        inception().identity  # noqa: B018
