"""A file on its way from a server: what has come so far, kept so that it can be trusted later."""

import errno
import hashlib
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from types import NoneType

from guidex.assets.atomic import atomic_write
from guidex.errors import GuidexError

CHECKPOINT = 1 << 26  # bytes, the most that a killed process loses


@dataclass(frozen=True)
class Version:
    """Which file a server serves under a URL: its validators, and its size in bytes where known."""

    etag: str | None = None
    last_modified: str | None = None
    total: int | None = None

    @property
    def validator(self) -> str | None:
        """What If-Range may carry; None: resuming would be a gamble.

        A weak ETag (W/...) may not: it allows different bytes (RFC 9110, section 13.1.5).
        """
        if self.etag is not None and not self.etag.startswith("W/"):
            return self.etag
        return self.last_modified

    def contradicts(self, other: "Version") -> bool:
        """Whether something that both state differs."""
        pairs = zip(asdict(self).values(), asdict(other).values(), strict=True)
        return any(a is not None and b is not None and a != b for a, b in pairs)


class Part:
    """The bytes of a file received so far, their hash, and the version that they belong to.

    `<path>.json` notes size, hash and version at the end of each call and every CHECKPOINT bytes.
    What lies beyond the noted size (the process was killed) is cut off, and a part that does not
    hash to its note (the power failed) is thrown away: nothing is resumed that was not received.

    Use as a context manager, alone on `path`. Methods raise GuidexError when the disk refuses.

    Attributes:
        size: bytes so far.
        version: the server's version of the file; unknown (all None) before anything came.
    """

    def __init__(self, path: Path):
        self.path = path
        self._note = note_path(path)
        with writing(path):
            # Unbuffered: a write that failed leaves nothing that closing would try to write again.
            self._file = open(path, "a+b", buffering=0)
        try:
            self._restore()
        except BaseException:
            self._file.close()
            raise

    def __enter__(self) -> "Part":
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        try:
            if self.size > 0:
                self._checkpoint()
        except GuidexError:
            if kind is None:  # else the first failure is the one to tell of
                raise
        finally:
            self._file.close()
        if self.size == 0:
            self.path.unlink(missing_ok=True)
            self._note.unlink(missing_ok=True)

    @property
    def sha256(self) -> str:
        """SHA-256 of the bytes so far, 64 hex digits."""
        return self._digest.hexdigest()

    @property
    def complete(self) -> bool:
        """Whether all bytes of a file of known size are there."""
        return self.size > 0 and self.size == self.version.total

    def restart(self, version: Version) -> None:
        """Throw away what is there and begin a file of this version."""
        with writing(self.path):
            self._file.truncate(0)
        self.size, self.version = 0, version
        self._noted, self._digest = 0, hashlib.sha256()

    def write(self, chunk: bytes) -> None:
        """Append."""
        rest = memoryview(chunk)
        with writing(self.path):
            while len(rest) > 0:
                rest = rest[self._file.write(rest) :]
        self._digest.update(chunk)
        self.size += len(chunk)
        if self.size - self._noted >= CHECKPOINT:
            self._checkpoint()

    def _checkpoint(self) -> None:
        with writing(self.path):
            os.fsync(self._file.fileno())
        write_fields(self._note, {"size": self.size, "sha256": self.sha256, **asdict(self.version)})
        self._noted = self.size

    def _restore(self) -> None:
        note = read_fields(self._note, _NOTE)
        if note is None or not self._resume(**note):
            self.restart(Version())

    def _resume(
        self, size: int, sha256: str, etag: str | None, last_modified: str | None, total: int | None
    ) -> bool:
        version = Version(etag, last_modified, total)
        with writing(self.path):
            there = os.fstat(self._file.fileno()).st_size
            if version.validator is None or not 0 < size <= there:
                return False
            self._file.truncate(size)
            self._file.seek(0)
            digest = hashlib.file_digest(self._file, "sha256")
        if digest.hexdigest() != sha256:
            return False
        self.size, self.version = size, version
        self._noted, self._digest = size, digest
        return True


_NOTE = {
    "size": int,
    "sha256": str,
    "etag": (str, NoneType),
    "last_modified": (str, NoneType),
    "total": (int, NoneType),
}


def note_path(path: Path) -> Path:
    """Where the note of the part `path` lies."""
    return path.with_name(path.name + ".json")


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turn what the disk says while `path` is worked on into a GuidexError that says what to do."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            text = (
                f"cannot write {path}: no space (or quota) is left. Free some and run again, it "
                f"goes on where it stopped; or set GUIDEX_CACHE to a folder on a larger disk."
            )
        else:
            text = f"cannot write {path}: {error.strerror}. Is the folder there, and writable?"
        raise GuidexError(text) from error


def read_fields(path: Path, types: dict[str, type | tuple[type, ...]]) -> dict | None:
    """A JSON object with exactly these fields of these types; None if the file is anything else."""
    try:
        fields = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError):
        return None
    if not isinstance(fields, dict) or fields.keys() != types.keys():
        return None
    return fields if all(isinstance(fields[key], types[key]) for key in types) else None


def write_fields(path: Path, fields: dict[str, str | int | None]) -> None:
    """Write a JSON object in one step."""
    text = json.dumps(fields, indent=2) + "\n"
    atomic_write(path, lambda file: file.write(text.encode()))
