"""Pickles: what is read from them, and that nothing in them is run."""

import copyreg
import io
import json
import pickle
import struct
import subprocess
import sys
import warnings
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pickle_builder import (
    LOAD,
    MODULES,
    REBUILD,
    RECONSTRUCT,
    WEIGHT,
    Call,
    Name,
    New,
    Raw,
    array_of,
    array_type,
    assemble,
    many,
    network,
    persistent,
    recorded_tensor,
    snapshot,
    storage_bytes,
    stream,
)
from torch import Tensor, nn

from guidex.errors import GuidexError, UsageError
from guidex.files.pickles import Recorded, read_pickle
from guidex.models.edm2.checkpoints import read_checkpoint

DTYPES = [
    torch.float16, torch.bfloat16, torch.float32, torch.float64,
    torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64,
]  # fmt: skip


def read(*values: Any) -> Any:
    return read_pickle(stream(*values))


# --- What is read -----------------------------------------------------------------------------

PROTOCOLS = [2, 3, 4, 5]
VALUES = [
    None, True, False, 0, 255, 65535, -1, 2**31 - 1, -(2**31), 2**100, 0.5, float("inf"),
    "", "text", "\u00e9\U0001f600" * 200, [], [1], [1, [2, 3]], (), (1,), (1, 2), (1, 2, 3),
    (1, 2, 3, 4), {}, {"a": 1}, {"a": 1, 7: {"b": (None,)}}, {"x", "y"}, set(), b"", b"a\0\xff",
]  # fmt: skip


def again(value: Any, protocol: int | None = None) -> Any:
    return read_pickle(io.BytesIO(pickle.dumps(value, protocol)))


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_plain_values_of_every_protocol(protocol: int) -> None:
    assert again(VALUES, protocol) == VALUES


def test_ordered_dict_becomes_dict() -> None:
    value = OrderedDict(b=1, a=2)
    value._metadata = {"version": 1}  # as torch gives its state dicts
    read = again(value)
    assert type(read) is dict and list(read.items()) == [("b", 1), ("a", 2)]


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_tensors_as_torch_pickles_them(protocol: int) -> None:
    base = torch.arange(24.0).reshape(2, 3, 4)
    attributed = nn.Parameter(torch.ones(3))
    attributed.note = "something"  # makes torch write _rebuild_parameter_with_state
    tensors = [
        torch.tensor(3.5), torch.zeros(0), torch.zeros(0, 5), base, base.mT, base[1],
        base[:, 1:, ::2], nn.Parameter(base.half()), attributed,
    ]  # fmt: skip
    for value, tensor in zip(again(tensors, protocol), tensors, strict=True):
        assert type(value) is Tensor and value.dtype == tensor.dtype
        assert not value.requires_grad
        assert torch.equal(value, tensor)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_storages_agree_with_torch(dtype: torch.dtype) -> None:
    tensor = torch.tensor([0, 1, 2, 100]).to(dtype)
    with warnings.catch_warnings(action="ignore"):
        payload = io.BytesIO(storage_bytes(tensor))
        reference = torch.tensor(torch.load(payload, weights_only=True).tolist())
    value = read(recorded_tensor(tensor))
    assert value.dtype == dtype
    assert torch.equal(value, tensor) and torch.equal(value.to(reference.dtype), reference)


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize(
    "array",
    [
        np.arange(6, dtype="f4").reshape(2, 3), np.asfortranarray(np.arange(6.0).reshape(2, 3)),
        np.array(1.5), np.zeros((0, 3), "i8"), np.arange(4, dtype="u1"),
        np.arange(4, dtype="f2"),
    ],
)  # fmt: skip
def test_arrays(array: np.ndarray, protocol: int) -> None:
    value = again(array, protocol)
    assert value.dtype == array.dtype.newbyteorder("=") and np.array_equal(value, array)
    assert value.flags.f_contiguous == array.flags.f_contiguous


@pytest.mark.parametrize("core", ["numpy.core", "numpy._core"])
def test_arrays_in_the_spelling_of_both_numpy_generations(core: str) -> None:
    kind, data = array_type("f4"), np.array([1.5, 2.5], "<f4").tobytes()
    assert read(array_of("f4", (2,), data, core)).tolist() == [1.5, 2.5]
    assert read(Call(f"{core}.multiarray:scalar", (kind, data[:4]))) == 1.5


def test_torch_constants() -> None:
    value = {"size": torch.Size([1, 2]), "type": torch.float16, "device": torch.device("cuda", 1)}
    assert again(value) == {"size": (1, 2), "type": torch.float16, "device": "cuda:1"}
    assert again(torch.device("cpu")) == "cpu"


def test_recorded_objects_are_inert_descriptions() -> None:
    value = read(network())
    assert isinstance(value, Recorded)
    assert (value.class_name, value.init_args) == ("Precond", ())
    assert value.init_kwargs == {"img_resolution": 8, "channel_mult": (1, 2)}
    unet = value.state["_modules"]["unet"]
    enc = unet.state["_modules"]["enc"]
    assert enc.class_name == "ModuleDict"
    assert torch.equal(enc.state["_modules"]["conv"].state["_parameters"]["weight"], WEIGHT)
    assert "module_src" not in value.state  # its source code is not kept


# --- What is refused --------------------------------------------------------------------------

EASY = "dnnlib.util:EasyDict"
ONE = Call(LOAD, (storage_bytes(torch.ones(1)),))


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
    "__builtin__.eval": Call("__builtin__:eval", ("open('marker', 'w')",)),
    "builtins.getattr": Call("builtins:getattr", (Name(EASY), "__init__")),
    "builtins.__import__": Call("builtins:__import__", ("os",)),
    "builtins.bytearray": Call("builtins:bytearray", (2**40,)),
    "__main__.marker": Name("__main__:marker"),
    "runpy.run_path": Call("runpy:run_path", ("marker.py",)),
    "torch.load": Call("torch:load", ("marker",)),
    "torch.Tensor": Call("torch:Tensor", (2**40,)),
    "torch.serialization.load": Call("torch.serialization:load", ("marker",)),
    "torch.storage._load_from_bytes.__globals__": Name(f"{LOAD}.__globals__"),
    "torch.storage.io.open": Call("torch.storage:io.open", ("marker", "w")),
    "torch.os.system": Call("torch:os.system", ("touch marker",)),
    "collections.OrderedDict.fromkeys": Call("collections:OrderedDict.fromkeys", ("ab",)),
    "numpy.load": Call("numpy:load", ("marker",)),
    "torch_utils.persistence.import_hook": Name("torch_utils.persistence:import_hook"),
    "guidex.files.pickles._Inert": Name("guidex.files.pickles:_Inert"),
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
    assert f"refused: it names {name}, which is no data" in str(refusal.value)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_no_reduction_is_run(protocol: int) -> None:
    class Trap:
        def __reduce__(self) -> Any:
            return sys.exit, ("was run",)

    with pytest.raises(GuidexError, match="it names sys.exit"):
        again(Trap(), protocol)


def test_a_named_module_is_not_imported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "trap.py").write_text("raise SystemExit('was run')")
    monkeypatch.syspath_prepend(tmp_path)
    for name in ("trap:Trap", "trap:os.system"):
        with pytest.raises(GuidexError, match="it names trap"):
            read(New(name))
    assert "trap" not in sys.modules


@pytest.mark.parametrize("kept", [False, True])
def test_registered_extension_codes_are_refused(kept: bool) -> None:
    code = Raw(pickle.EXT1 + b"\x7b" + assemble(("was run",)) + pickle.REDUCE)
    copyreg.add_extension("sys", "exit", 0x7B)
    try:
        if kept:  # by Python, as after an unpickling that used the code
            assert pickle.loads(pickle.PROTO + b"\x04" + pickle.EXT1 + b"\x7b.") is sys.exit
        with pytest.raises(GuidexError, match="by its number in the process"):
            read(code)
    finally:
        copyreg.remove_extension("sys", "exit", 0x7B)


@pytest.mark.parametrize("target", [LOAD, RECONSTRUCT, EASY, MODULES, "torch:float16"])
@pytest.mark.parametrize("state", [{"maker": 1}, (None, {"__defaults__": (1,)})], ids=str)
def test_attributes_of_names_cannot_be_set(target: str, state: Any) -> None:
    for values in ([Name(target), state], [Name(target), (), state]):
        with pytest.raises(GuidexError):
            read(Raw(many(values) + pickle.BUILD))


def then(instruction: bytes, *values: Any) -> Raw:
    return Raw(many(values) + instruction)


NEW_ARRAY = Call("numpy._core.multiarray:_reconstruct", (Name("numpy:ndarray"), (0,), b"b"))


def tensor_of(
    size: Any, stride: Any = (1,), offset: int = 0, storage: Any = ONE, hooks: Any = ()
) -> Call:
    return Call(REBUILD, (storage, offset, size, stride, False, dict(hooks)))


def array_call(name: str, *args: Any) -> Call:
    return Call(f"numpy._core.{name}", args)


WEIGHTS_OF = recorded_tensor(WEIGHT)
ODD_TYPE = {"type": array_of("f4", (2,), bytes(8)), "class_name": "A", "state": {}}
REFUSED = {
    "extension code": Raw(pickle.EXT1 + b"\x01"),
    "wide extension code": Raw(pickle.EXT4 + b"\x01\0\0\0"),
    "persistent id": then(pickle.BINPERSID, "0"),
    "text persistent id": Raw(b"P0\n"),
    "INST": Raw(pickle.MARK + b"ios\nsystem\n"),
    "OBJ": Raw(pickle.MARK + assemble(Name("os:system")) + pickle.OBJ),
    "NEWOBJ_EX": then(pickle.NEWOBJ_EX, Name("os:system"), (), {}),
    "NEWOBJ of a function": New(LOAD),
    "NEWOBJ of a value": then(pickle.NEWOBJ, "x", ()),
    "call of a value": then(pickle.REDUCE, "x", ()),
    "call of a recorded object": then(pickle.REDUCE, persistent("A", {}), ()),
    "call of a tensor": then(pickle.REDUCE, WEIGHTS_OF, ()),
    "BUILD of a list": then(pickle.BUILD, [], (None, {"append": 1})),
    "BUILD of a tensor": then(pickle.BUILD, WEIGHTS_OF, (1,)),
    "BUILD of a recorded object": then(pickle.BUILD, persistent("A", {}), (None, {"args": 1})),
    "APPEND to a function": then(pickle.APPEND, Name(EASY), 1),
    "SETITEM of a function": then(pickle.SETITEM, Name(EASY), "a", 1),
    "bytes in another code": Call("_codecs:encode", ("a", "rot13")),
    "bytes of a size": Call("builtins:bytes", (2**40,)),
    "object array": array_of("O8", (1,), b"N."),
    "object array of a buffer": array_call("numeric:_frombuffer", bytes(8), "O", (1,), "C"),
    "object array by its state": then(pickle.BUILD, NEW_ARRAY, (1, (1,), "O", False, [1])),
    "text array": array_of("U9", (1,), bytes(36)),
    "structured array": array_of("V8", (1,), bytes(8)),
    "array larger than its data": array_of("f4", (2**35,), bytes(4)),
    "array of negative size": array_of("f4", (-2,), b""),
    "array in no order": array_call("numeric:_frombuffer", bytes(8), array_type("f4"), (2,), "Q"),
    "tensor of stride 0": tensor_of((2**35,), (0,)),
    "tensor past its storage": tensor_of((1,), offset=1),
    "tensor before its storage": tensor_of((1,), offset=-1),
    "tensor of negative stride": tensor_of((1,), (-1,)),
    "tensor of negative size": tensor_of((-1,)),
    "tensor of overflowing size": tensor_of((2**62,) * 2, (0, 0)),
    "tensor of overflowing stride": tensor_of((2,), (2**62,)),
    "tensor of uneven layout": tensor_of((1,), (1, 1)),
    "tensor of a list": tensor_of((1,), storage=[1.0]),
    "persistent object without type": Call(RECONSTRUCT, ({},)),
    "persistent object of odd type": Call(RECONSTRUCT, (ODD_TYPE,)),
    "persistent name to print": persistent("A\x1b[2J", {}),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refused(case: str) -> None:
    with pytest.raises(GuidexError, match="the stream: refused: .*in the file was run"):
        read(REFUSED[case])


def test_messages_do_not_print_what_a_file_says() -> None:
    with pytest.raises(GuidexError) as refusal:
        read(Name("\x1b[2Jos:" + "x" * 10_000))
    assert "\\x1b[2Jos.xxx" in str(refusal.value) and len(str(refusal.value)) < 400
    assert "\x1b" not in str(refusal.value)


LEVELS = 200_000
NESTED = {
    "lists": pickle.EMPTY_LIST * LEVELS + pickle.APPEND * (LEVELS - 1),
    "tuples": pickle.EMPTY_TUPLE + pickle.TUPLE1 * LEVELS,
    "dicts": (b"}" + assemble("a")) * LEVELS + pickle.NONE + pickle.SETITEM * LEVELS,
}


@pytest.mark.parametrize("kind", NESTED)
def test_endless_nesting_is_told(kind: str, tmp_path: Path) -> None:
    nest = Raw(NESTED[kind])
    assert len(read(nest)) == 1  # neither run nor followed
    (tmp_path / "net.pkl").write_bytes(snapshot(ema=persistent("Precond", {}, size=nest)))
    with pytest.raises(GuidexError, match="not an EDM2 snapshot"):
        read_checkpoint(tmp_path / "net.pkl")


def legacy(
    count: int, keys: list[str], written: int, data: bytes, view: Any = None, protocol: int = 1001
) -> Call:
    """A legacy storage that declares what it likes."""
    identity = ("storage", Name("torch:FloatStorage"), "7", "cpu", count, view)
    parts = [0x1950A86A20F9469CFC6C, protocol, {}, then(pickle.BINPERSID, identity), keys]
    head = b"".join(stream(part).getvalue() for part in parts)
    return Call(LOAD, (head + struct.pack("<q", written) + data,))


STORAGES = {
    "more than there is": legacy(2**38, ["7"], 2**38, bytes(4)),
    "two sizes": legacy(1, ["7"], 2, bytes(4)),
    "never delivered": legacy(1, [], 1, bytes(4)),
    "seen in part": legacy(1, ["7"], 1, bytes(4), ("8", 0, 1)),
    "under another key": legacy(1, ["8"], 1, bytes(4)),
    "of another protocol": legacy(1, ["7"], 1, bytes(4), protocol=1002),
    "a negative size": legacy(-1, ["7"], -1, b""),
    "cut off": Call(LOAD, (storage_bytes(torch.ones(4))[:-1],)),
    "cut off before its size": Call(LOAD, (storage_bytes(torch.ones(4))[:-20],)),
    "not from torch": Call(LOAD, (stream(1).getvalue() * 5,)),
    "nothing": Call(LOAD, (b"",)),
    "text": Call(LOAD, ("x",)),
    "a zip": Call(LOAD, (b"PK\x03\x04" + bytes(100),)),
}


@pytest.mark.parametrize("case", STORAGES)
def test_storage_refused(case: str) -> None:
    assert read(tensor_of((1,), storage=legacy(1, ["7"], 1, struct.pack("<f", 2)))).item() == 2
    for length in (0, 1):
        with pytest.raises(GuidexError, match="refused"):
            read(tensor_of((length,), storage=STORAGES[case]))


WATCHED = """
import json
import sys
from guidex.files.pickles import read_pickle
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


def test_damage_never_raises_anything_else() -> None:
    whole = snapshot(ema=network(), encoder=array_of("f4", (2,), bytes(8)))
    rng = np.random.default_rng(0)
    refused = 0
    for _ in range(500):
        damaged = bytearray(whole)
        for position in rng.integers(2, len(whole), rng.integers(1, 4)):
            damaged[position] = rng.integers(256)
        try:
            read_pickle(io.BytesIO(damaged))
        except GuidexError:
            refused += 1
    assert 100 < refused < 500


def test_trailing_bytes_are_refused() -> None:
    with pytest.raises(GuidexError, match="more bytes follow the end"):
        read_pickle(io.BytesIO(stream(1).getvalue() + b"abc"))


@pytest.mark.parametrize(
    ("content", "looks"),
    [
        (b"", "empty"),
        (b"\n <!DOCTYPE html><html>", "a web page"),
        (b"version https://git-lfs.github.com/spec/v1\n", "Git LFS pointer"),
        (b"PK\x03\x04" + bytes(30), "a file of torch.save"),
        (storage_bytes(torch.ones(1)), "a file of torch.save"),
        (bytes(100), "all zeros"),
        ((2).to_bytes(8, "little") + b"{}", "a safetensors file"),
        (pickle.dumps({"a": 1}, 0), "not a pickle of protocol 2 to 5"),
        (b"\x80", "not a pickle of protocol 2 to 5"),
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
    for path in (tmp_path / "none.pkl", str(tmp_path)):
        with pytest.raises(UsageError, match="there is no such file"):
            read_pickle(path)
