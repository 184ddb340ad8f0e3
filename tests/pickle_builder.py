"""An assembler of pickles, and EDM2 snapshots made with it, as the published ones are laid out."""

import dataclasses
import io
import itertools
import pickle
import struct
import warnings
from typing import Any

import torch
from torch import Tensor, nn

RECONSTRUCT = "torch_utils.persistence:_reconstruct_persistent_obj"
REBUILD = "torch._utils:_rebuild_tensor_v2"
LOAD = "torch.storage:_load_from_bytes"


@dataclasses.dataclass
class Name:
    """A global, "module:name"."""

    path: str


@dataclasses.dataclass
class Call:
    path: str
    args: tuple[Any, ...] = ()


@dataclasses.dataclass
class New:
    path: str
    state: Any = None


@dataclasses.dataclass
class Raw:
    code: bytes


def assemble(value: Any) -> bytes:
    """The instructions that push a value."""
    match value:
        case None:
            return pickle.NONE
        case bool():
            return pickle.NEWTRUE if value else pickle.NEWFALSE
        case int():
            return pickle.LONG1 + b"\x10" + value.to_bytes(16, "little", signed=True)
        case float():
            return pickle.BINFLOAT + struct.pack(">d", value)
        case str():
            return pickle.BINUNICODE + struct.pack("<I", len(value.encode())) + value.encode()
        case bytes():
            return pickle.BINBYTES + struct.pack("<I", len(value)) + value
        case list():
            return pickle.EMPTY_LIST + pickle.MARK + many(value) + pickle.APPENDS
        case tuple():
            return pickle.MARK + many(value) + pickle.TUPLE
        case set():
            return pickle.EMPTY_SET + pickle.MARK + many(value) + pickle.ADDITEMS
        case dict():
            items = itertools.chain.from_iterable(value.items())
            return pickle.EMPTY_DICT + pickle.MARK + many(items) + pickle.SETITEMS
        case Name():
            return many(value.path.split(":")) + pickle.STACK_GLOBAL
        case Call():
            return assemble(Name(value.path)) + assemble(value.args) + pickle.REDUCE
        case New():
            state = b"" if value.state is None else assemble(value.state) + pickle.BUILD
            return assemble(Name(value.path)) + pickle.EMPTY_TUPLE + pickle.NEWOBJ + state
        case Raw():
            return value.code
    raise TypeError(value)


def many(values: Any) -> bytes:
    return b"".join(map(assemble, values))


def stream(*values: Any) -> io.BytesIO:
    return io.BytesIO(pickle.PROTO + b"\x04" + many(values) + pickle.STOP)


def storage_bytes(tensor: Tensor, zipped: bool = False) -> bytes:
    """What torch writes for the storage of a tensor."""
    with warnings.catch_warnings(action="ignore"), io.BytesIO() as file:
        torch.save(tensor.storage(), file, _use_new_zipfile_serialization=zipped)
        return file.getvalue()


def recorded_tensor(tensor: Tensor, zipped: bool = False) -> Call:
    storage = Call(LOAD, (storage_bytes(tensor, zipped),))
    hooks = Call("collections:OrderedDict")
    layout = (tensor.storage_offset(), tuple(tensor.shape), tuple(tensor.stride()))
    return Call(REBUILD, (storage, *layout, False, hooks))


def parameter(tensor: Tensor, zipped: bool = False) -> Call:
    args = (recorded_tensor(tensor, zipped), True, Call("collections:OrderedDict"))
    return Call("torch._utils:_rebuild_parameter", args)


def persistent(class_name: str, state: dict[str, Any], **init_kwargs: Any) -> Call:
    state = {"_init_args": (), "_init_kwargs": init_kwargs, **state}
    meta = {"type": "class", "version": 6, "module_src": "raise SystemExit('was run')"}
    return Call(RECONSTRUCT, ({**meta, "class_name": class_name, "state": state},))


def module_state(
    parameters: dict[str, Any] | None = None,
    buffers: dict[str, Any] | None = None,
    modules: dict[str, Any] | None = None,
) -> dict[str, Any]:
    return {
        "training": False,
        "_parameters": parameters or {},
        "_buffers": buffers or {},
        "_non_persistent_buffers_set": set(),
        "_forward_hooks": Call("collections:OrderedDict"),
        "_modules": modules or {},
    }


def recorded_module(module: nn.Module, class_name: str = "Precond", **init_kwargs: Any) -> Call:
    """A module as EDM2's persistence records it, submodules included."""
    state = vars(module)
    members = module_state(
        {k: v if v is None else parameter(v.detach()) for k, v in state["_parameters"].items()},
        {k: v if v is None else recorded_tensor(v) for k, v in state["_buffers"].items()},
        {k: v if v is None else recorded_module(v) for k, v in state["_modules"].items()},
    )
    members["_non_persistent_buffers_set"] = state["_non_persistent_buffers_set"]
    return persistent(class_name, members, **init_kwargs)


def snapshot(**entries: Any) -> bytes:
    easy = Raw(assemble(New("dnnlib.util:EasyDict")) + pickle.MARK)
    items = {"dataset_kwargs": {"path": "x.zip"}, "loss_fn": None, **entries}
    code = Raw(many(itertools.chain.from_iterable(items.items())) + pickle.SETITEMS)
    return stream(easy, code).getvalue()
