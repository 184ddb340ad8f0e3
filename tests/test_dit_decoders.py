"""VAEs with the conventions of the transformers: latents and bytes."""

from pathlib import Path

import pytest
import torch
from test_decoders import write_vae

from guidex.errors import GuidexError, UsageError
from guidex.models.dit.decoders import LatentVAE

GOLDEN = Path(__file__).parent / "golden" / "dit"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(write_vae(tmp_path_factory.mktemp("vae")))


@pytest.mark.parametrize("middle", [128.0, 127.5])
def test_scaled_latents_become_bytes(folder, middle):
    decoder = LatentVAE(folder, factor=0.18215, middle=middle)
    x = torch.randn(2, 4, 4, 4)
    values = decoder.vae.decode(x / 0.18215).sample
    wanted = (127.5 * values + middle).clamp(0, 255).to(torch.uint8)
    assert (decoder(x.double()).int() - wanted.int()).abs().max() <= 1  # 1 / factor is rounded
    assert decoder.image_shape((4, 4, 4)) == (3, 16, 16)
    ends = decoder.to_bytes(torch.tensor([-2.0, -1.0, 0.0, 0.999, 1.0, 2.0]))
    assert ends.tolist() == [0, 0, int(middle), 127 + int(middle), 255, 255]


@pytest.mark.parametrize(
    "names",
    [("mean", "std"), ("latents_bias", "latents_scale"), ("bn.running_mean", "bn.running_var")],
)
def test_statistics_of_latents(folder, tmp_path, names):
    mean, std = torch.randn(1, 4, 1, 1), torch.rand(1, 4, 1, 1) + 0.5
    other = {"std": std, "latents_scale": 1 / std, "bn.running_var": std.square()}[names[1]]
    torch.save({names[0]: mean, names[1]: other}, tmp_path / "stats.pt")
    decoder = LatentVAE(folder, statistics=str(tmp_path / "stats.pt"))
    x = torch.randn(2, 4, 4, 4)
    assert torch.allclose(decoder.raw(x), x * std + mean, atol=1e-6)


def test_what_is_wrong_is_said(folder, tmp_path):
    with pytest.raises(UsageError, match="statistics of 32 channels, but the VAE at .* has 4"):
        LatentVAE(folder, statistics=str(GOLDEN / "repae.pt"))
    with pytest.raises(GuidexError, match="no statistics of latents"):
        LatentVAE(folder, statistics=str(GOLDEN / "sit.pt"))
    with pytest.raises(UsageError, match="this VAE decodes latents"):
        LatentVAE(folder).image_shape((32, 4, 4))


def test_a_vae_that_is_not_here_is_named(monkeypatch):
    monkeypatch.setenv("GUIDEX_OFFLINE", "1")
    with pytest.raises(UsageError, match="huggingface.co/REPA-E/vavae-hf/.*give decoder.path=FOLD"):
        LatentVAE("REPA-E/vavae-hf")
