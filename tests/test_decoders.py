"""Decoders: golden pixels and latents, and a tiny VAE in place of the published one."""

import logging
import shutil
import sys
from pathlib import Path

import pytest
import torch
from edm2_networks import captured_graphs
from helpers import golden

from guidex.errors import GuidexError, UsageError
from guidex.models.decoders import SD_VAE, Pixels, StabilityVAE


@pytest.fixture(autouse=True)
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GUIDEX_OFFLINE", "1")


def write_vae(folder: Path, latent_channels: int = 4) -> Path:
    """A VAE of the published one's kind, with three resolutions and random weights."""
    diffusers = pytest.importorskip("diffusers", reason="the extra guidex[latents]")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        vae = diffusers.AutoencoderKL(
            down_block_types=("DownEncoderBlock2D",) * 3,
            up_block_types=("UpDecoderBlock2D",) * 3,
            block_out_channels=(8, 8, 16),
            layers_per_block=1,
            latent_channels=latent_channels,
            norm_num_groups=4,
        )
    vae.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_vae(tmp_path_factory.mktemp("vae"))


@pytest.fixture(scope="module")
def decoder(folder: Path) -> StabilityVAE:
    return StabilityVAE(str(folder), batch=2)


def latents(count: int = 5, size: int = 4) -> torch.Tensor:
    return torch.randn(count, 4, size, size, generator=torch.Generator().manual_seed(1)) / 2


# Pixels


def test_pixels_are_the_golden_ones():
    arrays = golden("encoders.npz")
    images = Pixels()(torch.from_numpy(arrays["rgb_in"]))
    assert torch.equal(images, torch.from_numpy(arrays["rgb_out"]))
    assert Pixels().image_shape((3, 16, 16)) == (3, 16, 16)


def test_pixels_of_something_else():
    for shape in ((4, 16, 16), (2,)):
        with pytest.raises(UsageError, match="decoder=sd_vae decodes latents"):
            Pixels().image_shape(shape)


# Latents


def test_raw_latents_are_the_golden_ones(decoder):
    arrays = golden("encoders.npz")
    raw = decoder.raw(torch.from_numpy(arrays["latents"]))
    torch.testing.assert_close(raw, torch.from_numpy(arrays["raw_latents"]), rtol=1e-6, atol=1e-6)
    assert torch.equal(decoder.scale.flatten(), torch.from_numpy(arrays["scale"]))
    assert torch.equal(decoder.bias.flatten(), torch.from_numpy(arrays["bias"]))


def test_the_vae_sees_raw_latents_and_gives_pixels_from_0_to_1(decoder):
    x = latents()
    images = decoder(x)
    assert images.dtype == torch.uint8 and images.shape == (5, 3, 16, 16)
    assert decoder.image_shape((4, 4, 4)) == (3, 16, 16)
    values = decoder.vae.decode(decoder.raw(x)).sample
    assert values.min() < 0 and values.max() > 1 and ((values > 0) & (values < 1)).any()
    # A value may fall on either side of a whole number, by the rounding of other batches.
    exact = 255 * values.clamp(0, 1)
    assert (images - exact).max() < 1e-3 and (exact - images).max() < 1 + 1e-3


def test_decoding_in_parts_changes_nothing(decoder):
    x = latents()
    assert torch.equal(decoder(x), torch.cat([decoder(x[:2]), decoder(x[2:4]), decoder(x[4:])]))
    assert torch.equal(decoder(x), decoder(x.double()))


def test_too_little_memory_halves_the_batch(folder, decoder, monkeypatch, capsys):
    small, most = StabilityVAE(str(folder), batch=4), 1
    decode = small.vae.decode

    def scarce(latents):
        if len(latents) > most:
            raise torch.OutOfMemoryError("for the test")
        return decode(latents)

    monkeypatch.setattr(small.vae, "decode", scarce)
    assert torch.equal(small(latents()), torch.cat([decoder(one) for one in latents().split(1)]))
    assert small.batch.size == 1
    assert "going on with batches of 1" in capsys.readouterr().err
    most = 0
    with pytest.raises(GuidexError, match="for a single image: for the test"):
        small(latents())


def test_reading_says_nothing(folder, monkeypatch, caplog):
    monkeypatch.setattr(logging.getLogger("diffusers"), "propagate", True)
    StabilityVAE(str(folder), dtype="float16")
    assert caplog.text == ""


def test_float16_agrees(folder, decoder):
    difference = StabilityVAE(str(folder), dtype="float16")(latents(1)).int() - decoder(latents(1))
    assert difference.abs().max() <= 2


def test_a_compiled_decoder_meets_one_size_of_batch(folder, decoder, monkeypatch):
    """With a compiler that only captures; what fills up a batch is cut off again."""
    graphs = captured_graphs(monkeypatch)
    compiled = StabilityVAE(str(folder), batch=2, compile=True)
    for count in (5, 1, 2):
        x = latents(count)
        assert (compiled(x).int() - decoder(x).int()).abs().max() <= 1
        assert compiled(x).shape == decoder(x).shape
    assert len(graphs) == 1


def test_infinite_values_are_told(folder, decoder):
    with pytest.raises(GuidexError, match="not a number$"):
        decoder(torch.cat([latents(1) * float("nan"), latents(3)]))  # not only in the last part
    with pytest.raises(GuidexError, match="use decoder.dtype=float32"):
        StabilityVAE(str(folder), dtype="float16")(latents(1) * float("nan"))


def test_samples_that_are_no_latents(decoder):
    for shape in ((3, 4, 4), (4, 4)):
        with pytest.raises(UsageError, match="decodes latents"):
            decoder.image_shape(shape)


# What can be wrong with a VAE


@pytest.mark.parametrize("path", ["/no/such/folder", "no-such-folder"])
def test_no_such_folder(path, tmp_path, monkeypatch):
    pytest.importorskip("diffusers", reason="the extra guidex[latents]")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UsageError, match=f"{SD_VAE}/tree/main .* decoder.path=FOLDER"):
        StabilityVAE(path)


def test_a_folder_without_safetensors(folder, tmp_path):
    """A pickle in its place is not read."""
    shutil.copy(folder / "config.json", tmp_path)
    (tmp_path / "diffusion_pytorch_model.bin").write_bytes(b"cos\nsystem\n(S'exit 1'\ntR.")
    with pytest.raises(GuidexError, match="no file named diffusion_pytorch_model.safetensors"):
        StabilityVAE(str(tmp_path))


def test_other_vaes_are_refused(folder, tmp_path):
    with pytest.raises(UsageError, match="at least 1"):
        StabilityVAE(str(folder), batch=0)
    shutil.copy(folder / "config.json", tmp_path)
    (tmp_path / "diffusion_pytorch_model.safetensors").write_bytes(b"\xff" * 64)
    with pytest.raises(GuidexError, match="cannot be read"):
        StabilityVAE(str(tmp_path))


def test_without_diffusers(monkeypatch):
    monkeypatch.setitem(sys.modules, "diffusers", None)
    with pytest.raises(UsageError, match=r"pip install '\.\[latents\]'"):
        StabilityVAE()
