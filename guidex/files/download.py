"""Download one file over HTTP(S), resuming where an earlier attempt stopped.

A transfer is resumed (Range and If-Range, RFC 9110 sections 13.1.5 and 14) only if the server shows
that its file is still the same; in doubt it begins anew.
"""

import http.client
import logging
import re
import shutil
from pathlib import Path
from time import sleep
from urllib.error import HTTPError
from urllib.parse import urlsplit
from urllib.request import HTTPRedirectHandler, Request, build_opener

from guidex import __version__
from guidex.errors import GuidexError, UsageError
from guidex.files.progress import Received, megabytes

TIMEOUT = 30.0  # seconds, to connect and for each read
ATTEMPTS = 5  # in a row that bring nothing new; the waits between them are 1, 2, 4, 8 s
CHUNK = 1 << 18  # bytes, the most that is read and written at once

log = logging.getLogger(__name__)


class _Broken(Exception):
    """An attempt failed, but the next one may not."""


def download(url: str, part: Path, progress: Received) -> None:
    """Download an http(s) URL into a file, on which the caller holds a lock.

    Until the file is whole, a note beside it, `<part>.version`, holds what the server calls this
    version of the file, so that a later call can resume it.

    Arguments:
        url: proxies are taken from the environment.
        progress: called with (bytes so far, bytes in all or None) at the start and after each
            chunk; the count falls back when the file begins anew. It may raise to stop.

    Raises:
        UsageError: HTTP 404 or 410. GuidexError: not to be had, no disk space. OSError: the disk
            refuses.
    """
    failures, furthest = 0, 0
    while True:
        try:
            return _attempt(url, part, progress)
        except _Broken as broken:
            size = part.stat().st_size if part.exists() else 0
            failures = 1 if size > furthest else failures + 1
            furthest = max(furthest, size)
            if failures == ATTEMPTS:
                raise GuidexError(
                    f"cannot download {url}: {broken}; {ATTEMPTS} attempts failed."
                ) from broken
            wait = 2 ** (failures - 1)
            log.warning("Download of %s: %s; trying again in %d s.", url, broken, wait)
            sleep(wait)


def _attempt(url: str, part: Path, progress: Received) -> None:
    """Send one request and append its answer to the part; returns when the part is whole."""
    note = part.with_name(part.name + ".version")
    known = note.read_text("latin-1") if note.exists() and part.exists() else ""
    size = part.stat().st_size if known else 0
    headers = {"User-Agent": f"guidex/{__version__}"}
    if size > 0:
        headers |= {"Range": f"bytes={size}-", "If-Range": known}
    with _open(url, headers) as response:
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
                raise _Broken("the server's part does not continue what is here; beginning anew")
            total = int(place[1])
        if total is None and not response.chunked:
            raise GuidexError(
                f"cannot download {url}: the server does not say how long the file is, so that a "
                "cut one could not be told from a whole one."
            )
        missing, free = (total or 0) - size, shutil.disk_usage(part.parent).free
        if missing > free:
            raise GuidexError(
                f"{megabytes(missing)} are to be downloaded to {part.parent}, where "
                f"{megabytes(free)} are free. Free some, or set GUIDEX_CACHE to a larger disk."
            )
        with open(part, "ab" if size > 0 else "wb") as file:
            if size == 0:
                note.write_text(version, "latin-1")
            progress(size, total)
            while chunk := _read(response):
                file.write(chunk)
                file.flush()
                size += len(chunk)
                progress(size, total)
    if total is not None and size != total:
        raise _Broken(f"the connection was closed after {size} of {total} bytes")
    note.unlink()


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
    except (OSError, http.client.HTTPException, ValueError) as error:
        raise _Broken(f"no proper answer from {request.host} ({error!r})") from error


def _check_answer(url: str, response: http.client.HTTPResponse | HTTPError) -> None:
    """Refuse whatever is not (a piece of) the file, before any of it is written."""
    status = response.status
    text = f"the server answers HTTP {status} ({http.client.responses.get(status, 'unknown')})"
    if status in (408, 429) or status >= 500:
        raise _Broken(text)
    if 300 <= status < 400:
        text += ", a redirect that cannot be followed"
    if status not in (200, 206, 416):  # 416: the file does not continue what is here
        error = UsageError if status in (404, 410) else GuidexError
        raise error(f"cannot download {url}: {text}.")
