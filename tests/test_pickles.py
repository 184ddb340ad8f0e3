"""Checkpoint files: what is read from them, and that nothing in them is run."""

import errno
import io
import json
import os
import pickle
import struct
import subprocess
import sys
import warnings
import zipfile
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pickle_builder import (
    LOAD,
    REBUILD,
    RECONSTRUCT,
    Call,
    Name,
    New,
    Raw,
    assemble,
    many,
    module_state,
    parameter,
    persistent,
    recorded_module,
    recorded_tensor,
    snapshot,
    storage_bytes,
    stream,
)
from safetensors.torch import load_file
from torch import Tensor, nn

from guidex.assets import checkpoints, pickles
from guidex.assets.checkpoints import Checkpoint, convert, read_checkpoint, write_checkpoint
from guidex.assets.pickles import Recorded, read_pickle
from guidex.errors import GuidexError, UsageError

GOLDEN = Path(__file__).parents[2] / "shared" / "golden"
NETWORKS = ("edm2-tiny-cond", "edm2-tiny-uncond", "edm2-tiny-rgb")

DTYPES = [
    torch.float16, torch.bfloat16, torch.float32, torch.float64,
    torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64,
]  # fmt: skip


def read(*values: Any) -> Any:
    return read_pickle(stream(*values))


WEIGHT = torch.arange(6.0).reshape(2, 3).half()


def network(zipped: bool = False) -> Call:
    """A module with all kinds of members: Precond(unet: UNet(enc: ModuleDict(conv: MPConv)))."""
    conv = persistent("MPConv", module_state({"weight": parameter(WEIGHT, zipped), "bias": None}))
    buffers = {"filter": recorded_tensor(WEIGHT[0] + 1, zipped), "cache": recorded_tensor(WEIGHT)}
    state = {
        **module_state({"gain": parameter(torch.tensor(2.0).half(), zipped)}, buffers),
        "_non_persistent_buffers_set": {"cache"},
        "_modules": {
            "enc": New(
                "torch.nn.modules.container:ModuleDict", module_state(modules={"conv": conv})
            ),
            "emb_label": None,
        },
    }
    unet = persistent("UNet", state)
    return persistent(
        "Precond", module_state(modules={"unet": unet}), img_resolution=8, channel_mult=(1, 2)
    )


EXPECTED = {
    "unet.gain": torch.tensor(2.0).half(),
    "unet.filter": WEIGHT[0] + 1,
    "unet.enc.conv.weight": WEIGHT,
}


def assert_same(tensors: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert tensors.keys() == expected.keys()
    for name, tensor in expected.items():
        assert tensors[name].dtype == tensor.dtype
        assert torch.equal(tensors[name], tensor)


# --- What is read -----------------------------------------------------------------------------

VALUES = [
    None, True, False, 0, 255, 65535, -1, 2**31 - 1, -(2**31), 2**100, 0.5, float("inf"),
    "", "text", "\u00e9\U0001f600" * 200, [], [1], [1, [2, 3]], (), (1,), (1, 2), (1, 2, 3),
    (1, 2, 3, 4), {}, {"a": 1}, {"a": 1, 7: {"b": (None,)}}, {"x", "y"},
]  # fmt: skip


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_plain_values_of_every_protocol(protocol: int) -> None:
    assert read_pickle(io.BytesIO(pickle.dumps(VALUES, protocol))) == VALUES


def test_ordered_dict_becomes_dict() -> None:
    value = read_pickle(io.BytesIO(pickle.dumps(OrderedDict(b=1, a=2))))
    assert type(value) is dict and list(value.items()) == [("b", 1), ("a", 2)]


def test_shared_parts_stay_shared() -> None:
    part = [1]
    first, second = read_pickle(io.BytesIO(pickle.dumps([part, part])))
    assert first is second


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_tensors_as_torch_pickles_them(protocol: int) -> None:
    base = torch.arange(24.0).reshape(2, 3, 4)
    attributed = nn.Parameter(torch.ones(3))
    attributed.note = "something"  # makes torch write _rebuild_parameter_with_state
    tensors = [
        torch.tensor(3.5), torch.zeros(0), torch.zeros(0, 5), base, base.mT, base[1],
        base[:, 1:, ::2], nn.Parameter(base.half()), attributed,
    ]  # fmt: skip
    values = read_pickle(io.BytesIO(pickle.dumps([t.detach().clone() for t in tensors], protocol)))
    values += [read_pickle(io.BytesIO(pickle.dumps(tensor, protocol))) for tensor in tensors]
    for value, tensor in zip(values, tensors + tensors, strict=True):
        assert type(value) is Tensor and value.dtype == tensor.dtype
        assert not value.requires_grad
        assert torch.equal(value, tensor)


@pytest.mark.parametrize("zipped", [False, True], ids=["legacy", "zip"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_storages_agree_with_torch(dtype: torch.dtype, zipped: bool) -> None:
    tensor = torch.tensor([0, 1, 2, 100]).to(dtype)
    payload = storage_bytes(tensor, zipped)
    with warnings.catch_warnings(action="ignore"):
        reference = torch.tensor(torch.load(io.BytesIO(payload), weights_only=True).tolist())
    value = read(recorded_tensor(tensor, zipped))
    assert value.dtype == dtype
    assert torch.equal(value, tensor) and torch.equal(value.to(reference.dtype), reference)


def test_tensors_of_one_storage() -> None:
    base = torch.arange(10.0)
    values = read_pickle(io.BytesIO(pickle.dumps([base[:4], base[4:]])))
    assert torch.equal(torch.cat(values), base)


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
@pytest.mark.parametrize(
    "array",
    [
        np.arange(6, dtype="f4").reshape(2, 3), np.asfortranarray(np.arange(6.0).reshape(2, 3)),
        np.array(1.5), np.zeros((0, 3), "i8"), np.arange(4, dtype=">i2"), np.arange(4, dtype="u1"),
        np.arange(4, dtype="f2"),
    ],
)  # fmt: skip
def test_arrays(array: np.ndarray, protocol: int) -> None:
    value = read_pickle(io.BytesIO(pickle.dumps(array, protocol)))
    assert value.dtype == array.dtype.newbyteorder("=") and np.array_equal(value, array)
    assert value.flags.f_contiguous == array.flags.f_contiguous


@pytest.mark.parametrize("core", ["numpy.core", "numpy._core"])
def test_arrays_in_the_spelling_of_both_numpy_generations(core: str) -> None:
    kind = array_type("f4")
    data = np.array([1.5, 2.5], "<f4").tobytes()
    array = Raw(
        assemble(Call(f"{core}.multiarray:_reconstruct", (Name("numpy:ndarray"), (0,), b"b")))
        + assemble((1, (2,), kind, False, data))
        + pickle.BUILD
    )
    assert read(array).tolist() == [1.5, 2.5]
    assert read(Call(f"{core}.multiarray:scalar", (kind, data[:4]))) == 1.5
    assert read(Call(f"{core}.numeric:_frombuffer", (data, kind, (2,), "C"))).tolist() == [1.5, 2.5]


def test_torch_constants() -> None:
    value = {"size": torch.Size([1, 2]), "type": torch.float16, "device": torch.device("cuda", 1)}
    expected = {"size": (1, 2), "type": torch.float16, "device": "cuda:1"}
    assert read_pickle(io.BytesIO(pickle.dumps(value))) == expected


def test_recorded_objects_are_inert_descriptions() -> None:
    value = read(network())
    assert isinstance(value, Recorded)
    assert (value.class_name, value.module, value.init_args) == ("Precond", None, ())
    assert value.init_kwargs == {"img_resolution": 8, "channel_mult": (1, 2)}
    unet = value.state["_modules"]["unet"]
    enc = unet.state["_modules"]["enc"]
    assert (enc.class_name, enc.module) == ("ModuleDict", "torch.nn.modules.container")
    assert torch.equal(enc.state["_modules"]["conv"].state["_parameters"]["weight"], WEIGHT)
    assert repr(value) == "<Recorded Precond>"


# --- What is refused --------------------------------------------------------------------------

STOP_HERE = pickle.PROTO + b"\x02" + assemble(Call("posix:system", ("touch marker",)))
EASY = "dnnlib.util:EasyDict"
HOOKS: dict[str, Any] = {}
ONE = Call(LOAD, (storage_bytes(torch.ones(1)),))
STRUCTURED = (3, "|", None, ("a",), {"a": 1}, 4, 1, 0)


def array_type(code: str) -> Raw:
    order = (3, "<", None, None, None, -1, -1, 0)
    return Raw(many([Call("numpy:dtype", (code, False, True)), order]) + pickle.BUILD)


def array_of(code: str, size: tuple[int, ...], data: bytes | Raw) -> Raw:
    new = Call("numpy._core.multiarray:_reconstruct", (Name("numpy:ndarray"), (0,), b"b"))
    return Raw(assemble(new) + assemble((1, size, array_type(code), False, data)) + pickle.BUILD)


def nested(reply: bytes) -> Call:
    """A legacy storage whose third pickle is another."""
    storage = storage_bytes(torch.ones(1))
    start = [i for i in range(len(storage)) if storage.startswith(b"\x80\x02", i)][2]
    return Call(LOAD, (storage[:start] + reply + storage[start:],))


RUNS_CODE = {
    "os.system": Call("os:system", ("touch marker",)),
    "posix.system": Call("posix:system", ("touch marker",)),
    "subprocess.Popen": Call("subprocess:Popen", (["touch", "marker"],)),
    "builtins.exec": Call("builtins:exec", ("open('marker', 'w')",)),
    "builtins.eval": Call("builtins:eval", ("open('marker', 'w')",)),
    "builtins.getattr": Call("builtins:getattr", (Name(EASY), "__init__")),
    "builtins.__import__": Call("builtins:__import__", ("os",)),
    "__main__.marker": Name("__main__:marker"),
    "runpy.run_path": Call("runpy:run_path", ("marker.py",)),
    "torch.load": Call("torch:load", ("marker",)),
    "torch.serialization.load": Call("torch.serialization:load", ("marker",)),
    "torch.storage._load_from_bytes.__globals__": Name(f"{LOAD}.__globals__"),
    "torch.storage.io.open": Call("torch.storage:io.open", ("marker", "w")),
    "torch.os.system": Call("torch:os.system", ("touch marker",)),
    "collections.OrderedDict.fromkeys": Call("collections:OrderedDict.fromkeys", ("ab",)),
    "numpy.load": Call("numpy:load", ("marker",)),
    "torch_utils.persistence.import_hook": Name("torch_utils.persistence:import_hook"),
    "copyreg._reconstructor": Name("copyreg:_reconstructor"),
}


@pytest.mark.parametrize("name", RUNS_CODE)
@pytest.mark.parametrize("where", ["at once", "in the state", "in a storage"])
def test_no_code_is_run(
    name: str, where: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    value = RUNS_CODE[name]
    if where == "in the state":
        value = persistent("Precond", {"hook": value})
    if where == "in a storage":
        value = nested(stream(value).getvalue())
    with pytest.raises(GuidexError) as refusal:
        read(value)
    assert f"the global {name}, which no EDM2 snapshot needs. Nothing" in str(refusal.value)
    assert list(tmp_path.iterdir()) == []


def test_a_named_module_is_not_imported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "trap.py").write_text("raise SystemExit('was run')")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(GuidexError, match="trap.Trap"):
        read(New("trap:Trap"))
    assert "trap" not in sys.modules


def test_source_code_in_a_snapshot_is_not_kept() -> None:
    assert "module_src" not in read(network()).state


REFUSED = {
    "extension code": (Raw(pickle.EXT1 + b"\x01"), "instruction EXT1"),
    "wide extension code": (Raw(pickle.EXT4 + b"\x01\0\0\0"), "instruction EXT4"),
    "persistent id": (Raw(assemble("0") + pickle.BINPERSID), "persistent id"),
    "text persistent id": (Raw(b"P0\n"), "instruction PERSID"),
    "INST": (Raw(pickle.MARK + b"ios\nsystem\n"), "instruction INST"),
    "OBJ": (Raw(pickle.MARK + assemble(Name(EASY)) + pickle.OBJ), "instruction OBJ"),
    "NEWOBJ_EX": (
        Raw(many([Name(EASY), (), {}]) + pickle.NEWOBJ_EX),
        "instruction NEWOBJ_EX",
    ),
    "DUP": (Raw(assemble([]) + pickle.DUP), "instruction DUP"),
    "no instruction": (Raw(b"\xff"), "0xff"),
    "second PROTO": (Raw(pickle.PROTO + b"\x04N"), "instruction PROTO"),
    "NEWOBJ of a function": (New(LOAD), "a new instance of the global torch.storage"),
    "NEWOBJ of a value": (Raw(many(["x", ()]) + pickle.NEWOBJ), "a new instance of a value"),
    "NEWOBJ with arguments": (Raw(many([Name(EASY), ("a",)]) + pickle.NEWOBJ), "arguments"),
    "call of a class": (Call(EASY), "a call of the global dnnlib.util.EasyDict"),
    "call of a value": (Raw(many(["x", ()]) + pickle.REDUCE), "a call of a value of type str"),
    "call of a recorded object": (
        Raw(many([persistent("A", {}), ()]) + pickle.REDUCE),
        "a call of a recorded A",
    ),
    "BUILD of a function": (
        Raw(many([Name(LOAD), (None, {"call": 1})]) + pickle.BUILD),
        "setting attributes of the global torch.storage._load_from_bytes",
    ),
    "BUILD of a class": (
        Raw(many([Name(EASY), (None, {"make": 1})]) + pickle.BUILD),
        "setting attributes of the global dnnlib.util.EasyDict",
    ),
    "BUILD of a dict": (Raw(many([{}, {"a": 1}]) + pickle.BUILD), "a value of type dict"),
    "BUILD of a tensor": (
        Raw(many([recorded_tensor(WEIGHT), (1,)]) + pickle.BUILD),
        "setting attributes of a value of type Tensor",
    ),
    "second BUILD": (
        Raw(many([New("torch.nn.modules.container:ModuleDict", {}), {}]) + pickle.BUILD),
        "setting attributes of a recorded ModuleDict",
    ),
    "state that is no dict": (
        New("torch.nn.modules.container:ModuleDict", ({}, {"state": 1})),
        "given to ModuleDict",
    ),
    "APPEND to a dict": (Raw(many([{}, 1]) + pickle.APPEND), "given to APPENDS"),
    "SETITEM of a tensor": (
        Raw(many([recorded_tensor(WEIGHT), 0, 1]) + pickle.SETITEM),
        "given to SETITEMS",
    ),
    "ADDITEMS to a tensor": (
        Raw(assemble(recorded_tensor(WEIGHT)) + pickle.MARK + assemble(1) + pickle.ADDITEMS),
        "given to ADDITEMS",
    ),
    "tuple as key": ({(1, 2): 3}, "used as a key"),
    "huge number as key": ({2**61 - 1: 3}, "used as a key"),
    "bare function": ([Name(LOAD)], "the global torch.storage._load_from_bytes where data belong"),
    "bare storage": ([ONE], "a value of type Storage where data belong"),
    "bare bytes": ([b"x"], "raw bytes where data belong"),
    "unfinished module": (New("torch.nn.modules.container:ModuleDict"), "unfinished"),
    "two values": (Raw(b"NN"), "unfinished"),
    "no value": (Raw(b""), "without its operands"),
    "operand beyond a mark": (Raw(b"N" + pickle.MARK + pickle.TUPLE1), "without its operands"),
    "unknown memo": (Raw(pickle.BINGET + b"\x07"), "never stored"),
    "list in itself": (
        Raw(pickle.EMPTY_LIST + pickle.MEMOIZE + pickle.BINGET + b"\0" + pickle.APPEND),
        "holds itself",
    ),
    "name that is no text": (Raw(many([1, "a"]) + pickle.STACK_GLOBAL), "name is no text"),
    "text that is not UTF-8": (Raw(pickle.SHORT_BINUNICODE + b"\x01\xff"), "not UTF-8"),
    "wide integer": (Raw(pickle.LONG1 + b"\x20" + bytes(32)), "an integer of 32 bytes"),
    "object array": (array_of("O8", (1,), b"N."), "an array of type O8"),
    "text array": (array_of("U9", (1,), bytes(36)), "an array of type U9"),
    "structured array": (
        Raw(many([Call("numpy:dtype", ("f4", False, True)), STRUCTURED]) + pickle.BUILD),
        "structured type",
    ),
    "array in place of a name": (
        Call("numpy:dtype", (array_of("f4", (2,), bytes(8)), False, True)),
        "an array of type unknown",
    ),
    "array larger than its data": (array_of("f4", (2**35,), bytes(4)), "an array of 34359738368"),
    "array of overflowing size": (array_of("f4", (0, *[2**40] * 9), b""), "of size"),
    "array of negative size": (array_of("f4", (-1,), b""), "cannot be sizes"),
    "array of another kind": (
        Call("numpy._core.multiarray:_reconstruct", (Name(EASY), (0,), b"b")),
        "that NumPy did not write",
    ),
    "array in no order": (
        Call("numpy._core.numeric:_frombuffer", (bytes(8), array_type("f4"), (2,), "K")),
        "unknown order",
    ),
    "array without dtype": (
        Call("numpy._core.multiarray:scalar", ("f4", bytes(4))),
        "takes ArrayType",
    ),
    "tensor of stride 0": (Call(REBUILD, (ONE, 0, (2**35,), (0,), False, HOOKS)), "1 of 1 elem"),
    "tensor past its storage": (Call(REBUILD, (ONE, 1, (1,), (1,), False, HOOKS)), "1 of 1 elem"),
    "tensor before its storage": (Call(REBUILD, (ONE, -1, (1,), (1,), False, HOOKS)), "from elem"),
    "tensor of negative stride": (
        Call(REBUILD, (ONE, 0, (1,), (-1,), False, HOOKS)),
        "cannot be sizes",
    ),
    "tensor of overflowing size": (
        Call(REBUILD, (ONE, 0, (0, *[2**40] * 9), (1,) * 10, False, HOOKS)),
        "of size",
    ),
    "tensor of too many dimensions": (
        Call(REBUILD, (ONE, 0, (1,) * 100, (1,) * 100, False, HOOKS)),
        "100 dimensions",
    ),
    "tensor of uneven layout": (
        Call(REBUILD, (ONE, 0, (1,), (1, 1), False, HOOKS)),
        "do not match",
    ),
    "tensor with hooks": (Call(REBUILD, (ONE, 0, (1,), (1,), False, {"a": 1})), "with hooks"),
    "tensor of a list": (Call(REBUILD, ([1.0], 0, (1,), (1,), False, HOOKS)), "takes Storage"),
    "tensor without arguments": (Call(REBUILD), "0 arguments"),
    "persistent object without type": (Call(RECONSTRUCT, ({},)), "without a class name"),
    "persistent object of odd type": (
        Call(RECONSTRUCT, ({"type": array_of("f4", (2,), bytes(8)), "class_name": "A"},)),
        "without a class name",
    ),
    "persistent name to print": (persistent("A\x1b[2J", {}), "without a class name"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_refused(case: str) -> None:
    value, reason = REFUSED[case]
    with pytest.raises(GuidexError, match="the stream: refused at byte") as refusal:
        read(value)
    assert reason in str(refusal.value)


def test_messages_do_not_print_what_a_file_says() -> None:
    with pytest.raises(GuidexError) as refusal:
        read(Name("\x1b[2Jos:" + "x" * 10_000))
    assert "\\x1b[2Jos.xxx" in str(refusal.value) and len(str(refusal.value)) < 400
    assert "\x1b" not in str(refusal.value)


@pytest.mark.parametrize("wrap", [pickle.TUPLE1, b"list"])
def test_nesting_is_limited(wrap: bytes) -> None:
    def nest(levels: int) -> Raw:
        if wrap == b"list":
            return Raw(b"]" * levels + pickle.APPEND * (levels - 1))
        return Raw(pickle.EMPTY_TUPLE + wrap * (levels - 1))

    read(nest(pickles.DEPTH_LIMIT))
    for levels in (pickles.DEPTH_LIMIT + 1, 200_000):
        with pytest.raises(GuidexError, match="nested deeper"):
            read(nest(levels))


def test_nesting_through_shared_parts_is_limited() -> None:
    # Each part is first met at a small depth; only the chain of all of them is too deep.
    parts = Raw(
        b"]" + pickle.MEMOIZE
        + b"".join(
            b"]" + pickle.MEMOIZE + pickle.BINGET + bytes([i]) + pickle.APPEND for i in range(120)
        )
        + pickle.TUPLE
    )  # fmt: skip
    with pytest.raises(GuidexError, match="nested deeper"):
        read(Raw(pickle.MARK), parts)


def legacy(count: int, keys: list[str], written: int, data: bytes, view: Any = None) -> Call:
    """A legacy storage that declares what it likes."""
    identity = ("storage", Name("torch:FloatStorage"), "7", "cpu", count, view)
    parts = [
        torch.serialization.MAGIC_NUMBER,
        1001,
        {},
        Raw(assemble(identity) + pickle.BINPERSID),
        keys,
    ]
    head = b"".join(stream(part).getvalue() for part in parts)
    return Call(LOAD, (head + struct.pack("<q", written) + data,))


def zipped(compression: int = zipfile.ZIP_STORED, **members: bytes) -> Call:
    with io.BytesIO() as file:
        with zipfile.ZipFile(file, "w", compression) as archive:
            for name, content in members.items():
                archive.writestr(f"archive/{name.replace('_', '/')}", content)
        return Call(LOAD, (file.getvalue().replace(b"data/pkl", b"data.pkl"),))


IDENTITY = stream(
    ("storage", Name("torch:FloatStorage"), "0", "cpu", 2**20), Raw(pickle.BINPERSID)
).getvalue()

STORAGES = {
    "more than there is": (legacy(2**38, ["7"], 2**38, bytes(4)), "what it declares"),
    "two sizes": (legacy(1, ["7"], 2, bytes(4)), "do not match"),
    "never delivered": (legacy(1, [], 1, bytes(4)), "do not match"),
    "seen in part": (legacy(1, ["7"], 1, bytes(4), ("8", 0, 1)), "not a whole storage"),
    "under another key": (legacy(1, ["8"], 1, bytes(4)), "do not match"),
    "a negative size": (legacy(-1, ["7"], -1, b""), "do not match"),
    "cut off": (Call(LOAD, (storage_bytes(torch.ones(4))[:-1],)), "what it declares"),
    "not from torch": (Call(LOAD, (stream(1).getvalue() * 5,)), "that torch did not write"),
    "nothing": (Call(LOAD, (b"",)), "declares 1 bytes where 0 are left"),
    "text": (Call(LOAD, ("x",)), "takes memoryview"),
    "a compressed zip": (
        zipped(zipfile.ZIP_DEFLATED, data_pkl=IDENTITY, data_0=bytes(2**22)),
        "with compressed parts",
    ),
    "a zip without elements": (zipped(data_pkl=IDENTITY), "damaged"),
    "a zip with few elements": (zipped(data_pkl=IDENTITY, data_0=bytes(4)), "what it declares"),
    "a zip without storage": (zipped(data_0=bytes(4)), "that torch did not write"),
    "a big-endian zip": (zipped(data_pkl=IDENTITY, byteorder=b"big"), "big-endian"),
    "a zip of many files": (zipped(**{f"a{i}": b"" for i in range(100)}), "too many parts"),
    "a broken zip": (Call(LOAD, (b"PK\x03\x04" + bytes(100),)), "damaged"),
}  # fmt: skip


@pytest.mark.parametrize("case", STORAGES)
def test_storage_refused(case: str) -> None:
    value, reason = STORAGES[case]
    with pytest.raises(GuidexError, match="refused") as refusal:
        read(Call(REBUILD, (value, 0, (1,), (1,), False, HOOKS)))
    assert reason in str(refusal.value)


def test_tensors_of_one_storage_do_not_multiply() -> None:
    storage = Raw(assemble(Call(LOAD, (storage_bytes(torch.ones(8)),))) + pickle.MEMOIZE)
    again = Raw(pickle.BINGET + b"\0")
    half = [Call(REBUILD, (part, 0, (4,), (1,), False, HOOKS)) for part in (storage, again, again)]
    assert len(read(half[:2])) == 2
    with pytest.raises(GuidexError, match="0 of 8 elements left"):
        read(half)


# --- Memory -----------------------------------------------------------------------------------

ZIPPED = zipped(data_pkl=IDENTITY, data_0=bytes(2**22))
BOMBS = {
    "bytes": Raw(pickle.BINBYTES8 + struct.pack("<Q", 2**40)),
    "bytearray": Raw(pickle.BYTEARRAY8 + struct.pack("<Q", 2**36)),
    "text": Raw(pickle.BINUNICODE8 + struct.pack("<Q", 2**62)),
    "short text": Raw(pickle.BINUNICODE + struct.pack("<I", 2**32 - 1)),
    "frame": Raw(pickle.FRAME + struct.pack("<Q", 2**40) + b"N"),
    "number": Raw(pickle.LONG4 + struct.pack("<i", 2**31 - 1)),
    "name": Raw(pickle.GLOBAL + b"x" * 1000),
    "memo": Raw(b"N" + pickle.LONG_BINPUT + b"\xff\xff\xff\xff" + pickle.POP),
    "marks": Raw(pickle.MARK * 600_000),
    "sets": Raw(pickle.MARK + pickle.EMPTY_SET * 600_000 + pickle.TUPLE),
    "recorded objects": Raw(
        many([New(EASY), Raw(pickle.MEMOIZE), persistent("A", {})])
        + (assemble(Name(RECONSTRUCT)) + pickle.BINGET + b"\0" + pickle.TUPLE1 + pickle.REDUCE)
        * 100_000
    ),
    "storage": legacy(2**38, ["7"], 2**38, bytes(4)),
    "zip again": Raw(
        assemble(ZIPPED.args[0])
        + pickle.MEMOIZE
        + (assemble(Name(LOAD)) + pickle.BINGET + b"\0" + pickle.TUPLE1 + pickle.REDUCE) * 2000
    ),
    "payload again": Raw(
        assemble(storage_bytes(torch.zeros(2**18)))
        + pickle.MEMOIZE
        + (assemble(Name(LOAD)) + pickle.BINGET + b"\0" + pickle.TUPLE1 + pickle.REDUCE) * 2000
    ),
    "array again": Raw(
        assemble(bytes(2**20)) + pickle.MEMOIZE + pickle.MARK
        + many([array_of("f4", (2**18,), Raw(pickle.BINGET + b"\0"))] * 2000)
    ),
    "array": array_of("f4", (2**35,), bytes(4)),
    "tensor": Call(REBUILD, (ONE, 0, (2**35,), (0,), False, HOOKS)),
    "size again": Raw(
        assemble((1,) * 10_000) + pickle.MEMOIZE
        + (assemble(Name("torch:Size")) + pickle.BINGET + b"\0" + pickle.TUPLE1 + pickle.REDUCE)
        * 50_000
    ),
    "bytearray call in a storage": nested(stream(Call("builtins:bytearray", (2**40,))).getvalue()),
    "tensor call in a storage": nested(stream(Call("torch:Tensor", (2**40,))).getvalue()),
}  # fmt: skip

BOUNDED = """
import resource, sys
from pathlib import Path
from guidex.assets.pickles import read_pickle
from guidex.errors import GuidexError

used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + 400 * 2**20,) * 2)
for path in sys.argv[1:]:
    try:
        read_pickle(path)
    except GuidexError as error:
        print(path, error)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="limits its memory as Linux does")
def test_memory_is_bounded(tmp_path: Path) -> None:
    for name, bomb in BOMBS.items():
        (tmp_path / name).write_bytes(stream(bomb).getvalue())
    paths = [str(tmp_path / name) for name in BOMBS]
    command = [sys.executable, "-c", BOUNDED, *paths]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    refusals = done.stdout.splitlines()
    for path, refusal in zip(paths, refusals, strict=True):
        assert refusal.startswith(f"{path} {path}: refused at byte")


WATCHED = """
import json
import sys
from guidex.assets.pickles import read_pickle
from guidex.errors import GuidexError

def read(path):
    try:
        read_pickle(path)
    except GuidexError as error:
        pass

for path in sys.argv[1:]:
    read(path)  # what the reader itself imports at first use is imported now
seen = []
sys.addaudithook(lambda event, args: seen.append((event, list(map(str, args)))))
for path in sys.argv[1:]:
    read(path)
sys.stdout.write(json.dumps(seen))
"""
FORBIDDEN = (
    "import", "compile", "exec", "code.", "function.", "marshal.", "pickle.", "ctypes.", "os.",
    "subprocess.", "socket.", "shutil.", "tempfile.", "urllib.", "object.__setattr__",
)  # fmt: skip


def test_reading_does_nothing_but_open_the_file(tmp_path: Path) -> None:
    files = {
        "snapshot": snapshot(ema=network()),
        "zip": snapshot(ema=network(zipped=True)),
        "attack": stream(RUNS_CODE["os.system"]).getvalue(),
        "nested": stream(nested(stream(RUNS_CODE["os.system"]).getvalue())).getvalue(),
    }
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
    command = [sys.executable, "-c", WATCHED, *(str(tmp_path / name) for name in files)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    seen = json.loads(done.stdout)
    opened = [args[:2] for event, args in seen if event == "open"]
    assert opened == [[str(tmp_path / name), "r"] for name in files]
    assert [event for event, _ in seen if event.startswith(FORBIDDEN)] == []


# --- Damaged and other files ------------------------------------------------------------------


def test_every_truncation_is_told() -> None:
    whole = snapshot(ema=network())
    for length in (*range(2, len(whole), 17), *range(len(whole) - 100, len(whole))):
        with pytest.raises(GuidexError):
            read_pickle(io.BytesIO(whole[:length]))


@pytest.mark.parametrize("zipped", [False, True], ids=["legacy", "zip"])
def test_damage_never_raises_anything_else(zipped: bool) -> None:
    whole = snapshot(ema=network(zipped), encoder=array_of("f4", (2,), bytes(8)))
    rng = np.random.default_rng(0)
    refused = 0
    for _ in range(1500):
        damaged = bytearray(whole)
        for position in rng.integers(2, len(whole), rng.integers(1, 4)):
            damaged[position] = rng.integers(256)
        try:
            read_pickle(io.BytesIO(damaged))
        except GuidexError:
            refused += 1
    assert 300 < refused < 1500


def test_trailing_bytes_are_refused() -> None:
    with pytest.raises(GuidexError, match="3 bytes follow the end"):
        read_pickle(io.BytesIO(stream(1).getvalue() + b"abc"))


@pytest.mark.parametrize(
    ("content", "looks"),
    [
        (b"", "an empty file"),
        (b"\n <!DOCTYPE html><html>", "a web page"),
        (b"<html><body>404</body></html>", "a web page"),
        (b"<?xml version='1.0'?>", "web page or XML"),
        (b"version https://git-lfs.github.com/spec/v1\n", "Git LFS pointer"),
        (b"PK\x03\x04" + bytes(30), "a zip archive"),
        (b"\x1f\x8b\x08" + bytes(30), "gzip"),
        (b"\x93NUMPY\x01\x00", "a NumPy array file"),
        (b'{"config": 1}', "JSON"),
        (bytes(100), "zero bytes"),
        ((2).to_bytes(8, "little") + b"{}", "a safetensors file"),
        (pickle.dumps({"a": 1}, 0), "not a pickle of protocol 2 to 5"),
        (b"\x80", "not a pickle of protocol 2 to 5"),
        (storage_bytes(torch.ones(1)), "a legacy torch.save file"),
    ],
)
def test_other_files_are_told_apart(content: bytes, looks: str, tmp_path: Path) -> None:
    path = tmp_path / "net.pkl"
    path.write_bytes(content)
    for reader in (read_pickle, read_checkpoint):
        with pytest.raises(UsageError) as error:
            reader(path)
        assert str(error.value).startswith(f"{path}: ") and looks in str(error.value)


def test_missing_files(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="does not exist"):
        read_pickle(tmp_path / "none.pkl")
    with pytest.raises(UsageError, match="is not a file"):
        read_pickle(str(tmp_path))


# --- Checkpoints ------------------------------------------------------------------------------


def save(path: Path, **entries: Any) -> Path:
    path.write_bytes(snapshot(**entries))
    return path


@pytest.mark.parametrize("zipped", [False, True], ids=["legacy", "zip"])
def test_checkpoint_of_a_snapshot(tmp_path: Path, zipped: bool) -> None:
    encoder = persistent("StabilityVAEEncoder", {"scale": array_of("f4", (1,), b"\0\0\0?")}, n=1)
    path = save(tmp_path / "net.pkl", ema=network(zipped), encoder=encoder)
    checkpoint = read_checkpoint(path)
    assert checkpoint.config == {"img_resolution": 8, "channel_mult": [1, 2]}
    assert list(checkpoint.tensors) == list(EXPECTED)  # in the order of torch's state_dict
    assert_same(checkpoint.tensors, EXPECTED)
    assert len(checkpoint.metadata.pop("sha256")) == 64
    assert checkpoint.metadata == {
        "source": "net.pkl",
        "entry": "ema",
        "network": "Precond",
        "dtype": "float16",
        "dataset_kwargs": {"path": "x.zip"},
        "encoder": {
            "class_name": "StabilityVAEEncoder",
            "init_args": [],
            "init_kwargs": {"n": 1},
            "state": {"scale": [0.5]},
        },
    }


def test_state_dict_agrees_with_torch(tmp_path: Path) -> None:
    """A real module, recorded as EDM2's persistence would record it."""

    module = nn.Sequential(nn.Conv2d(2, 3, 3), nn.BatchNorm2d(3), nn.Linear(3, 2, bias=False))
    module[2].register_buffer("transient", torch.ones(3), persistent=False)
    checkpoint = read_checkpoint(save(tmp_path / "net.pkl", ema=recorded_module(module)))
    assert list(checkpoint.tensors) == list(module.state_dict())
    assert_same(checkpoint.tensors, module.state_dict())
    assert checkpoint.metadata["dtype"] == "float32, int64"


def test_ema_is_preferred_to_the_network_in_training(tmp_path: Path) -> None:
    other = persistent("Precond", module_state({"gain": parameter(torch.ones(1))}))
    both = save(tmp_path / "both.pkl", net=other, ema=network())
    assert read_checkpoint(both).metadata["entry"] == "ema"
    one = read_checkpoint(save(tmp_path / "one.pkl", net=other, ema=None))
    assert one.metadata["entry"] == "net" and list(one.tensors) == ["gain"]


def doubled(levels: int, value: Any, double: Any) -> Any:
    """A value that holds the next one twice, and so on: 2^levels values in few bytes."""
    for level in range(levels):
        kept = Raw(assemble(value) + pickle.MEMOIZE)
        value = double(kept, Raw(pickle.BINGET + bytes([level])))
    return value


def twins(first: Any, second: Any) -> Call:
    return persistent("Precond", module_state(modules={"a": first, "b": second}))


LEAF = persistent("Precond", module_state({"w": parameter(torch.ones(1))}))
MANY = persistent("Precond", module_state({f"w{k}": parameter(torch.ones(1)) for k in range(200)}))
LARGE = persistent("Precond", module_state({"w": parameter(torch.ones(1000))}))
UNSUITABLE = {
    "no network": ({"weights": 1}, "its entries are: dataset_kwargs, loss_fn, weights."),
    "no recorded network": ({"ema": {"w": 1}}, "no network under ema or net"),
    "another class": ({"ema": persistent("Generator", {})}, "holds a Generator"),
    "no module": ({"ema": persistent("Precond", {})}, "without _parameters"),
    "odd module": (
        {"ema": persistent("Precond", module_state(modules={"a": 1}))},
        "a. is not a module",
    ),
    "odd parameter": (
        {"ema": persistent("Precond", module_state({"a": "x"}))},
        "a is not a tensor",
    ),
    "dotted name": (
        {"ema": persistent("Precond", module_state({"a.b": recorded_tensor(WEIGHT)}))},
        "is called 'a.b'",
    ),
    "name to print": (
        {"ema": persistent("Precond", module_state({"a\x1b": recorded_tensor(WEIGHT)}))},
        "is called 'a\\x1b'",
    ),
    "no set of buffers": (
        {"ema": persistent("Precond", {**module_state(), "_non_persistent_buffers_set": [1]})},
        "which buffers are persistent",
    ),
    "long name": (
        {"ema": persistent("Precond", module_state({"a" * 300: recorded_tensor(WEIGHT)}))},
        "longer than 256",
    ),
    "many modules": ({"ema": doubled(13, LEAF, twins)}, "more than 10000 modules and tensors"),
    "many tensors": ({"ema": doubled(6, MANY, twins)}, "more than 10000 modules and tensors"),
    "many bytes": ({"ema": doubled(6, LARGE, twins)}, "its tensors claim"),
    "many values": (
        {"ema": network(), "dataset_kwargs": doubled(40, [1], lambda *pair: [*pair])},
        "more than 10000 recorded values",
    ),
    "no number": ({"ema": persistent("Precond", module_state(), sigma=float("nan"))}, "JSON"),
    "odd key": ({"ema": network(), "dataset_kwargs": {1: 2}}, "is called 1"),
    "long text": ({"ema": network(), "dataset_kwargs": {"path": "x" * 2000}}, "JSON cannot hold"),
}  # fmt: skip


@pytest.mark.parametrize("case", UNSUITABLE)
def test_unsuitable_snapshots(case: str, tmp_path: Path) -> None:
    entries, reason = UNSUITABLE[case]
    path = save(tmp_path / "net.pkl", **entries)
    with pytest.raises(GuidexError) as error:
        read_checkpoint(path)
    assert str(error.value).startswith(f"{path}: ") and reason in str(error.value)


def test_unnamed_arguments_are_refused(tmp_path: Path) -> None:
    state = {"_init_args": (8, 4), "_init_kwargs": {}, **module_state()}
    meta = {"type": "class", "class_name": "Precond", "state": state}
    with pytest.raises(GuidexError, match="unnamed arguments"):
        read_checkpoint(save(tmp_path / "net.pkl", ema=Call(RECONSTRUCT, (meta,))))


# --- Conversion -------------------------------------------------------------------------------


def assert_equal(checkpoint: Checkpoint, expected: Checkpoint) -> None:
    assert checkpoint.config == expected.config
    assert checkpoint.metadata == expected.metadata
    assert_same(checkpoint.tensors, expected.tensors)


def test_conversion_keeps_everything(tmp_path: Path) -> None:
    source = save(tmp_path / "net-0.130.pkl", ema=network())
    destination = tmp_path / "net-0.130.safetensors"
    checkpoint = convert(source, destination)
    assert_equal(checkpoint, read_checkpoint(source))
    assert_equal(read_checkpoint(destination), checkpoint)
    assert_equal(convert(destination, tmp_path / "again.safetensors"), checkpoint)
    assert_same(load_file(destination), EXPECTED)
    written = json.loads((tmp_path / "net-0.130.json").read_text())
    assert written == {"format": 1, "config": checkpoint.config, "metadata": checkpoint.metadata}
    assert len(list(tmp_path.iterdir())) == 5


def test_tied_and_strided_tensors_are_written(tmp_path: Path) -> None:
    base = torch.arange(6.0).reshape(2, 3)
    tensors = {"a": base, "b": base, "c": base.T, "d": base[:, 1], "e": torch.zeros(0)}
    write_checkpoint(Checkpoint({}, tensors, {}), tmp_path / "net.safetensors")
    assert_same(read_checkpoint(tmp_path / "net.safetensors").tensors, tensors)


def test_nothing_is_overwritten_unasked(tmp_path: Path) -> None:
    source = save(tmp_path / "net.pkl", ema=network())
    destination = tmp_path / "net.safetensors"
    (tmp_path / "net.json").write_text("mine")
    with pytest.raises(UsageError, match="net.json is already there"):
        convert(source, destination)
    assert (tmp_path / "net.json").read_text() == "mine" and not destination.exists()
    convert(source, destination, overwrite=True)
    assert_same(read_checkpoint(destination).tensors, EXPECTED)


def test_a_snapshot_that_is_replaced_while_it_is_read_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = save(tmp_path / "net.pkl", ema=network())
    read = checkpoints.read_pickle

    def slow(source: Path) -> object:
        data = read(source)
        (tmp_path / "new").write_bytes(path.read_bytes())
        (tmp_path / "new").replace(path)
        return data

    monkeypatch.setattr(checkpoints, "read_pickle", slow)
    with pytest.raises(GuidexError, match="net.pkl was replaced while it was being read"):
        read_checkpoint(path)


@pytest.mark.parametrize("there", [False, True])
@pytest.mark.parametrize("failing", [0, 1])
def test_both_files_are_written_or_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, there: bool, failing: int
) -> None:
    destination = tmp_path / "net.safetensors"
    if there:
        write_checkpoint(Checkpoint({}, {"a": torch.ones(2)}, {}), destination)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    writes = iter(range(2))
    fsync = os.fsync

    def full(descriptor: int) -> None:
        if next(writes) == failing:
            raise OSError(errno.ENOSPC, "full")
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(GuidexError, match="cannot write .*net.* disk is full"):
        write_checkpoint(Checkpoint({}, {"a": torch.zeros(3)}, {}), destination, overwrite=True)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_a_folder_in_the_place_of_a_file_is_told_first(tmp_path: Path) -> None:
    (tmp_path / "net.json").mkdir()
    with pytest.raises(UsageError, match="net.json is already there"):
        write_checkpoint(Checkpoint({}, {}, {}), tmp_path / "net.safetensors", overwrite=True)


def test_the_destination_is_checked_before_the_source_is_read(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="ends in .safetensors"):
        convert(tmp_path / "none.pkl", tmp_path / "net.pt")
    with pytest.raises(UsageError, match="no folder"):
        convert(tmp_path / "none.pkl", tmp_path / "new" / "net.safetensors")


def test_pairs_that_do_not_belong_together(tmp_path: Path) -> None:
    for name, resolution in (("a", 8), ("b", 16)):
        checkpoint = Checkpoint({"img_resolution": resolution}, EXPECTED, {})
        write_checkpoint(checkpoint, tmp_path / f"{name}.safetensors")
    (tmp_path / "a.json").write_bytes((tmp_path / "b.json").read_bytes())
    with pytest.raises(GuidexError, match="does not belong to"):
        read_checkpoint(tmp_path / "a.safetensors")
    (tmp_path / "b.json").unlink()
    with pytest.raises(UsageError, match="b.json: does not exist"):
        read_checkpoint(tmp_path / "b.safetensors")


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "not a readable description"),
        ("[" * 100_000, "not a readable description"),
        ('{"format": 1, "config": {"a": NaN}, "metadata": {}}', "NaN is not a JSON number"),
        ('{"a": ' + "9" * 10_000 + "}", "not a readable description"),
        ("[]", "not the description"),
        ('{"format": 1, "config": []}', "not the description"),
        ('{"format": 2, "config": {}, "metadata": {}}', "not of format 1"),
        (" " * (2**24 + 1), "larger than"),
    ],
)
def test_damaged_descriptions(tmp_path: Path, text: str, reason: str) -> None:
    write_checkpoint(Checkpoint({}, EXPECTED, {}), tmp_path / "net.safetensors")
    (tmp_path / "net.json").write_text(text)
    with pytest.raises(GuidexError, match=reason):
        read_checkpoint(tmp_path / "net.safetensors")


@pytest.mark.parametrize("content", [b"", b"<html>", bytes(100), (2**60).to_bytes(8, "little")])
def test_damaged_weights(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "net.safetensors"
    write_checkpoint(Checkpoint({}, EXPECTED, {}), path)
    whole = path.read_bytes()
    for damaged in (content, whole[:-1], whole + b"x"):
        path.write_bytes(damaged)
        with pytest.raises(GuidexError, match="not a readable safetensors file"):
            read_checkpoint(path)


# --- Golden snapshots -------------------------------------------------------------------------


@pytest.mark.parametrize("name", NETWORKS)
def test_golden_snapshots(name: str, tmp_path: Path) -> None:
    path = GOLDEN / f"{name}.pkl"
    if not path.exists():
        pytest.skip(f"{path} is not part of the repository")
    checkpoint = read_checkpoint(path)
    assert checkpoint.config == json.loads((GOLDEN / f"{name}.config.json").read_text())
    with np.load(GOLDEN / f"{name}.weights.npz") as weights:
        assert list(checkpoint.tensors) == weights.files
        for key in weights.files:
            assert checkpoint.tensors[key].dtype == torch.float16
            np.testing.assert_array_equal(checkpoint.tensors[key].float().numpy(), weights[key])
    convert(path, tmp_path / "net.safetensors")
    assert_equal(read_checkpoint(tmp_path / "net.safetensors"), checkpoint)
