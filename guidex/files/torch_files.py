"""Reads what `torch.save` writes, a zip archive, as data: nothing that it holds is run.

The archive has one pickle, which is read on the terms of guidex.files.pickles, and a file for each
storage. Only those storages are read that are asked for, so that a checkpoint of a training, most
of which is the optimiser's, costs no more than its weights.
"""

import zipfile
from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from pickle import UnpicklingError
from typing import Any, NamedTuple

import torch
from torch import Tensor

from guidex.errors import GuidexError, UsageError, printable
from guidex.files.pickles import Recorded, _tensor, _Unpickler, open_file


class _Storage(NamedTuple):
    """Elements that are not read yet."""

    key: str
    dtype: torch.dtype
    count: int


class _Later(NamedTuple):
    """A tensor whose storage is not read yet."""

    storage: _Storage
    offset: int
    size: Any
    stride: Any


class _ZipUnpickler(_Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) == ("torch._utils", "_rebuild_tensor_v2"):
            return _later
        if (module, name) == ("argparse", "Namespace"):  # the options of a training
            return lambda: Recorded("Namespace", (), {}, {})
        return super().find_class(module, name)

    def persistent_load(self, identity: Any) -> _Storage:
        match identity:
            case ("storage", torch.dtype() as dtype, str() as key, str(), int() as count, *view):
                if count >= 0 and view in ([], [None]):
                    return _Storage(key, dtype, count)
        raise UnpicklingError("a storage that torch did not write")


def _later(storage: _Storage, offset: int, size: Any, stride: Any, *_: object) -> _Later:
    if not isinstance(storage, _Storage):
        raise UnpicklingError("a tensor without a storage")
    return _Later(storage, offset, size, stride)


def read_weights(path: str | Path, entries: Sequence[str] = ("ema", "model")) -> dict[str, Tensor]:
    """The state dict in a file of `torch.save`, on the CPU: under one of some entries, the best
    first, else the file is the state dict itself.

    Raises:
        UsageError: no such file, or no zip archive.
        GuidexError: the file asks for more than data, is damaged, or has no weights.
    """
    path = Path(path)
    with open_file(path) as file:
        if not zipfile.is_zipfile(file):
            raise UsageError(
                f"{path}: not a zip archive of torch.save (1.6 or later); the download may have "
                "been cut off, or given an error page"
            )
        try:
            with zipfile.ZipFile(file) as archive:
                return _weights(archive, entries)
        # Damage makes the unpickler, zipfile and torch raise a dozen kinds of errors.
        except Exception as error:
            reason = printable(str(error) or repr(error))
            raise GuidexError(
                f"{path}: refused: {reason}. It was cut off or altered, or holds more than the "
                "weights of a network. Nothing in the file was run."
            ) from None


def _weights(archive: zipfile.ZipFile, entries: Sequence[str]) -> dict[str, Tensor]:
    members = {info.filename: info for info in archive.infolist()}
    [pickled] = [name for name in members if PurePosixPath(name).parts[1:] == ("data.pkl",)]
    folder = pickled.removesuffix("data.pkl")
    if f"{folder}byteorder" in members and archive.read(f"{folder}byteorder") != b"little":
        raise UnpicklingError("its numbers are not little-endian")
    with archive.open(pickled) as file:
        value = _ZipUnpickler(file).load()
    for entry in entries:
        if isinstance(value, dict) and isinstance(value.get(entry), dict):
            value = value[entry]
            break
    found = value.items() if isinstance(value, dict) else ()
    tensors = {name: one for name, one in found if isinstance(one, _Later) and type(name) is str}
    if not tensors:
        raise UnpicklingError(f"no weights, neither bare nor under {' or '.join(entries)}")
    read: dict[_Storage, Tensor] = {}
    for one in tensors.values():
        if one.storage not in read:
            read[one.storage] = _elements(archive, members[f"{folder}data/{one.storage.key}"], one)
    return {name: _tensor(read[one.storage], *one[1:]) for name, one in tensors.items()}


def _elements(archive: zipfile.ZipFile, info: zipfile.ZipInfo, one: _Later) -> Tensor:
    """The elements of a storage [count]; zipfile compares their checksum."""
    _, dtype, count = one.storage
    if info.compress_type != zipfile.ZIP_STORED or info.file_size != count * dtype.itemsize:
        raise UnpicklingError("a storage of an impossible size")
    if count == 0:
        return torch.empty(0, dtype=dtype)
    return torch.frombuffer(bytearray(archive.read(info)), dtype=dtype)
