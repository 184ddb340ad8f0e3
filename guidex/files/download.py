"""Download one file over HTTP(S), resuming where an earlier attempt stopped.

A transfer is resumed (Range and If-Range, RFC 9110 sections 13.1.5 and 14) only if the server shows
that its file is still the same; in doubt it begins anew.
"""

import http.client
import json
import logging
import re
import shutil
from pathlib import Path
from time import sleep
from urllib.error import HTTPError, URLError
from urllib.parse import urlsplit
from urllib.request import HTTPRedirectHandler, Request, build_opener

from guidex import __version__
from guidex.errors import GuidexError, UsageError
from guidex.files.atomic import atomic_write
from guidex.files.progress import Received, megabytes

TIMEOUT = 30.0  # seconds, to connect and for each read
ATTEMPTS = 5  # in a row that bring nothing new; the waits between them are 1, 2, 4, 8 s
CHUNK = 1 << 18  # bytes, the most that is read and written at once

log = logging.getLogger(__name__)


class _Broken(Exception):
    """An attempt failed, but the next one may not."""


def download(url: str, path: Path, progress: Received) -> None:
    """Download an http(s) URL into `path`, on which the caller holds a lock.

    On a failure or an interruption, what came stays with a note, `<path>.json`, if it can be
    resumed.

    Arguments:
        url: proxies are taken from the environment.
        progress: called with (bytes so far, bytes in all or None) at the start and after each
            chunk; the count falls back when the file begins anew. It may raise to stop.

    Raises:
        UsageError: HTTP 404 or 410, or no URL that can be sent. GuidexError: not to be had, no
            disk space. OSError: the disk refuses.
    """
    with _Part(path) as part:
        failures, furthest = 0, part.size
        while True:
            try:
                return _attempt(url, part, progress)
            except _Broken as broken:
                failures = 1 if part.size > furthest else failures + 1
                furthest = max(furthest, part.size)
                if failures == ATTEMPTS:
                    raise GuidexError(
                        f"cannot download {url}: {broken}; {ATTEMPTS} attempts failed."
                    ) from broken
                wait = 2 ** (failures - 1)
                log.warning("Download of %s: %s; trying again in %d s.", url, broken, wait)
                sleep(wait)


def read_json(path: Path) -> dict:
    """A JSON object; empty if the file holds anything else, or cannot be read."""
    try:
        fields = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return {}
    return fields if isinstance(fields, dict) else {}


def write_json(path: Path, fields: dict[str, str | None]) -> None:
    """Write a JSON object in one step."""
    text = json.dumps(fields, indent=2) + "\n"
    atomic_write(path, lambda file: file.write(text.encode()))


class _Part:
    """The bytes of a file received so far, and the validator of their version, noted beside it."""

    def __init__(self, path: Path):
        self.path, self._note = path, path.with_name(path.name + ".json")
        self._file = open(path, "ab")
        self.size = self._file.tell()
        self.validator = read_json(self._note).get("validator")
        if self.size > 0 and not isinstance(self.validator, str):
            self.restart(None)

    def __enter__(self) -> "_Part":
        return self

    def __exit__(self, failure: type[BaseException] | None, *_: object) -> None:
        self._file.close()
        resumable = self.size > 0 and self.validator is not None
        if failure is None or not resumable:
            self._note.unlink(missing_ok=True)
        if failure is not None and not resumable:
            self.path.unlink()

    def restart(self, validator: str | None) -> None:
        """Throw away what is there and begin a file of this version."""
        self._file.truncate(0)
        self.size, self.validator = 0, validator
        write_json(self._note, {"validator": validator})

    def write(self, chunk: bytes) -> None:
        self._file.write(chunk)
        self._file.flush()
        self.size += len(chunk)


def _attempt(url: str, part: _Part, progress: Received) -> None:
    """Send one request and append its answer to the part; returns when the part is whole."""
    headers = {"User-Agent": f"guidex/{__version__}"}
    if part.size > 0 and part.validator is not None:
        headers |= {"Range": f"bytes={part.size}-", "If-Range": part.validator}
    with _open(url, headers) as response:
        _check_answer(url, response, part)
        total = _begin(response, part)
        if total is None and not response.chunked:
            raise GuidexError(
                f"cannot download {url}: the server does not say how long the file is, so that a "
                "cut one could not be told from a whole one."
            )
        missing, free = (total or 0) - part.size, shutil.disk_usage(part.path.parent).free
        if missing > free:
            raise GuidexError(
                f"{megabytes(missing)} are to be downloaded to {part.path.parent}, where "
                f"{megabytes(free)} are free. Free some, or set GUIDEX_CACHE to a larger disk."
            )
        progress(part.size, total)
        while chunk := _read(response):
            part.write(chunk)
            progress(part.size, total)
    if total is not None and part.size != total:
        raise _Broken(f"the connection was closed after {part.size} of {total} bytes")


def _read(response: http.client.HTTPResponse) -> bytes:
    try:
        return response.read1(CHUNK)
    except (OSError, http.client.HTTPException) as error:
        raise _Broken(f"the connection broke ({error!r})") from error


class _Redirects(HTTPRedirectHandler):
    def redirect_request(self, request, file, code, message, headers, url):
        # From https to http, anyone on the way could change the file; ftp is never spoken.
        if urlsplit(url).scheme not in ("https", request.type):
            return None
        return super().redirect_request(request, file, code, message, headers, url)


def _open(url: str, headers: dict[str, str]) -> http.client.HTTPResponse | HTTPError:
    """Send a GET and follow redirects; the caller closes the response."""
    request = Request(url, headers=headers)
    try:
        return build_opener(_Redirects).open(request, timeout=TIMEOUT)
    except HTTPError as error:
        return error  # an answer like any other
    except URLError as error:
        raise _Broken(f"cannot reach {request.host} ({error.reason})") from error
    except (ValueError, http.client.InvalidURL) as error:  # of the URL, or of a redirect
        raise UsageError(f"cannot download {url}: not a usable address ({error}).") from error
    except (OSError, http.client.HTTPException) as error:
        raise _Broken(f"no proper answer from {request.host} ({error!r})") from error


def _check_answer(url: str, response: http.client.HTTPResponse | HTTPError, part: _Part) -> None:
    """Refuse whatever is not (a piece of) the file, before any of it is written."""
    status = response.status
    text = f"the server answers HTTP {status} ({http.client.responses.get(status, 'unknown')})"
    if status == 416:
        part.restart(None)
    if status in (408, 416, 429) or status >= 500:
        raise _Broken(text)
    if 300 <= status < 400:
        text += ", a redirect to nowhere, in a circle, or to what is not https:// (or http://)"
    page = response.headers.get_content_type().endswith(("html", "xml", "json"))
    if page:
        text += " with a web page, XML or JSON"
    if status not in (200, 206) or page:
        kind = UsageError if status in (404, 410) else GuidexError
        raise kind(f"cannot download {url}: {text}.")


def _begin(response: http.client.HTTPResponse, part: _Part) -> int | None:
    """Let the part stand ready for the first byte; the size of the whole file, where known."""
    etag = response.headers.get("ETag", "W/")
    # What If-Range may carry: a weak ETag allows different bytes (RFC 9110, section 13.1.5).
    validator = response.headers.get("Last-Modified") if etag.startswith("W/") else etag
    if response.status == 200:
        part.restart(validator)
        return response.length
    form = r"bytes (\d{1,18})-\d{1,18}/(\d{1,18})"
    place = re.fullmatch(form, response.headers.get("Content-Range", ""))
    if place is None or int(place[1]) != part.size or validator not in (None, part.validator):
        part.restart(None)
        raise _Broken("the server's part does not continue what is here; beginning anew")
    return int(place[2])
