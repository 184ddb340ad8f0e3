"""Checkpoints and references by path or URL: downloaded once, verified on every load.

The cache is one folder of plain files: `GUIDEX_CACHE`, else `$XDG_CACHE_HOME/guidex`, else
`~/.cache/guidex`. Beside each file lies a record, `<file>.json`, with its URL, size, SHA-256, the
server's ETag and Last-Modified, date and origin. A file put there by hand is as good as a
downloaded one. `GUIDEX_OFFLINE=1` forbids the network.
"""

import hashlib
import logging
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path, PurePosixPath
from types import NoneType
from urllib.parse import unquote, urldefrag, urlsplit
from urllib.request import url2pathname

from filelock import FileLock, Timeout

from guidex.assets.download import (
    Download,
    HashMismatch,
    Progress,
    TransferError,
    download,
    looks_like_an_answer,
    url_fault,
)
from guidex.assets.partial import note_path, read_fields, write_fields, writing
from guidex.errors import GuidexError, UsageError

log = logging.getLogger(__name__)


def fetch(source: str, *, sha256: str | None = None, progress: Progress | None = None) -> Path:
    """The local path of a file, which is downloaded into the cache where it is a URL not there yet.

    A cached file is read and hashed on each call before its path is given out: about 0.65 s per GB
    where the processor has SHA instructions and the file is in memory; a disk adds its own time,
    but then spares it the load that follows. Any number of processes may ask for the same file at
    once: one downloads, the others wait.

    Arguments:
        source: path of an existing file (returned as it is), file:// URL, or http(s):// URL.
        sha256: 64 hex digits that the file must have, or None: whatever came first is recorded.
        progress: called with (bytes so far, bytes in all or None) while downloading.

    Raises:
        UsageError: no such file, bad URL or hash, HTTP 404, not cached while offline, cache folder
            not usable.
        GuidexError: not to be downloaded, no disk space, corrupt or unexpected content.
    """
    expected = _checked_hash(sha256)
    path = _local_path(source)
    if path is not None:
        return _checked_local(path, expected)
    entry = _entry(source)
    if _exists(entry.path) and (_exists(entry.record_path) or not _writable()):
        # Needs no lock, hence no write access: an administrator's read-only cache will do.
        return _verified(entry, expected)
    if not _exists(entry.path):
        _require_network(entry, expected)
    with _locked(entry):
        if not _exists(entry.path):
            _require_network(entry, expected)
            return _download(entry, expected, progress)
        if not _exists(entry.record_path):
            _adopt(entry)
    return _verified(entry, expected)


def cached(source: str) -> Path | None:
    """Where a source lies on this machine, neither verified nor downloaded; None if it does not.

    Raises:
        UsageError: a malformed URL.
    """
    path = _local_path(source)
    path = _entry(source).path if path is None else path
    return path if os.path.isfile(path) else None


def cache_dir() -> Path:
    """The cache folder (see the head of this file), absolute; it need not exist yet."""
    named = os.environ.get("GUIDEX_CACHE", "")
    try:
        if named != "":
            return Path(named).expanduser().absolute()
        xdg = Path(os.environ.get("XDG_CACHE_HOME", ""))
        # The XDG base directory specification: empty or relative counts as unset.
        return (xdg if xdg.is_absolute() else Path.home() / ".cache") / "guidex"
    except RuntimeError as error:
        raise UsageError("no home folder is known: set GUIDEX_CACHE to a folder.") from error


def offline() -> bool:
    """Whether GUIDEX_OFFLINE forbids the network."""
    value = os.environ.get("GUIDEX_OFFLINE", "").lower()
    if value not in ("", "0", "1", "false", "true", "no", "yes", "off", "on"):
        raise UsageError(f"GUIDEX_OFFLINE is {value!r}: allowed are 1 (no network) and 0.")
    return value in ("1", "true", "yes", "on")


def file_sha256(path: Path) -> str:
    """The SHA-256 of a file, 64 lower-case hex digits."""
    try:
        with open(path, "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise GuidexError(f"cannot read {path}: {error.strerror}.") from error


@dataclass(frozen=True)
class _Record:
    """What is known of a cached file; `origin`: "downloaded" or "placed by hand"; `date`: UTC."""

    url: str
    size: int
    sha256: str
    etag: str | None
    last_modified: str | None
    date: str
    origin: str


_RECORD_TYPES = {
    "url": str,
    "size": int,
    "sha256": str,
    "etag": (str, NoneType),
    "last_modified": (str, NoneType),
    "date": str,
    "origin": str,
}


@dataclass(frozen=True)
class _Entry:
    """The place of a URL in the cache."""

    url: str
    path: Path

    @property
    def record_path(self) -> Path:
        return self.path.with_name(self.path.name + ".json")

    @property
    def part_path(self) -> Path:
        return self.path.with_name(self.path.name + ".part")

    def record(self) -> _Record | None:
        fields = read_fields(self.record_path, _RECORD_TYPES)
        if fields is not None and fields["url"] == self.url:
            return _Record(**fields)
        if not _exists(self.record_path):
            return None
        raise GuidexError(
            f"{self.record_path} is not a readable record of {self.url}, so that {self.path.name} "
            f"cannot be verified. Delete the record to have the file hashed and recorded anew, or "
            f"both to download again."
        )

    def by_hand(self, sha256: str | None) -> str:
        """What to do without network: what to download from where, and where to put it."""
        known = "" if sha256 is None else f" (SHA-256 {sha256})"
        return (
            f"Download {self.url}{known} on a machine that can, and put it at {self.path}, or give "
            f"the path of a local copy in place of the URL."
        )


def _entry(url: str) -> _Entry:
    fault = url_fault(url)
    if fault is not None:
        raise UsageError(f"{url!r} is not a usable URL: {fault}.")
    url, _ = urldefrag(url)  # a fragment is never sent, hence names no other file
    parts = urlsplit(url)
    name = PurePosixPath(unquote(PurePosixPath(parts.path).name) or parts.hostname or "")
    suffix = re.sub("[^A-Za-z0-9.]+", "", name.suffix)[:16]
    stem = re.sub("[^A-Za-z0-9._-]+", "_", name.stem).lstrip(".")[:80]
    # The hash keeps equal names apart, and the suffix stays last for those who look at it.
    return _Entry(
        url, cache_dir() / f"{stem}-{hashlib.sha256(url.encode()).hexdigest()[:10]}{suffix}"
    )


def _local_path(source: str) -> Path | None:
    """The path that a source names, or None if it is a URL of another machine's file."""
    scheme = source.partition("://")[0].lower() if "://" in source else None
    if scheme in ("http", "https"):
        return None
    if scheme is None:
        try:
            return Path(source).expanduser()
        except RuntimeError as error:
            raise UsageError(f"{source!r}: no such home folder; write the whole path.") from error
    if scheme != "file":
        raise UsageError(
            f"{source!r} is neither a path nor a URL that guidex can get: give a path, file://, "
            f"https:// or http://."
        )
    parts = urlsplit(source)
    if parts.netloc not in ("", "localhost"):
        raise UsageError(f"{source!r} names another machine: write file:///folder/file.")
    return Path(url2pathname(parts.path))


def _checked_hash(sha256: str | None) -> str | None:
    if sha256 is None or re.fullmatch("[0-9a-fA-F]{64}", sha256):
        return None if sha256 is None else sha256.lower()
    raise UsageError(f"a SHA-256 has 64 hexadecimal digits; given: {sha256!r}.")


def _checked_local(path: Path, expected: str | None) -> Path:
    if not os.path.isfile(path):
        state = "is not a file" if _exists(path) else "does not exist, or may not be looked at"
        raise UsageError(f"{path} {state}: give an existing file or an https:// URL.")
    if expected is not None:
        actual = file_sha256(path)
        if actual != expected:
            raise GuidexError(
                f"{path} has the SHA-256 {actual}, but {expected} was asked for: it is corrupt or "
                f"another file. Get it anew, or correct the hash."
            )
    return path


def _exists(path: Path) -> bool:
    """Whether something is there; False, not an exception, where one may not look."""
    return os.path.exists(path)


def _require_network(entry: _Entry, expected: str | None) -> None:
    if offline():
        raise UsageError(
            f"{entry.url} is not in the cache, and GUIDEX_OFFLINE forbids the network. "
            f"{entry.by_hand(expected)}"
        )


def _writable() -> bool:
    return os.access(cache_dir(), os.W_OK)


@contextmanager
def _locked(entry: _Entry) -> Iterator[None]:
    """Work on an entry alone among all processes (of all machines, if the disk's locks reach)."""
    lock = FileLock(entry.path.with_name(entry.path.name + ".lock"))
    try:
        entry.path.parent.mkdir(parents=True, exist_ok=True)
        try:
            lock.acquire(timeout=0)
        except Timeout:
            log.warning("Waiting for another process that is getting %s.", entry.url)
            lock.acquire()
    except (OSError, NotImplementedError) as error:
        raise UsageError(
            f"the cache folder {entry.path.parent} cannot be used ({error}). Set GUIDEX_CACHE to a "
            f"folder that can be written."
        ) from error
    try:
        yield
    finally:
        lock.release()


def _verified(entry: _Entry, expected: str | None) -> Path:
    """The cached file, if it is what was recorded and what is asked for."""
    record = entry.record()
    actual = file_sha256(entry.path)
    if record is not None and actual != record.sha256:
        raise GuidexError(
            f"{entry.path} is corrupt: it has the SHA-256 {actual} ({entry.path.stat().st_size} "
            f"bytes), but {record.sha256} ({record.size} bytes) was recorded on {record.date}. "
            f"Delete it to download {entry.url} again; or, if you replaced it on purpose, delete "
            f"{entry.record_path}."
        )
    if record is None and expected is None:
        log.warning("%s has no record, and none can be written: it is not verified.", entry.path)
    if expected is not None and actual != expected:
        raise GuidexError(
            f"{entry.path} has the SHA-256 {actual}, but {expected} was asked for. Delete it to "
            f"download {entry.url} again, or correct the hash."
        )
    return entry.path


def _adopt(entry: _Entry) -> None:
    """Record a file that was put into the cache by hand."""
    size, sha256 = entry.path.stat().st_size, file_sha256(entry.path)
    answer = looks_like_an_answer(entry.path)
    if answer is not None:
        raise UsageError(
            f"{entry.path} is {answer}, not a file to load; was it saved in its place? "
            f"{entry.by_hand(None)}"
        )
    record = _Record(entry.url, size, sha256, None, None, _now(), "placed by hand")
    write_fields(entry.record_path, asdict(record))
    log.warning("Found %s, put there by hand; recorded its SHA-256 %s.", entry.path, sha256)


def _download(entry: _Entry, expected: str | None, progress: Progress | None) -> Path:
    # A record whose file was deleted still tells what the file has to be.
    record = entry.record()
    wanted = record.sha256 if expected is None and record is not None else expected
    try:
        got = download(entry.url, entry.part_path, sha256=wanted, progress=progress)
    except TransferError as error:
        kind = UsageError if error.status in (404, 410) else GuidexError
        raise kind(f"{error} {entry.by_hand(wanted)}") from error
    except HashMismatch as error:
        if expected is not None or record is None:
            advice = "Correct the URL or the hash."
        else:
            advice = (
                f"The old hash was recorded on {record.date}: the file at the URL has changed. "
                f"Delete {entry.record_path} to accept the new one."
            )
        raise GuidexError(f"{error} {advice}") from error
    _settle(entry, got)
    return entry.path


def _settle(entry: _Entry, got: Download) -> None:
    """Move a whole part to its place.

    The record comes first: cut short in between, the next run finds the part whole and goes on.
    """
    etag, last_modified = got.version.etag, got.version.last_modified
    record = _Record(entry.url, got.size, got.sha256, etag, last_modified, _now(), "downloaded")
    write_fields(entry.record_path, asdict(record))
    with writing(entry.path):
        os.replace(entry.part_path, entry.path)
        _sync_folder(entry.path.parent)
        note_path(entry.part_path).unlink(missing_ok=True)


def _sync_folder(folder: Path) -> None:
    """Make a rename last through a power failure, where the system can (POSIX)."""
    if os.name != "posix":
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        with suppress(OSError):  # some network file systems refuse; the rename itself has happened
            os.fsync(handle)
    finally:
        os.close(handle)


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
