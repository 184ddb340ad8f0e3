"""Fetching files, from a server on this machine that behaves as badly as it is told to."""

import hashlib
import os
import random
import re
import socket
import subprocess
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace

import pytest

import guidex.files.cache as cache
from guidex import __version__
from guidex.errors import GuidexError, UsageError
from guidex.files import atomic
from guidex.files.cache import cache_dir, cached, fetch, file_sha256

DATA = random.Random(0).randbytes(300_000)
OTHER = random.Random(1).randbytes(300_000)
HALF = 150_000
SHA256 = hashlib.sha256(DATA).hexdigest()
OTHER_SHA256 = hashlib.sha256(OTHER).hexdigest()
DATE = "Wed, 21 Oct 2026 07:28:00 GMT"
HTML = {"Content-Type": "text/html; charset=utf-8"}


class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        self.server.requests.append((self.path, dict(self.headers)))
        self.reply(**(self.server.behaviours.pop(0) if self.server.behaviours else {}))

    def reply(self, status=200, body=None, headers=None, cut=None, sized=True, **how):
        """Serve the file, or `body` in its place.

        cut: close the connection after so many bytes of the body. whole: ignore Range. careless:
        ignore If-Range. shift: begin so many bytes too late. pause: wait for it in the middle.
        """
        server, fields = self.server, {}
        if body is None:
            fields = {"ETag": server.etag, "Last-Modified": server.modified}
            asked = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", ""))
            same = self.headers.get("If-Range") in (server.etag, server.modified)
            first, size = 0, len(server.data)
            if asked and (same or "careless" in how) and "whole" not in how:
                status, first = 206, int(asked[1]) + how.get("shift", 0)
                fields["Content-Range"] = f"bytes {first}-{size - 1}/{size}"
            body = server.data[first:]
        if sized:
            fields["Content-Length"] = str(len(body))
        self.send_response(status)
        for name, value in (fields | (headers or {})).items():
            if value is not None:
                self.send_header(name, value)
        self.end_headers()
        body = body[:cut]
        self.wfile.write(body[: len(body) // 2])
        if "pause" in how:
            assert how["pause"].wait(20)
        self.wfile.write(body[len(body) // 2 :])

    def log_message(self, *_):
        pass


class Server(ThreadingHTTPServer):
    """Serves `data`; `behaviours` are used up by the first requests, one each."""

    # Handlers may be left waiting for a client that was killed: closing must not wait for them.
    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.data, self.etag, self.modified = DATA, '"one"', None
        self.behaviours, self.requests = [], []
        self.url = f"http://127.0.0.1:{self.server_port}/models/net-xs.0.135.pkl"

    def handle_error(self, *_):
        pass  # clients that hang up are part of the game

    @property
    def ranges(self):
        """(Range, If-Range) of each request."""
        return [(headers.get("Range"), headers.get("If-Range")) for _, headers in self.requests]


@pytest.fixture
def server():
    with Server() as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield server
        server.shutdown()
        thread.join()


@pytest.fixture(autouse=True)
def waits(monkeypatch, tmp_path):
    """A cache of this test's own, no proxies, no real waiting: the seconds are noted instead."""
    for name in ("http_proxy", "https_proxy", "all_proxy", "no_proxy", "GUIDEX_OFFLINE"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setenv("GUIDEX_CACHE", str(tmp_path / "cache"))
    waits = []
    monkeypatch.setattr(cache, "sleep", waits.append)
    return waits


def listing():
    """The names in the cache but for the locks, which stay."""
    return sorted(path.name for path in cache_dir().glob("*") if path.suffix != ".lock")


def place(url):
    return cache._locate(url)[1]


def record_of(path):
    return path.with_name(path.name + ".sha256")


def command(code, url):
    """Another process, which runs some code."""
    head = "import sys; from guidex.files.cache import fetch; "
    return [sys.executable, "-c", head + code, url]


def wait_for(condition):
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def interrupted(server):
    """Leave a part of the first half behind, as Ctrl-C does."""

    def stop(seconds):
        raise KeyboardInterrupt

    server.behaviours = [{"cut": HALF}]
    with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(cache, "sleep", stop)
        fetch(server.url)
    server.requests.clear()


def test_local_path(tmp_path, monkeypatch):
    path = tmp_path / "a file.pkl"
    path.write_bytes(DATA)
    os.mkfifo(tmp_path / "pipe")
    monkeypatch.chdir(tmp_path)
    assert fetch(str(path), sha256=SHA256.upper()) == path
    assert fetch("a file.pkl") == cached("a file.pkl") == Path("a file.pkl")
    with pytest.raises(GuidexError, match=f"(?s)file.pkl.*{SHA256}.*{OTHER_SHA256}"):
        fetch(str(path), sha256=OTHER_SHA256)
    with pytest.raises(GuidexError, match="cannot read"):
        file_sha256(tmp_path)
    for other, message in (("absent", "does not exist"), ("pipe", "is not a file")):
        with pytest.raises(UsageError, match=message):
            fetch(other, sha256=SHA256)
        assert cached(other) is None
    assert listing() == []


UNUSABLE = (
    "ftp://a.org/b s3://a/b file:///a/b https:// https:///b http://[::1/b http://a:port/b "
    "https://name:password@a.org/b https://a.org/\u00e4"
)


def test_unusable_addresses_are_refused():
    for url in [*UNUSABLE.split(), "https://a.org/b c", "https://a.org/b\r\nHost: c"]:
        with pytest.raises(UsageError, match="not a usable address"):
            fetch(url)


def test_cache_dir(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    home = (("~/own", "/y", tmp_path / "own"), ("", "", tmp_path / ".cache/guidex"))
    for named, xdg, folder in (("/x", "/y", "/x"), ("", "/y", "/y/guidex"), *home):
        monkeypatch.setenv("GUIDEX_CACHE", named)
        monkeypatch.setenv("XDG_CACHE_HOME", xdg)
        assert cache_dir() == Path(folder)


def test_names_are_readable_distinct_and_stay_in_the_cache():
    first = place("https://one.org/net-0.135.pkl")
    assert re.fullmatch(r"[0-9a-f]{10}-net-0\.135\.pkl", first.name)
    assert place("https://two.org/net-0.135.pkl").name != first.name
    assert place("https://one.org/net-0.135.pkl?v=2").name != first.name
    assert place("https://one.org/net-0.135.pkl#part") == first
    for tail in ("", "..%2f..%2fetc", "..", "%2e%2e", "%00", "a%0ab", ".rc", "x" * 500, "a." * 500):
        path = place(f"https://one.org/{tail}")
        assert path.parent == cache_dir()
        assert re.fullmatch(r"[A-Za-z0-9_-][A-Za-z0-9._-]{0,120}", path.name)


def test_download_once_then_from_the_cache(server):
    assert cached(server.url) is None
    path = fetch(server.url)
    assert path.read_bytes() == DATA
    assert fetch(server.url) == path == fetch(server.url, sha256=SHA256) == cached(server.url)
    assert len(server.requests) == 1
    assert server.requests[0][1]["User-Agent"] == f"guidex/{__version__}"
    assert listing() == [path.name, record_of(path).name]
    assert record_of(path).read_text() == f"{SHA256}  {path.name}\n"


def test_downloads_are_told_of_where_there_is_no_terminal(server, capsys):
    server.data = bytes(1_250_000)
    fetch(server.url)
    assert "downloading net-xs.0.135.pkl 1/1 MB in 0 s" in capsys.readouterr().err
    fetch(server.url)
    assert capsys.readouterr().err == ""  # it is in the cache


def test_a_proxy_of_the_environment_is_asked(server, monkeypatch):
    monkeypatch.setenv("http_proxy", f"http://127.0.0.1:{server.server_port}")
    assert fetch("http://guidex.invalid/net.pkl").read_bytes() == DATA
    assert server.requests[0][0] == "http://guidex.invalid/net.pkl"


@pytest.mark.parametrize(
    "etag, date, validator",
    [('"one"', DATE, '"one"'), ('W/"a"', DATE, DATE), (None, DATE, DATE), ('W/"a"', None, None)],
)
def test_broken_connection(server, waits, etag, date, validator):
    server.etag, server.modified = etag, date
    server.behaviours = [{"cut": HALF}]
    assert fetch(server.url).read_bytes() == DATA
    rest = (f"bytes={HALF}-", validator)
    assert server.ranges == [(None, None), rest if validator else (None, None)]
    assert waits == [1]


def test_killed_process_is_resumed(server):
    pause = threading.Event()
    server.behaviours = [{"pause": pause}]
    part = place(server.url).with_name(place(server.url).name + ".part")
    with subprocess.Popen(command("fetch(sys.argv[1])", server.url)) as process:
        wait_for(lambda: part.exists() and part.stat().st_size == HALF)
        process.kill()
    pause.set()
    server.requests.clear()
    path = fetch(server.url, sha256=SHA256)
    assert path.read_bytes() == DATA
    assert server.ranges == [(f"bytes={HALF}-", '"one"')]
    assert listing() == [path.name, record_of(path).name]


WRONG_PART = {"status": 206, "body": DATA[HALF:]}  # without Content-Range
CHANGED = [{}, {"careless": True}]


@pytest.mark.parametrize(
    "second", [{"whole": True}, {"status": 416, "body": b""}, {"shift": 7}, WRONG_PART, *CHANGED]
)
def test_start_again(server, second):
    interrupted(server)
    if second in CHANGED:
        server.data, server.etag = OTHER, '"two"'
    server.behaviours = [second]
    assert fetch(server.url).read_bytes() == server.data
    assert server.ranges[0] == (f"bytes={HALF}-", '"one"')


def test_a_part_never_goes_on_as_another_version(server, monkeypatch):
    interrupted(server)
    server.data, server.etag = OTHER, '"two"'
    write_text = Path.write_text

    def write_and_die(path, *arguments):
        write_text(path, *arguments)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Path, "write_text", write_and_die)
        fetch(server.url)
    assert fetch(server.url).read_bytes() == OTHER


def test_attempts_that_bring_nothing_are_bounded(server, waits):
    server.behaviours = [{"status": 429, "body": b""}, *[{"cut": 30_000}] * 9]
    assert fetch(server.url).read_bytes() == DATA  # each brings some
    assert len(server.requests) == 11
    waits.clear()
    server.etag = None
    server.behaviours = [{"cut": 30_000}] * 9  # the same bytes again and again
    with pytest.raises(GuidexError, match="after 30000 of 300000 bytes; 5 attempts failed"):
        fetch(server.url + "?two")
    assert waits == [1, 2, 4, 8]


@pytest.mark.parametrize(
    "behaviour, message",
    [
        ({"headers": HTML}, "text/html. Is it a sign-in"),
        ({"body": b"", "headers": {"Content-Type": "application/json"}}, "json"),
        ({"body": b""}, "how long"),
        ({"sized": False}, "how long"),
        ({"status": 204, "body": b""}, "HTTP 204"),
        ({"status": 404, "body": b"no"}, r"HTTP 404 \(Not Found\)"),
        ({"status": 302, "headers": {"Location": "file:///etc/passwd"}}, "HTTP 302"),
        ({"status": 302, "headers": {"Location": "ftp://127.0.0.1/a"}}, "HTTP 302"),
    ],
)
def test_answers_that_are_no_file(server, behaviour, message):
    server.behaviours = [behaviour]
    with pytest.raises(GuidexError, match=message) as caught:
        fetch(server.url)
    assert isinstance(caught.value, UsageError) == ("404" in message)
    assert str(place(server.url)) in str(caught.value)
    assert len(server.requests) == 1 and listing() == []


@pytest.mark.parametrize("status", [302, 308])
def test_redirect_is_followed_with_the_range(server, status):
    interrupted(server)
    moved = {"Location": "/moved here.pkl?a=1"}
    server.behaviours = [{"status": status, "headers": moved, "body": b""}]
    assert fetch(server.url).read_bytes() == DATA
    assert server.requests[1][0] == "/moved%20here.pkl?a=1"
    assert server.ranges == [(f"bytes={HALF}-", '"one"')] * 2
    server.behaviours = [{"status": status, "headers": {"Location": "?again"}}] * 99
    with pytest.raises(GuidexError, match="the server answers HTTP 30"):
        fetch(server.url + "?again")
    secure, target = cache.Request("https://a/b"), cache._Redirects().redirect_request
    assert target(secure, None, status, "", {}, "https://b/").full_url == "https://b/"
    assert target(secure, None, status, "", {}, "http://b/") is None


def test_offline(server, monkeypatch):
    monkeypatch.setenv("GUIDEX_OFFLINE", "1")
    message = f"{server.url} is not.*GUIDEX_OFFLINE.*{SHA256}.*{place(server.url)}"
    with pytest.raises(UsageError, match=message):
        fetch(server.url, sha256=SHA256)
    assert server.requests == [] and listing() == []
    monkeypatch.setenv("GUIDEX_OFFLINE", "0")
    path = fetch(server.url)
    monkeypatch.setenv("GUIDEX_OFFLINE", "1")
    assert fetch(server.url) == path


def test_unreachable_servers(server, monkeypatch):
    with pytest.raises(GuidexError, match="cannot download .*SSL"):
        fetch(server.url.replace("http:", "https:"))
    monkeypatch.setattr(Handler, "do_GET", lambda self: self.wfile.write(b"\x1b[31mSSH-2.0\r\n"))
    with pytest.raises(GuidexError, match="SSH-2.0.*5 attempts") as caught:
        fetch(server.url)
    assert "\x1b" not in str(caught.value)
    with socket.create_server(("127.0.0.1", 0)) as free:
        url = f"http://127.0.0.1:{free.getsockname()[1]}/net.pkl"
    with pytest.raises(GuidexError, match="refused.*put it at"):
        fetch(url)


def test_given_hash_is_checked(server):
    for known in (0, 2):  # downloading, and in the cache
        assert len(listing()) == known
        with pytest.raises(GuidexError, match=f"(?s){SHA256}.*{OTHER_SHA256}.*correct the hash"):
            fetch(server.url, sha256=OTHER_SHA256)
        assert len(listing()) == known
        assert fetch(server.url, sha256=SHA256.upper()).read_bytes() == DATA
    assert len(server.requests) == 2


def test_what_differs_from_its_record_is_never_used(server):
    path = fetch(server.url)
    path.write_bytes(OTHER)
    for sha256 in (None, SHA256):
        message = f"{path} is corrupt.*{OTHER_SHA256}.*{SHA256}.*Delete it"
        with pytest.raises(GuidexError, match=message):
            fetch(server.url, sha256=sha256)
    path.unlink()  # it has to come back the same
    server.data, server.etag = OTHER, '"two"'
    with pytest.raises(GuidexError, match=f"{OTHER_SHA256}.*{SHA256}.*delete that record"):
        fetch(server.url)
    assert listing() == [record_of(path).name]
    assert fetch(server.url, sha256=OTHER_SHA256) == path == fetch(server.url)
    for text in ("", "\xff", record_of(path).read_text()[:63]):
        record_of(path).write_text(text, encoding="latin-1")
        with pytest.raises(GuidexError, match="recorded in .*delete that record"):
            fetch(server.url)
    record_of(path).unlink()
    assert fetch(server.url).read_bytes() == OTHER


def test_hand_placed_file(server, monkeypatch):
    monkeypatch.setenv("GUIDEX_OFFLINE", "1")
    path = place(server.url)
    path.parent.mkdir()
    path.write_bytes(DATA)
    assert cached(server.url) == path == fetch(server.url)
    with monkeypatch.context() as read_only:  # a cache that an administrator has filled
        read_only.delattr(cache, "FileLock")
        read_only.delattr(cache, "atomic_write")
        assert fetch(server.url) == path == fetch(server.url, sha256=SHA256)
    path.write_bytes(OTHER)
    with pytest.raises(GuidexError, match="corrupt"):
        fetch(server.url)
    assert server.requests == []


def test_disk_that_refuses(server, monkeypatch):
    interrupted(server)
    disk = SimpleNamespace(free=HALF - 1)
    with monkeypatch.context() as patch:
        patch.setattr(atomic.shutil, "disk_usage", lambda _: disk)
        with pytest.raises(GuidexError, match="0.1 MiB needed, 0.1 MiB free.*GUIDEX_CACHE"):
            fetch(server.url)
        disk.free = HALF
        assert fetch(server.url).read_bytes() == DATA  # only the missing half needs space
    code = (
        "import resource, signal; signal.signal(signal.SIGXFSZ, signal.SIG_IGN);"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (150_000,) * 2); fetch(sys.argv[1])"
    )
    done = subprocess.run(command(code, server.url + "?two"), stderr=-1, text=True)
    assert re.search(r"\nguidex.errors.GuidexError: .*File too large.*Free some", done.stderr)
    assert fetch(server.url + "?two").read_bytes() == DATA


def test_processes_download_once(server):
    pause = threading.Event()
    server.behaviours = [{"pause": pause}]
    code = "print(fetch(sys.argv[1]))"
    thread = threading.Thread(target=fetch, args=(server.url,))
    thread.start()
    wait_for(lambda: server.requests)
    with subprocess.Popen(command(code, server.url), stdout=-1, stderr=-1, text=True) as process:
        assert "Waiting for another process" in process.stderr.readline()
        pause.set()
        output = process.stdout.read()
    thread.join()
    assert Path(output.strip()).read_bytes() == DATA
    assert len(server.requests) == 1
