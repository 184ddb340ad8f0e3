"""Reads pickles, such as EDM2's networks and statistics, as data: nothing that they hold is run.
What `torch.save` writes, a pickle and its tensors' elements in a zip archive, is read likewise.

A pickle is a program: its instructions import names and call them, and an EDM2 snapshot carries
the source code of its network to be executed. `pickle`'s reader in Python is used here on three
terms: a name stands for a function of this module that makes data of its arguments, or the file is
refused; an object's state is set by `_set_state` alone; and the instructions that take objects of
the process by number, past the names, are refused.

`torch.load` is not used: with weights_only=True it hands out uninitialised memory for a storage
that is declared and not delivered, and obeys the process-wide `add_safe_globals`.
"""

import io
import math
import os
import pickle
import re
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePosixPath
from pickle import UnpicklingError
from typing import Any, BinaryIO

import numpy as np
import torch
from torch import Tensor

from guidex.errors import GuidexError, UsageError, printable

# What files that are no pickles begin with, and what to say of them.
_OTHERS = (
    (rb"\s*<", "a web page or XML: the download gave an error or login page, not the file"),
    (rb"version https://git-lfs", "a Git LFS pointer: fetch the file itself with `git lfs pull`"),
    (rb"PK\x03\x04|\x80\x02\x8a\nl\xfc\x9cF", "a file of torch.save, not an EDM2 snapshot"),
    (rb"\Z|\x00{16}", "empty or all zeros: the download was not completed"),
    (rb"[^\x80].{7}\{", "a safetensors file: give it the suffix .safetensors"),
    (rb"(?!\x80[\x02-\x05])", "not a pickle of protocol 2 to 5"),
)


@dataclass(eq=False, repr=False, slots=True)
class Recorded:
    """An object that a pickle describes, inert: class, constructor's arguments, attributes."""

    class_name: str  # such as "Precond"
    init_args: tuple[Any, ...] | list[Any]
    init_kwargs: dict[str | int, Any]
    state: dict[str | int, Any]


def read_pickle(source: str | os.PathLike[str] | BinaryIO) -> object:
    """Read a pickle (protocols 2 to 5) from a file path or a binary stream: a value of plain Python
    types, dtypes, CPU tensors (also for parameters), NumPy arrays of plain numbers, `Recorded`, and
    functions of this module for bare names. A part may occur in many places, even in itself.

    Raises:
        UsageError: there is no such file, or it is no pickle (the text says what it looks like).
        GuidexError: the file asks for more than data, or is damaged.
    """
    if isinstance(source, str | os.PathLike):
        with open_file(Path(source)) as file:
            return read_pickle(file)
    head, name = source.read(64), getattr(source, "name", "the stream")
    source.seek(0)
    for beginning, what in _OTHERS:
        if re.match(beginning, head, re.DOTALL):
            raise UsageError(
                f"{name}: this is {what} (it begins with {head[:8].hex(' ') or 'nothing'}). "
                "Expected an EDM2 network snapshot (.pkl)."
            )
    with _refusing(name):
        value = _Unpickler(source).load()
        if source.read(1):
            raise UnpicklingError("more bytes follow the end of the pickle")
        return value


def read_weights(path: str | Path) -> dict[str, Tensor]:
    """The state dict in a file of `torch.save`, on the CPU: under `ema`, else under `model`, else
    the file itself. Only its tensors are read, so that a checkpoint of a training, most of which is
    the optimiser's, costs no more than its weights.

    Raises:
        UsageError: no such file, or no zip archive.
        GuidexError: the file asks for more than data, is damaged, or has no weights.
    """
    with open_file(Path(path)) as file:
        if not zipfile.is_zipfile(file):
            raise UsageError(
                f"{path}: not a zip archive of torch.save (1.6 or later); the download may have "
                "been cut off, or given an error page"
            )
        with _refusing(str(path)), zipfile.ZipFile(file) as archive:
            value = _ZipUnpickler(archive).load()
            found = [value.get("ema"), value.get("model"), value]
            state = next(each for each in found if isinstance(each, dict))
            weights = {
                name: read()
                for name, read in state.items()
                if isinstance(read, partial) and type(name) is str
            }
            if not weights:
                raise UnpicklingError("no weights, neither bare nor under ema or model")
            return weights


@contextmanager
def _refusing(name: str) -> Iterator[None]:
    """Refuse a file: damage makes the unpickler, zipfile, NumPy and torch raise a dozen kinds of
    errors."""
    try:
        yield
    except Exception as error:
        raise GuidexError(
            f"{name}: refused: {printable(str(error) or repr(error))}. It was cut off or altered, "
            "or holds more than the data of a network. Nothing in the file was run."
        ) from None


def open_file(path: Path) -> BinaryIO:
    """Open a file to read. Raises UsageError: there is none, or it cannot be read."""
    try:
        if not path.is_file():  # nor is a pipe, which may never end
            raise UsageError(f"{path}: there is no such file; a checkpoint was expected.")
        return path.open("rb")
    except OSError as error:
        raise UsageError(f"{path}: cannot be read ({error.strerror}).") from error


class _Unpickler(pickle._Unpickler):
    """The reader in Python, whose instructions are a table of methods. It knows no persistent
    objects, such as the storages that torch keeps beside a pickle; a subclass may."""

    def find_class(self, module: str, name: str) -> Any:
        path = f"{module}.{name}".replace("__builtin__.", "builtins.").replace("numpy._", "numpy.")
        if path not in _NAMES:
            raise UnpicklingError(f"it names {module}.{name}, which is no data")
        return _NAMES[path]

    def _new_object(self) -> None:
        arguments, make = self.stack.pop(), self.stack.pop()
        self.append(make(*arguments))

    def _set_state(self) -> None:
        state, value = self.stack.pop(), self.stack[-1]
        match value, state:
            case Recorded(), dict():
                value.state.update(state)
            case dict(), dict():
                pass  # attributes, such as torch's `_metadata`
            case np.dtype(), (_, "<" | "|" | "=", *_):
                pass  # the byte order
            case np.ndarray(), (_, tuple(size), np.dtype() as kind, _, bytes(data)):
                if min(size, default=0) < 0 or math.prod(size) * kind.itemsize != len(data):
                    raise UnpicklingError("an array of an impossible size")
                value.__setstate__(state)
            case _:
                raise UnpicklingError(f"a {type(value).__name__} of another state than data have")

    def _refuse(self) -> None:
        raise UnpicklingError("it asks for an object by its number in the process")

    dispatch: dict[int, Callable[["_Unpickler"], None]] = {
        **pickle._Unpickler.dispatch,
        **dict.fromkeys((pickle.EXT1[0], pickle.EXT2[0], pickle.EXT4[0]), _refuse),
        pickle.NEWOBJ[0]: _new_object,
        pickle.BUILD[0]: _set_state,
    }


class _StorageUnpickler(_Unpickler):
    def persistent_load(self, identity: Any) -> Any:
        return identity


class _ZipUnpickler(_StorageUnpickler):
    """Of a zip archive; each tensor becomes a `partial`, which reads it."""

    def __init__(self, archive: zipfile.ZipFile) -> None:
        names = archive.namelist()
        [pickled] = [name for name in names if PurePosixPath(name).parts[1:] == ("data.pkl",)]
        self.archive, self.folder = archive, pickled.removesuffix("data.pkl")
        order = f"{self.folder}byteorder"
        if order in names and archive.read(order) != b"little":
            raise UnpicklingError("its numbers are not little-endian")
        self.storages: dict[Any, Tensor] = {}  # that are read: tensors may share one
        super().__init__(archive.open(pickled))

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) == ("torch._utils", "_rebuild_tensor_v2"):
            return lambda *arguments: partial(self.tensor, *arguments)
        if (module, name) == ("argparse", "Namespace"):  # the options of a training
            return lambda: Recorded("Namespace", (), {}, {})
        return super().find_class(module, name)

    def tensor(self, identity: Any, *view: Any) -> Tensor:
        if identity not in self.storages:
            data = self.archive.read(f"{self.folder}data/{identity[2]}")  # compares its checksum
            self.storages[identity] = _elements(identity, data)
        return _tensor(self.storages[identity], *view)


# --- What names make --------------------------------------------------------------------------


def _recorded(meta: dict[Any, Any]) -> Recorded:
    """The object that EDM2's persistence layer would make by running the source in `meta`."""
    match meta:
        case {"type": "class", "class_name": str() as name, "state": dict() as state}:
            args, kwargs = state.get("_init_args", ()), state.get("_init_kwargs", {})
            recorded = isinstance(args, tuple | list) and isinstance(kwargs, dict)
            if name.isidentifier() and recorded:
                return Recorded(name, args, kwargs, state)
    raise UnpicklingError("a persistent object without a class name, arguments and a state")


def _elements(identity: Any, data: bytes) -> Tensor:
    """A storage [count], by what torch says of it, and what it has delivered."""
    match identity:
        case ("storage", torch.dtype() as dtype, str(), str(), int() as count, *view):
            if view in ([], [None]) and len(data) == count * dtype.itemsize:
                empty = torch.empty(0, dtype=dtype)
                return torch.frombuffer(bytearray(data), dtype=dtype) if count > 0 else empty
    raise UnpicklingError("a storage that torch did not write, or that was cut off")


def _storage(payload: bytes) -> Tensor:
    """A storage in torch's legacy format: five pickles, the number of elements, the elements."""
    file = io.BytesIO(payload)
    *head, _, identity, keys = [_StorageUnpickler(file).load() for _ in range(5)]
    count = int.from_bytes(file.read(8), "little")
    elements = _elements(identity, file.read())
    if head != _LEGACY or keys != [identity[2]] or count != len(elements):
        raise UnpicklingError("a storage in another format than torch's of before 1.6")
    return elements


def _tensor(elements: Tensor, offset: int, size: Any, stride: Any, *_: object) -> Tensor:
    tensor = torch.as_strided(elements, size, stride, offset)  # refuses what lies outside
    if tensor.numel() > elements.numel():
        raise UnpicklingError("a tensor with more elements than its storage")
    return tensor


def _number_type(code: str, *_: object) -> np.dtype[Any]:
    if code not in ("f2", "f4", "f8", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8"):
        raise UnpicklingError(f"an array of type {code}, where only plain numbers are read")
    return np.dtype(code)


def _array(data: bytes, kind: np.dtype[Any], size: Any, order: Any) -> np.ndarray:
    return np.frombuffer(data, kind).reshape(size, order=order).copy("K")


_LEGACY = [0x1950A86A20F9469CFC6C, 1001]  # magic number and protocol of torch's legacy format
_STORAGES = {
    "Half": torch.float16, "BFloat16": torch.bfloat16, "Float": torch.float32,
    "Double": torch.float64, "Byte": torch.uint8, "Char": torch.int8, "Short": torch.int16,
    "Int": torch.int32, "Long": torch.int64,
}  # fmt: skip
_NAMES: dict[str, Any] = {
    "_codecs.encode": lambda text, codec: text.encode({"latin1": "latin1"}[codec]),
    "builtins.bytes": lambda: b"",
    "builtins.set": lambda items: set(items),
    "torch_utils.persistence._reconstruct_persistent_obj": _recorded,
    "torch.storage._load_from_bytes": _storage,
    "torch._utils._rebuild_tensor_v2": _tensor,
    "torch._utils._rebuild_parameter": lambda tensor, *_: tensor,
    "torch._utils._rebuild_parameter_with_state": lambda tensor, *_: tensor,
    "torch.Size": lambda sizes: tuple(sizes),
    "torch.device": lambda *parts: ":".join(map(str, parts)),
    "numpy.dtype": _number_type,
    "numpy.ndarray": "numpy.ndarray",
    "numpy.core.multiarray._reconstruct": lambda *_: np.empty(0),  # its state follows
    "numpy.core.multiarray.scalar": lambda kind, data: np.frombuffer(data, kind).item(),
    "numpy.core.numeric._frombuffer": _array,
    "torch.nn.modules.container.ModuleDict": lambda: Recorded("ModuleDict", (), {}, {}),
    "torch.nn.modules.container.ModuleList": lambda: Recorded("ModuleList", (), {}, {}),
    "torch.nn.modules.container.Sequential": lambda: Recorded("Sequential", (), {}, {}),
    "collections.OrderedDict": lambda *items: dict(*items),
    "dnnlib.EasyDict": lambda *items: dict(*items),
    "dnnlib.util.EasyDict": lambda *items: dict(*items),
    **{f"torch.{name}Storage": dtype for name, dtype in _STORAGES.items()},
    **{str(dtype): dtype for dtype in _STORAGES.values()},
}
