"""The stack machine that interprets a pickle, as far as it builds data; see `pickles`."""

import math
import pickle
import pickletools
import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

OPCODE_LIMIT = 500_000  # an EDM2 network takes 210 per tensor, and has a few hundred tensors
DIMENSION_LIMIT = 16
LARGEST_SIZE = 2**40  # of a tensor, a dimension or a stride: keeps their arithmetic inside int64
_LARGEST_KEY = 2**31
LONGEST_NAME = 256


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


class Refused(Exception):
    """Why the file goes no further; `read_pickle` adds its name and the place."""


@dataclass(slots=True)
class Allowance:
    """What a file may still cost: instructions, and bytes copied out of it.

    One payload can be named any number of times. Every copy counts, and all of them together may
    not exceed the size of the file, as those of an honest file never do.
    """

    opcodes: int
    copies: int

    def step(self) -> None:
        self.opcodes -= 1
        if self.opcodes < 0:
            raise Refused(f"it has more than {OPCODE_LIMIT} instructions, made to exhaust memory")

    def copy(self, count: int) -> None:
        self.copies -= count
        if self.copies < 0:
            raise Refused("its tensors would hold more bytes than the file itself")


@dataclass(frozen=True, eq=False, slots=True)
class Global:
    """What a name in the file stands for.

    Attributes:
        name: the name, for messages.
        call: what calling it gives (REDUCE), from its arguments; None: it is not called.
        make: what a new instance of it is (NEWOBJ without arguments); None: there are none.
    """

    name: str
    call: Callable[["Machine", tuple[Any, ...]], object] | None = None
    make: Callable[["Machine"], object] | None = None


class Machine:
    """A stack machine for one pickle.

    Attributes:
        position: next byte to read.
        at: where the present instruction begins.
        unbuilt: the objects that wait for their state, by id, and the function that takes it
            (BUILD); nothing else ever takes one.
    """

    def __init__(
        self,
        data: memoryview,
        table: Mapping[tuple[str, str], object],
        allowance: Allowance,
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
        self.unbuilt: dict[int, tuple[object, Callable[[object], None]]] = {}

    def run(self) -> object:
        """Interpret up to STOP and return the one value that is left."""
        if self.take(1)[0] != pickle.PROTO[0] or not 2 <= self.take(1)[0] <= 5:
            raise Refused("it does not begin as a pickle of protocol 2 to 5")
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
                raise Refused(f"the pickle instruction {label}, which no EDM2 snapshot needs")
            instruction(self)

    def result(self) -> object:
        value = self.pop()
        if self.stack or self.marks or self.unbuilt:
            raise Refused("it ends with unfinished objects")
        return value

    # Reading

    def require(self, count: int) -> None:
        left = len(self.data) - self.position
        if count > left:
            raise Refused(
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
            raise Refused(f"an integer of {width} bytes")
        return self.integer(width, signed=True)

    def text(self, length: int) -> str:
        try:
            return str(self.take(length), "utf-8")
        except UnicodeDecodeError:
            raise Refused("a text that is not UTF-8") from None

    def line(self) -> str:
        length = bytes(self.data[self.position : self.position + LONGEST_NAME]).find(b"\n")
        if length < 0:
            raise Refused("a name without an end")
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
            raise Refused("an instruction without its operands: the file is damaged")
        return self.stack[-1]

    def pop_many(self, count: int) -> list[Any]:
        return [self.pop() for _ in range(count)][::-1]

    def pop_mark(self) -> list[Any]:
        if not self.marks:
            raise Refused("an instruction without its operands: the file is damaged")
        mark = self.marks.pop()
        values = self.stack[mark:]
        del self.stack[mark:]
        return values

    def remember(self, index: int) -> None:
        self.memo[index] = self.top()

    def recall(self, index: int) -> None:
        if index not in self.memo:
            raise Refused("a reference to a value that was never stored: the file is damaged")
        self.push(self.memo[index])

    # Containers

    def append(self, values: list[Any]) -> None:
        exactly(self.top(), list, "APPENDS").extend(values)

    def add(self, values: list[Any]) -> None:
        exactly(self.top(), set, "ADDITEMS").update(map(as_key, values))

    def set_items(self, pairs: list[Any]) -> None:
        if len(pairs) % 2 != 0:
            raise Refused("a key without a value: the file is damaged")
        target = exactly(self.top(), dict, "SETITEMS")
        target.update(zip(map(as_key, pairs[::2]), pairs[1::2], strict=True))

    # Names and what they stand for

    def find(self, module: object, name: object) -> None:
        if type(module) is not str or type(name) is not str:
            raise Refused("a global whose name is no text")
        found = self.table.get((module, name))
        if found is None:
            raise Refused(
                f"the global {printable(module)}.{printable(name)}, which no EDM2 snapshot needs"
            )
        self.push(found)

    def reduce(self) -> None:
        function, args = self.pop_many(2)
        if type(function) is not Global or function.call is None:
            raise Refused(f"a call of {describe(function)}")
        self.push(function.call(self, exactly(args, tuple, function.name)))

    def new(self) -> None:
        kind, args = self.pop_many(2)
        if type(kind) is not Global or kind.make is None:
            raise Refused(f"a new instance of {describe(kind)}")
        if len(exactly(args, tuple, kind.name)) != 0:
            raise Refused(f"arguments for a new {kind.name}")
        self.push(kind.make(self))

    def await_state(self, value: object, build: Callable[[object], None]) -> object:
        self.unbuilt[id(value)] = value, build
        return value

    def build(self) -> None:
        state = self.pop()
        target = self.top()
        if id(target) not in self.unbuilt:
            raise Refused(f"setting attributes of {describe(target)}")
        _, build = self.unbuilt.pop(id(target))
        build(state)

    def persistent_id(self) -> None:
        if self.persistent is None:
            raise Refused("a persistent id (a reference to something outside the file)")
        self.push(self.persistent(self.pop()))


_INSTRUCTIONS: dict[int, Callable[[Machine], None]] = {
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
    pickle.REDUCE[0]: Machine.reduce,
    pickle.NEWOBJ[0]: Machine.new,
    pickle.BUILD[0]: Machine.build,
    pickle.BINPERSID[0]: Machine.persistent_id,
}


# --- Checks -----------------------------------------------------------------------------------


def printable(text: str) -> str:
    """A text from a file, fit for a message: short, and without control characters."""
    return ascii(text[:120])[1:-1]


def describe(value: object) -> str:
    """A value of the file in a few words; never its contents, which may be without end."""
    if type(value) is Global:
        return f"the global {value.name}"
    if type(value) is Recorded:
        return f"a recorded {value.class_name}"
    if type(value) is memoryview:
        return "raw bytes"
    return f"a value of type {type(value).__name__.strip('_')}"


def exactly(value: object, kind: type, where: str) -> Any:
    if type(value) is not kind:
        wanted = kind.__name__.strip("_")
        raise Refused(f"{describe(value)} given to {where}, which takes {wanted}")
    return value


def arguments(args: tuple[Any, ...], where: str, *kinds: type) -> tuple[Any, ...]:
    if len(args) != len(kinds):
        raise Refused(f"{len(args)} arguments for {where}, which takes {len(kinds)}")
    return tuple(exactly(value, kind, where) for value, kind in zip(args, kinds, strict=True))


def as_key(value: object) -> object:
    """A key of a dict or set: such that hashing is quick (a tuple can take for ever to hash)."""
    if type(value) is str or (type(value) is int and -_LARGEST_KEY <= value < _LARGEST_KEY):
        return value
    raise Refused(f"{describe(value)} used as a key")


def same(value: object, expected: str | int) -> bool:
    """Equality that asks only values of the same type: an array would compare its elements."""
    return type(value) is type(expected) and value == expected


def dimensions(values: tuple[Any, ...]) -> tuple[int, ...]:
    """Sizes or strides."""
    few = len(values) <= DIMENSION_LIMIT
    if not few or not all(type(n) is int and 0 <= n <= LARGEST_SIZE for n in values):
        raise Refused(f"{len(values)} dimensions that cannot be sizes or strides")
    return values


def count_of(size: tuple[Any, ...]) -> int:
    """Number of elements; no size is such that its products overflow, not even beside a zero."""
    if math.prod(max(n, 1) for n in dimensions(size)) > LARGEST_SIZE:
        raise Refused(f"a tensor or array of size {size}")
    return math.prod(size)
