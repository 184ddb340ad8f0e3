"""`guidex fetch` brings everything that a run needs, once, and says what it is."""

import functools
import http.server
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from test_decoders import write_vae

from guidex.cli import main

Captured = pytest.CaptureFixture[str]

NETWORKS = ("edm2-img512-xs-2147483-0.045.pkl", "edm2-img512-xs-uncond-2147483-0.045.pkl")


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A server of all files; its address."""
    monkeypatch.setenv("GUIDEX_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("GUIDEX_OFFLINE", raising=False)
    folder = tmp_path / "served"
    folder.mkdir()
    for number, name in enumerate((*NETWORKS, "inception.pth", "img512.pkl"), 1):
        (folder / name).write_bytes(b"x" * 100_000 * number)

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            pass

    handler = functools.partial(Quiet, directory=str(folder))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, args=(0.01,)).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def test_all_files_are_brought_once(
    server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Captured
) -> None:
    pytest.importorskip("torch_fidelity", reason="torch-fidelity is not installed")
    vae = write_vae(tmp_path / "vae")
    words = ["fetch", "model=edm2-img512-xs", "guidance=none,cfg", f"model.root={server}"]
    words += ["model.ema=0.045", f"decoder.path={vae}", "metrics=[frechet]", "detector=inception"]
    words += [f"ref={server}/img512.pkl", f"detector.weights={server}/inception.pth"]
    assert main([*words, "--plan"]) == 0
    lines = capsys.readouterr().out.splitlines()[2:]
    assert [line.split()[:2] for line in lines[:-1]] == [
        ["-", "model"], ["-", "decoder"], ["-", "detector"], ["-", "reference"], ["-", "model"]
    ]  # fmt: skip
    assert not (tmp_path / "cache").exists()
    assert main(words) == 0
    out = capsys.readouterr().out
    for size, what in (
        ("0.1 MB  model", NETWORKS[0]),
        ("0.2 MB  model", NETWORKS[1]),
        ("0.3 MB  detector", "inception.pth"),
        ("0.4 MB  reference", "img512.pkl"),
    ):
        assert any(size in line and line.endswith(what) for line in out.splitlines()), (size, out)
    assert f"folder  decoder    {vae}" in out and "1.0 MB  in all\n" in out
    monkeypatch.setenv("GUIDEX_OFFLINE", "1")
    assert main(words) == 0
    assert main([*words, "--plan"]) == 0
    assert "1.0 MB  in all that is here" in capsys.readouterr().out
    assert main([*words, "model.ema=0.050"]) == 2
    assert "GUIDEX_OFFLINE forbids the network" in capsys.readouterr().err


def test_what_is_known_in_closed_form_needs_nothing(server: str, capsys: Captured) -> None:
    assert main(["fetch", "experiment=interval/digits"]) == 0
    assert capsys.readouterr().out.splitlines()[2:] == ["       0.0 MB  in all"]
    assert main(["fetch", "experiment=interval/digit"]) == 2


def test_references_are_known_by_their_names(capsys: Captured) -> None:
    pytest.importorskip("torch_fidelity", reason="torch-fidelity is not installed")
    words = ["fetch", "--plan", "model=edm2-img512-s", "protocol=interval", "ref=img512.pkl"]
    # Of two parts with one detector, each has its reference.
    assert main([*words, "protocol.fid=null", "protocol.pr.ref=http://127.0.0.1/reals.zip"]) == 0
    lines = capsys.readouterr().out.splitlines()
    found = [line.rpartition("/")[2] for line in lines if " reference " in line]
    assert found == ["img512.pkl", "reals.zip"]
