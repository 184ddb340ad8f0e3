"""What is in a checkpoint file: the weights of a network and the arguments to build it with.

Two kinds of files are read: EDM2 network snapshots (`.pkl`; post-hoc EMA reconstructions have the
same layout), and guidex's own pairs PATH.safetensors + PATH.json, which `guidex convert` writes.
"""

import hashlib
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import safetensors.torch
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from guidex.errors import GuidexError, UsageError
from guidex.files.atomic import atomic_write
from guidex.files.cache import file_sha256
from guidex.files.pickles import Recorded, printable, read_pickle

FORMAT = 1  # of PATH.json
NETWORK_CLASS = "Precond"  # EDM2's U-Net with its preconditioning
_ENTRIES = ("ema", "net")  # where a snapshot keeps its network, the best first


@dataclass(frozen=True)
class Checkpoint:
    """A network as data.

    Attributes:
        config: arguments of the network's constructor, as far as they were recorded; JSON types.
        tensors: parameters and persistent buffers on the CPU by `state_dict` name, in the dtype
            of the file (EDM2: float16).
        metadata: where they come from, JSON types. "source" and "sha256": name and hash of the
            file they were first read from, the same before and after conversion; "entry": the
            part of it that was taken; "network": its class; "dtype": of its tensors; and, where
            recorded, "dataset_kwargs" and "encoder".
    """

    config: dict[str, Any]
    tensors: dict[str, Tensor]
    metadata: dict[str, Any]


def read_checkpoint(path: str | Path) -> Checkpoint:
    """Read PATH.safetensors with PATH.json beside it, or (any other suffix) an EDM2 snapshot.
    Raises UsageError, GuidexError: there is none, or it is damaged or holds more than data."""
    path = Path(path)
    return _read_pair(path) if path.suffix == ".safetensors" else _read_snapshot(path)


def read_config(path: str | Path) -> dict[str, Any] | None:
    """The arguments that a converted network is built with, without its weights; None where `path`
    is no converted checkpoint on this machine."""
    description = Path(path).expanduser().with_suffix(".json")
    if Path(path).suffix != ".safetensors" or not description.is_file():
        return None
    return _read_description(description)["config"]


def require_free(path: str | Path, overwrite: bool) -> tuple[Path, Path]:
    """Where weights and description go; a UsageError where they cannot."""
    weights = Path(path)
    if weights.suffix != ".safetensors":
        raise UsageError(f"{weights}: the name of a converted checkpoint ends in .safetensors.")
    if not weights.parent.is_dir():
        raise UsageError(f"{weights}: there is no folder {weights.parent}; create it first.")
    description = weights.with_suffix(".json")
    for file in (weights, description):
        if file.exists() and not (overwrite and file.is_file()):
            raise UsageError(f"{file} is already there; choose another name, or overwrite=true.")
    return weights, description


def write_checkpoint(
    checkpoint: Checkpoint, destination: str | Path, *, overwrite: bool = False
) -> None:
    """Write PATH.safetensors and PATH.json: both of them, or none where something goes wrong.

    The weights carry a hash of the description, so that two files that do not belong together
    (after a kill between two renames, or by a wrong copy) are told apart from a pair.
    """
    weights, description = require_free(destination, overwrite)
    content = {"format": FORMAT, "config": checkpoint.config, "metadata": checkpoint.metadata}
    text = json.dumps(content, indent=1, allow_nan=False) + "\n"
    header = {"guidex": str(FORMAT), "description": _digest(content)}
    tensors = {name: tensor.contiguous() for name, tensor in checkpoint.tensors.items()}

    def write_both(file: BinaryIO) -> None:
        file.write(text.encode())
        file.flush()
        os.fsync(file.fileno())
        # Renamed once the description is on the disk, which is renamed after it.
        atomic_write(weights, lambda file: file.write(safetensors.torch.save(tensors, header)))

    atomic_write(description, write_both)


def _digest(content: object) -> str:
    text = json.dumps(content, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


def _read_pair(weights: Path) -> Checkpoint:
    description = weights.with_suffix(".json")
    for file in (weights, description):
        if not file.is_file():
            raise UsageError(f"{file}: does not exist; a converted checkpoint is a pair of files.")
    content = _read_description(description)
    try:
        with safe_open(weights, framework="pt", device="cpu") as file:
            if (file.metadata() or {}).get("description") != _digest(content):
                raise GuidexError(
                    f"{weights} does not belong to {description}: convert the original again."
                )
            tensors = {name: file.get_tensor(name) for name in file.keys()}
    except (SafetensorError, OSError) as error:
        raise GuidexError(f"{weights}: not a readable safetensors file ({error}).") from error
    return Checkpoint(content["config"], tensors, content["metadata"])


def _read_description(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_bytes())
        _digest(content)
    except (OSError, ValueError, RecursionError) as error:
        raise GuidexError(f"{path}: not a readable description ({error}).") from error
    match content:
        case {"format": 1, "config": dict(), "metadata": dict()}:
            return content
    raise GuidexError(f"{path}: no description of format {FORMAT}; convert the original again.")


# --- EDM2 snapshots ---------------------------------------------------------------------------


def _read_snapshot(path: Path) -> Checkpoint:
    data = read_pickle(path)
    entries = data if isinstance(data, dict) else {}
    found = [name for name in _ENTRIES if isinstance(entries.get(name), Recorded)]
    if not found:
        names = ", ".join(printable(str(key)) for key in list(entries)[:10]) or "none"
        raise GuidexError(
            f"{path}: no network under {' or '.join(_ENTRIES)}; its entries are: {names}."
        )
    network = entries[found[0]]
    if network.class_name != NETWORK_CLASS or network.init_args:
        raise GuidexError(
            f"{path}: holds a {printable(network.class_name)} of {len(network.init_args)} unnamed "
            f"arguments; an EDM2 snapshot holds a {NETWORK_CLASS} of named ones."
        )
    tensors: dict[str, Tensor] = {}
    try:
        _gather(network, "", tensors)
        config = _plain(network.init_kwargs)
        recorded = {
            key: _plain(data[key])
            for key in ("dataset_kwargs", "encoder")
            if data.get(key) is not None
        }
    except (ValueError, RecursionError) as error:
        raise GuidexError(f"{path}: not an EDM2 snapshot: {error}.") from error
    metadata = {
        "source": path.name,
        "sha256": file_sha256(path),
        "entry": found[0],
        "network": network.class_name,
        "dtype": ", ".join(sorted({str(tensor.dtype)[6:] for tensor in tensors.values()})),
        **recorded,
    }
    return Checkpoint(config, tensors, metadata)


def _gather(module: object, prefix: str, tensors: dict[str, Tensor]) -> None:
    """Collect the tensors of a recorded torch module, by the names of its `state_dict()`, in its
    order; None is torch's sign for an absent one."""
    match module:
        case Recorded(
            state={"_parameters": dict(parameters), "_buffers": dict(buffers), "_modules": dict()}
        ):
            transient = module.state.get("_non_persistent_buffers_set", ())
            persistent = {name: value for name, value in buffers.items() if name not in transient}
        case _:
            raise ValueError(f"{prefix or 'the network'} is not a torch module")
    for name, tensor in [*parameters.items(), *persistent.items()]:
        if not isinstance(tensor, Tensor | None):
            raise ValueError(f"{prefix}{name} is not a tensor")
        if tensor is not None:
            tensors[f"{prefix}{name}"] = tensor
    for name, child in module.state["_modules"].items():
        if child is not None:
            _gather(child, f"{prefix}{name}.", tensors)


def _plain(value: object) -> Any:
    """A value of `read_pickle` as JSON types: tuples become lists, arrays nested lists; of a
    recorded object its class, its arguments, and its public state."""
    try:
        return json.loads(json.dumps(value, default=_described, allow_nan=False))
    except TypeError as error:  # another type, or a key that is no string
        raise ValueError(f"JSON cannot hold a recorded argument: {error}") from error


def _described(value: object) -> Any:
    match value:
        case torch.dtype():
            return str(value)
        case np.ndarray() | Tensor():
            return value.tolist()
        case Recorded():
            named = {key: getattr(value, key) for key in ("class_name", "init_args", "init_kwargs")}
            state = {k: v for k, v in value.state.items() if not str(k).startswith("_")}
            return named | {"state": state}
    raise TypeError(f"a {type(value).__name__}")
