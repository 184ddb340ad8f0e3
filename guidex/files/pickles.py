"""Reads pickles, such as EDM2's networks and statistics, as data: nothing that they hold is run.

A pickle is a program: its instructions import names and call them, and an EDM2 snapshot carries
the source code of its network to be executed. `pickle.Unpickler` reads it here on three terms:
- its instructions are of a closed list, and reach names in no other way than `find_class`;
- a name stands for an inert class of this module, or the file is refused: nothing is imported, no
  attribute is followed, and instances only keep what they are called with and given as state;
- what the finished program left is made into values by functions that check their arguments.

`torch.load` is not used: the storages inside a snapshot name `torch.storage._load_from_bytes`, a
full unpickler. With weights_only=True it still hands out uninitialised memory for a storage that
is declared and not delivered, and obeys the process-wide `add_safe_globals`.
"""

import io
import mmap
import os
import pickle
import pickletools
from dataclasses import dataclass
from pathlib import Path
from pickle import UnpicklingError
from typing import Any, BinaryIO, ClassVar

import numpy as np
import torch
from torch import Tensor

from guidex.errors import GuidexError, UsageError

_INSTRUCTIONS = frozenset(
    "PROTO FRAME STOP MARK NONE NEWTRUE NEWFALSE BININT BININT1 BININT2 LONG1 BINFLOAT "
    "SHORT_BINUNICODE BINUNICODE BINUNICODE8 SHORT_BINBYTES BINBYTES BINBYTES8 BYTEARRAY8 "
    "EMPTY_TUPLE TUPLE TUPLE1 TUPLE2 TUPLE3 EMPTY_LIST APPEND APPENDS EMPTY_SET ADDITEMS "
    "EMPTY_DICT SETITEM SETITEMS MEMOIZE BINPUT LONG_BINPUT BINGET LONG_BINGET GLOBAL "
    "STACK_GLOBAL REDUCE NEWOBJ BUILD BINPERSID".split()
)
_LOOKS = (
    (b"<", "a web page or XML: the download gave an error or login page, not the file"),
    (b"version https://git-lfs", "a Git LFS pointer: fetch the file itself with `git lfs pull`"),
    (b"pk\x03\x04", "a zip archive, such as torch.save writes, not an EDM2 snapshot"),
    (b"\x80\x02\x8a\x0al\xfc\x9cf", "a legacy torch.save file"),
    (b"\x1f\x8b", "a gzip file: unpack it first"),
    (b"\x93numpy", "a NumPy array file"),
    (b"{", "JSON: give the .safetensors file beside it"),
    (b"\0" * 16, "zero bytes: the download was not completed"),
)


@dataclass(eq=False, repr=False, slots=True)
class Recorded:
    """An object that a pickle describes, inert: name of its class, such as "Precond" (not resolved
    to any class), arguments of its constructor, and its attributes by name."""

    class_name: str
    init_args: tuple[Any, ...] | list[Any]
    init_kwargs: dict[str | int, Any]
    state: dict[str | int, Any]

    def __repr__(self) -> str:
        # The state may share parts so often that printing it would never end.
        return f"<Recorded {self.class_name}>"


def read_pickle(source: str | os.PathLike[str] | BinaryIO) -> object:
    """Read a pickle (protocols 2 to 5) of tensors, plain containers, numbers and strings.

    Arguments:
        source: a file path, or a binary stream that is read to its end.

    Returns:
        Its value, made of None, bool, int, float, str, bytes, list, tuple, dict and set (keys are
        str and int; dict also for OrderedDict and EasyDict), torch.dtype, np.dtype, CPU tensors
        (also for parameters), NumPy arrays of plain numbers, and `Recorded`. Nothing in it holds
        itself; the same part may occur in many places.

    Raises:
        UsageError: there is no such file, or it is no pickle (the text says what it looks like).
        GuidexError: the file asks for more than data, or is damaged.
    """
    file, name = _open(source)
    _recognise(file, name)
    try:
        left = _unpickle(file)
        if file.read(1):
            raise UnpicklingError("more bytes follow the end of the pickle")
        return _value(left, {})
    except MemoryError:
        raise
    # Damage makes the unpickler, NumPy and torch raise a dozen kinds of errors.
    except Exception as error:
        reason = printable(str(error) or repr(error))
        raise GuidexError(
            f"{name}: refused: {reason}. It was cut off or altered, or holds more than the data of "
            "EDM2. Nothing in the file was run."
        ) from None


def printable(text: str) -> str:
    """A text from a file, fit for a message: short, and without control characters."""
    return ascii(text[:120])[1:-1]


def _open(source: str | os.PathLike[str] | BinaryIO) -> tuple[Any, str]:
    """A file (mapped, so that no read asks for more than it has) and a name for messages."""
    if not isinstance(source, str | os.PathLike):
        return io.BytesIO(source.read()), str(getattr(source, "name", "the stream"))
    path = Path(source)
    if not path.is_file():
        found = "is not a file" if path.exists() else "does not exist"
        raise UsageError(f"{path}: {found}; a checkpoint file was expected.")
    try:
        with path.open("rb") as file:
            empty = os.fstat(file.fileno()).st_size == 0
            mapped = None if empty else mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    except OSError as error:
        raise UsageError(f"{path}: cannot be read ({error.strerror}).") from error
    return mapped or io.BytesIO(), str(path)


def _recognise(file: Any, name: str) -> None:
    """Refuse at once, by a UsageError in words that help, what does not begin as a pickle."""
    head = file.read(64)
    file.seek(0)
    start = head.lower().lstrip()
    looks = next((what for beginning, what in _LOOKS if start.startswith(beginning)), None)
    if looks is None and head[:2] in (b"\x80\2", b"\x80\3", b"\x80\4", b"\x80\5"):
        return
    if len(head) == 0:
        looks = "an empty file: the download was not completed"
    elif looks is None and head[8:9] == b"{":
        looks = "a safetensors file: give it the suffix .safetensors"
    looks = looks or f"not a pickle of protocol 2 to 5 (it begins with {head[:8].hex(' ')})"
    raise UsageError(f"{name}: this is {looks}. Expected an EDM2 network snapshot (.pkl).")


# --- What a file may do -----------------------------------------------------------------------


class _Inert:
    """What a name makes when it is called: it keeps the arguments, and the state as one more.

    `__setstate__` takes what BUILD would else set as attributes, even those of the class.
    """

    __slots__ = ("args",)
    name: ClassVar[str] = "a persistent id"  # something that the file refers to and does not hold
    maker: ClassVar[tuple[Any, ...]] = (None,)  # a function of the arguments, and their kinds

    def __new__(cls, *args: Any) -> "_Inert":
        self = super().__new__(cls)
        self.args = args
        return self

    def __setstate__(self, state: object) -> None:
        self.args = (*self.args, state)


class _Dict(dict[Any, Any]):
    """An OrderedDict or EasyDict; its attributes (torch's `_metadata`) are left out."""

    __slots__ = ()
    name: ClassVar[str] = "a class"

    def __setstate__(self, state: object) -> None:
        pass


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        path = f"{module}.{name}".replace("__builtin__.", "builtins.").replace("numpy._", "numpy.")
        if path not in _NAMES:
            raise UnpicklingError(f"it names {module}.{name}, which is no data")
        return _NAMES[path]

    def persistent_load(self, identity: object) -> _Inert:
        return _Inert(identity)


def _unpickle(file: Any) -> Any:
    """What the next pickle in a file leaves: plain values, `_Dict`, `_Inert`, and classes."""
    start = file.tell()
    for count, (instruction, argument, _) in enumerate(pickletools.genops(file)):
        if instruction.name not in _INSTRUCTIONS:
            raise UnpicklingError(f"it has the instruction {instruction.name}, which no data need")
        if instruction.name == "LONG_BINPUT" and argument > count:  # the unpickler makes room
            raise UnpicklingError("it numbers a value beyond those that it has")
    file.seek(start)
    return _Unpickler(file).load()


# --- What it left, as data --------------------------------------------------------------------


def _value(part: Any, known: dict[int, tuple[object, Any]]) -> Any:
    """The value of a part; known: by id, the parts that were met before, and their values."""
    if part is None or isinstance(part, int | float | str | bytes | bytearray | torch.dtype):
        return part
    if id(part) not in known:
        match part:
            case list() | tuple():
                value = type(part)([_value(item, known) for item in part])
            case dict():
                value = {key: _value(part[key], known) for key in _keys(part)}
            case set():
                value = set(_keys(part))
            case _Inert():
                make, *kinds = part.maker
                args = [_value(item, known) for item in part.args]
                if len(args) > len(kinds) or not all(map(isinstance, args, kinds)):
                    raise UnpicklingError(f"{part.name} of other arguments than data need")
                value = make(*args)
                part.args = ()  # the bytes of a storage are no longer needed
            case _:
                raise UnpicklingError(f"{part.name} itself where data belong")
        known[id(part)] = part, value
    return known[id(part)][1]


def _keys(parts: Any) -> Any:
    for part in parts:
        if type(part) not in (str, int):
            raise UnpicklingError(f"a {type(part).__name__} as a key")
    return parts


def _recorded(meta: dict[Any, Any]) -> Recorded:
    """The object that EDM2's persistence layer would make by running the source in `meta`."""
    match meta:
        case {"type": str() as kind, "class_name": str() as name, "state": dict() as state}:
            args, kwargs = state.get("_init_args", ()), state.get("_init_kwargs", {})
            recorded = isinstance(args, tuple | list) and isinstance(kwargs, dict)
            if kind == "class" and name.isidentifier() and recorded:
                return Recorded(name, args, kwargs, state)
    raise UnpicklingError("a persistent object without a class name, arguments and a state")


def _storage(payload: bytes) -> Tensor:
    """A storage in torch's legacy format: five pickles, the number of elements, the elements."""
    file = io.BytesIO(payload)
    *head, _, storage, keys = [_unpickle(file) for _ in range(5)]
    count = int.from_bytes(file.read(8), "little")
    match storage.args if type(storage) is _Inert else ():
        case [("storage", torch.dtype() as dtype, str() as key, str(), int() as declared, *view)]:
            elements = bytearray(memoryview(payload)[file.tell() :])
            whole = count == declared and len(elements) == count * dtype.itemsize
            if head == _LEGACY and keys == [key] and view in ([], [None]) and whole:
                empty = torch.empty(0, dtype=dtype)
                return torch.frombuffer(elements, dtype=dtype) if count > 0 else empty
    raise UnpicklingError("a storage that torch did not write, or that was cut off")


def _tensor(elements: Tensor, offset: int, size: Any, stride: Any, _: bool, hooks: Any) -> Tensor:
    tensor = elements.as_strided(size, stride, offset)  # refuses what lies outside the storage
    if hooks or tensor.numel() > elements.numel():
        raise UnpicklingError("a tensor with hooks, or with more elements than its storage")
    return tensor


def _number_type(code: str, _: object, __: object, state: tuple[Any, ...]) -> np.dtype[Any]:
    if code not in ("f2", "f4", "f8", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8"):
        raise UnpicklingError(f"an array of type {code}, where only plain numbers are read")
    return np.dtype(code).newbyteorder(state[1])


def _array(data: bytes, kind: np.dtype[Any], size: Any = (), order: Any = "C") -> np.ndarray:
    values = np.frombuffer(data, kind).reshape(size, order=order)
    if values.shape != size:
        raise UnpicklingError("an array of an impossible size")
    return values.astype(kind.newbyteorder("="))


def _new_array(_: str, __: object, ___: object, state: tuple[Any, ...]) -> np.ndarray:
    _, size, kind, by_column, data = state
    return _array(data, kind, size, "F" if by_column else "C")


_LEGACY = [0x1950A86A20F9469CFC6C, 1001]  # magic number and protocol of torch's legacy format
_STORAGES = {
    "Half": torch.float16, "BFloat16": torch.bfloat16, "Float": torch.float32,
    "Double": torch.float64, "Byte": torch.uint8, "Char": torch.int8, "Short": torch.int16,
    "Int": torch.int32, "Long": torch.int64,
}  # fmt: skip
_MAKERS: dict[str, tuple[Any, ...]] = {
    "_codecs.encode": (lambda text, codec: text.encode({"latin1": "latin1"}[codec]), str, str),
    "builtins.bytes": (bytes,),
    "builtins.set": (lambda items: set(_keys(items)), list),
    "torch_utils.persistence._reconstruct_persistent_obj": (_recorded, dict),
    "torch.nn.modules.container.ModuleDict": (lambda s: Recorded("ModuleDict", (), {}, s), dict),
    "torch.nn.modules.container.ModuleList": (lambda s: Recorded("ModuleList", (), {}, s), dict),
    "torch.nn.modules.container.Sequential": (lambda s: Recorded("Sequential", (), {}, s), dict),
    "torch.storage._load_from_bytes": (_storage, bytes),
    "torch._utils._rebuild_tensor_v2": (_tensor, Tensor, int, tuple, tuple, bool, dict),
    "torch._utils._rebuild_parameter": (lambda t, *_: t, Tensor, bool, dict),
    "torch._utils._rebuild_parameter_with_state": (lambda t, *_: t, Tensor, bool, dict, object),
    "torch.Size": (tuple, tuple),
    "torch.device": (lambda *parts: ":".join(map(str, parts)), str, int),
    "numpy.dtype": (_number_type, str, bool, bool, tuple),
    "numpy.core.multiarray._reconstruct": (_new_array, str, tuple, bytes, tuple),
    "numpy.core.multiarray.scalar": (lambda kind, s: _array(s, kind).item(), np.dtype, bytes),
    "numpy.core.numeric._frombuffer": (_array, bytes | bytearray, np.dtype, tuple, str),
}
_NAMES = {
    "numpy.ndarray": "numpy.ndarray",
    **dict.fromkeys(("collections.OrderedDict", "dnnlib.EasyDict", "dnnlib.util.EasyDict"), _Dict),
    **{f"torch.{name}Storage": dtype for name, dtype in _STORAGES.items()},
    **{str(dtype): dtype for dtype in _STORAGES.values()},
    **{
        name: type(name, (_Inert,), {"__slots__": (), "name": name, "maker": maker})
        for name, maker in _MAKERS.items()
    },
}
