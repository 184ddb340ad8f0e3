"""Reads the pickles in which EDM2 networks are published, and runs nothing that they hold.

A pickle is a program: its instructions import names and call them, and an EDM2 snapshot carries
the source code of its network to be executed. This reader interprets the part of that language
that builds data. A name in the file is looked up in a fixed table and nowhere else: no module is
imported for it, no attribute is followed, and what it stands for is one of the small functions
below, which check every argument. Network objects come out as `Recorded`: inert descriptions.

`torch.load` is not used, not even with weights_only=True. The storages inside a snapshot name
`torch.storage._load_from_bytes`, a full unpickler; the weights-only one still allocates whatever
size a storage declares, hands out uninitialised memory for one that is declared and not delivered,
and obeys the process-wide `add_safe_globals`. So the same interpreter reads the storages.

Whatever sizes a file declares, it costs at most its own size in tensors, four times its texts, and
a few hundred bytes for each of at most OPCODE_LIMIT instructions.

References: CPython's `pickletools` for the instructions; `torch.serialization` (`_legacy_save`,
`_save`) for the two layouts of a storage.
"""

import io
import math
import mmap
import os
import pickle
import pickletools
import struct
import zipfile
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np
import torch
from torch import Tensor

from guidex.errors import GuidexError, UsageError

OPCODE_LIMIT = 500_000  # about 160 instructions per tensor: the largest EDM2 networks need 70,000
DEPTH_LIMIT = 100  # containers inside containers: an EDM2 network has 30
DIMENSION_LIMIT = 16
_LARGEST_SIZE = 2**40  # of a tensor, a dimension or a stride: keeps their arithmetic inside int64
_LARGEST_KEY = 2**31
_LONGEST_NAME = 256
_TORCH_MAGIC = 0x1950A86A20F9469CFC6C  # first value of torch's legacy format
_TORCH_PROTOCOL = 1001


@dataclass(eq=False, repr=False, slots=True)
class Recorded:
    """An object that a pickle describes, inert: what it was made with, and its attributes.

    Attributes:
        class_name: name of its class, such as "Precond"; not resolved to any class.
        module: module of that class, None where the file carries source code instead.
        init_args, init_kwargs: the arguments of its constructor.
        state: its attributes by name, with plain values, tensors and further `Recorded`.
    """

    class_name: str
    module: str | None
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
    machine = _Machine(data, _GLOBALS, _Allowance(OPCODE_LIMIT, len(data)))
    try:
        value = machine.run()
        if machine.position != len(data):
            raise _Refused(f"{len(data) - machine.position} bytes follow the end of the pickle")
        _height(value, {}, set())
    except _Refused as refusal:
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
        found = "is a folder" if path.is_dir() else "does not exist"
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
        if head[2:].startswith(pickle.LONG1 + b"\x0a" + _TORCH_MAGIC.to_bytes(10, "little")):
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


# --- The interpreter --------------------------------------------------------------------------


class _Refused(Exception):
    """Why the file goes no further; `read_pickle` adds its name and the place."""


@dataclass(slots=True)
class _Allowance:
    """What a file may still cost: instructions, and bytes copied out of it.

    One payload can be named any number of times; copies of it all count, so that together they
    never exceed the size of the file, as those of an honest one never do.
    """

    opcodes: int
    copies: int

    def step(self) -> None:
        self.opcodes -= 1
        if self.opcodes < 0:
            raise _Refused(f"it has more than {OPCODE_LIMIT} instructions, made to exhaust memory")

    def copy(self, count: int) -> None:
        self.copies -= count
        if self.copies < 0:
            raise _Refused("its tensors would hold more bytes than the file itself")


@dataclass(frozen=True, eq=False, slots=True)
class _Global:
    """What a name in the file stands for.

    Attributes:
        name: the name, for messages.
        call: what calling it gives (REDUCE), from its arguments; None: it is not called.
        make: what a new instance of it is (NEWOBJ without arguments); None: there are none.
    """

    name: str
    call: Callable[["_Machine", tuple[Any, ...]], object] | None = None
    make: Callable[["_Machine"], object] | None = None


class _Machine:
    """A stack machine for one pickle.

    Attributes:
        position: next byte to read.
        at: where the present instruction begins.
        unbuilt: objects that wait for their state (BUILD), by id; nothing else ever takes one.
    """

    def __init__(
        self,
        data: memoryview,
        table: Mapping[tuple[str, str], object],
        allowance: _Allowance,
        start: int = 0,
        persistent: Callable[[object], object] | None = None,
    ) -> None:
        self.data = data
        self.table = table
        self.allowance = allowance
        self.position = self.at = start
        self.persistent = persistent
        self.stack: list[Any] = []
        self.marks: list[int] = []
        self.memo: dict[int, Any] = {}
        self.unbuilt: dict[int, object] = {}

    def run(self) -> object:
        """Interpret up to STOP and return the one value that is left."""
        if self.take(1)[0] != pickle.PROTO[0] or not 2 <= self.take(1)[0] <= 5:
            raise _Refused("it does not begin as a pickle of protocol 2 to 5")
        while True:
            self.at = self.position
            self.allowance.step()
            code = self.take(1)[0]
            if code == pickle.STOP[0]:
                return self.result()
            instruction = _INSTRUCTIONS.get(code)
            if instruction is None:
                known = pickletools.code2op.get(chr(code))
                label = known.name if known is not None else f"0x{code:02x} (unknown)"
                raise _Refused(f"the pickle instruction {label}, which no EDM2 snapshot needs")
            instruction(self)

    def result(self) -> object:
        value = self.pop()
        if self.stack or self.marks or self.unbuilt:
            raise _Refused("it ends with unfinished objects")
        return value

    # Reading

    def require(self, count: int) -> None:
        left = len(self.data) - self.position
        if count > left:
            raise _Refused(
                f"it declares {count} bytes where {left} are left: the file was cut off "
                "(an interrupted download?) or made to exhaust memory"
            )

    def take(self, count: int) -> memoryview:
        self.require(count)
        self.position += count
        return self.data[self.position - count : self.position]

    def integer(self, width: int, signed: bool = False) -> int:
        return int.from_bytes(self.take(width), "little", signed=signed)

    def long(self) -> int:
        width = self.integer(1)
        if width > 16:
            raise _Refused(f"an integer of {width} bytes")
        return self.integer(width, signed=True)

    def text(self, length: int) -> str:
        try:
            return str(self.take(length), "utf-8")
        except UnicodeDecodeError:
            raise _Refused("a text that is not UTF-8") from None

    def line(self) -> str:
        length = bytes(self.data[self.position : self.position + _LONGEST_NAME]).find(b"\n")
        if length < 0:
            raise _Refused("a name without an end")
        text = self.text(length)
        self.position += 1
        return text

    # The stack

    def push(self, value: object) -> None:
        self.stack.append(value)

    def pop(self) -> Any:
        value = self.top()
        del self.stack[-1]
        return value

    def top(self) -> Any:
        if len(self.stack) <= (self.marks[-1] if self.marks else 0):
            raise _Refused("an instruction without its operands: the file is damaged")
        return self.stack[-1]

    def pop_many(self, count: int) -> list[Any]:
        return [self.pop() for _ in range(count)][::-1]

    def pop_mark(self) -> list[Any]:
        if not self.marks:
            raise _Refused("an instruction without its operands: the file is damaged")
        mark = self.marks.pop()
        values = self.stack[mark:]
        del self.stack[mark:]
        return values

    def remember(self, index: int) -> None:
        self.memo[index] = self.top()

    def recall(self, index: int) -> None:
        if index not in self.memo:
            raise _Refused("a reference to a value that was never stored: the file is damaged")
        self.push(self.memo[index])

    # Containers

    def append(self, values: list[Any]) -> None:
        _exactly(self.top(), list, "APPENDS").extend(values)

    def add(self, values: list[Any]) -> None:
        _exactly(self.top(), set, "ADDITEMS").update(map(_key, values))

    def set_items(self, pairs: list[Any]) -> None:
        if len(pairs) % 2 != 0:
            raise _Refused("a key without a value: the file is damaged")
        target = _exactly(self.top(), dict, "SETITEMS")
        target.update(zip(map(_key, pairs[::2]), pairs[1::2], strict=True))

    # Names and what they stand for

    def find(self, module: object, name: object) -> None:
        if type(module) is not str or type(name) is not str:
            raise _Refused("a global whose name is no text")
        found = self.table.get((module, name))
        if found is None:
            raise _Refused(
                f"the global {printable(module)}.{printable(name)}, which no EDM2 snapshot needs"
            )
        self.push(found)

    def reduce(self) -> None:
        function, args = self.pop_many(2)
        if type(function) is not _Global or function.call is None:
            raise _Refused(f"a call of {_describe(function)}")
        self.push(function.call(self, _exactly(args, tuple, function.name)))

    def new(self) -> None:
        kind, args = self.pop_many(2)
        if type(kind) is not _Global or kind.make is None:
            raise _Refused(f"a new instance of {_describe(kind)}")
        if len(_exactly(args, tuple, kind.name)) != 0:
            raise _Refused(f"arguments for a new {kind.name}")
        self.push(kind.make(self))

    def await_state(self, value: object) -> object:
        self.unbuilt[id(value)] = value
        return value

    def build(self) -> None:
        state = self.pop()
        target = self.top()
        if self.unbuilt.pop(id(target), None) is None:
            raise _Refused(f"setting attributes of {_describe(target)}")
        _BUILDERS[type(target)](self, target, state)

    def persistent_id(self) -> None:
        if self.persistent is None:
            raise _Refused("a persistent id (a reference to something outside the file)")
        self.push(self.persistent(self.pop()))


_INSTRUCTIONS: dict[int, Callable[[_Machine], None]] = {
    pickle.FRAME[0]: lambda m: m.require(m.integer(8)),
    pickle.NONE[0]: lambda m: m.push(None),
    pickle.NEWTRUE[0]: lambda m: m.push(True),
    pickle.NEWFALSE[0]: lambda m: m.push(False),
    pickle.BININT[0]: lambda m: m.push(m.integer(4, signed=True)),
    pickle.BININT1[0]: lambda m: m.push(m.integer(1)),
    pickle.BININT2[0]: lambda m: m.push(m.integer(2)),
    pickle.LONG1[0]: lambda m: m.push(m.long()),
    pickle.BINFLOAT[0]: lambda m: m.push(struct.unpack(">d", m.take(8))[0]),
    pickle.SHORT_BINUNICODE[0]: lambda m: m.push(m.text(m.integer(1))),
    pickle.BINUNICODE[0]: lambda m: m.push(m.text(m.integer(4))),
    pickle.BINUNICODE8[0]: lambda m: m.push(m.text(m.integer(8))),
    pickle.SHORT_BINBYTES[0]: lambda m: m.push(m.take(m.integer(1))),
    pickle.BINBYTES[0]: lambda m: m.push(m.take(m.integer(4))),
    pickle.BINBYTES8[0]: lambda m: m.push(m.take(m.integer(8))),
    pickle.BYTEARRAY8[0]: lambda m: m.push(m.take(m.integer(8))),
    pickle.EMPTY_TUPLE[0]: lambda m: m.push(()),
    pickle.TUPLE1[0]: lambda m: m.push(tuple(m.pop_many(1))),
    pickle.TUPLE2[0]: lambda m: m.push(tuple(m.pop_many(2))),
    pickle.TUPLE3[0]: lambda m: m.push(tuple(m.pop_many(3))),
    pickle.TUPLE[0]: lambda m: m.push(tuple(m.pop_mark())),
    pickle.EMPTY_LIST[0]: lambda m: m.push([]),
    pickle.APPEND[0]: lambda m: m.append(m.pop_many(1)),
    pickle.APPENDS[0]: lambda m: m.append(m.pop_mark()),
    pickle.EMPTY_DICT[0]: lambda m: m.push({}),
    pickle.SETITEM[0]: lambda m: m.set_items(m.pop_many(2)),
    pickle.SETITEMS[0]: lambda m: m.set_items(m.pop_mark()),
    pickle.EMPTY_SET[0]: lambda m: m.push(set()),
    pickle.ADDITEMS[0]: lambda m: m.add(m.pop_mark()),
    pickle.MARK[0]: lambda m: m.marks.append(len(m.stack)),
    pickle.BINPUT[0]: lambda m: m.remember(m.integer(1)),
    pickle.LONG_BINPUT[0]: lambda m: m.remember(m.integer(4)),
    pickle.MEMOIZE[0]: lambda m: m.remember(len(m.memo)),
    pickle.BINGET[0]: lambda m: m.recall(m.integer(1)),
    pickle.LONG_BINGET[0]: lambda m: m.recall(m.integer(4)),
    pickle.GLOBAL[0]: lambda m: m.find(m.line(), m.line()),
    pickle.STACK_GLOBAL[0]: lambda m: m.find(*m.pop_many(2)),
    pickle.REDUCE[0]: _Machine.reduce,
    pickle.NEWOBJ[0]: _Machine.new,
    pickle.BUILD[0]: _Machine.build,
    pickle.BINPERSID[0]: _Machine.persistent_id,
}


# --- Checks -----------------------------------------------------------------------------------


def printable(text: str) -> str:
    """A text from a file, fit for a message: short, and without control characters."""
    return ascii(text[:120])[1:-1]


def _describe(value: object) -> str:
    """A value of the file in a few words; never its contents, which may be without end."""
    if type(value) is _Global:
        return f"the global {value.name}"
    if type(value) is Recorded:
        return f"a recorded {value.class_name}"
    if type(value) is memoryview:
        return "raw bytes"
    return f"a value of type {type(value).__name__.strip('_')}"


def _exactly(value: object, kind: type, where: str) -> Any:
    if type(value) is not kind:
        wanted = kind.__name__.strip("_")
        raise _Refused(f"{_describe(value)} given to {where}, which takes {wanted}")
    return value


def _arguments(args: tuple[Any, ...], where: str, *kinds: type) -> tuple[Any, ...]:
    if len(args) != len(kinds):
        raise _Refused(f"{len(args)} arguments for {where}, which takes {len(kinds)}")
    return tuple(_exactly(value, kind, where) for value, kind in zip(args, kinds, strict=True))


def _key(value: object) -> object:
    """A key of a dict or set: such that hashing is quick (a tuple can take for ever to hash)."""
    if type(value) is str or (type(value) is int and -_LARGEST_KEY <= value < _LARGEST_KEY):
        return value
    raise _Refused(f"{_describe(value)} used as a key")


def _is(value: object, expected: str | int) -> bool:
    """Equality that asks only values of the same type: an array would compare its elements."""
    return type(value) is type(expected) and value == expected


def _dimensions(values: tuple[Any, ...]) -> tuple[int, ...]:
    """Sizes or strides."""
    few = len(values) <= DIMENSION_LIMIT
    if not few or not all(type(n) is int and 0 <= n <= _LARGEST_SIZE for n in values):
        raise _Refused(f"{len(values)} dimensions that cannot be sizes or strides")
    return values


def _count(size: tuple[Any, ...]) -> int:
    """Number of elements; no size is such that its products overflow, not even beside a zero."""
    if math.prod(max(n, 1) for n in _dimensions(size)) > _LARGEST_SIZE:
        raise _Refused(f"a tensor or array of size {size}")
    return math.prod(size)


_LEAVES = frozenset({type(None), bool, int, float, str, torch.dtype, Tensor, np.ndarray})


def _children(value: object) -> Iterable[object]:
    match value:
        case list() | tuple() | set():
            return value
        case dict():
            return value.values()
        case Recorded():
            return (value.init_args, value.init_kwargs, value.state)
    raise _Refused(f"{_describe(value)} where data belong")


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
        raise _Refused("a container that holds itself")
    if identity not in known:
        if len(above) < DEPTH_LIMIT:
            above.add(identity)
            below = max((_height(child, known, above) for child in _children(value)), default=0)
            above.remove(identity)
        else:
            below = DEPTH_LIMIT
        if below >= DEPTH_LIMIT:
            raise _Refused(f"containers nested deeper than {DEPTH_LIMIT} levels")
        known[identity] = below + 1
    return known[identity]


# --- Network objects --------------------------------------------------------------------------


def _ordered_dict(machine: _Machine, args: tuple[Any, ...]) -> dict[str | int, Any]:
    _arguments(args, "OrderedDict")
    return {}


def _persistent_object(machine: _Machine, args: tuple[Any, ...]) -> Recorded:
    """The object that EDM2's persistence layer would make by running the source in `meta`."""
    (meta,) = _arguments(args, "a persistent object", dict)
    name, state = meta.get("class_name"), meta.get("state")
    named = type(name) is str and len(name) <= _LONGEST_NAME and name.isidentifier()
    if not named or not _is(meta.get("type"), "class") or type(state) is not dict:
        raise _Refused("a persistent object without a class name and a state")
    init_args, init_kwargs = state.get("_init_args", ()), state.get("_init_kwargs", {})
    if type(init_args) not in (tuple, list) or type(init_kwargs) is not dict:
        raise _Refused(f"a persistent {name} without constructor arguments")
    return Recorded(name, None, init_args, init_kwargs, state)


def _new_container(class_name: str) -> Callable[[_Machine], object]:
    module = "torch.nn.modules.container"
    return lambda machine: machine.await_state(Recorded(class_name, module, (), {}, {}))


def _build_recorded(machine: _Machine, target: Recorded, state: object) -> None:
    target.state = _exactly(state, dict, target.class_name)


# --- Tensors ----------------------------------------------------------------------------------

_STORAGE_DTYPES = {
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "FloatStorage": torch.float32,
    "DoubleStorage": torch.float64,
    "ByteStorage": torch.uint8,
    "CharStorage": torch.int8,
    "ShortStorage": torch.int16,
    "IntStorage": torch.int32,
    "LongStorage": torch.int64,
}
_STORAGE_GLOBALS = {("torch", name): dtype for name, dtype in _STORAGE_DTYPES.items()}


class _Storage:
    """The elements behind tensors, each of which may be claimed by one tensor.

    Tensors cannot overlap, then: with strides of 0, or many views of one storage, a small file
    could declare any amount of numbers.
    """

    def __init__(self, elements: Tensor) -> None:
        self.elements = elements
        self.unclaimed = elements.numel()

    def tensor(self, offset: int, size: tuple[int, ...], stride: tuple[int, ...]) -> Tensor:
        count = _count(size)
        last = offset + sum((n - 1) * step for n, step in zip(size, stride, strict=True))
        end = last + 1 if count > 0 else offset
        if count > self.unclaimed or not 0 <= offset <= end <= self.elements.numel():
            raise _Refused(
                f"a tensor of size {size} and stride {stride} from element {offset}, with "
                f"{self.unclaimed} of {self.elements.numel()} elements left in its storage"
            )
        self.unclaimed -= count
        return self.elements.as_strided(size, stride, offset)


def _tensor(machine: _Machine, args: tuple[Any, ...]) -> Tensor:
    storage, offset, size, stride, _, hooks = _arguments(
        args, "_rebuild_tensor_v2", _Storage, int, tuple, tuple, bool, dict
    )
    if len(hooks) != 0 or len(_dimensions(size)) != len(_dimensions(stride)):
        raise _Refused("a tensor with hooks, or whose sizes and strides do not match")
    return storage.tensor(offset, size, stride)


def _parameter(machine: _Machine, args: tuple[Any, ...]) -> Tensor:
    data, _, _ = _arguments(args, "_rebuild_parameter", Tensor, bool, dict)
    return data


def _parameter_with_state(machine: _Machine, args: tuple[Any, ...]) -> Tensor:
    """A parameter to which attributes were added; they say nothing about its numbers."""
    if len(args) != 4:
        raise _Refused("a parameter without its state")
    return _parameter(machine, args[:3])


class _StorageId(NamedTuple):
    dtype: torch.dtype
    key: str
    count: int


def _storage_id(identity: object) -> _StorageId:
    """What torch leaves in place of a storage: ("storage", type, key, location, count[, view])."""
    if type(identity) is tuple and len(identity) in (5, 6):
        tag, dtype, key, location, count = identity[:5]
        kinds = (type(dtype), type(key), type(location), type(count))
        whole = len(identity) == 5 or identity[5] is None
        if _is(tag, "storage") and kinds == (torch.dtype, str, str, int) and whole:
            return _StorageId(dtype, key, count)
    raise _Refused("a persistent id that is not a whole storage")


def _storage_pickle(data: memoryview, start: int, allowance: _Allowance) -> tuple[object, int]:
    machine = _Machine(data, _STORAGE_GLOBALS, allowance, start, _storage_id)
    return machine.run(), machine.position


def _legacy_storage(payload: memoryview, allowance: _Allowance) -> tuple[_StorageId, memoryview]:
    """Five pickles (magic, protocol, platform, storage, keys), the element count, the elements."""
    values, position = [], 0
    for _ in range(5):
        value, position = _storage_pickle(payload, position, allowance)
        values.append(value)
    magic, protocol, _, storage, keys = values
    written = _is(magic, _TORCH_MAGIC) and _is(protocol, _TORCH_PROTOCOL) and type(keys) is list
    if not written or type(storage) is not _StorageId:
        raise _Refused("a storage that torch did not write")
    count = int.from_bytes(payload[position : position + 8], "little")
    if count != storage.count or len(keys) != 1 or not _is(keys[0], storage.key):
        raise _Refused("a storage whose parts do not match")
    return storage, payload[position + 8 :]


def _zip_storage(payload: memoryview, allowance: _Allowance) -> tuple[_StorageId, memoryview]:
    """An uncompressed zip with data.pkl (the storage's id) and data/<key> (its elements)."""
    content = bytes(payload)
    if content.count(b"PK\x01\x02") > 64:
        raise _Refused("a storage with too many parts")
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            folders = [name[:-8] for name in archive.namelist() if name.endswith("/data.pkl")]
            if len(folders) != 1:
                raise _Refused("a storage that torch did not write")
            order = f"{folders[0]}byteorder"
            if order in archive.namelist() and _stored(archive, order) != b"little":
                raise _Refused("a storage in big-endian byte order")
            identity = memoryview(_stored(archive, f"{folders[0]}data.pkl"))
            storage, end = _storage_pickle(identity, 0, allowance)
            if type(storage) is not _StorageId or end != len(identity):
                raise _Refused("a storage that torch did not write")
            return storage, memoryview(_stored(archive, f"{folders[0]}data/{storage.key}"))
    except _Refused:
        raise
    except Exception:  # zipfile meets damage with a dozen kinds, OverflowError among them
        raise _Refused("a storage whose zip archive is damaged") from None


def _stored(archive: zipfile.ZipFile, name: str) -> bytes:
    """A member that is not compressed, so that it cannot be larger than the archive."""
    if archive.getinfo(name).compress_type != zipfile.ZIP_STORED:
        raise _Refused("a storage with compressed parts")
    return archive.read(name)


def _storage(machine: _Machine, args: tuple[Any, ...]) -> _Storage:
    """What torch.storage._load_from_bytes gives: one storage, in either layout of torch.save."""
    (payload,) = _arguments(args, "_load_from_bytes", memoryview)
    read = _zip_storage if payload[:4] == b"PK\x03\x04" else _legacy_storage
    storage, elements = read(payload, machine.allowance)
    if len(elements) != storage.count * storage.dtype.itemsize:
        raise _Refused("a storage that does not hold what it declares")
    machine.allowance.copy(len(elements))
    if storage.count == 0:
        return _Storage(torch.empty(0, dtype=storage.dtype))
    return _Storage(torch.frombuffer(bytearray(elements), dtype=storage.dtype))


def _torch_size(machine: _Machine, args: tuple[Any, ...]) -> tuple[int, ...]:
    return _dimensions(*_arguments(args, "torch.Size", tuple))


def _torch_device(machine: _Machine, args: tuple[Any, ...]) -> str:
    kinds = (str, int)[: max(len(args), 1)]
    return ":".join(map(str, _arguments(args, "torch.device", *kinds)))


# --- Arrays -----------------------------------------------------------------------------------

_ARRAY_CODES = ("f2", "f4", "f8", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8")


@dataclass(eq=False, slots=True)
class _ArrayType:
    """A NumPy dtype in the making: its byte order comes later, by BUILD."""

    code: str
    order: str = "|"

    @property
    def dtype(self) -> np.dtype[Any]:
        return np.dtype(self.order + self.code)


def _array_type(machine: _Machine, args: tuple[Any, ...]) -> object:
    if len(args) != 3 or type(args[0]) is not str or args[0] not in _ARRAY_CODES:
        code = printable(args[0]) if len(args) > 0 and type(args[0]) is str else "unknown"
        raise _Refused(f"an array of type {code}, where only plain numbers are read")
    return machine.await_state(_ArrayType(args[0]))


def _build_array_type(machine: _Machine, target: _ArrayType, state: object) -> None:
    state = _exactly(state, tuple, "numpy.dtype")
    plain = len(state) == 8 and all(part is None for part in state[2:5])
    if not plain or type(state[1]) is not str or state[1] not in ("<", ">", "|"):
        raise _Refused("an array of structured type, where only plain numbers are read")
    target.order = state[1]


def _numbers(machine: _Machine, kind: _ArrayType, data: memoryview, count: int) -> np.ndarray:
    if len(data) != count * kind.dtype.itemsize:
        raise _Refused(f"an array of {count} numbers in {len(data)} bytes of {kind.code}")
    machine.allowance.copy(len(data))
    return np.frombuffer(data, kind.dtype).astype(kind.dtype.newbyteorder("="))


def _new_array(machine: _Machine, args: tuple[Any, ...]) -> object:
    kind, size, _ = _arguments(args, "numpy's _reconstruct", _Global, tuple, memoryview)
    if kind.name != "numpy.ndarray" or _count(size) != 0:
        raise _Refused("an array that NumPy did not write")
    return machine.await_state(np.empty(0))


def _build_array(machine: _Machine, target: np.ndarray, state: object) -> None:
    _, size, kind, by_column, data = _arguments(
        _exactly(state, tuple, "an array"), "an array", int, tuple, _ArrayType, bool, memoryview
    )
    values = _numbers(machine, kind, data, _count(size))
    target.__setstate__((1, size, values.dtype, by_column, values.tobytes()))


def _array_from_buffer(machine: _Machine, args: tuple[Any, ...]) -> np.ndarray:
    data, kind, size, order = _arguments(
        args, "numpy's _frombuffer", memoryview, _ArrayType, tuple, str
    )
    if order not in ("C", "F"):
        raise _Refused("an array in an unknown order")
    values = _numbers(machine, kind, data, _count(size))
    return values.reshape(size, order=order)


def _array_scalar(machine: _Machine, args: tuple[Any, ...]) -> int | float:
    kind, data = _arguments(args, "a NumPy number", _ArrayType, memoryview)
    return _numbers(machine, kind, data, 1).item()


# --- The table --------------------------------------------------------------------------------

_BUILDERS: dict[type, Callable[[_Machine, Any, object], None]] = {
    Recorded: _build_recorded,
    _ArrayType: _build_array_type,
    np.ndarray: _build_array,
}


def _table() -> dict[tuple[str, str], object]:
    """Every name that a file may use, in all spellings of NumPy 1 and 2 and of dnnlib."""
    calls = {
        ("torch_utils.persistence", "_reconstruct_persistent_obj"): _persistent_object,
        ("collections", "OrderedDict"): _ordered_dict,
        ("torch", "Size"): _torch_size,
        ("torch", "device"): _torch_device,
        ("torch._utils", "_rebuild_tensor_v2"): _tensor,
        ("torch._utils", "_rebuild_parameter"): _parameter,
        ("torch._utils", "_rebuild_parameter_with_state"): _parameter_with_state,
        ("torch.storage", "_load_from_bytes"): _storage,
        ("numpy", "dtype"): _array_type,
    }
    for core in ("numpy.core", "numpy._core"):
        calls[f"{core}.multiarray", "_reconstruct"] = _new_array
        calls[f"{core}.multiarray", "scalar"] = _array_scalar
        calls[f"{core}.numeric", "_frombuffer"] = _array_from_buffer
    makes: dict[tuple[str, str], Callable[[_Machine], object]] = {
        ("dnnlib.util", "EasyDict"): lambda machine: {},
        ("dnnlib", "EasyDict"): lambda machine: {},
    }
    for name in ("ModuleDict", "ModuleList", "Sequential"):
        makes["torch.nn.modules.container", name] = _new_container(name)
    dtypes = {("torch", str(dtype)[6:]): dtype for dtype in _STORAGE_DTYPES.values()}
    return {
        ("numpy", "ndarray"): _Global("numpy.ndarray"),
        **{key: _Global(".".join(key), call=call) for key, call in calls.items()},
        **{key: _Global(".".join(key), make=make) for key, make in makes.items()},
        **dtypes,
    }


_GLOBALS = _table()
