"""Checkpoints and references by path or URL: downloaded once, verified on every load.

The cache is one folder of plain files: `GUIDEX_CACHE`, else `$XDG_CACHE_HOME/guidex`, else
`~/.cache/guidex`. Beside each file lies a record, `<file>.sha256`, which `sha256sum --check` reads.
A file put there by hand is as good as a downloaded one. `GUIDEX_OFFLINE=1` forbids the network.
"""

import hashlib
import logging
import os
import re
from datetime import UTC, datetime
from pathlib import Path, PurePosixPath
from urllib.parse import unquote
from urllib.request import url2pathname

from filelock import FileLock, Timeout

from guidex.errors import GuidexError, UsageError
from guidex.files.atomic import atomic_write
from guidex.files.download import download
from guidex.files.progress import Received

log = logging.getLogger(__name__)


def fetch(source: str, *, sha256: str | None = None, progress: Received | None = None) -> Path:
    """The local path of a file, which is downloaded into the cache where it is a URL not there yet.

    A cached file is hashed on each call (about 0.65 s per GB). Any number of processes may ask for
    the same file at once: one downloads, the others wait.

    Arguments:
        source: path of an existing file (returned as it is), file:// URL, or http(s):// URL.
        sha256: 64 hex digits that the file must have, or None: whatever came first is recorded.
        progress: called with (bytes so far, bytes in all or None) while downloading.

    Raises:
        UsageError: no such file, bad URL, HTTP 404, not cached while offline.
        GuidexError: not to be downloaded, cache folder not usable, no disk space, corrupt or
            unexpected content.
    """
    expected = None if sha256 is None else sha256.lower()
    url, path = _locate(source)
    if url is None:
        if not os.path.isfile(path):  # nor is a pipe or a device, which may never end
            state = "is not a file" if os.path.exists(path) else "does not exist"
            raise UsageError(f"{path} {state}: give an existing file or an https:// URL.")
        if expected is not None:
            _compare(path, expected, "asked for. Get it anew, or correct the hash.")
        return path
    if os.path.isfile(path):
        _verify(path, url, path, expected)
        return path
    known = "" if expected is None else f" (SHA-256 {expected})"
    by_hand = (
        f"Download {url}{known} on a machine that can, and put it at {path}, or give the path "
        "of a local copy in place of the URL."
    )
    if offline():
        raise UsageError(
            f"{url} is not in the cache, and GUIDEX_OFFLINE forbids the network. {by_hand}"
        )
    try:
        _download(url, path, expected, progress or (lambda count, total: None))
    except GuidexError as error:
        raise type(error)(f"{error} {by_hand}") from error
    except (OSError, NotImplementedError) as error:  # the latter: a disk without locks
        raise GuidexError(
            f"the cache folder {path.parent} cannot be used ({error}). Free some space, or set "
            "GUIDEX_CACHE to a folder that can be written."
        ) from error
    return path


def cached(source: str) -> Path | None:
    """Where a source lies on this machine, neither verified nor downloaded; None if it does not.

    Raises:
        UsageError: a malformed URL.
    """
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
    if local := re.fullmatch(r"file://(?:localhost)?(/.*)", source):
        return None, Path(url2pathname(local[1]))
    url = source.partition("#")[0]
    form = r"(?i:https?)://([\w.-]+|\[[\da-f:.]+\])(?::\d{1,5})?(/[!->@-~]*)?(\?[!-~]*)?"
    remote = re.fullmatch(form, url, re.ASCII)
    if remote is None:
        raise UsageError(
            f"{source!r} is not a usable address: give a path, file:///folder/file, or a URL "
            "https://host/file or http://host/file without a user name."
        )
    name = PurePosixPath(unquote(PurePosixPath(remote[2] or "").name) or remote[1])
    suffix = re.sub("[^A-Za-z0-9.]+", "", name.suffix)[:16]
    stem = re.sub("[^A-Za-z0-9._-]+", "_", name.stem).lstrip(".")[:80]
    # The hash keeps equal names apart, and the suffix stays last for those who look at it.
    return url, cache_dir() / f"{stem}-{hashlib.sha256(url.encode()).hexdigest()[:10]}{suffix}"


def _download(url: str, path: Path, expected: str | None, progress: Received) -> None:
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
        if os.path.isfile(path):  # another process was faster
            return _verify(path, url, path, expected)
        download(url, part, progress)
        try:
            _verify(part, url, path, expected)
        except GuidexError:
            part.unlink()
            raise
        os.replace(part, path)


def _verify(file: Path, url: str, path: Path, expected: str | None) -> None:
    """Refuse a file for the place `path` that is not what was asked for, or else recorded.

    What is new (downloaded, or put there by hand) is recorded.
    """
    retry = f"Delete it to download {url} again" if file == path else "It was thrown away"
    with open(file, "rb") as content:
        head = content.read(512).removeprefix(b"\xef\xbb\xbf").lstrip()
    # What servers give in place of files. Binary files that happen to begin so hold zeros.
    text = head.startswith((b"<", b"{", b"[", b"version https://git-lfs")) and b"\0" not in head
    if text or head == b"":
        raise GuidexError(
            f"{file}, from {url}, is empty, a web page, XML, JSON or a Git LFS pointer: a sign-in, "
            f"quota or error page in place of the file? {retry}."
        )
    record = path.with_name(path.name + ".sha256")
    recorded = record.read_text("latin-1")[:64] if record.exists() else None
    advice = f"asked for. {retry}, or correct the hash."
    if expected is None:
        advice = f"recorded in {record}. {retry}; or, to accept it, delete that record."
    sha256 = _compare(file, expected or recorded, advice)
    if sha256 != recorded:
        line = f"{sha256}  {path.name}\n# {url}, {datetime.now(UTC):%Y-%m-%d}\n"
        atomic_write(record, lambda file: file.write(line.encode()))


def _compare(path: Path, wanted: str | None, advice: str) -> str:
    """The SHA-256 of a file, which must be the one that is wanted, if any."""
    sha256 = file_sha256(path)
    if wanted not in (None, sha256):
        raise GuidexError(
            f"{path} is corrupt or another file: its SHA-256 is {sha256}, and {wanted} is {advice}"
        )
    return sha256
