"""The commands on checkpoints: convert, models, ema; and the script that makes tiny networks."""

import importlib.util
import weakref
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from edm2_networks import TINY, tiny_model
from pickle_builder import recorded_module, snapshot

from guidex.cli import main
from guidex.commands import ema as ema_module
from guidex.commands.convert import convert_command
from guidex.commands.ema import ema_command, find_snapshots
from guidex.commands.models import checkpoints, models_command
from guidex.commands.words import flag, split_words
from guidex.config.instantiate import Models
from guidex.errors import GuidexError, UsageError
from guidex.models.edm2.checkpoints import Checkpoint, read_checkpoint, write_checkpoint
from guidex.models.edm2.load import load_network
from guidex.models.edm2.posthoc_ema import (
    gamma_of_sigma_rel,
    images_of,
    profile_product,
)


@pytest.fixture(autouse=True)
def place(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """An empty folder to work in, no network, and a cache of its own."""
    monkeypatch.setenv("GUIDEX_OFFLINE", "1")
    monkeypatch.setenv("GUIDEX_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def write_snapshot(path: Path) -> None:
    network = recorded_module(tiny_model().half(), **asdict(TINY))
    path.write_bytes(snapshot(ema=network))


# Words


def test_words_are_files_and_settings(place):
    (place / "a=b.pkl").touch()
    files, settings = split_words(
        ["a=b.pkl", "out=x y.safetensors", "ema=0.05", "overwrite=true"],
        ("out", "ema", "overwrite"),
    )
    assert files == ["a=b.pkl"]
    assert settings == {"out": "x y.safetensors", "ema": 0.05, "overwrite": True}
    assert flag(settings, "overwrite") and not flag({}, "overwrite")
    for words, message in (
        (["otu=x"], "no key otu; did you mean out"),
        (["out=x", "out=y"], "out takes one value"),
        (["out=x,y"], "out takes one value"),
    ):
        with pytest.raises(UsageError, match=message):
            split_words(words, ("out", "overwrite"))
    with pytest.raises(UsageError, match="overwrite must be true or false, not 'yes'"):
        flag({"overwrite": "yes"}, "overwrite")


# convert


def test_convert(place, capsys):
    write_snapshot(place / "net.pkl")
    convert_command(["net.pkl", "out=net.safetensors"])
    original, converted = read_checkpoint(place / "net.pkl"), read_checkpoint("net.safetensors")
    assert original.metadata == converted.metadata and original.config == converted.config
    assert all(torch.equal(original.tensors[k], v) for k, v in converted.tensors.items())
    out = capsys.readouterr().out
    count = sum(parameter.numel() for parameter in tiny_model().state_dict().values())
    assert f"{count:,} numbers, float16" in out and original.metadata["sha256"] in out
    with pytest.raises(UsageError, match="already there"):
        convert_command(["net.pkl", "out=net.safetensors"])
    convert_command(["net.pkl", "out=net.safetensors", "overwrite=true"])
    network = recorded_module(tiny_model().half(), **asdict(TINY), resample_filter=[1, 3, 3, 1])
    (place / "bad.pkl").write_bytes(snapshot(ema=network))
    with pytest.raises(UsageError, match=r"bad.pkl: EDM2 resample_filter is \[1, 3, 3, 1\]"):
        convert_command(["bad.pkl", "out=bad.safetensors"])
    assert not Path("bad.safetensors").exists()


@pytest.mark.parametrize(
    "words, message",
    [
        ([], "convert takes one checkpoint, not 0"),
        (["a.pkl", "b.pkl", "out=c.safetensors"], "not 2"),
        (["a.pkl", "out=c.safetensors"], "a.pkl does not exist"),
        (["https://example.org/a.pkl", "out=c.safetensors"], "GUIDEX_OFFLINE"),
    ],
)
def test_convert_refuses(words, message):
    with pytest.raises(UsageError, match=message):
        convert_command(words)


# models


def test_models_tell_what_is_on_this_machine(place, capsys):
    models_command(["edm2-tiny"])
    lines = capsys.readouterr().out.splitlines()
    assert str(place / "cache") in lines[0]
    assert [line.split() for line in lines[2:]] == [
        ["edm2-tiny", "-", "outputs/edm2-tiny.safetensors"],
        ["cfg", "reference", "-", "outputs/edm2-tiny-uncond.safetensors"],
        ["autoguidance", "reference", "-", "outputs/edm2-tiny-weaker.safetensors"],
    ]
    (place / "outputs").mkdir()
    converted = Checkpoint(asdict(TINY), {"a": torch.zeros(300_000)}, {})
    write_checkpoint(converted, place / "outputs/edm2-tiny.safetensors")
    models_command(["edm2-tiny"])
    assert "1.2 MB  outputs/edm2-tiny.safetensors" in capsys.readouterr().out


def test_models_are_all_presets_with_checkpoints(capsys, monkeypatch):
    for name, said in (("edm2-img512-xx", "; did you mean edm2-img512-xx?l"), ("digits", "")):
        with pytest.raises(
            UsageError, match=f"no preset with checkpoints is called '{name}'{said}"
        ):
            models_command([name])
    names = ["digits", "edm2-img64-s", "edm2-img512-s", "edm2-tiny"]
    monkeypatch.setattr("guidex.commands.models.options", lambda group: names)
    models_command([])
    listed = [line.split()[0] for line in capsys.readouterr().out.splitlines() if "edm2-" in line]
    assert names[1:] == [name for name in listed if name.startswith("edm2")]
    roles = checkpoints("edm2-img512-s", Models())
    assert {role: source.place.partition("edm2-img512-")[2] for source, role in roles.items()} == {
        "main": "s-2147483-0.130.pkl",
        "cfg": "s-2147483-0.025.pkl",
        "cfg reference": "xs-uncond-2147483-0.025.pkl",
        "autoguidance": "s-2147483-0.070.pkl",
        "autoguidance reference": "xs-0134217-0.125.pkl",
    }


# ema: a training run whose weights are known, theta(tau) = a + b tau / T + c (tau / T)^2


END = 1000  # kimg
STORED = [(kimg, length) for kimg in range(125, END + 1, 125) for length in (0.05, 0.1)]
TENSORS = {"unet.weight": torch.tensor([[1.0, -2.0], [0.5, 3.0]]), "unet.gain": torch.tensor(0.25)}


def average(kimg: float, length: float) -> dict[str, torch.Tensor]:
    """The exact average of the run's weights; that of tau^p is (gamma+1)/(gamma+p+1) t^p."""
    gamma = float(gamma_of_sigma_rel(length))
    moments = [
        (gamma + 1) / (gamma + p + 1) * (images_of(kimg) / images_of(END)) ** p for p in range(3)
    ]
    return {
        name: (a * moments[0] + moments[1] - 2 * a * moments[2]).double()
        for name, a in TENSORS.items()
    }


@pytest.fixture
def run(place: Path) -> Path:
    folder = place / "run"
    folder.mkdir()
    for kimg, length in STORED:
        tensors = {name: tensor.float() for name, tensor in average(kimg, length).items()}
        about = {"source": "net", "sha256": "0" * 64, "network": "Precond", "dtype": "float32"}
        path = folder / f"network-snapshot-{kimg:07d}-{length:.3f}.safetensors"
        write_checkpoint(Checkpoint({"img_resolution": 8}, tensors, about), path)
    (folder / "training-state-0001000.pt").touch()
    return folder


@pytest.mark.parametrize("length", [0.05, 0.075, 0.15])
def test_any_average_is_made_of_those_stored(run, length, capsys):
    ema_command(["run", f"ema={length}", "out=net.safetensors"])
    made = read_checkpoint("net.safetensors")
    exact = average(END, length)
    for name, tensor in made.tensors.items():
        assert tensor.dtype == torch.float32
        error = (tensor.double() - exact[name]).abs().max() / exact[name].abs().max()
        assert error < {0.05: 1e-6, 0.075: 3e-3, 0.15: 1e-2}[length]
    out = capsys.readouterr().out
    assert "of 16 snapshots" in out and "differs from the exact one by" in out
    about = made.metadata
    assert about["source"] == f"post-hoc EMA {length} at 1000 kimg of 16 snapshots"
    assert about["network"] == "Precond" and "sha256" not in about
    rows = about["ema"]["snapshots"]
    assert [(row["kimg"], row["length"]) for row in rows] == STORED
    assert rows[0]["file"] == "network-snapshot-0000125-0.050.safetensors"


@pytest.mark.parametrize("kimg, last", [(625, 625), (600, 625), (100, 125)])
def test_an_earlier_time_needs_what_was_stored_until_then(run, kimg, last):
    ema_command(["run", "ema=0.08", "out=net.safetensors", f"kimg={kimg}"])
    made = read_checkpoint("net.safetensors")
    rows = made.metadata["ema"]["snapshots"]
    assert [row["kimg"] for row in rows] == [time for time, _ in STORED if time <= last]
    # |integral of (sum - profile) * theta| is at most |sum - profile| |theta| (Cauchy, Schwarz).
    tau = np.linspace(0, last / END, 10_001)
    a = float(TENSORS["unet.gain"])
    theta = np.sqrt(np.mean((a + tau - 2 * a * tau**2) ** 2) * last)
    gamma = gamma_of_sigma_rel(0.08)
    profile = np.sqrt(profile_product(kimg, gamma, kimg, gamma))
    error = abs(float(made.tensors["unet.gain"] - average(kimg, 0.08)["unet.gain"]))
    assert error <= made.metadata["ema"]["error"] * profile * theta + 1e-6
    assert (made.metadata["ema"]["error"] < 0.1) == (kimg == 625)


def test_one_snapshot_at_a_time_is_in_memory(run, monkeypatch):
    seen = []

    def read(path):
        assert [tensor() for tensor in seen] == [None] * len(seen)
        checkpoint = read_checkpoint(path)
        seen.extend(weakref.ref(tensor) for tensor in checkpoint.tensors.values())
        return checkpoint

    monkeypatch.setattr(ema_module, "read_checkpoint", read)
    ema_command(["run", "ema=0.075", "out=net.safetensors"])
    assert len(seen) == len(STORED) * len(TENSORS)


def test_snapshots_are_told_by_their_names(run, place):
    found = find_snapshots(["run"])
    assert [(s.kimg, s.ema) for s in found] == STORED
    one = "run/network-snapshot-0000125-0.050.safetensors"
    assert find_snapshots([one]) == found[:1]
    (place / "net.pkl").touch()
    (place / "empty").mkdir()
    for paths, message in [
        ([], "no snapshots given"),
        (["empty"], "no snapshots given"),
        (["net.pkl"], "net.pkl is no file, or its name does not end in -<kimg>-<length>.pkl"),
        (["run/network-snapshot-0000001-0.050.pkl"], "is no file"),
    ]:
        with pytest.raises(UsageError, match=message):
            find_snapshots(paths)


@pytest.mark.parametrize(
    "words, message",
    [
        (["out=n.safetensors"], "ema must be given"),
        (["ema=long", "out=n.safetensors"], "a number, not 'long'"),
        (["ema=0.5", "out=n.safetensors"], "must be above 0 and at most 0.2887"),
        (["ema=0.1", "out=n.pkl"], "ends in .safetensors"),
        (["ema=0.1", "out=nowhere/n.safetensors"], "there is no folder"),
        (["ema=0.1", "out=n.safetensors", "kimg=early"], "a whole number .*, not 'early'"),
        (["ema=0.1", "out=n.safetensors", "kimg=1001"], "at most the last snapshot's 1000"),
        (["run", "ema=0.1", "out=n.safetensors"], "differ in time or length"),
        (["ema=0.1", "out=old.safetensors"], "old.safetensors is already there"),
    ],
)
def test_ema_refuses_before_it_reads(run, place, words, message, monkeypatch):
    (place / "old.safetensors").touch()
    monkeypatch.setattr(ema_module, "read_checkpoint", None)
    with pytest.raises(UsageError, match=message):
        ema_command(["run", *words])


def test_snapshots_of_different_runs_are_refused(run):
    path = run / "network-snapshot-0001000-0.050.safetensors"
    checkpoint = read_checkpoint(path)
    checkpoint.tensors["unet.gain"] = torch.zeros(2)
    write_checkpoint(checkpoint, path)
    with pytest.raises(GuidexError, match="0001000-0.050.safetensors is not of the same training"):
        ema_command(["run", "ema=0.1", "out=net.safetensors"])
    assert not Path("net.safetensors").exists()


def test_a_reconstructed_network_loads(place):
    for length, factor in ((0.05, 1.0), (0.1, 1.5)):
        tensors = {k: (v * factor).half() for k, v in tiny_model().state_dict().items()}
        about = {"source": "net", "network": "Precond", "dtype": "float16"}
        path = place / f"network-snapshot-0000100-{length:.3f}.safetensors"
        write_checkpoint(Checkpoint(asdict(TINY), tensors, about), path)
    ema_command([".", "ema=0.075", "out=net.safetensors"])
    assert len(load_network("net.safetensors").origin["sha256"]) == 64


# The tiny networks, all the way to images


def test_tiny_networks_go_all_the_way(place, capsys):
    script = Path(__file__).parents[1] / "scripts" / "make_tiny_edm2.py"
    spec = importlib.util.spec_from_file_location("make_tiny_edm2", script)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    with torch.random.fork_rng():
        module.main(Path("outputs/edm2-tiny.safetensors"))
    words = ["model=edm2-tiny", "sampler.grid.steps=3", "seeds=0-2", "device=cpu"]
    images = {}
    for guidance in ("none", "cfg", "autoguidance"):
        assert main(["sample", *words, f"guidance={guidance}", f"out={guidance}"]) == 0
        files = sorted(Path(guidance).rglob("images/**/*.png"))
        assert len(files) == 3
        images[guidance] = [file.read_bytes() for file in files]
    assert len(set(map(tuple, images.values()))) == 3
    assert main(["sample", *words, "labels=10", "out=wrong"]) == 2
    assert "classes of this model are 0 … 9" in capsys.readouterr().err


def test_a_reference_or_decoder_for_other_samples_is_refused(place, capsys):
    for name, changes in {"net": {}, "rgb": {"img_channels": 3}, "few": {"label_dim": 2}}.items():
        config = replace(TINY, **changes)
        checkpoint = Checkpoint(asdict(config), tiny_model(config).state_dict(), {"source": name})
        write_checkpoint(checkpoint, place / f"{name}.safetensors")
    words = ["sample", "model=edm2", "model.checkpoint=net.safetensors", "device=cpu"]
    assert main([*words, "decoder=pixels", "out=a"]) == 2
    assert "decoder=pixels shows samples [1 or 3, H, W]" in capsys.readouterr().err
    for reference, found in (("rgb", r"[3, 16, 16] of 5"), ("few", r"[4, 16, 16] of 2")):
        file = f"guidance.reference.checkpoint={reference}.safetensors"
        assert main([*words, "guidance=cfg", file, f"out={reference}"]) == 2
        error = capsys.readouterr().err
        assert f"the reference makes samples {found} classes" in error
        assert "the model makes [4, 16, 16] of 5" in error
