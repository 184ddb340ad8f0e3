"""Checkpoints of transformers: each layout gives the same network; hostile files are refused."""

import argparse
import io
import json
import pickle
import zipfile
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from guidex.errors import GuidexError, UsageError
from guidex.files.pickles import read_weights
from guidex.models.dit.checkpoints import read_network
from guidex.models.dit.load import transformer
from guidex.models.spec import ModelSpec, load

GOLDEN = Path(__file__).parent / "golden" / "dit"
X, T, Y = torch.randn(2, 4, 8, 8), torch.tensor([0.2, 0.7]), torch.tensor([1, 1000])


@pytest.mark.parametrize("name", ["sit", "dit", "repa", "repae", "lightning"])
def test_files_of_torch_are_read_as_torch_reads_them(name):
    wanted = torch.load(GOLDEN / f"{name}.pt", weights_only=True)
    wanted = wanted.get("ema", wanted)
    found = read_weights(GOLDEN / f"{name}.pt")
    assert found.keys() == wanted.keys()
    assert all(torch.equal(found[key], wanted[key]) for key in wanted)


def test_views_and_other_entries(tmp_path):
    whole = torch.arange(12.0).view(3, 4)
    ema = {
        "a": whole[1:],
        "b": whole.T,
        "c": torch.nn.Parameter(whole.half()),
        "n": torch.tensor(3),
    }
    options = argparse.Namespace(model="XL", lr=1e-4)
    torch.save({"opt": {"state": {0: whole}}, "ema": ema, "args": options}, tmp_path / "x.pt")
    found = read_weights(tmp_path / "x.pt")
    assert all(torch.equal(found[key], ema[key].detach()) for key in ema)
    # Of one storage, which is read once.
    assert found["a"].untyped_storage().data_ptr() == found["b"].untyped_storage().data_ptr()


def same_network(path, **options) -> bool:
    wanted, found = read_network(GOLDEN / "sit.pt", 4), read_network(path, 4, **options)
    return torch.equal(found(X, T, Y), wanted(X, T, Y))


def test_every_layout_gives_the_same_network(tmp_path):
    state = read_weights(GOLDEN / "sit.pt")
    save_file(state, tmp_path / "x.safetensors")
    assert same_network(tmp_path / "x.safetensors")
    torch.save({f"module.{name}": tensor for name, tensor in state.items()}, tmp_path / "ddp.pt")
    assert same_network(tmp_path / "ddp.pt")
    old = {name.replace("blocks.2.", "decoder_blocks.0."): one for name, one in state.items()}
    torch.save({"model": old, "step": 3}, tmp_path / "old.pt")
    assert same_network(tmp_path / "old.pt")


def test_folders_of_diffusers(tmp_path):
    diffusers = pytest.importorskip("diffusers")
    torch.manual_seed(0)
    theirs = diffusers.DiTTransformer2DModel(
        num_attention_heads=2, attention_head_dim=16, in_channels=4, out_channels=8, num_layers=2,
        sample_size=8, num_embeds_ada_norm=1000, norm_type="ada_norm_zero",
    ).eval()  # fmt: skip
    for block in theirs.transformer_blocks:
        # As converted checkpoints are: one embedding. Its frequencies are diffusers' own.
        block.norm1.emb.load_state_dict(theirs.transformer_blocks[0].norm1.emb.state_dict())
        block.norm1.emb.time_proj.downscale_freq_shift = 0
    theirs.save_pretrained(tmp_path / "transformer")
    ours = read_network(tmp_path, heads=2)
    with torch.no_grad():
        wanted = theirs(X, timestep=T, class_labels=Y).sample
        assert torch.allclose(ours(X, T, Y), wanted, atol=1e-5)
    (tmp_path / "transformer" / "config.json").unlink()
    with pytest.raises(GuidexError, match="no pos_embed, nor sample_size in .*config.json"):
        read_network(tmp_path)


def archive(path: Path, value: bytes, members: dict[str, bytes] | None = None) -> Path:
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("x/data.pkl", value)
        for name, content in (members or {}).items():
            file.writestr(name, content)
    return path


class Hostile:
    def __reduce__(self):
        return (print, ("was run",))


class Saver(pickle.Pickler):
    """As torch.save writes a tensor of 4 floats, with what it says about its storage."""

    said = ("storage", torch.FloatStorage, "0", "cpu", 4)

    def persistent_id(self, thing):
        return self.said if thing is Saver else None

    def reducer_override(self, thing):
        if isinstance(thing, torch.Tensor):
            rebuild = torch._utils._rebuild_tensor_v2
            return rebuild, (Saver, 0, tuple(thing.shape), (1,), False, {})
        return NotImplemented


def pickled(count: int = 4, key: str = "0", size: int = 4) -> bytes:
    buffer = io.BytesIO()
    saver = Saver(buffer, 2)
    saver.said = ("storage", torch.FloatStorage, key, "cpu", count)
    saver.dump({"w": torch.zeros(size)})
    return buffer.getvalue()


def test_hostile_and_damaged_files_are_refused(tmp_path, capsys):
    data = {"x/data/0": bytes(16)}
    assert read_weights(archive(tmp_path / "good.pt", pickled(), data))["w"].tolist() == [0] * 4
    cases = {
        "names builtins.print": (pickle.dumps({"a": Hostile()}), data),
        "that was cut off": (pickled(count=5), data),
        "more elements than its storage|out of bounds": (pickled(size=5), data),
        "no item named|x/data/": (pickled(key="../0"), data),
        "not little-endian": (pickled(), data | {"x/byteorder": b"big"}),
        "no weights, neither bare nor under ema or model": (pickle.dumps({"a": 1}), data),
    }
    for text, (value, members) in cases.items():
        with pytest.raises(GuidexError, match=text):
            read_weights(archive(tmp_path / "bad.pt", value, members))
    whole = bytearray((GOLDEN / "sit.pt").read_bytes())
    whole[len(whole) // 2] ^= 1
    (tmp_path / "flipped.pt").write_bytes(whole)
    with pytest.raises(GuidexError, match="refused: Bad CRC-32"):
        read_weights(tmp_path / "flipped.pt")
    (tmp_path / "page.pt").write_text("<html>")
    with pytest.raises(UsageError, match="not a zip archive of torch.save"):
        read_weights(tmp_path / "page.pt")
    with pytest.raises(UsageError, match="none.safetensors"):
        read_network(tmp_path / "none.safetensors")
    assert "was run" not in capsys.readouterr().out


def test_other_networks_are_refused(tmp_path):
    state = read_weights(GOLDEN / "sit.pt")
    for change, text in {
        "blocks.1.attn.qkv.bias": "Missing key.*blocks.1.attn.qkv.bias",
        "x_embedder.proj.weight": "x_embedder.proj.weight",
    }.items():
        torch.save({k: v for k, v in state.items() if k != change}, tmp_path / "x.pt")
        with pytest.raises(GuidexError, match=text):
            read_network(tmp_path / "x.pt")
    with pytest.raises(UsageError, match="width 48 has no 5 heads: give model.heads"):
        read_network(GOLDEN / "sit.pt", heads=5)


def test_a_recipe_is_planned_with_and_then_held_to_its_word():
    path = str(GOLDEN / "sit.pt")
    spec = transformer(path, "sit", heads=4)
    assert isinstance(spec, ModelSpec) and spec.shape is None and spec.native_unit == "time"
    model = load(spec, "cpu")
    assert model.shape == (4, 8, 8) and model.num_classes == 1000
    assert model.origin["path"] == path and len(model.origin["sha256"]) == 64
    xl = transformer("nowhere/SiT-XL-2-256.pt", "sit", "xl")
    assert xl.shape == (4, 32, 32) and 230 < xl.gflops < 240 and len(xl.attention_layers) == 28
    with pytest.raises(GuidexError, match=r"shape is \(4, 8, 8\), not \(4, 32, 32\)"):
        load(transformer(path, "sit", "s"), "cpu")
    noise = transformer("nowhere.pt", "dit", "xl", side=64)
    assert noise.learned_variance and 157 < noise.sigma_max < 158
    with pytest.raises(UsageError, match="side=31 cannot be cut"):
        transformer(path, "sit", "s", side=31)


def test_half_precision_and_compilation(tmp_path):
    model = load(
        transformer(str(GOLDEN / "lightning.pt"), "lightningdit", heads=4, dtype="bfloat16"), "cpu"
    )
    plain = load(transformer(str(GOLDEN / "lightning.pt"), "lightningdit", heads=4), "cpu")
    x = torch.randn(2, 32, 4, 4, dtype=torch.float64)
    assert model(x, 0.5).dtype == torch.float64
    assert (model(x, 0.5) - plain(x, 0.5)).abs().max() < 0.02
    assert json.dumps(dict(model.origin))
