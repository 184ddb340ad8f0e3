"""Get one file over HTTP(S), going on where an earlier attempt stopped.

A transfer is resumed (Range and If-Range, RFC 9110 sections 13.1.5 and 14) only if the server shows
that its file is still the same; in doubt it begins anew. Nothing that a server says is believed:
bytes are counted, messages in place of files refused, redirects checked.
"""

import http.client
import logging
import re
import shutil
import ssl
import string
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from http import HTTPStatus
from pathlib import Path
from time import sleep
from urllib.error import URLError
from urllib.parse import quote, urljoin, urlsplit
from urllib.request import (
    HTTPHandler,
    HTTPSHandler,
    OpenerDirector,
    ProxyHandler,
    Request,
    UnknownHandler,
)

from guidex import __version__
from guidex.assets.partial import Part, Version, writing
from guidex.errors import GuidexError

TIMEOUT = 30.0  # seconds, to connect and for each read
REDIRECTS = 10
ATTEMPTS = 5  # in a row without ADVANCE; the waits between them are 1, 2, 4, 8 s
UNREACHED_ATTEMPTS = 2  # while no server has answered: a compute node without network fails fast
LONGEST_WAIT = 60.0  # seconds, the most that a Retry-After is obeyed
ADVANCE = 1 << 20  # bytes beyond the furthest point so far that make an attempt count as a success
CHUNK = 1 << 18  # bytes, the most that is read and written at once

Progress = Callable[[int, int | None], None]

_ANSWERS = {
    b"<?xml": "an XML message",
    b"<": "a web page (a sign-in, quota or confirmation page, or a network's log-in page)",
    b"{": "a JSON message",
    b"[": "a JSON message",
}

log = logging.getLogger(__name__)


class TransferError(GuidexError):
    """The server, or the way to it, did not give the file.

    Attributes:
        status: the HTTP status, where the answer was one that no repetition changes; else None.
    """

    def __init__(self, text: str, status: int | None = None):
        super().__init__(text)
        self.status = status


class HashMismatch(GuidexError):
    """The file came whole, but it is not the one that was asked for."""


class _Broken(Exception):
    """An attempt failed as the next one may not; `wait`: the seconds that the server asks for."""

    def __init__(self, reason: str, wait: float | None = None):
        super().__init__(reason)
        self.wait = wait


class _Unreached(_Broken):
    """No server answered: no route, no such host, refused, timed out."""


@dataclass(frozen=True)
class Download:
    """What was received: size in bytes, SHA-256 (64 hex digits) and the server's version of it."""

    size: int
    sha256: str
    version: Version


def download(
    url: str, path: Path, *, sha256: str | None = None, progress: Progress | None = None
) -> Download:
    """Download `url` into the partial file `path`, going on from what is there.

    The caller holds a lock on `path`, and moves the file to its place afterwards. On failure and on
    interruption what came so far stays, with a note `<path>.json`, unless it proved to be wrong.

    Arguments:
        url: http or https, as `url_fault` accepts it. Proxies are taken from the environment.
        sha256: 64 lower-case hex digits that the whole file must have, or None.
        progress: called with (bytes so far, bytes in all or None) at the start and after each
            chunk; the count falls back when the file has to be begun anew. It may raise to stop.

    Raises:
        TransferError: not to be had. HashMismatch: not the one asked for. GuidexError: the disk.
    """
    with Part(path) as part:
        _transfer(url, part, sha256 is not None, _silent if progress is None else progress)
        fault = _fault(url, part, sha256)
        if fault is not None:
            part.restart(Version())
            raise fault
        return Download(part.size, part.sha256, part.version)


def url_fault(url: str) -> str | None:
    """What is wrong with a URL, before anything is sent; None if it is a proper http(s) URL."""
    if not url.isascii() or not url.isprintable() or " " in url:
        return "it holds spaces or characters that must be percent-encoded"
    try:
        parts = urlsplit(url)
        host, _ = parts.hostname, parts.port
    except ValueError as error:
        return str(error)
    if parts.scheme not in ("http", "https"):
        return "only http:// and https:// are followed"
    if host is None or host == "":
        return "it names no host"
    if "@" in parts.netloc:
        return "it holds a user name or password, and guidex sends none"
    return None


def looks_like_an_answer(path: Path) -> str | None:
    """What a file is that is a server's words and no file to load; None for any other.

    What guidex loads is never text: even the length that a safetensors file begins with has zeros.
    """
    with open(path, "rb") as file:
        head = file.read(512).removeprefix(b"\xef\xbb\xbf").lstrip().lower()
    if b"\0" in head:
        return None
    if head.startswith(b"version https://git-lfs"):
        return "a pointer of Git LFS, which names the file and is not it"
    return next((text for start, text in _ANSWERS.items() if head.startswith(start)), None)


def in_words(count: int) -> str:
    """A number of bytes for people: "1.25 GB", "3.0 MB", "12 bytes"."""
    if count >= 10**9:
        return f"{count / 1e9:.2f} GB"
    return f"{count / 1e6:.1f} MB" if count >= 10**5 else f"{count} bytes"


def _transfer(url: str, part: Part, hash_known: bool, progress: Progress) -> None:
    """Attempt until the part is whole; give up after too many attempts that bring nothing new."""
    failures, furthest, limit = 0, part.size, UNREACHED_ATTEMPTS
    while True:
        try:
            return _attempt(url, part, hash_known, progress)
        except _Broken as broken:
            if not isinstance(broken, _Unreached):
                limit = ATTEMPTS
            if part.size >= furthest + ADVANCE:
                failures = 0
            furthest = max(furthest, part.size)
            failures += 1
            if failures >= limit:
                raise _given_up(url, part, broken, failures) from broken
            wait = 2.0 ** (failures - 1) if broken.wait is None else broken.wait
            log.warning("Download of %s: %s; trying again in %g s.", url, broken, wait)
            sleep(wait)


def _given_up(url: str, part: Part, broken: _Broken, failures: int) -> TransferError:
    if part.version.validator is None:
        part.restart(Version())
    kept = "" if part.size == 0 else f" {in_words(part.size)} are kept, and the next run goes on."
    return TransferError(f"cannot download {url}: {broken}; {failures} attempts failed.{kept}")


def _attempt(url: str, part: Part, hash_known: bool, progress: Progress) -> None:
    """One request, and its answer appended to the part; returns when the part is whole."""
    if part.complete:
        return progress(part.size, part.version.total)
    with _open(url, _range(part)) as response:
        _check_answer(url, response, part)
        _place(response, part)
        total = part.version.total
        if total is None and not response.chunked and not hash_known:
            raise TransferError(
                f"cannot download {url}: the server does not say how long the file is, so that a "
                f"broken transfer could not be told from a whole one. Give its SHA-256."
            )
        _check_space(part)
        progress(part.size, total)
        for chunk in _body(response):
            part.write(chunk)
            progress(part.size, total)
        _check_length(url, response, part)


def _range(part: Part) -> dict[str, str]:
    """The headers that ask for what is missing, or for the whole file if it has changed."""
    if part.size == 0 or part.version.validator is None:
        return {}
    return {"Range": f"bytes={part.size}-", "If-Range": part.version.validator}


def _open(url: str, headers: dict[str, str]) -> http.client.HTTPResponse:
    """Send a GET and follow redirects; the caller closes the response."""
    # Made by hand: the usual opener also speaks ftp, file and data, where a redirect might lead,
    # and turns answers into exceptions.
    opener = OpenerDirector()
    opener.addheaders = [("User-Agent", f"guidex/{__version__}")]
    for handler in (ProxyHandler(), HTTPHandler(), HTTPSHandler(), UnknownHandler()):
        opener.add_handler(handler)
    target = url
    for _ in range(REDIRECTS + 1):
        response = _send(opener, Request(target, headers=headers))
        if response.status not in (301, 302, 303, 307, 308):
            return response
        with response:
            target = _redirected(url, target, response.headers.get("Location"))
    raise TransferError(f"cannot download {url}: more than {REDIRECTS} redirects.")


def _send(opener: OpenerDirector, request: Request) -> http.client.HTTPResponse:
    try:
        return opener.open(request, timeout=TIMEOUT)
    except (URLError, UnicodeError) as error:  # UnicodeError: a host name that cannot be one
        reason = error.reason if isinstance(error, URLError) else error
        if isinstance(reason, ssl.SSLCertVerificationError):
            raise TransferError(
                f"cannot download {request.full_url}: the server's certificate is not trusted "
                f"({reason.verify_message}). Behind a proxy that inspects traffic, let "
                f"SSL_CERT_FILE name its certificates."
            ) from error
        raise _Unreached(f"cannot reach {request.host} ({_why(reason)})") from error
    except (OSError, http.client.HTTPException) as error:
        raise _Broken(f"no proper answer from {request.host} ({_why(error)})") from error


def _redirected(url: str, here: str, location: str | None) -> str:
    """Where a redirect from `here` leads, checked; `url` is what was asked for."""
    if location is None:
        raise TransferError(f"cannot download {url}: a redirect that leads nowhere.")
    # As they stand in the header: raw bytes, which http.client decoded as Latin-1.
    target = quote(location, encoding="iso-8859-1", safe=string.punctuation)
    with suppress(ValueError):  # of a malformed host, which is told of below
        target = urljoin(here, target)
    fault = url_fault(target)
    if fault is None and here.startswith("https:") and target.startswith("http:"):
        fault = "it leaves https for http, where anyone on the way could change the file"
    if fault is not None:
        raise TransferError(
            f"cannot download {url}: the server redirects to {target!r}; refused: {fault}."
        )
    return target


def _check_answer(url: str, response: http.client.HTTPResponse, part: Part) -> None:
    """Refuse whatever is not (a piece of) the file, before any of it is written."""
    status = response.status
    # The standard's words, not the server's: those may hold anything, and end up on a terminal.
    text = f"HTTP {status}"
    with suppress(ValueError):
        text = f"HTTP {status} ({HTTPStatus(status).phrase})"
    if status in (408, 429) or status >= 500:
        raise _Broken(f"the server answers {text}", _retry_after(response))
    if status == 416 and part.size > 0:
        part.restart(Version())
        raise _Broken("the server has no such part of the file; beginning anew")
    if status not in (200, 206):
        raise TransferError(f"cannot download {url}: the server answers {text}.", status)
    kind = response.headers.get_content_type()
    if kind in ("text/html", "application/xhtml+xml"):
        raise TransferError(_answered(url, _ANSWERS[b"<"]))
    encoding = response.headers.get("Content-Encoding", "identity")
    if encoding != "identity":
        raise TransferError(
            f"cannot download {url}: the server sends it re-encoded ({encoding[:40]!r}), unasked."
        )


def _place(response: http.client.HTTPResponse, part: Part) -> None:
    """Let the part stand ready for the first byte: as it is if the answer continues it."""
    version = Version(
        _header(response, "ETag"), _header(response, "Last-Modified"), response.length
    )
    if response.status == 200:
        return part.restart(version)
    stated = re.fullmatch(
        r"bytes ([0-9]{1,18})-[0-9]{1,18}/([0-9]{1,18}|\*)",
        _header(response, "Content-Range") or "",
    )
    if stated is not None:
        version = replace(version, total=None if stated[2] == "*" else int(stated[2]))
    if stated is None or int(stated[1]) != part.size or version.contradicts(part.version):
        part.restart(Version())
        raise _Broken("the server's part does not continue what is here; beginning anew")
    if part.version.total is None:
        part.version = replace(part.version, total=version.total)


def _body(response: http.client.HTTPResponse) -> Iterator[bytes]:
    """The bytes of an answer as they come."""
    left = response.length  # None if chunked or ended by closing
    # http.client would stop at Content-Length without telling whether more or less was coming.
    response.length = None
    while left is None or left > 0:
        try:
            chunk = response.read1(CHUNK if left is None else min(CHUNK, left))
        except (OSError, http.client.HTTPException) as error:
            raise _Broken(f"the connection broke ({_why(error)})") from error
        if len(chunk) == 0 and left is None:
            return
        if len(chunk) == 0:
            raise _Broken(f"the connection was closed {in_words(left)} before the announced end")
        left = None if left is None else left - len(chunk)
        yield chunk


def _check_length(url: str, response: http.client.HTTPResponse, part: Part) -> None:
    """Compare what came with what was announced."""
    total = part.version.total
    if total is not None and part.size < total:
        raise _Broken(f"the server sent {in_words(part.size)} of {in_words(total)}")
    surplus = total is not None and part.size > total
    # Only where the server says that it closes: else the next read would wait for a next answer.
    if response.will_close and not response.chunked:
        with suppress(OSError, http.client.HTTPException):
            surplus = surplus or len(response.read1(1)) > 0
    if surplus:
        part.restart(Version())
        raise TransferError(
            f"cannot download {url}: the server announced {total} bytes and sent more, so that the "
            f"file cannot be told from a cut one. A proxy on the way may rewrite it."
        )


def _check_space(part: Part) -> None:
    if part.version.total is None:
        return
    folder = part.path.parent
    with writing(part.path):
        free = shutil.disk_usage(folder).free
    needed = part.version.total - part.size
    if needed > free:
        raise GuidexError(
            f"{in_words(needed)} are to be downloaded to {folder}, where {in_words(free)} are "
            f"free. Free some, or set GUIDEX_CACHE to a folder on a larger disk."
        )


def _fault(url: str, part: Part, sha256: str | None) -> GuidexError | None:
    """What is wrong with a part that came whole."""
    if part.size == 0:
        return TransferError(f"cannot download {url}: the server sends an empty file.")
    answer = looks_like_an_answer(part.path)
    if answer is not None:
        return TransferError(_answered(url, answer))
    if sha256 is not None and part.sha256 != sha256:
        return HashMismatch(
            f"the file downloaded from {url} ({part.size} bytes) has the SHA-256 {part.sha256} and "
            f"not {sha256}; it was thrown away."
        )
    return None


def _answered(url: str, answer: str) -> str:
    return f"cannot download {url}: the server sends {answer} instead of a file."


def _header(response: http.client.HTTPResponse, name: str) -> str | None:
    """A header that may be stored, sent back and printed; None for anything else."""
    value = response.headers.get(name)
    return value if value is not None and value.isascii() and value.isprintable() else None


def _retry_after(response: http.client.HTTPResponse) -> float | None:
    value = response.headers.get("Retry-After", "")
    return min(float(value), LONGEST_WAIT) if re.fullmatch("[0-9]{1,9}", value) else None


def _why(error: Exception | str) -> str:
    text = str(error)  # may quote the server: only what a terminal can bear
    return text if text != "" and text.isprintable() else type(error).__name__


def _silent(done: int, total: int | None) -> None:
    """Progress that nobody watches."""
