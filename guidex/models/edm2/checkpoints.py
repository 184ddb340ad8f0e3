"""What is in a checkpoint file: the weights of a network and the arguments to build it with.

Two kinds of files are read: EDM2 network snapshots (`.pkl`; post-hoc EMA reconstructions have the
same layout), and guidex's own `.safetensors`, which `guidex convert` writes.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors.torch
from torch import Tensor

from guidex.errors import GuidexError, UsageError
from guidex.files.atomic import atomic_write
from guidex.files.cache import file_sha256
from guidex.files.pickles import Recorded, printable, read_pickle
from guidex.models.pretrained import safetensors_file

NETWORK_CLASS = "Precond"  # EDM2's U-Net with its preconditioning
_ENTRIES = ("ema", "net")  # where a snapshot keeps its network, the best first
_DESCRIPTION = ("config", "metadata")  # in the header of a .safetensors file


@dataclass(frozen=True)
class Checkpoint:
    """A network as data.

    Attributes:
        config: arguments of the network's constructor, as far as they were recorded; JSON types.
        tensors: parameters and persistent buffers on the CPU by `state_dict` name, in the dtype
            of the file (EDM2: float16).
        metadata: where they come from, JSON types. "source" and "sha256": name and hash of the
            file they were first read from, the same before and after conversion; "entry": the
            part of it that was taken; "network": its class; "dtype": of its tensors; and
            "dataset_kwargs", which may be None.
    """

    config: dict[str, Any]
    tensors: dict[str, Tensor]
    metadata: dict[str, Any]


def read_checkpoint(path: str | Path) -> Checkpoint:
    """Read what `write_checkpoint` wrote (.safetensors), or (any other suffix) an EDM2 snapshot.
    Raises UsageError, GuidexError: there is none, or it is damaged or holds more than data."""
    path = Path(path)
    if path.suffix != ".safetensors":
        return _read_snapshot(path)
    with safetensors_file(path) as file:
        config, metadata = _description(path, file)
        return Checkpoint(config, {name: file.get_tensor(name) for name in file.keys()}, metadata)


def read_config(path: str | Path) -> dict[str, Any] | None:
    """The arguments that a converted network is built with, without its weights; None where `path`
    is no converted checkpoint on this machine."""
    path = Path(path).expanduser()
    if path.suffix != ".safetensors" or not path.is_file():
        return None
    with safetensors_file(path) as file:
        return _description(path, file)[0]


def require_free(path: str | Path, overwrite: bool) -> None:
    """Refuse, with a UsageError, a place where no checkpoint can be written."""
    path = Path(path)
    if path.suffix != ".safetensors":
        raise UsageError(f"{path}: the name of a converted checkpoint ends in .safetensors.")
    if not path.parent.is_dir():
        raise UsageError(f"{path}: there is no folder {path.parent}; create it first.")
    if path.exists() and not (overwrite and path.is_file()):
        raise UsageError(f"{path} is already there; choose another name, or overwrite=true.")


def write_checkpoint(checkpoint: Checkpoint, path: str | Path) -> None:
    """Write a .safetensors file, config and metadata as JSON in its header, or nothing where
    something goes wrong."""
    header = {name: json.dumps(getattr(checkpoint, name)) for name in _DESCRIPTION}
    tensors = {name: tensor.contiguous() for name, tensor in checkpoint.tensors.items()}
    atomic_write(path, lambda file: file.write(safetensors.torch.save(tensors, header)))


def _description(path: Path, file: Any) -> list[dict[str, Any]]:
    """Config and metadata."""
    header = file.metadata() or {}
    try:
        return [dict(json.loads(header[name])) for name in _DESCRIPTION]
    except (KeyError, ValueError, TypeError, RecursionError) as error:
        raise GuidexError(
            f"{path}: its header does not describe a network ({error!r:.100}); convert the "
            "original again."
        ) from error


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
        dataset = _plain(data.get("dataset_kwargs"))
    except (ValueError, RecursionError) as error:
        raise GuidexError(f"{path}: not an EDM2 snapshot: {error}.") from error
    metadata = {
        "source": path.name,
        "sha256": file_sha256(path),
        "entry": found[0],
        "network": network.class_name,
        "dtype": ", ".join(sorted({str(tensor.dtype)[6:] for tensor in tensors.values()})),
        "dataset_kwargs": dataset,
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
    """A value of `read_pickle` as JSON types: tuples become lists."""
    try:
        return json.loads(json.dumps(value, allow_nan=False))
    except TypeError as error:  # another type, or a key that is no string
        raise ValueError(f"JSON cannot hold a recorded argument: {error}") from error
