"""Fetching files, from a server on this machine that behaves as badly as it is told to."""

import errno
import hashlib
import io
import json
import os
import random
import re
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace

import pytest

from guidex import __version__
from guidex.assets import cache, partial
from guidex.assets import download as downloading
from guidex.assets.cache import cache_dir, cached, fetch, file_sha256
from guidex.errors import GuidexError, UsageError

DATA = random.Random(0).randbytes(300_000)
OTHER = random.Random(1).randbytes(300_000)
HALF = 150_000
SHA256 = hashlib.sha256(DATA).hexdigest()
OTHER_SHA256 = hashlib.sha256(OTHER).hexdigest()

Behaviour = Callable[["Handler"], None]


class Handler(BaseHTTPRequestHandler):
    server: "Server"

    def do_GET(self) -> None:
        self.server.requests.append((self.path, dict(self.headers)))
        behaviours = self.server.behaviours
        (behaviours.pop(0) if behaviours else serve())(self)

    def log_message(self, *_: object) -> None:
        pass


class Server(ThreadingHTTPServer):
    """Serves `data`; `behaviours` are used up by the first requests, one each."""

    # Handlers may be left waiting for a client that was killed: closing must not wait for them.
    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.data, self.etag, self.modified = DATA, '"one"', None
        self.behaviours: list[Behaviour] = []
        self.requests: list[tuple[str, dict[str, str]]] = []
        self.sent = 0  # bytes of bodies

    def handle_error(self, *_: object) -> None:
        pass  # clients that hang up are part of the game

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/models/net-xs.0.135.pkl"

    @property
    def ranges(self) -> list[tuple[str | None, str | None]]:
        """(Range, If-Range) of each request."""
        return [(headers.get("Range"), headers.get("If-Range")) for _, headers in self.requests]


def serve(
    *,
    cut: int | None = None,
    length: int | None = None,
    no_length: bool = False,
    ignore_range: bool = False,
    ignore_if_range: bool = False,
    shift: int = 0,
    kind: str = "application/octet-stream",
    headers: tuple[tuple[str, str], ...] = (),
    pause: threading.Event | None = None,
) -> Behaviour:
    """Serve a file as it should be, but for the given misbehaviour.

    cut: close the connection after so many bytes of the body. length: what Content-Length claims.
    shift: begin a part so many bytes too late. pause: wait for it in the middle of the body.
    """

    def behave(handler: Handler) -> None:
        server = handler.server
        first = 0
        found = re.fullmatch(r"bytes=(\d+)-", handler.headers.get("Range", ""))
        same = handler.headers.get("If-Range") in (server.etag, server.modified)
        if found is not None and not ignore_range and (same or ignore_if_range):
            first = int(found[1]) + shift
        body = server.data[first:]
        handler.send_response(206 if first > 0 else 200)
        handler.send_header("Content-Type", kind)
        if server.etag is not None:
            handler.send_header("ETag", server.etag)
        if server.modified is not None:
            handler.send_header("Last-Modified", server.modified)
        if first > 0:
            total = len(server.data)
            handler.send_header("Content-Range", f"bytes {first}-{total - 1}/{total}")
        if not no_length:
            handler.send_header("Content-Length", str(len(body) if length is None else length))
        for name, value in headers:
            handler.send_header(name, value)
        handler.end_headers()
        body = body[:cut]
        middle = len(body) // 2
        for piece in (body[:middle], body[middle:]):
            handler.wfile.write(piece)
            server.sent += len(piece)
            if pause is not None:
                assert pause.wait(20)

    return behave


def chunked(*, cut: bool = False) -> Behaviour:
    """Serve in chunks, without a length; `cut` ends in the middle."""

    def behave(handler: Handler) -> None:
        handler.protocol_version = "HTTP/1.1"
        handler.close_connection = True
        handler.send_response(200)
        handler.send_header("ETag", handler.server.etag)
        handler.send_header("Transfer-Encoding", "chunked")
        handler.end_headers()
        for start in range(0, HALF if cut else len(handler.server.data), 50_000):
            piece = handler.server.data[start : start + 50_000]
            handler.wfile.write(f"{len(piece):x}\r\n".encode() + piece + b"\r\n")
        if not cut:
            handler.wfile.write(b"0\r\n\r\n")

    return behave


def answer(status: int, body: bytes = b"", **headers: str) -> Behaviour:
    """Answer with a status and, where given, headers (Retry_After for Retry-After)."""

    def behave(handler: Handler) -> None:
        handler.send_response(status)
        handler.send_header("Content-Length", str(len(body)))
        for name, value in headers.items():
            handler.send_header(name.replace("_", "-"), value)
        handler.end_headers()
        handler.wfile.write(body)

    return behave


@pytest.fixture
def server() -> Iterator[Server]:
    with Server() as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield server
        server.shutdown()
        thread.join()


@pytest.fixture(autouse=True)
def waits(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[float]:
    """A cache of this test's own, no proxies, no real waiting: the seconds are noted instead."""
    for name in ("http_proxy", "https_proxy", "all_proxy", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setenv("GUIDEX_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("GUIDEX_OFFLINE", raising=False)
    waits: list[float] = []
    monkeypatch.setattr(downloading, "sleep", waits.append)
    return waits


def listing() -> list[str]:
    """The names in the cache but for the locks, which stay."""
    if not cache_dir().exists():
        return []
    return sorted(path.name for path in cache_dir().iterdir() if path.suffix != ".lock")


def place(url: str) -> Path:
    """Where a URL's file belongs, as the offline error tells a user."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GUIDEX_OFFLINE", "1")
        with pytest.raises(UsageError) as caught:
            fetch(url)
    found = re.search(r"put it at (.*), or give", str(caught.value))
    assert found is not None
    return Path(found[1])


def record_of(path: Path) -> dict:
    return json.loads(path.with_name(path.name + ".json").read_text())


def interrupt_at(count: int) -> Callable[[int, int | None], None]:
    """Progress that is stopped (as by Ctrl-C) once `count` bytes are there."""

    def progress(done: int, total: int | None) -> None:
        if done >= count:
            raise KeyboardInterrupt

    return progress


def interrupted(server: Server) -> int:
    """Leave a part of the first half behind; its size."""
    server.behaviours = [serve(cut=HALF)]
    with pytest.raises(KeyboardInterrupt):
        fetch(server.url, progress=interrupt_at(HALF))
    server.requests.clear()
    server.sent = 0
    return HALF


# Local files


def test_local_path_is_returned_as_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a file.pkl"
    path.write_bytes(DATA)
    assert fetch(str(path)) == path
    assert fetch(path.as_uri()) == path  # percent-encoded space
    assert cached(str(path)) == path
    monkeypatch.chdir(tmp_path)
    assert fetch("a file.pkl") == Path("a file.pkl")
    assert listing() == []


def test_local_path_is_checked(tmp_path: Path) -> None:
    path = tmp_path / "net.pkl"
    path.write_bytes(DATA)
    assert fetch(str(path), sha256=SHA256.upper()) == path
    with pytest.raises(GuidexError, match=f"(?s)net.pkl.*{SHA256}.*{OTHER_SHA256}"):
        fetch(str(path), sha256=OTHER_SHA256)
    with pytest.raises(UsageError, match="does not exist"):
        fetch(str(tmp_path / "absent"))
    with pytest.raises(UsageError, match="is not a file"):
        fetch(str(tmp_path))
    with pytest.raises(UsageError, match="does not exist"):
        fetch("x" * 5000)  # longer than any path
    with pytest.raises(UsageError, match="no such home folder"):
        fetch("~nobody-of-this-name/net.pkl")
    with pytest.raises(UsageError, match="64 hexadecimal"):
        fetch(str(path), sha256="abc")
    assert cached(str(tmp_path / "absent")) is None


@pytest.mark.parametrize(
    "url",
    [
        "ftp://example.org/a.pkl",
        "s3://bucket/a.pkl",
        "file://elsewhere/a.pkl",
        "https://",
        "https:///a.pkl",
        "https://name:password@example.org/a.pkl",
        "https://example.org/a b.pkl",
        "https://example.org/\u00e4.pkl",
        "https://example.org/a\r\nHost: b",
        "http://[::1/a.pkl",
        "http://example.org:port/a.pkl",
    ],
)
def test_unusable_urls_are_refused(url: str) -> None:
    with pytest.raises(UsageError):
        fetch(url)
    with pytest.raises(UsageError):
        cached(url)


# Where the cache is, and what files in it are called


def test_cache_dir(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache_dir() == tmp_path / "cache"
    monkeypatch.setenv("GUIDEX_CACHE", "~/own")
    assert cache_dir() == tmp_path / "own"
    monkeypatch.setenv("GUIDEX_CACHE", "")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache_dir() == tmp_path / "xdg" / "guidex"
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    assert cache_dir() == tmp_path / ".cache" / "guidex"
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert cache_dir() == tmp_path / ".cache" / "guidex"


def test_names_are_readable_and_distinct() -> None:
    first = place("https://one.org/net-0.135.pkl")
    assert re.fullmatch(r"net-0\.135-[0-9a-f]{10}\.pkl", first.name)
    assert first.parent == cache_dir()
    assert place("https://two.org/net-0.135.pkl").name != first.name
    assert place("https://one.org/net-0.135.pkl?v=2").name != first.name
    assert place("https://one.org/net-0.135.pkl#part") == first
    assert re.fullmatch(r"one-[0-9a-f]{10}\.org", place("https://one.org/").name)


@pytest.mark.parametrize(
    "tail",
    [
        "..%2f..%2fetc%2fpasswd",
        "..",
        "%2e%2e",
        "%00",
        "a%0ab",
        ".bashrc",
        "x" * 500,
        "a." + "b" * 500,
    ],
)
def test_names_stay_in_the_cache(tail: str) -> None:
    path = place(f"https://one.org/{tail}")
    assert path.parent == cache_dir()
    assert re.fullmatch(r"[A-Za-z0-9_-][A-Za-z0-9._-]{0,120}", path.name)


# A server that behaves


def test_download_once_then_from_the_cache(server: Server) -> None:
    seen: list[tuple[int, int | None]] = []
    assert cached(server.url) is None
    path = fetch(server.url, progress=lambda done, total: seen.append((done, total)))
    assert path.read_bytes() == DATA
    assert path == cached(server.url)
    assert fetch(server.url) == path == fetch(server.url, sha256=SHA256)
    assert len(server.requests) == 1
    assert server.requests[0][1]["User-Agent"] == f"guidex/{__version__}"
    assert seen[0] == (0, len(DATA)) and seen[-1] == (len(DATA), len(DATA))
    assert seen == sorted(seen)
    assert listing() == [path.name, path.name + ".json"]


def test_record(server: Server) -> None:
    server.modified = "Wed, 21 Oct 2026 07:28:00 GMT"
    record = record_of(fetch(server.url))
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\+00:00", record.pop("date"))
    assert record == {
        "url": server.url,
        "size": len(DATA),
        "sha256": SHA256,
        "etag": '"one"',
        "last_modified": server.modified,
        "origin": "downloaded",
    }


def test_proxy_from_the_environment(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("http_proxy", f"http://127.0.0.1:{server.server_port}")
    assert fetch("http://guidex.invalid/net.pkl").read_bytes() == DATA
    assert server.requests[0][0] == "http://guidex.invalid/net.pkl"


# Broken connections and resuming


def test_broken_connection_asks_for_the_rest_only(server: Server, waits: list[float]) -> None:
    server.behaviours = [serve(cut=HALF)]
    assert fetch(server.url).read_bytes() == DATA
    assert server.ranges == [(None, None), (f"bytes={HALF}-", '"one"')]
    assert server.sent == len(DATA)
    assert waits == [1.0]


def test_interrupted_run_is_resumed(server: Server) -> None:
    size = interrupted(server)
    assert cached(server.url) is None
    seen: list[int] = []
    path = fetch(server.url, progress=lambda done, _: seen.append(done))
    assert path.read_bytes() == DATA
    assert record_of(path)["sha256"] == SHA256
    assert server.ranges == [(f"bytes={size}-", '"one"')]
    assert server.sent == len(DATA) - size
    assert seen[0] == size
    assert listing() == [path.name, path.name + ".json"]


def test_killed_process_is_resumed(server: Server) -> None:
    pause = threading.Event()
    server.behaviours = [serve(pause=pause)]
    code = (
        "import sys; from guidex.assets import cache, partial; partial.CHECKPOINT = 1000;"
        "cache.fetch(sys.argv[1], progress=lambda done, total: print(done, flush=True))"
    )
    command = [sys.executable, "-c", code, server.url]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        while int(process.stdout.readline()) < HALF:
            pass
        process.kill()
    pause.set()
    # As if bytes that were not noted any more had followed.
    part = next(cache_dir().glob("*.part"))
    with open(part, "ab") as file:
        file.write(b"not noted")
    server.requests.clear()
    assert fetch(server.url, sha256=SHA256).read_bytes() == DATA
    assert server.ranges == [(f"bytes={HALF}-", '"one"')]


def test_last_modified_will_do_for_resuming(server: Server) -> None:
    server.etag, server.modified = 'W/"weak"', "Wed, 21 Oct 2026 07:28:00 GMT"
    server.behaviours = [serve(cut=HALF)]
    assert fetch(server.url).read_bytes() == DATA
    assert server.ranges[1] == (f"bytes={HALF}-", server.modified)


@pytest.mark.parametrize("etag", [None, 'W/"weak"'])
def test_no_resuming_without_a_strong_validator(server: Server, etag: str | None) -> None:
    server.etag = etag
    server.behaviours = [serve(cut=HALF)]
    assert fetch(server.url).read_bytes() == DATA
    assert server.ranges == [(None, None), (None, None)]


def test_nothing_is_kept_that_cannot_be_resumed(server: Server) -> None:
    server.etag = None
    server.behaviours = [serve(cut=HALF)] * 5
    with pytest.raises(GuidexError, match="before the announced end"):
        fetch(server.url)
    assert listing() == []


@pytest.mark.parametrize(
    "second",
    [
        pytest.param(serve(ignore_range=True), id="range ignored"),
        pytest.param(answer(416), id="416"),
        pytest.param(serve(shift=7), id="another part than asked for"),
        pytest.param(answer(206, DATA[HALF:]), id="206 without Content-Range"),
        pytest.param(
            answer(206, DATA[HALF:], Content_Range=f"bytes {HALF}-299999/999999"), id="other size"
        ),
    ],
)
def test_start_again(server: Server, second: Behaviour) -> None:
    interrupted(server)
    server.behaviours = [second]
    path = fetch(server.url)
    assert path.read_bytes() == DATA
    assert record_of(path)["sha256"] == SHA256


@pytest.mark.parametrize("careless", [False, True])
def test_file_changed_between_attempts(server: Server, careless: bool) -> None:
    interrupted(server)
    server.data, server.etag = OTHER, '"two"'
    server.behaviours = [serve(ignore_if_range=careless)]
    path = fetch(server.url)
    assert path.read_bytes() == OTHER
    assert record_of(path)["sha256"] == OTHER_SHA256
    assert record_of(path)["etag"] == '"two"'


@pytest.mark.parametrize("spoil", ["byte", "shorter", "note"])
def test_damaged_part_is_not_resumed(server: Server, spoil: str) -> None:
    interrupted(server)
    part = next(cache_dir().glob("*.part"))
    content = part.read_bytes()
    assert content == DATA[:HALF]
    if spoil == "byte":
        part.write_bytes(content[:100] + bytes([content[100] ^ 1]) + content[101:])
    elif spoil == "shorter":
        part.write_bytes(content[:100])
    else:
        part.with_name(part.name + ".json").write_text('{"size": 15')
    assert fetch(server.url).read_bytes() == DATA
    assert server.ranges == [(None, None)]


def test_cut_between_download_and_placing(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    target, replace = place(server.url), os.replace

    def cut(source: Path, path: Path) -> None:
        if Path(path) == target:
            raise KeyboardInterrupt
        replace(source, path)

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", cut)
        with pytest.raises(KeyboardInterrupt):
            fetch(server.url)
    assert cached(server.url) is None
    assert fetch(server.url).read_bytes() == DATA
    assert len(server.requests) == 1
    assert record_of(target)["origin"] == "downloaded"
    assert listing() == [target.name, target.name + ".json"]


def test_steady_progress_is_not_given_up(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(downloading, "ADVANCE", 20_000)
    server.behaviours = [serve(cut=30_000)] * 9
    assert fetch(server.url).read_bytes() == DATA
    assert server.sent == len(DATA)
    assert len(server.requests) == 10


def test_the_same_again_is_no_progress(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(downloading, "ADVANCE", 20_000)
    server.behaviours = [serve(cut=30_000, ignore_range=True)] * 99
    with pytest.raises(GuidexError, match="5 attempts failed"):
        fetch(server.url)
    assert len(server.requests) == 5


def test_server_errors_are_tried_again(server: Server, waits: list[float]) -> None:
    server.behaviours = [answer(500), answer(503)]
    assert fetch(server.url).read_bytes() == DATA
    assert waits == [1.0, 2.0]


def test_attempts_are_bounded(server: Server, waits: list[float]) -> None:
    server.behaviours = [answer(502)] * 99
    with pytest.raises(GuidexError, match=r"HTTP 502 \(Bad Gateway\); 5 attempts") as caught:
        fetch(server.url)
    assert caught.value.exit_code == 1
    assert waits == [1.0, 2.0, 4.0, 8.0]
    assert len(server.requests) == 5
    assert listing() == []


def test_retry_after(server: Server, waits: list[float]) -> None:
    for value in ("0", "7", "99999", "soon"):
        server.behaviours.append(answer(429, Retry_After=value))
    assert fetch(server.url).read_bytes() == DATA
    assert waits == [0.0, 7.0, 60.0, 8.0]


def test_what_came_is_kept_when_given_up(server: Server) -> None:
    server.behaviours = [serve(cut=HALF)] + [answer(500)] * 4
    with pytest.raises(GuidexError, match="0.[12] MB are kept"):
        fetch(server.url)
    server.requests.clear()
    assert fetch(server.url).read_bytes() == DATA
    assert server.ranges == [(f"bytes={HALF}-", '"one"')]


# Servers that lie


def test_body_longer_than_announced(server: Server) -> None:
    server.behaviours = [serve(length=HALF)]
    with pytest.raises(GuidexError, match="announced 150000 bytes and sent more"):
        fetch(server.url)
    assert listing() == []


def test_body_shorter_than_announced(server: Server) -> None:
    server.behaviours = [serve(length=len(DATA) + 10)] * 99
    with pytest.raises(GuidexError, match="closed 10 bytes before the announced end"):
        fetch(server.url)
    assert cached(server.url) is None


def test_chunked_body(server: Server) -> None:
    server.behaviours = [chunked()]
    seen: list[int | None] = []
    path = fetch(server.url, progress=lambda _, total: seen.append(total))
    assert path.read_bytes() == DATA
    assert set(seen) == {None}


def test_chunked_body_broken_then_resumed(server: Server) -> None:
    server.behaviours = [chunked(cut=True)]
    assert fetch(server.url).read_bytes() == DATA
    assert server.ranges[1] == (f"bytes={HALF}-", '"one"')


def test_body_of_unknown_length_needs_a_hash(server: Server) -> None:
    server.behaviours = [serve(no_length=True)]
    with pytest.raises(GuidexError, match="does not say how long"):
        fetch(server.url)
    server.behaviours = [serve(no_length=True, cut=HALF)]
    with pytest.raises(GuidexError, match=SHA256):
        fetch(server.url, sha256=SHA256)
    server.behaviours = [serve(no_length=True)]
    assert fetch(server.url, sha256=SHA256).read_bytes() == DATA


PAGE = b"\xef\xbb\xbf \r\n<!DOCTYPE HTML><html>Please sign in</html>"


@pytest.mark.parametrize(
    "behaviour, message",
    [
        (answer(200, PAGE, Content_Type="text/html; charset=utf-8"), "web page"),
        (serve(kind="text/html"), "web page"),
        (answer(200, PAGE, Content_Type="application/octet-stream"), "web page"),
        (answer(200, b'{"error": "not found"}', Content_Type="application/json"), "JSON message"),
        (answer(200, b'\n["no"]'), "JSON message"),
        (answer(200, b'<?xml version="1.0"?><Error/>'), "XML message"),
        (answer(200, b"<Error><Code>AccessDenied</Code></Error>"), "web page"),
        (answer(200, b"version https://git-lfs.github.com/spec/v1\noid sha256:12"), "Git LFS"),
        (answer(200), "empty"),
        (serve(headers=(("Content-Encoding", "gzip"),)), "gzip"),
        (answer(204), "HTTP 204"),
        (answer(304), "HTTP 304"),
        (answer(403, b"no"), "HTTP 403"),
        (answer(999, b"no"), "HTTP 999"),
        (answer(302), "leads nowhere"),
    ],
)
def test_answers_that_are_no_file(server: Server, behaviour: Behaviour, message: str) -> None:
    server.behaviours = [behaviour] * 9
    with pytest.raises(GuidexError, match=message) as caught:
        fetch(server.url)
    assert caught.value.exit_code == 1
    assert str(place(server.url)) in str(caught.value)
    assert listing() == []


@pytest.mark.parametrize("status", [404, 410])
def test_no_such_file(server: Server, status: int) -> None:
    server.behaviours = [answer(status, b"no")]
    with pytest.raises(UsageError, match=f"HTTP {status}") as caught:
        fetch(server.url)
    assert str(place(server.url)) in str(caught.value)
    assert len(server.requests) == 1


def test_error_page_while_resuming_keeps_the_part(server: Server) -> None:
    interrupted(server)
    server.behaviours = [answer(200, PAGE, Content_Type="text/html")]
    with pytest.raises(GuidexError, match="web page"):
        fetch(server.url)
    server.requests.clear()
    assert fetch(server.url).read_bytes() == DATA
    assert server.ranges == [(f"bytes={HALF}-", '"one"')]


# Redirects


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_redirect_is_followed_with_the_range(server: Server, status: int) -> None:
    interrupted(server)
    server.behaviours = [answer(status, Location="/moved here.pkl?a=1")]
    assert fetch(server.url).read_bytes() == DATA
    assert server.requests[1][0] == "/moved%20here.pkl?a=1"
    assert server.ranges == [(f"bytes={HALF}-", '"one"')] * 2


@pytest.mark.parametrize(
    "location",
    ["file:///etc/passwd", "ftp://127.0.0.1/a", "data:,a", "http://[::1/a", "http://u:p@h/"],
)
def test_redirect_elsewhere_is_refused(server: Server, location: str) -> None:
    server.behaviours = [answer(302, Location=location)]
    with pytest.raises(GuidexError, match="redirects to .*refused"):
        fetch(server.url)
    assert len(server.requests) == 1


def test_redirects_without_end(server: Server) -> None:
    server.behaviours = [answer(302, Location=server.url)] * 99
    with pytest.raises(GuidexError, match="more than 10 redirects"):
        fetch(server.url)
    assert len(server.requests) == 11


def test_redirect_may_gain_https_but_not_lose_it() -> None:
    redirected = downloading._redirected
    assert redirected("http://a/x", "http://a/x", "https://b/y") == "https://b/y"
    assert redirected("http://a/x", "https://b/y", "/z") == "https://b/z"
    with pytest.raises(GuidexError, match="leaves https"):
        redirected("http://a/x", "https://b/y", "http://b/y")


# No way to the server


def test_offline(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GUIDEX_OFFLINE", "1")
    with pytest.raises(UsageError, match="GUIDEX_OFFLINE") as caught:
        fetch(server.url, sha256=SHA256)
    for part in (server.url, SHA256, str(place(server.url))):
        assert part in str(caught.value)
    assert server.requests == [] and listing() == []
    monkeypatch.setenv("GUIDEX_OFFLINE", "0")
    path = fetch(server.url)
    monkeypatch.setenv("GUIDEX_OFFLINE", "true")
    assert fetch(server.url) == path
    monkeypatch.setenv("GUIDEX_OFFLINE", "perhaps")
    with pytest.raises(UsageError, match="perhaps"):
        fetch(server.url + "2")


def test_refused_connection(waits: list[float]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        url = f"http://127.0.0.1:{free.getsockname()[1]}/net.pkl"
    with pytest.raises(GuidexError, match="cannot reach 127.0.0.1") as caught:
        fetch(url)
    assert caught.value.exit_code == 1
    assert url in str(caught.value) and str(place(url)) in str(caught.value)
    assert waits == [1.0]  # nobody there: fails fast


def test_unknown_host(monkeypatch: pytest.MonkeyPatch) -> None:
    def unknown(*_: object, **__: object) -> None:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", unknown)
    with pytest.raises(GuidexError, match="Name or service not known") as caught:
        fetch("https://guidex.invalid/net.pkl")
    assert "put it at" in str(caught.value)


def test_host_name_that_cannot_be_one() -> None:
    with pytest.raises(GuidexError, match="cannot reach"):
        fetch(f"http://{'a' * 99}.invalid/net.pkl")


def test_https_where_http_is_spoken(server: Server) -> None:
    with pytest.raises(GuidexError, match="cannot reach"):
        fetch(server.url.replace("http:", "https:"))


def test_no_http_at_all() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def speak() -> None:
            for _ in range(5):
                connection, _ = listener.accept()
                with connection:
                    connection.recv(1 << 16)
                    connection.sendall(b"\x1b[31mSSH-2.0\r\n")

        thread = threading.Thread(target=speak)
        thread.start()
        with pytest.raises(GuidexError, match="no proper answer") as caught:
            fetch(f"http://127.0.0.1:{listener.getsockname()[1]}/net.pkl")
        thread.join()
    assert "\x1b" not in str(caught.value)


# Hashes


def test_given_hash_is_checked_while_downloading(server: Server) -> None:
    with pytest.raises(GuidexError, match=f"(?s){SHA256}.*{OTHER_SHA256}"):
        fetch(server.url, sha256=OTHER_SHA256)
    assert listing() == []
    assert fetch(server.url, sha256=SHA256.upper()).read_bytes() == DATA


def test_given_hash_is_checked_in_the_cache(server: Server) -> None:
    path = fetch(server.url)
    with pytest.raises(GuidexError, match=f"(?s){path.name}.*{SHA256}.*{OTHER_SHA256}"):
        fetch(server.url, sha256=OTHER_SHA256)


def test_corrupt_file_is_never_used(server: Server) -> None:
    path = fetch(server.url)
    stat = path.stat()
    path.write_bytes(OTHER)
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))  # same size, same date
    for sha256 in (None, SHA256, OTHER_SHA256):
        with pytest.raises(GuidexError, match=f"(?s)corrupt.*{OTHER_SHA256}.*{SHA256}") as caught:
            fetch(server.url, sha256=sha256)
        assert str(path) in str(caught.value) and "Delete it" in str(caught.value)
    path.unlink()
    assert fetch(server.url).read_bytes() == DATA
    assert len(server.requests) == 2


def test_replaced_on_purpose(server: Server) -> None:
    path = fetch(server.url)
    path.write_bytes(OTHER)
    path.with_name(path.name + ".json").unlink()
    assert fetch(server.url) == path
    assert record_of(path)["sha256"] == OTHER_SHA256


def test_deleted_file_has_to_come_back_the_same(server: Server) -> None:
    path = fetch(server.url)
    path.unlink()
    server.data, server.etag = OTHER, '"two"'
    with pytest.raises(GuidexError, match=f"(?s){OTHER_SHA256}.*{SHA256}.*has changed") as caught:
        fetch(server.url)
    record = path.with_name(path.name + ".json")
    assert f"Delete {record}" in str(caught.value)
    record.unlink()
    assert fetch(server.url).read_bytes() == OTHER


def test_record_of_another_url(server: Server) -> None:
    one, two = fetch(server.url), place(server.url + "?two")
    for suffix in ("", ".json"):
        two.with_name(two.name + suffix).write_bytes(one.with_name(one.name + suffix).read_bytes())
    with pytest.raises(GuidexError, match="not a readable record of .*two"):
        fetch(server.url + "?two")


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"sha256": 1}', "\xff"])
def test_unreadable_record(server: Server, text: str) -> None:
    path = fetch(server.url)
    record = path.with_name(path.name + ".json")
    record.write_text(text, encoding="latin-1")
    with pytest.raises(GuidexError, match="not a readable record"):
        fetch(server.url)
    record.unlink()
    assert fetch(server.url) == path


# Files placed by hand


def test_hand_placed_file(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GUIDEX_OFFLINE", "1")
    path = place(server.url)
    path.parent.mkdir()
    path.write_bytes(DATA)
    assert cached(server.url) == path
    assert fetch(server.url, sha256=SHA256) == path
    record = record_of(path)
    assert (record["sha256"], record["size"], record["etag"]) == (SHA256, len(DATA), None)
    assert record["origin"] == "placed by hand"
    path.write_bytes(OTHER)
    with pytest.raises(GuidexError, match="corrupt"):
        fetch(server.url)
    assert server.requests == []


def test_hand_placed_web_page(server: Server) -> None:
    path = place(server.url)
    path.parent.mkdir()
    path.write_bytes(PAGE)
    with pytest.raises(UsageError, match="web page"):
        fetch(server.url)
    assert listing() == [path.name]


def test_a_safetensors_file_may_begin_as_json_does(server: Server) -> None:
    path = place(server.url)
    path.parent.mkdir()
    path.write_bytes(b"{\0\0\0\0\0\0\0" + b"{" + b" " * 121 + b"}")
    assert fetch(server.url) == path


def test_read_only_cache(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    path = place(server.url)
    path.parent.mkdir()
    path.write_bytes(DATA)

    def no_lock(*_: object) -> None:
        raise AssertionError("a read-only cache cannot be locked")

    monkeypatch.setattr(os, "access", lambda path, mode: mode != os.W_OK)
    monkeypatch.setattr(cache, "FileLock", no_lock)
    assert fetch(server.url) == path
    with pytest.raises(GuidexError, match=OTHER_SHA256):
        fetch(server.url, sha256=OTHER_SHA256)
    assert listing() == [path.name]


# The disk


def test_disk_space_is_checked_before(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    interrupted(server)
    monkeypatch.setattr(downloading.shutil, "disk_usage", lambda _: SimpleNamespace(free=HALF - 1))
    with pytest.raises(GuidexError, match="GUIDEX_CACHE"):
        fetch(server.url)
    monkeypatch.setattr(downloading.shutil, "disk_usage", lambda _: SimpleNamespace(free=HALF))
    assert fetch(server.url).read_bytes() == DATA  # only the missing half needs space


def test_full_disk(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    class FullDisk(io.FileIO):
        """A file that holds no more than half the data."""

        def write(self, content: memoryview) -> int:
            room = HALF - self.seek(0, os.SEEK_END)
            if room == 0:
                raise OSError(errno.ENOSPC, "No space left on device")
            return super().write(content[:room])

    with monkeypatch.context() as patch:
        patch.setattr(partial, "open", lambda path, *_, **__: FullDisk(path, "a+b"), raising=False)
        with pytest.raises(GuidexError, match="no space.*GUIDEX_CACHE"):
            fetch(server.url)
    assert fetch(server.url).read_bytes() == DATA


def test_first_failure_is_the_one_told(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise GuidexError("no note can be written")

    with monkeypatch.context() as patch:
        patch.setattr(partial, "write_fields", refuse)
        with pytest.raises(KeyboardInterrupt):
            fetch(server.url, progress=interrupt_at(HALF))
        with pytest.raises(GuidexError, match="no note"):
            fetch(server.url)
    assert fetch(server.url).read_bytes() == DATA


def test_cache_folder_that_cannot_be(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GUIDEX_CACHE", str(Path(__file__) / "cache"))
    with pytest.raises(UsageError, match="Set GUIDEX_CACHE"):
        fetch(server.url)
    assert server.requests == []


def test_file_sha256(tmp_path: Path) -> None:
    (tmp_path / "abc").write_bytes(b"abc")
    # FIPS 180-4, the example of one block
    expected = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    assert file_sha256(tmp_path / "abc") == expected
    with pytest.raises(GuidexError, match="cannot read"):
        file_sha256(tmp_path)


# Several at once


def test_two_threads_download_once(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    waiting = threading.Event()
    monkeypatch.setattr(cache.log, "warning", lambda *_: waiting.set())
    server.behaviours = [serve(pause=waiting)]
    paths: list[Path] = []
    threads = [threading.Thread(target=lambda: paths.append(fetch(server.url))) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert waiting.is_set()
    assert paths[0].read_bytes() == DATA and paths[1] == paths[0]
    assert len(server.requests) == 1


def test_two_processes_download_once(server: Server) -> None:
    waiting = threading.Event()
    server.behaviours = [serve(pause=waiting)]
    code = "import sys; from guidex.assets.cache import fetch; print(fetch(sys.argv[1]))"
    command = [sys.executable, "-c", code, server.url]
    with (
        subprocess.Popen(command, stdout=-1, stderr=subprocess.PIPE, text=True) as one,
        subprocess.Popen(command, stdout=-1, stderr=subprocess.PIPE, text=True) as two,
    ):

        def watch(process: subprocess.Popen[str]) -> None:
            assert process.stderr is not None
            if "Waiting for another process" in process.stderr.read(30):
                waiting.set()

        watchers = [threading.Thread(target=watch, args=(process,)) for process in (one, two)]
        for watcher in watchers:
            watcher.start()
        for watcher in watchers:
            watcher.join()
        outputs = [process.stdout.read() for process in (one, two)]
    assert one.returncode == two.returncode == 0
    assert outputs[0] == outputs[1]
    assert Path(outputs[0].strip()).read_bytes() == DATA
    assert waiting.is_set()
    assert len(server.requests) == 1
