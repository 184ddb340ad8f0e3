"""Reads the pickles in which EDM2 networks are published, and runs nothing that they hold.

A pickle is a program: its instructions import names and call them, and an EDM2 snapshot carries
the source code of its network to be executed. This reader interprets the part of that language
that builds data. A name in the file is looked up in a fixed table and nowhere else: no module is
imported for it, no attribute is followed, and what it stands for is one of the small functions of
`pickle_values`, which check every argument. Network objects come out as `Recorded`, inert.

`torch.load` is not used, not even with weights_only=True. The storages inside a snapshot name
`torch.storage._load_from_bytes`, a full unpickler; the weights-only one still allocates whatever
size a storage declares, hands out uninitialised memory for one that is declared and not delivered,
and obeys the process-wide `add_safe_globals`. So the same interpreter reads the storages.

Whatever sizes a file declares, it costs at most its own size in tensors, four times its texts, and
a few hundred bytes for each of at most OPCODE_LIMIT instructions.

References: CPython's `pickletools` for the instructions; `torch.serialization` (`_legacy_save`,
`_save`) for the two layouts of a storage.
"""

import mmap
import os
import pickle
from collections.abc import Iterable
from pathlib import Path
from typing import BinaryIO

import numpy as np
import torch
from torch import Tensor

from guidex.assets.pickle_machine import (
    OPCODE_LIMIT,
    Allowance,
    Machine,
    Recorded,
    Refused,
    describe,
    printable,
)
from guidex.assets.pickle_values import GLOBALS, TORCH_MAGIC
from guidex.errors import GuidexError, UsageError

DEPTH_LIMIT = 100  # containers inside containers: an EDM2 snapshot has 17 levels

__all__ = ["DEPTH_LIMIT", "OPCODE_LIMIT", "Recorded", "printable", "read_pickle"]


def read_pickle(source: str | os.PathLike[str] | BinaryIO) -> object:
    """Read a pickle (protocols 2 to 5) of tensors, plain containers, numbers and strings.

    Arguments:
        source: a file path, or a binary stream that is read to its end.

    Returns:
        Its value, made of None, bool, int, float, str, list, tuple, dict (str or 32-bit int keys;
        also for OrderedDict and EasyDict), set, torch.dtype, CPU tensors (also for parameters),
        NumPy arrays of plain numbers, and `Recorded`. Nothing in it holds itself, and nothing is
        nested deeper than DEPTH_LIMIT; the same part may still occur in many places.

    Raises:
        UsageError: there is no such file, or it is no pickle (the text says what it looks like).
        GuidexError: the file asks for more than data, or is damaged (the text says what and where).
    """
    data, name = _contents(source)
    _recognise(data, name)
    machine = Machine(data, GLOBALS, Allowance(OPCODE_LIMIT, len(data)))
    try:
        value = machine.run()
        if machine.position != len(data):
            raise Refused(f"{len(data) - machine.position} bytes follow the end of the pickle")
        _height(value, {}, set())
    except Refused as refusal:
        raise GuidexError(
            f"{name}: refused at byte {machine.at}: {refusal}. Nothing in the file was run."
        ) from None
    return value


# --- What was pointed at ----------------------------------------------------------------------


def _contents(source: str | os.PathLike[str] | BinaryIO) -> tuple[memoryview, str]:
    """The bytes of a file (mapped, not loaded) or of a stream, and a name for messages."""
    if not isinstance(source, str | os.PathLike):
        return memoryview(source.read()), str(getattr(source, "name", "the stream"))
    path = Path(source)
    if not path.is_file():
        found = "is not a file" if path.exists() else "does not exist"
        raise UsageError(f"{path}: {found}; a checkpoint file was expected.")
    try:
        with path.open("rb") as file:
            empty = os.fstat(file.fileno()).st_size == 0
            content = b"" if empty else mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    except OSError as error:
        raise UsageError(f"{path}: cannot be read ({error.strerror}).") from error
    return memoryview(content), str(path)


_LOOKS = (
    (b"<!doctype", "a web page: the download gave an error or login page, not the file"),
    (b"<html", "a web page: the download gave an error or login page, not the file"),
    (b"<", "a web page or XML: the download gave an error page, not the file"),
    (b"version https://git-lfs", "a Git LFS pointer: fetch the file itself with `git lfs pull`"),
    (b"pk\x03\x04", "a zip archive, such as torch.save writes, not an EDM2 snapshot"),
    (b"\x1f\x8b", "a gzip file: unpack it first"),
    (b"\x93numpy", "a NumPy array file"),
    (b"{", "JSON: give the .safetensors file beside it"),
    (b"\0" * 16, "zero bytes: the download was not completed"),
)


def _recognise(data: memoryview, name: str) -> None:
    """Refuse at once what is no pickle, in words that help.

    Raises:
        UsageError: always, unless the file begins as a pickle of protocol 2 to 5.
    """
    head = bytes(data[:64])
    if len(head) >= 2 and head[0] == pickle.PROTO[0] and 2 <= head[1] <= 5:
        if head[2:].startswith(pickle.LONG1 + b"\x0a" + TORCH_MAGIC.to_bytes(10, "little")):
            raise UsageError(
                f"{name}: a legacy torch.save file; expected an EDM2 network snapshot (.pkl)."
            )
        return
    start = head.lower().lstrip()
    looks = next((what for prefix, what in _LOOKS if start.startswith(prefix)), None)
    if len(data) == 0:
        looks = "an empty file: the download was not completed"
    elif head[8:9] == b"{" and int.from_bytes(head[:8], "little") <= len(data):
        looks = "a safetensors file: give it the suffix .safetensors"
    looks = looks or f"not a pickle of protocol 2 to 5 (it begins with {head[:8].hex(' ')})"
    raise UsageError(f"{name}: this is {looks}. Expected an EDM2 network snapshot (.pkl).")


# --- What came out ----------------------------------------------------------------------------

_LEAVES = frozenset({type(None), bool, int, float, str, torch.dtype, Tensor, np.ndarray})


def _children(value: object) -> Iterable[object]:
    match value:
        case list() | tuple() | set():
            return value
        case dict():
            return value.values()
        case Recorded():
            return (value.init_args, value.init_kwargs, value.state)
    raise Refused(f"{describe(value)} where data belong")


def _height(value: object, known: dict[int, int], above: set[int]) -> int:
    """Levels of containers in a value; refused are other things than data, loops, and great depth.

    Arguments:
        known: heights of the containers met before (by id), each of which is visited once.
        above: the containers around this one (by id): never more than DEPTH_LIMIT, which also
            bounds the recursion.
    """
    if type(value) in _LEAVES:
        return 0
    identity = id(value)
    if identity in above:
        raise Refused("a container that holds itself")
    if identity not in known:
        if len(above) < DEPTH_LIMIT:
            above.add(identity)
            below = max((_height(child, known, above) for child in _children(value)), default=0)
            above.remove(identity)
        else:
            below = DEPTH_LIMIT
        if below >= DEPTH_LIMIT:
            raise Refused(f"containers nested deeper than {DEPTH_LIMIT} levels")
        known[identity] = below + 1
    return known[identity]
