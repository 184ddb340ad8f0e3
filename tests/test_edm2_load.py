"""EDM2 networks from files: the same function from every form, and errors that name the file."""

import math
from dataclasses import asdict, replace
from pathlib import Path
from typing import get_args

import pytest
import torch
from edm2_networks import (
    TINY,
    captured_graphs,
    golden_tensors,
    golden_x0,
    relative,
    tiny_model,
)
from helpers import GOLDEN
from pickle_builder import recorded_module, snapshot

from guidex.errors import GuidexError, UsageError
from guidex.files.cache import file_sha256
from guidex.models.edm2 import load
from guidex.models.edm2.checkpoints import Checkpoint, read_checkpoint, write_checkpoint
from guidex.models.edm2.folded import fold
from guidex.models.edm2.load import (
    CHANNELS,
    GFLOPS,
    edm2,
    load_network,
    network_of,
    released,
)
from guidex.models.edm2.network import EDM2, Config, count_gflops
from guidex.models.spec import compile_network

LABELS = torch.tensor([0, 4])


@pytest.fixture(autouse=True)
def no_network(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("GUIDEX_OFFLINE", "1")
    monkeypatch.setenv("GUIDEX_CACHE", str(tmp_path / "cache"))


@pytest.fixture(scope="module")
def snapshots(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with net.pkl, as EDM2 writes it, and net.safetensors made of it."""
    folder = tmp_path_factory.mktemp("snapshots")
    write_snapshot(tiny_model(), folder / "net.pkl")
    write_checkpoint(read_checkpoint(folder / "net.pkl"), folder / "net.safetensors")
    return folder


def write_snapshot(model: EDM2, path: Path) -> None:
    network = recorded_module(model.half(), **asdict(model.config), use_fp16=True)
    path.write_bytes(snapshot(ema=network))


def tiny_checkpoint(**changes: object) -> Checkpoint:
    config = replace(TINY, **changes)
    tensors = {name: tensor.half() for name, tensor in tiny_model(config).state_dict().items()}
    return Checkpoint(asdict(config), tensors, {"source": "random"})


def denoised(model: EDM2, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    x = 2 * torch.randn(2, *model.shape, generator=generator, dtype=dtype)
    return model(x, 1.5, LABELS)


# The same function from every file


def test_snapshot_and_conversion_give_the_same_bits_and_record(snapshots):
    pkl, pair = snapshots / "net.pkl", snapshots / "net.safetensors"
    original, converted = (load_network(str(path), dtype="float32") for path in (pkl, pair))
    assert torch.equal(denoised(original), denoised(converted))
    # Gains are read in float16, as the released code does, which moves them by up to 5e-4.
    assert relative(denoised(original), denoised(tiny_model().half().float())) < 1e-3
    origin = {"source": "net.pkl", "path": str(pkl), "sha256": file_sha256(pkl)}
    assert original.origin == origin
    # Of the file that is read, not what it says of itself.
    read = {"path": str(pair), "sha256": file_sha256(pair), "original": origin["sha256"]}
    assert converted.origin == origin | read


@pytest.mark.parametrize("name", ["cond", "uncond", "rgb"])
def test_golden_snapshots_give_the_golden_numbers(name):
    model = load_network(str(GOLDEN / f"edm2-tiny-{name}.pkl"), dtype="float32")
    io = golden_tensors(f"edm2-tiny-{name}.io.npz")
    assert relative(golden_x0(model, io), io["D"]) < 2e-6
    assert model.space == ("pixels" if name == "rgb" else "latents")


def test_weights_without_a_recorded_hash_are_told_by_that_of_their_file(tmp_path):
    path = tmp_path / "net.safetensors"
    write_checkpoint(tiny_checkpoint(), path)
    origin = {"source": "random", "path": str(path), "sha256": file_sha256(path)}
    assert load_network(str(path)).origin == origin


def test_the_network_compiles_as_one_graph(monkeypatch):
    """With a compiler that only captures; one graph per size of batch, whatever the noise level
    and however many sizes there are."""
    graphs = captured_graphs(monkeypatch)
    small = replace(TINY, img_resolution=8, channel_mult=(1,), attn_resolutions=())
    compiled, plain = (fold(tiny_model(small)) for _ in range(2))
    compile_network(compiled, compiled.unet)
    with torch.no_grad():
        assert torch.equal(denoised(compiled), denoised(plain))
        compiled(torch.randn(2, *compiled.shape, dtype=torch.float64), 0.3)
        assert len(graphs) == 1
        for count in range(3, 12):  # by itself, torch gives up after 8
            compiled(torch.randn(count, *compiled.shape), 0.3)
    assert len(graphs) == 10


# Errors


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda c: c.tensors.pop("unet.out_gain"), "Missing key.*unet.out_gain"),
        (lambda c: c.tensors.update({"x\x1b[2J": torch.ones(1)}), r"Unexpected key.*x1b"),
        (lambda c: c.tensors.update({"unet.out_gain": torch.ones(2)}), "size mismatch.*out_gain"),
        (lambda c: c.config.update(depth=12), "unexpected keyword argument 'depth'"),
    ],
)
def test_checkpoints_of_another_network_are_refused(change, message):
    checkpoint = tiny_checkpoint()
    change(checkpoint)
    with pytest.raises(GuidexError, match=message) as caught:
        network_of(checkpoint, "folder/net.pkl", torch.float32)
    assert str(caught.value).startswith("folder/net.pkl: ")
    assert "\x1b" not in str(caught.value)


def test_files_that_cannot_be_had(snapshots):
    with pytest.raises(GuidexError, match="another file"):
        load_network(str(snapshots / "net.pkl"), sha256="0" * 64)
    with pytest.raises(UsageError, match="nowhere.pkl does not exist"):
        load_network("nowhere.pkl")
    url = "https://example.org/a/net.pkl"
    with pytest.raises(UsageError, match=f"Download {url}.* put it at .*cache.*net"):
        load_network(url)


def test_a_recipe_tells_what_can_be_known_without_weights(snapshots):
    """Of a converted network all; of a pickle, and of a file that is not there yet, nothing."""
    spec = edm2(str(snapshots / "net.safetensors"))
    network = spec.load("cpu")
    assert isinstance(network, EDM2) and not any(p.requires_grad for p in network.parameters())
    assert spec.load("cpu") is network
    for name in ("shape", "num_classes", "space", "attention_layers", "gflops"):
        assert getattr(spec, name) == getattr(network, name), name
    for path in (snapshots / "net.pkl", "nowhere.safetensors", "https://example.org/net.pkl"):
        spec = edm2(str(path))
        assert spec.shape is spec.attention_layers is None and math.isnan(spec.gflops)
        assert [source.place for source in spec.sources] == [str(path)]


# Published networks by name


@pytest.mark.parametrize(
    "arguments, name",
    [
        (("img512", "xxl", 939524, 0.07, True), "edm2-img512-xxl-0939524-0.070.pkl"),
        (("img64", "xl", 671088, 0.04, True), "edm2-img64-xl-0671088-0.040.pkl"),
        (("img512", "xs", 2147483, 0.2, False), "edm2-img512-xs-uncond-2147483-0.200.pkl"),
    ],
)
def test_names_of_published_files(arguments, name):
    for root in ("https://a.org/b", "https://a.org/b/"):
        assert released(*arguments, root).sources[0].place == f"https://a.org/b/{name}"


@pytest.mark.parametrize("kimg, ema, message", [(0, 0.1, "kimg is 0"), (1, 0.1234, "ema is 0.12")])
def test_names_that_no_file_has(kimg, ema, message):
    with pytest.raises(UsageError, match=message):
        released("img512", "s", kimg, ema)


def test_a_published_network_from_a_folder_of_ones_own(snapshots, tmp_path):
    name = "edm2-img64-xs-uncond-0134217-0.110.pkl"
    (tmp_path / name).write_bytes((snapshots / "net.pkl").read_bytes())
    spec = released("img64", "xs", 134217, 0.11, conditional=False, root=str(tmp_path))
    network = spec.build()
    assert network.origin["source"] == name and network.dtype == torch.float16
    with pytest.raises(GuidexError, match=f"{name} holds another network .* shape is"):
        spec.load("cpu")
    with pytest.raises(UsageError, match=r"edm2-img64-s-0134217-0.110.pkl does not exist"):
        released("img64", "s", 134217, 0.11, root=str(tmp_path)).load("cpu")


def test_recipes_of_published_networks():
    for dataset, channels, space in (("img512", 4, "latents"), ("img64", 3, "pixels")):
        for conditional in (True, False):
            spec = released(dataset, "s", 134217, 0.11, conditional)
            assert (spec.shape, spec.space) == ((channels, 64, 64), space)
            assert spec.num_classes == (1000 if conditional else 0)
            assert spec.gflops == 201.6 and "dec.8x8_in0" in spec.attention_layers


# Channels of a sample and classes: latents, latents without classes, pixels.
@pytest.mark.parametrize(
    "kind, sizes", [((4, 1000), CHANNELS), ((4, 0), ["xxs"]), ((3, 1000), ["xxs"])]
)
def test_the_cost_of_published_networks_is_what_is_counted(kind, sizes):
    assert list(CHANNELS) == list(GFLOPS) == list(get_args(load.Size))
    for size in sizes:
        config = Config(64, *kind, model_channels=CHANNELS[size])
        assert GFLOPS[size] == pytest.approx(count_gflops(config), rel=5e-4)


def test_a_plan_tells_the_cost(capsys):
    from guidex.cli import main

    words = "guidance=interval guidance.schedule.lo=0.28 guidance.schedule.hi=2.90 --plan".split()
    assert main(["sample", "model=edm2-img512-s", *words]) == 0
    line = capsys.readouterr().out.splitlines()[0]
    cost = 63 * GFLOPS["s"] + 14 * GFLOPS["xs"]
    assert f"w 2.1; {cost:,.0f} GFLOP per image (2 per multiply-add); edm2" in line
