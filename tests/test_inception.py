"""Inception-v3 as a detector: torch-fidelity's features, from weights that are data only."""

import functools
import hashlib
import io
import os
import pickle
import shutil
from pathlib import Path

import pytest
import torch
from torch import Tensor

from guidex.errors import GuidexError, UsageError
from guidex.features.detectors import Pixels, run_detectors
from guidex.features.inception import PREFIX, URL, inception
from guidex.features.networks import NetworkDetector
from guidex.features.weights import Weights
from guidex.files import cache

pytest.importorskip("torch_fidelity", reason="torch-fidelity is not installed")


@functools.cache  # for other test files, too
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
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("inception") / "weights.pth"
    torch.save(random_weights(), path)
    return path


def images(count: int, size: int = 40, channels: int = 3, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(
        0, 256, (count, channels, size, size), generator=generator, dtype=torch.uint8
    )


@pytest.fixture(scope="module")
def detectors(file: Path) -> dict[str, NetworkDetector]:
    """One for each output."""
    outputs = ("pool3", "logits", "spatial")
    return {output: inception(str(file), features=output) for output in outputs}


@pytest.fixture(scope="module")
def detector(detectors: dict[str, NetworkDetector]) -> NetworkDetector:
    return detectors["pool3"]


def test_one_pass_gives_the_features_of_torch_fidelity_and_adm(
    file: Path, detectors: dict[str, NetworkDetector]
) -> None:
    from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

    extractor = FeatureExtractorInceptionV3(
        "reference", ["2048", "logits_unbiased"], feature_extractor_weights_path=file
    )
    # The TensorFlow graph's blocks by its own names, in the order in which images pass them.
    blocks = [name for name, _ in extractor.named_children() if name.startswith("Mixed")]
    names = ["mixed", *(f"mixed_{number}" for number in range(1, 11))]
    block = getattr(extractor, dict(zip(names, blocks, strict=True))["mixed_6"])
    seen = []
    block.branch1x1.register_forward_hook(lambda module, inputs, output: seen.append(output))
    with torch.no_grad():
        pool3, logits = extractor(images(3))
    assert seen[0].shape == (3, 192, 17, 17)
    spatial = seen[0].permute(0, 2, 3, 1)[..., :7].reshape(3, 2023)  # as ADM: NHWC, [..., :7]
    assert spatial[1, 7 * (17 * 4 + 5) + 6] == seen[0][1, 6, 4, 5]

    outputs = run_detectors([*detectors.values(), Pixels()], images(3))
    assert len(outputs) == 4
    for settings in ({"precision": "bfloat16"}, {"compile": True}, {"weights": None}):
        other = inception(**{"weights": str(file), **settings})
        assert other.group != detectors["pool3"].group == detectors["logits"].group
    expected = {
        "pool3": ("inception", pool3),
        "logits": ("inception_logits", logits),
        "spatial": ("inception_spatial", spatial),
    }
    for output, (name, values) in expected.items():
        detector = detectors[output]
        found = outputs[detector]
        assert name == detector.name == detector.identity.name
        assert found.dtype == torch.float32
        assert found.shape == (3, detector.identity.dim)
        assert values.std() > 0.1  # the random network tells images apart
        torch.testing.assert_close(found, values, rtol=1e-6, atol=1e-6)
    assert all(one._network is None for one in detectors.values())  # but a network of all three


def test_half_precision_is_near_and_gives_float32(
    file: Path, detectors: dict[str, NetworkDetector], monkeypatch: pytest.MonkeyPatch
) -> None:
    spatial = detectors["spatial"]
    exact = spatial(images(1))
    half = inception(str(file), features="spatial", precision="bfloat16")
    monkeypatch.setattr(half, "_network", spatial._network)  # spares building it again
    rounded = half(images(1))
    assert (rounded.dtype, rounded.shape) == (torch.float32, (1, 2023))
    assert 1e-4 < (rounded - exact).norm() / exact.norm() < 0.05
    assert half.identity != spatial.identity


def test_grey_images_are_repeated_and_points_are_refused(detector: NetworkDetector) -> None:
    grey = images(1, channels=1)
    assert torch.equal(detector(grey), detector(grey.repeat(1, 3, 1, 1)))
    with pytest.raises(UsageError, match="detector=coordinates"):
        detector(torch.zeros(4, 2))


def test_images_go_through_in_full_float32_so_many_at_once(
    detector: NetworkDetector, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []

    def network(batch: Tensor) -> Tensor:
        allowed = torch.backends.cudnn.allow_tf32 or torch.backends.cuda.matmul.allow_tf32
        seen.append((len(batch), allowed))
        return batch.float().flatten(1)

    monkeypatch.setattr(detector, "_network", network)
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", True)
    detector(images(20))
    assert seen == [(16, False), (4, False)]
    assert torch.backends.cudnn.allow_tf32 is True


# Weights


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


@pytest.mark.parametrize(
    ("content", "text"),
    [
        ({"fc.weight": torch.zeros(10, 2048)}, "no weights of Inception.*Missing key"),
        ({"model": {"a": torch.zeros(1)}}, "a table of tensors alone"),
        ([torch.zeros(1)], "a table of tensors alone"),
    ],
    ids=["others", "nested", "list"],
)
def test_other_files_are_refused(tmp_path: Path, content: object, text: str) -> None:
    torch.save(content, tmp_path / "w.pth")
    with pytest.raises(GuidexError, match=text):
        inception(str(tmp_path / "w.pth"))(images(1))


@pytest.mark.parametrize("content", [b"junk", b"\x80\x02e", b"", b"\x93NUMPY"])
@pytest.mark.parametrize("name", ["w.pth", "w.safetensors"])
def test_weights_that_are_none_are_refused_in_words_of_our_own(
    tmp_path: Path, content: bytes, name: str
) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(GuidexError) as caught:
        Weights("it", str(tmp_path / name), URL).read()
    text = str(caught.value)
    assert "neither a safetensors file nor a file of torch.save" in text
    assert "weights_only" not in text and "(" not in text


def test_the_published_file_must_have_its_checksum(
    file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert PREFIX in URL
    monkeypatch.setenv("GUIDEX_CACHE", str(tmp_path))
    place = cache._locate(URL)[1]
    shutil.copy(file, place)
    with pytest.raises(GuidexError, match=f"another file: .*and {PREFIX} is asked for"):
        inception()(images(1))
    sha256 = hashlib.sha256(file.read_bytes()).hexdigest()
    assert Weights("it", str(file), URL, PREFIX).sha256 == sha256
    assert Weights("it", None, URL, sha256[:8]).sha256 == sha256


def test_without_network_the_message_says_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GUIDEX_OFFLINE", "1")
    monkeypatch.setenv("GUIDEX_CACHE", str(tmp_path))
    with pytest.raises(UsageError, match="6726825d.pth.*put it at"):
        inception().identity  # noqa: B018
