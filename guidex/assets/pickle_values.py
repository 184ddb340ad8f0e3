"""What the names in an EDM2 snapshot stand for: checks of their arguments, and inert values."""

import io
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from guidex.assets.pickle_machine import (
    LONGEST_NAME,
    Allowance,
    Global,
    Machine,
    Recorded,
    Refused,
    arguments,
    as_key,
    count_of,
    dimensions,
    exactly,
    printable,
    same,
)

TORCH_MAGIC = 0x1950A86A20F9469CFC6C  # first value of torch's legacy format
_TORCH_PROTOCOL = 1001

# --- Network objects --------------------------------------------------------------------------


def _ordered_dict(machine: Machine, args: tuple[Any, ...]) -> dict[str | int, Any]:
    arguments(args, "OrderedDict")
    return {}


def _set(machine: Machine, args: tuple[Any, ...]) -> set[str | int]:
    (values,) = arguments(args, "set", list)
    return set(map(as_key, values))


def _latin1(machine: Machine, args: tuple[Any, ...]) -> memoryview:
    """Bytes, as protocol 2 writes them: each as the character of its number."""
    text, encoding = arguments(args, "_codecs.encode", str, str)
    if encoding != "latin1" or any(ord(char) > 255 for char in text):
        raise Refused("a text that is encoded otherwise than bytes are")
    return memoryview(text.encode("latin1"))


def _no_bytes(machine: Machine, args: tuple[Any, ...]) -> memoryview:
    arguments(args, "bytes")
    return memoryview(b"")


def _persistent_object(machine: Machine, args: tuple[Any, ...]) -> Recorded:
    """The object that EDM2's persistence layer would make by running the source in `meta`."""
    (meta,) = arguments(args, "a persistent object", dict)
    name, state = meta.get("class_name"), meta.get("state")
    named = type(name) is str and len(name) <= LONGEST_NAME and name.isidentifier()
    if not named or not same(meta.get("type"), "class") or type(state) is not dict:
        raise Refused("a persistent object without a class name and a state")
    init_args, init_kwargs = state.get("_init_args", ()), state.get("_init_kwargs", {})
    if type(init_args) not in (tuple, list) or type(init_kwargs) is not dict:
        raise Refused(f"a persistent {name} without constructor arguments")
    return Recorded(name, None, init_args, init_kwargs, state)


def _new_container(class_name: str) -> Callable[[Machine], object]:
    """One of torch's own containers of modules, which are pickled without EDM2's persistence."""

    def make(machine: Machine) -> object:
        value = Recorded(class_name, "torch.nn.modules.container", (), {}, {})

        def build(state: object) -> None:
            value.state = exactly(state, dict, class_name)

        return machine.await_state(value, build)

    return make


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
        count = count_of(size)
        last = offset + sum((n - 1) * step for n, step in zip(size, stride, strict=True))
        end = last + 1 if count > 0 else offset
        if count > self.unclaimed or not 0 <= offset <= end <= self.elements.numel():
            raise Refused(
                f"a tensor of size {size} and stride {stride} from element {offset}, with "
                f"{self.unclaimed} of {self.elements.numel()} elements left in its storage"
            )
        self.unclaimed -= count
        return self.elements.as_strided(size, stride, offset)


def _tensor(machine: Machine, args: tuple[Any, ...]) -> Tensor:
    storage, offset, size, stride, _, hooks = arguments(
        args, "_rebuild_tensor_v2", _Storage, int, tuple, tuple, bool, dict
    )
    if len(hooks) != 0 or len(dimensions(size)) != len(dimensions(stride)):
        raise Refused("a tensor with hooks, or whose sizes and strides do not match")
    return storage.tensor(offset, size, stride)


def _parameter(machine: Machine, args: tuple[Any, ...]) -> Tensor:
    data, _, _ = arguments(args, "_rebuild_parameter", Tensor, bool, dict)
    return data


def _parameter_with_state(machine: Machine, args: tuple[Any, ...]) -> Tensor:
    """A parameter to which attributes were added; they say nothing about its numbers."""
    if len(args) != 4:
        raise Refused("a parameter without its state")
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
        if same(tag, "storage") and kinds == (torch.dtype, str, str, int) and whole:
            return _StorageId(dtype, key, count)
    raise Refused("a persistent id that is not a whole storage")


def _storage_pickle(data: memoryview, start: int, allowance: Allowance) -> tuple[object, int]:
    machine = Machine(data, _STORAGE_GLOBALS, allowance, start, _storage_id)
    return machine.run(), machine.position


def _legacy_storage(payload: memoryview, allowance: Allowance) -> tuple[_StorageId, memoryview]:
    """Five pickles (magic, protocol, platform, storage, keys), the element count, the elements."""
    values, position = [], 0
    for _ in range(5):
        value, position = _storage_pickle(payload, position, allowance)
        values.append(value)
    magic, protocol, _, storage, keys = values
    written = same(magic, TORCH_MAGIC) and same(protocol, _TORCH_PROTOCOL) and type(keys) is list
    if not written or type(storage) is not _StorageId:
        raise Refused("a storage that torch did not write")
    count = int.from_bytes(payload[position : position + 8], "little")
    if count != storage.count or len(keys) != 1 or not same(keys[0], storage.key):
        raise Refused("a storage whose parts do not match")
    return storage, payload[position + 8 :]


def _zip_storage(payload: memoryview, allowance: Allowance) -> tuple[_StorageId, memoryview]:
    """An uncompressed zip with data.pkl (the storage's id) and data/<key> (its elements)."""
    content = bytes(payload)
    if content.count(b"PK\x01\x02") > 64:
        raise Refused("a storage with too many parts")
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            folders = [name[:-8] for name in archive.namelist() if name.endswith("/data.pkl")]
            if len(folders) != 1:
                raise Refused("a storage that torch did not write")
            order = f"{folders[0]}byteorder"
            if order in archive.namelist() and _stored(archive, order) != b"little":
                raise Refused("a storage in big-endian byte order")
            identity = memoryview(_stored(archive, f"{folders[0]}data.pkl"))
            storage, end = _storage_pickle(identity, 0, allowance)
            if type(storage) is not _StorageId or end != len(identity):
                raise Refused("a storage that torch did not write")
            return storage, memoryview(_stored(archive, f"{folders[0]}data/{storage.key}"))
    except Refused:
        raise
    except Exception:  # zipfile meets damage with a dozen kinds, OverflowError among them
        raise Refused("a storage whose zip archive is damaged") from None


def _stored(archive: zipfile.ZipFile, name: str) -> bytes:
    """A member that is not compressed, so that it cannot be larger than the archive."""
    if archive.getinfo(name).compress_type != zipfile.ZIP_STORED:
        raise Refused("a storage with compressed parts")
    return archive.read(name)


def _storage(machine: Machine, args: tuple[Any, ...]) -> _Storage:
    """What torch.storage._load_from_bytes gives: one storage, in either layout of torch.save."""
    (payload,) = arguments(args, "_load_from_bytes", memoryview)
    machine.allowance.copy(len(payload))
    read = _zip_storage if payload[:4] == b"PK\x03\x04" else _legacy_storage
    storage, elements = read(payload, machine.allowance)
    if len(elements) != storage.count * storage.dtype.itemsize:
        raise Refused("a storage that does not hold what it declares")
    if storage.count == 0:
        return _Storage(torch.empty(0, dtype=storage.dtype))
    return _Storage(torch.frombuffer(bytearray(elements), dtype=storage.dtype))


def _torch_size(machine: Machine, args: tuple[Any, ...]) -> tuple[int, ...]:
    return dimensions(*arguments(args, "torch.Size", tuple))


def _torch_device(machine: Machine, args: tuple[Any, ...]) -> str:
    kinds = (str, int)[: max(len(args), 1)]
    return ":".join(map(str, arguments(args, "torch.device", *kinds)))


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


def _array_type(machine: Machine, args: tuple[Any, ...]) -> object:
    if len(args) != 3 or type(args[0]) is not str or args[0] not in _ARRAY_CODES:
        code = printable(args[0]) if len(args) > 0 and type(args[0]) is str else "unknown"
        raise Refused(f"an array of type {code}, where only plain numbers are read")
    kind = _ArrayType(args[0])

    def build(state: object) -> None:
        parts = exactly(state, tuple, "numpy.dtype")
        plain = len(parts) == 8 and all(part is None for part in parts[2:5])
        if not plain or type(parts[1]) is not str or parts[1] not in ("<", ">", "|"):
            raise Refused("an array of structured type, where only plain numbers are read")
        kind.order = parts[1]

    return machine.await_state(kind, build)


def _numbers(machine: Machine, kind: _ArrayType, data: memoryview, count: int) -> np.ndarray:
    if len(data) != count * kind.dtype.itemsize:
        raise Refused(f"an array of {count} numbers in {len(data)} bytes of {kind.code}")
    machine.allowance.copy(len(data))
    return np.frombuffer(data, kind.dtype).astype(kind.dtype.newbyteorder("="))


def _new_array(machine: Machine, args: tuple[Any, ...]) -> object:
    kind, _, _ = arguments(args, "numpy's _reconstruct", Global, tuple, memoryview)
    if kind.name != "numpy.ndarray":
        raise Refused("an array that NumPy did not write")
    array = np.empty(0)

    def build(state: object) -> None:
        _, size, kind, by_column, data = arguments(
            exactly(state, tuple, "an array"), "an array", int, tuple, _ArrayType, bool, memoryview
        )
        values = _numbers(machine, kind, data, count_of(size))
        array.__setstate__((1, size, values.dtype, by_column, values.tobytes()))

    return machine.await_state(array, build)


def _array_from_buffer(machine: Machine, args: tuple[Any, ...]) -> np.ndarray:
    data, kind, size, order = arguments(
        args, "numpy's _frombuffer", memoryview, _ArrayType, tuple, str
    )
    if order not in ("C", "F"):
        raise Refused("an array in an unknown order")
    values = _numbers(machine, kind, data, count_of(size))
    return values.reshape(size, order=order)


def _array_scalar(machine: Machine, args: tuple[Any, ...]) -> int | float:
    kind, data = arguments(args, "a NumPy number", _ArrayType, memoryview)
    return _numbers(machine, kind, data, 1).item()


# --- The table --------------------------------------------------------------------------------


def _table() -> dict[tuple[str, str], object]:
    """Every name that a file may use, in all spellings of NumPy 1 and 2 and of dnnlib."""
    calls = {
        ("torch_utils.persistence", "_reconstruct_persistent_obj"): _persistent_object,
        ("collections", "OrderedDict"): _ordered_dict,
        ("builtins", "set"): _set,
        ("__builtin__", "set"): _set,
        ("__builtin__", "bytes"): _no_bytes,
        ("_codecs", "encode"): _latin1,
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
    makes: dict[tuple[str, str], Callable[[Machine], object]] = {
        ("dnnlib.util", "EasyDict"): lambda machine: {},
        ("dnnlib", "EasyDict"): lambda machine: {},
    }
    for name in ("ModuleDict", "ModuleList", "Sequential"):
        makes["torch.nn.modules.container", name] = _new_container(name)
    dtypes = {("torch", str(dtype)[6:]): dtype for dtype in _STORAGE_DTYPES.values()}
    return {
        ("numpy", "ndarray"): Global("numpy.ndarray"),
        **{key: Global(".".join(key), call=call) for key, call in calls.items()},
        **{key: Global(".".join(key), make=make) for key, make in makes.items()},
        **dtypes,
    }


GLOBALS = _table()
