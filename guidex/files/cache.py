"""Checkpoints and references by path or URL: downloaded once, verified on every load.

The cache is one folder of plain files: `GUIDEX_CACHE`, else `$XDG_CACHE_HOME/guidex`, else
`~/.cache/guidex`. Beside each file lies a record, `<file>.sha256`, which `sha256sum --check` reads.
A file put there by hand is as good as a downloaded one. `GUIDEX_OFFLINE=1` forbids the network.
"""

import hashlib
import http.client
import logging
import os
import re
import ssl
from pathlib import Path, PurePosixPath
from time import sleep
from urllib.error import HTTPError, URLError
from urllib.parse import unquote, urlsplit
from urllib.request import HTTPRedirectHandler, Request, build_opener

from filelock import FileLock, Timeout

from guidex import __version__
from guidex.errors import GuidexError, UsageError, reason_of
from guidex.files.atomic import atomic_write, require_space
from guidex.files.progress import Progress

TIMEOUT = 30.0  # seconds, to connect and for each read
ATTEMPTS = 5  # in a row that bring nothing new; the waits between them are 1, 2, 4, 8 s
CHUNK = 1 << 18  # bytes, the most that is read and written at once

# After these, the next attempt may succeed; after other errors of the system, the disk refuses.
_BROKEN = (URLError, http.client.HTTPException, ConnectionError, TimeoutError, ssl.SSLError)

log = logging.getLogger(__name__)


def fetch(source: str, *, sha256: str | None = None) -> Path:
    """The local path of a file, which is downloaded into the cache where it is a URL not there yet.

    A cached file is hashed on each call (about 0.65 s per GB). Of several processes that ask for
    the same file, one downloads, and the others wait.

    Arguments:
        source: path of an existing file (returned as it is), or http(s):// URL.
        sha256: the file's, or its first hex digits, or None: whatever came first is recorded.

    Raises:
        UsageError: no such file, bad URL, HTTP 404, not cached while offline.
        GuidexError: not to be downloaded, cache folder not usable, no disk space, other content.
    """
    expected = None if sha256 is None else sha256.lower()
    url, path = _locate(source)
    if os.path.isfile(path):  # a pipe is none, and may never end
        if url is not None:
            _verify(path, expected, _record(path), f"Delete it to download {url} again")
        elif expected is not None:
            _verify(path, expected, None, "Get it anew")
        return path
    if url is None:
        state = "is not a file" if os.path.exists(path) else "does not exist"
        raise UsageError(f"{path} {state}: give an existing file or an https:// URL.")
    known = "" if expected is None else f" (SHA-256 {expected})"
    by_hand = f"Download {url}{known} elsewhere and put it at {path}, or give a path in its place."
    if offline():
        raise UsageError(
            f"{url} is not in the cache, and GUIDEX_OFFLINE forbids the network. {by_hand}"
        )
    try:
        _fill(path, url, expected)
    except GuidexError as error:
        raise type(error)(f"{error} {by_hand}") from error
    except (OSError, NotImplementedError) as error:  # the latter: a disk without locks
        raise GuidexError(
            f"the cache folder {path.parent} cannot be used ({error}). Free some space, or set "
            "GUIDEX_CACHE to a folder that can be written."
        ) from error
    return path


def cached(source: str) -> Path | None:
    """Where a source lies on this machine, neither verified nor downloaded, or None."""
    path = _locate(source)[1]
    return path if os.path.isfile(path) else None


def cache_dir() -> Path:
    """The cache folder (see the head of this file), absolute; it need not exist yet."""
    xdg = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    named = os.environ.get("GUIDEX_CACHE") or f"{xdg}/guidex"
    return Path(named).expanduser().absolute()


def offline() -> bool:
    """Whether GUIDEX_OFFLINE forbids the network."""
    return os.environ.get("GUIDEX_OFFLINE", "").lower() not in ("", "0", "false", "no", "off")


def file_sha256(path: Path) -> str:
    """The SHA-256 of a file, 64 lower-case hex digits."""
    try:
        with open(path, "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise GuidexError(f"cannot read {path}: {error.strerror}.") from error


def _locate(source: str) -> tuple[str | None, Path]:
    """The URL to download, without fragment, and its place in the cache; or None and a path."""
    if "://" not in source:
        return None, Path(os.path.expanduser(source))
    url = source.partition("#")[0]
    form = r"(?i:https?)://([\w.-]+|\[[\da-f:.]+\])(?::\d{1,5})?(/[!->@-~]*)?(\?[!-~]*)?"
    remote = re.fullmatch(form, url, re.ASCII)
    if remote is None:
        raise UsageError(
            f"{source!r} is not a usable address, such as a path or https://host/file (without a "
            "user name)."
        )
    name = unquote((remote[2] or "").rpartition("/")[2]) or remote[1]
    name = re.sub("[^A-Za-z0-9._-]+", "_", name)[-80:]
    # The hash keeps equal names apart, and the suffix stays last for those who look at it.
    return url, cache_dir() / f"{hashlib.sha256(url.encode()).hexdigest()[:10]}-{name}"


def _record(path: Path) -> Path:
    return path.with_name(path.name + ".sha256")


def _fill(path: Path, url: str, expected: str | None) -> None:
    """Download into a part, verify it, and move it to its place, alone among all processes."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(path.name + ".part")
    lock = FileLock(path.with_name(path.name + ".lock"))
    try:
        held = lock.acquire(timeout=0)
    except Timeout:
        log.warning("Waiting for another process that is getting %s.", path.name)
        held = lock.acquire()
    with held:
        if not os.path.isfile(path):  # or else another process was faster
            _download(url, part)
            try:
                _verify(part, expected, _record(path), "It was thrown away: try again")
            except GuidexError:
                part.unlink()
                raise
            os.replace(part, path)


def _verify(file: Path, expected: str | None, record: Path | None, retry: str) -> None:
    """Refuse a file that is not what was asked for, or else recorded; record what is new."""
    sha256 = file_sha256(file)
    recorded = record.read_text("latin-1")[:64] if record and record.exists() else None
    wanted = recorded if expected is None else expected
    if not sha256.startswith(expected) if expected else recorded not in (None, sha256):
        source = f"recorded in {record}" if expected is None else "asked for"
        advice = "to accept it, delete that record" if expected is None else "correct the hash"
        raise GuidexError(
            f"{file} is corrupt or another file: its SHA-256 is {sha256}, and {wanted} is {source}"
            f". {retry}, or {advice}."
        )
    if record is not None and sha256 != recorded:
        line = f"{sha256}  {record.stem}\n"
        atomic_write(record, lambda file: file.write(line.encode()))


# --- Downloads --------------------------------------------------------------------------------


def _download(url: str, part: Path) -> None:
    """Download an http(s) URL, or the rest of it (Range and If-Range, RFC 9110 sections 13.1.5 and
    14) where the server has still the version that is noted in `<part>.version`."""
    failures, furthest = 0, 0
    while True:
        try:
            return _attempt(url, part)
        except _BROKEN as error:
            size = part.stat().st_size if part.exists() else 0
            failures = 1 if size > furthest else failures + 1
            furthest = max(furthest, size)
            text = f"cannot download {url}: {reason_of(error)}"
            if failures == ATTEMPTS:
                raise GuidexError(f"{text}; {ATTEMPTS} attempts failed.") from error
            log.warning("%s; trying again in %d s.", text, 2 ** (failures - 1))
            sleep(2 ** (failures - 1))


def _attempt(url: str, part: Path) -> None:
    """Send one request and append its answer to the part; returns when the part is whole."""
    note = part.with_name(part.name + ".version")
    known = note.read_text("latin-1") if note.exists() and part.exists() else ""
    size = part.stat().st_size if known else 0
    headers = {"User-Agent": f"guidex/{__version__}"}
    if size > 0:
        headers |= {"Range": f"bytes={size}-", "If-Range": known}
    try:
        response = build_opener(_Redirects).open(Request(url, headers=headers), timeout=TIMEOUT)
    except HTTPError as error:
        response = error
    with response:
        _check_answer(url, response)
        etag = response.headers.get("ETag", "W/")
        # What If-Range may carry: a weak ETag allows different bytes (RFC 9110, section 13.1.5).
        version = response.headers.get("Last-Modified", "") if etag.startswith("W/") else etag
        if response.status == 200:
            size, total = 0, response.length
        else:
            form = rf"bytes {size}-\d{{1,18}}/(\d{{1,18}})"
            place = re.fullmatch(form, response.headers.get("Content-Range", ""))
            if place is None or version not in ("", known):
                note.unlink(missing_ok=True)
                raise ConnectionError("the server's part does not continue what is here")
            total = int(place[1])
        if not total:
            raise GuidexError(f"cannot download {url}: the server does not say how long it is.")
        require_space(part.parent, total - size, "set GUIDEX_CACHE to a larger disk")
        megabytes = (round(total / 1e6), size / 1e6, "MB")
        bar = Progress(f"downloading {PurePosixPath(urlsplit(url).path).name}", *megabytes)
        with open(part, "ab" if size > 0 else "wb") as file, bar as progress:
            if size == 0:  # and the part is empty: no other version goes on under this note
                note.write_text(version, "latin-1")
            while chunk := response.read1(CHUNK):
                file.write(chunk)
                file.flush()
                size += len(chunk)
                progress.update(len(chunk) / 1e6)
    if size != total:
        raise ConnectionError(f"the connection was closed after {size} of {total} bytes")
    note.unlink()


class _Redirects(HTTPRedirectHandler):
    def redirect_request(self, request, file, code, message, headers, url):
        # From https to http, anyone on the way could change the file; ftp is never spoken.
        if urlsplit(url).scheme not in ("https", request.type):
            return None
        return super().redirect_request(request, file, code, message, headers, url)


def _check_answer(url: str, response: http.client.HTTPResponse | HTTPError) -> None:
    """Refuse whatever is neither the file nor a piece of it."""
    status, kind = response.status, response.headers.get_content_type()
    text = f"the server answers HTTP {status} ({http.client.responses.get(status, 'unknown')})"
    if status in (408, 429) or status >= 500:
        raise ConnectionError(text)
    whole = status in (200, 206) and not kind.endswith(("html", "xml", "json"))
    if not whole and status != 416:  # 416: the server has nothing beyond what is here
        error = UsageError if status in (404, 410) else GuidexError
        raise error(
            f"cannot download {url}: {text} with {kind}. Is it a sign-in, quota or error page?"
        )
