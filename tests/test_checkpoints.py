"""Checkpoint files: EDM2's snapshots, guidex's own, and the way from one to the other."""

import errno
import hashlib
import json
import os
import pickle
import struct
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import GOLDEN
from pickle_builder import (
    EXPECTED,
    RECONSTRUCT,
    Call,
    Raw,
    module_state,
    network,
    persistent,
    recorded_module,
    snapshot,
)
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from guidex.errors import GuidexError, UsageError
from guidex.models.edm2.checkpoints import (
    Checkpoint,
    read_checkpoint,
    read_config,
    require_free,
    write_checkpoint,
)


def assert_same(tensors: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert tensors.keys() == expected.keys()
    for name, tensor in expected.items():
        assert tensors[name].dtype == tensor.dtype
        assert torch.equal(tensors[name], tensor)


def save(path: Path, **entries: Any) -> Path:
    path.write_bytes(snapshot(**entries))
    return path


def test_checkpoint_of_a_snapshot(tmp_path: Path) -> None:
    path = save(tmp_path / "net.pkl", ema=network())
    checkpoint = read_checkpoint(path)
    assert checkpoint.config == {"img_resolution": 8, "channel_mult": [1, 2]}
    assert list(checkpoint.tensors) == list(EXPECTED)  # in the order of torch's state_dict
    assert_same(checkpoint.tensors, EXPECTED)
    assert len(checkpoint.metadata.pop("sha256")) == 64
    assert checkpoint.metadata == {
        "source": "net.pkl",
        "entry": "ema",
        "network": "Precond",
        "dtype": "float16",
        "dataset_kwargs": {"path": "x.zip"},
    }


def test_state_dict_agrees_with_torch(tmp_path: Path) -> None:
    """A real module, recorded as EDM2's persistence would record it."""

    module = nn.Sequential(nn.Conv2d(2, 3, 3), nn.BatchNorm2d(3), nn.Linear(3, 2, bias=False))
    module[2].register_buffer("transient", torch.ones(3), persistent=False)
    checkpoint = read_checkpoint(save(tmp_path / "net.pkl", ema=recorded_module(module)))
    assert list(checkpoint.tensors) == list(module.state_dict())
    assert_same(checkpoint.tensors, module.state_dict())
    assert checkpoint.metadata["dtype"] == "float32, int64"


def test_ema_is_preferred_to_the_network_in_training(tmp_path: Path) -> None:
    for entry, ema in (("ema", network()), ("net", None)):
        path = save(tmp_path / f"{entry}.pkl", net=network(), ema=ema)
        assert read_checkpoint(path).metadata["entry"] == entry


def chain(levels: int) -> Raw:
    """Lists that hold each other: each is first met at a small depth, and only all are deep."""
    store, recall = (lambda k, op=op: op + struct.pack("<I", k) for op in (b"r", b"j"))
    links = (b"]" + store(k) + recall(k - 1) + pickle.APPEND for k in range(1, levels))
    return Raw(pickle.MARK + b"]" + store(0) + b"".join(links) + pickle.TUPLE)


def of_parameters(**parameters: Any) -> Call:
    return persistent("Precond", module_state(parameters))


UNNAMED = {"_init_args": (8, 4), "_init_kwargs": {}, **module_state()}
UNNAMED = {"type": "class", "class_name": "Precond", "state": UNNAMED}
UNSUITABLE = {
    "unnamed arguments": ({"ema": Call(RECONSTRUCT, (UNNAMED,))}, "of 2 unnamed arguments"),
    "no network": ({"weights": 1}, "its entries are: dataset_kwargs, loss_fn, weights."),
    "another class": ({"ema": persistent("Generator", {})}, "holds a Generator"),
    "no module": ({"ema": persistent("Precond", {})}, "the network is not a torch module"),
    "odd module": (
        {"ema": persistent("Precond", module_state(modules={"a": 1}))}, "a. is not a torch module",
    ),
    "odd parameter": ({"ema": of_parameters(a="x")}, "a is not a tensor"),
    "no number": ({"ema": persistent("Precond", module_state(), sigma=float("nan"))}, "JSON"),
    "raw bytes": ({"ema": network(), "dataset_kwargs": {"a": b"x"}}, "JSON cannot hold"),
    "endless arguments": ({"ema": network(), "dataset_kwargs": {"a": chain(2000)}}, "recursion"),
}  # fmt: skip


@pytest.mark.parametrize("case", UNSUITABLE)
def test_unsuitable_snapshots(case: str, tmp_path: Path) -> None:
    entries, reason = UNSUITABLE[case]
    path = save(tmp_path / "net.pkl", **entries)
    with pytest.raises(GuidexError) as error:
        read_checkpoint(path)
    assert str(error.value).startswith(f"{path}: ") and reason in str(error.value)


# --- Conversion -------------------------------------------------------------------------------


def assert_equal(checkpoint: Checkpoint, expected: Checkpoint) -> None:
    assert checkpoint.config == expected.config
    assert checkpoint.metadata == expected.metadata
    assert_same(checkpoint.tensors, expected.tensors)


def test_conversion_keeps_everything(tmp_path: Path) -> None:
    destination = tmp_path / "net-0.130.safetensors"
    checkpoint = read_checkpoint(save(tmp_path / "net-0.130.pkl", ema=network()))
    write_checkpoint(checkpoint, destination)
    assert_equal(read_checkpoint(destination), checkpoint)
    assert read_config(destination) == checkpoint.config
    assert_same(load_file(destination), EXPECTED)  # by safetensors itself


def test_places_that_are_refused(tmp_path: Path) -> None:
    (tmp_path / "net.safetensors").write_text("mine")
    (tmp_path / "dir.safetensors").mkdir()
    for name, overwrite, message in [
        ("net.safetensors", False, "net.safetensors is already there"),
        ("dir.safetensors", True, "dir.safetensors is already there"),
        ("net.pt", False, "ends in .safetensors"),
        ("new/net.safetensors", False, "no folder"),
    ]:
        with pytest.raises(UsageError, match=message):
            require_free(tmp_path / name, overwrite)
    require_free(tmp_path / "net.safetensors", overwrite=True)


def test_a_full_disk_leaves_what_was_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "net.safetensors"
    write_checkpoint(Checkpoint({}, {"a": torch.ones(2)}, {}), path)
    before = path.read_bytes()

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "full")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(GuidexError, match="cannot write .*net.* disk is full"):
        write_checkpoint(Checkpoint({}, {"a": torch.zeros(3)}, {}), path)
    assert [file.read_bytes() for file in tmp_path.iterdir()] == [before]


@pytest.mark.parametrize("config", [None, "", "[" * 100_000, "9", '{"a": ' + "9" * 10_000 + "}"])
def test_headers_that_describe_no_network(tmp_path: Path, config: str | None) -> None:
    path = tmp_path / "net.safetensors"
    header = None if config is None else {"config": config, "metadata": "{}"}
    save_file(EXPECTED, path, header)
    for read in (read_checkpoint, read_config):
        with pytest.raises(GuidexError, match="does not describe a network .*convert the original"):
            read(path)


@pytest.mark.parametrize("content", [b"", b"<html>", bytes(100), (2**60).to_bytes(8, "little")])
def test_damaged_weights(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "net.safetensors"
    write_checkpoint(Checkpoint({}, EXPECTED, {}), path)
    whole = path.read_bytes()
    for damaged in (content, whole[:-1], whole + b"x"):
        path.write_bytes(damaged)
        with pytest.raises(GuidexError, match="not a readable safetensors file"):
            read_checkpoint(path)


# --- Golden snapshots -------------------------------------------------------------------------


# SHA-256 of the names, shapes and float16 numbers that the golden networks were written with.
WEIGHTS = {
    "cond": "c2182be99c02641e7bda285d6213d6d596ceaed11331facdd7f32ba409ee73bb",
    "uncond": "1c647eed1a867dc614b97acf3acab50772342c6e31421b481b597dcf88f42371",
    "rgb": "6c3084a5c09371b3e56cb6d6ba4f82815b02e58d797443015522ac633412b71d",
}


@pytest.mark.parametrize("name", WEIGHTS)
def test_golden_snapshots(name: str, tmp_path: Path) -> None:
    path = GOLDEN / f"edm2-tiny-{name}.pkl"
    checkpoint = read_checkpoint(path)
    assert checkpoint.config == json.loads(path.with_suffix(".config.json").read_text())
    digest = hashlib.sha256()
    for key, tensor in checkpoint.tensors.items():
        assert tensor.dtype == torch.float16
        digest.update(f"{key}{tuple(tensor.shape)}".encode())
        digest.update(tensor.contiguous().numpy().tobytes())
    assert digest.hexdigest() == WEIGHTS[name]
    write_checkpoint(checkpoint, tmp_path / "net.safetensors")
    assert_equal(read_checkpoint(tmp_path / "net.safetensors"), checkpoint)
