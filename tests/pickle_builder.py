"""An assembler of pickles, and EDM2 snapshots made with it, as the published ones are laid out."""

import dataclasses
import io
import itertools
import pickle
import warnings
from typing import Any

import torch
from torch import Tensor, nn

RECONSTRUCT = "torch_utils.persistence:_reconstruct_persistent_obj"
REBUILD = "torch._utils:_rebuild_tensor_v2"
LOAD = "torch.storage:_load_from_bytes"
MODULES = "torch.nn.modules.container:ModuleDict"


@dataclasses.dataclass
class Name:
    """A global, "module:name"."""

    path: str


@dataclasses.dataclass
class Call(Name):
    args: tuple[Any, ...] = ()


@dataclasses.dataclass
class New(Name):
    state: Any = None


@dataclasses.dataclass
class Raw:
    code: bytes


class Assembler(pickle._Pickler):
    """Writes what a pickler writes, but for the classes above."""

    def save(self, value: Any, save_persistent_id: bool = True) -> None:
        match value:
            case Raw():
                self.write(value.code)
            case Call():
                self.write(many([Name(value.path), value.args]) + pickle.REDUCE)
            case New():
                state = b"" if value.state is None else assemble(value.state) + pickle.BUILD
                new = assemble(Name(value.path)) + pickle.EMPTY_TUPLE + pickle.NEWOBJ
                self.write(new + state)
            case Name():
                self.write(many(value.path.split(":")) + pickle.STACK_GLOBAL)
            case _:
                super().save(value, save_persistent_id)


def assemble(value: Any) -> bytes:
    """The instructions that push a value."""
    file = io.BytesIO()
    assembler = Assembler(file, 4)
    assembler.fast = True  # no memo
    assembler.save(value)
    return file.getvalue()


def many(values: Any) -> bytes:
    return b"".join(map(assemble, values))


def stream(*values: Any) -> io.BytesIO:
    return io.BytesIO(pickle.PROTO + b"\x04" + many(values) + pickle.STOP)


def storage_bytes(tensor: Tensor) -> bytes:
    """What torch writes for the storage of a tensor."""
    with warnings.catch_warnings(action="ignore"), io.BytesIO() as file:
        torch.save(tensor.storage(), file, _use_new_zipfile_serialization=False)
        return file.getvalue()


def recorded_tensor(tensor: Tensor) -> Call:
    storage = Call(LOAD, (storage_bytes(tensor),))
    hooks = Call("collections:OrderedDict")
    layout = (tensor.storage_offset(), tuple(tensor.shape), tuple(tensor.stride()))
    return Call(REBUILD, (storage, *layout, False, hooks))


def parameter(tensor: Tensor) -> Call:
    args = (recorded_tensor(tensor), True, Call("collections:OrderedDict"))
    return Call("torch._utils:_rebuild_parameter", args)


def array_type(code: str) -> Raw:
    order = (3, "<", None, None, None, -1, -1, 0)
    return Raw(many([Call("numpy:dtype", (code, False, True)), order]) + pickle.BUILD)


def array_of(code: str, size: tuple[int, ...], data: bytes, core: str = "numpy._core") -> Raw:
    new = Call(f"{core}.multiarray:_reconstruct", (Name("numpy:ndarray"), (0,), b"b"))
    return Raw(many([new, (1, size, array_type(code), False, data)]) + pickle.BUILD)


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


WEIGHT = torch.arange(6.0).reshape(2, 3).half()


def network() -> Call:
    """A module with all kinds of members: Precond(unet: UNet(enc: ModuleDict(conv: MPConv)))."""
    conv = persistent("MPConv", module_state({"weight": parameter(WEIGHT), "bias": None}))
    buffers = {"filter": recorded_tensor(WEIGHT[0] + 1), "cache": recorded_tensor(WEIGHT)}
    enc = New(MODULES, module_state(modules={"conv": conv}))
    state = {
        **module_state({"gain": parameter(torch.tensor(2.0).half())}, buffers),
        "_non_persistent_buffers_set": {"cache"},
        "_modules": {"enc": enc, "emb_label": None},
    }
    unet = module_state(modules={"unet": persistent("UNet", state)})
    return persistent("Precond", unet, img_resolution=8, channel_mult=(1, 2))


EXPECTED = {
    "unet.gain": torch.tensor(2.0).half(),
    "unet.filter": WEIGHT[0] + 1,
    "unet.enc.conv.weight": WEIGHT,
}


def snapshot(**entries: Any) -> bytes:
    easy = Raw(assemble(New("dnnlib.util:EasyDict")) + pickle.MARK)
    items = {"dataset_kwargs": {"path": "x.zip"}, "loss_fn": None, **entries}
    code = Raw(many(itertools.chain.from_iterable(items.items())) + pickle.SETITEMS)
    return stream(easy, code).getvalue()
