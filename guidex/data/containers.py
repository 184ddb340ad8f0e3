"""Where image files lie: in a folder or in a zip. Both list names and give bytes, nothing more."""

import os
import re
import zipfile
import zlib
from abc import ABC, abstractmethod
from collections.abc import Iterable
from pathlib import Path, PurePosixPath

from guidex.errors import GuidexError

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp")
MAX_BYTES = 256 * 2**20  # that an entry of a zip may hold


class Container(ABC):
    """Files by name, those that are images and others.

    Attributes:
        path: of the folder or zip.
        prefix: what a table beside it puts before the names of its images.
        names: image files, relative to it, "/"-separated; by seed, or else sorted as text.
        others: suffixes of the files that are no images.
        closed: (name, reason) of sub-folders that cannot be looked into.
    """

    def __init__(self, path: Path, prefix: str, files: Iterable[str]) -> None:
        self.path, self.prefix, self._files = path, prefix, set(files)
        images = {name for name in self._files if name.lower().endswith(SUFFIXES)}
        by_seed = all(seed_of(name) is not None for name in images)
        # The text of a million and more is not sorted by value.
        self.names = sorted(images, key=seed_of if by_seed else None)
        self.others = {PurePosixPath(name).suffix for name in self._files - images}
        self.closed: list[tuple[str, str]] = []

    @abstractmethod
    def read(self, name: str) -> bytes:
        """The bytes of a file. Raises OSError or ValueError, with the reason."""

    def table(self, name: str) -> bytes | None:
        """The bytes of a file that is no image, None if there is none. Raises GuidexError."""
        try:
            return self.read(name) if name in self._files else None
        except (OSError, ValueError) as error:
            raise GuidexError(f"cannot read {name} in {self.path}: {reason_of(error)}") from error


class Folder(Container):
    """The files below a folder, but hidden ones; each real folder is entered once, in its own place
    or by a symbolic link."""

    def __init__(self, path: Path) -> None:
        path, files, errors, entered = path.resolve(), [], [], set()
        for folder, folders, inside in os.walk(path, followlinks=True, onerror=errors.append):
            real = os.path.realpath(folder)
            if real in entered or (real != folder and Path(real).is_relative_to(path)):
                folders.clear()
                continue
            entered.add(real)
            folders[:] = sorted(name for name in folders if not _is_hidden(name))
            start = _relative(folder, path)
            files += [start + name for name in inside if not _is_hidden(name)]
        super().__init__(path, f"{path.name}/", files)
        self.closed = [(_relative(e.filename, path)[:-1], reason_of(e)) for e in errors]

    def read(self, name: str) -> bytes:
        return read_file(self.path / name)


class Zip(Container):
    """The files in a zip, which is read in place: nothing is ever extracted to the disk.

    Raises:
        GuidexError: not a zip, or an entry whose name is absolute, has "..", or comes twice.
    """

    def __init__(self, path: Path) -> None:
        try:
            self._zip = zipfile.ZipFile(path)
        # What a damaged zip raises has no common type.
        except Exception as error:
            raise GuidexError(f"cannot read {path} as a zip: {reason_of(error)}") from error
        self._entries: dict[str, zipfile.ZipInfo] = {}
        for entry in self._zip.infolist():
            parts = entry.filename.replace("\\", "/").split("/")
            name, why = "/".join(part for part in parts if part != "."), None
            if ".." in parts or parts[0] == "" or parts[0].endswith(":"):
                why = "its name is absolute or has '..', which a safe zip has no use for"
            elif name in self._entries:
                why = "the name comes twice"
            if why is not None:
                raise GuidexError(f"{path} is refused for its entry {entry.filename!a}: {why}.")
            if not entry.is_dir() and not any(map(_is_hidden, name.split("/"))):
                self._entries[name] = entry
        super().__init__(path, "", self._entries)

    def read(self, name: str) -> bytes:
        entry = self._entries[name]
        if entry.file_size > MAX_BYTES:
            raise ValueError(f"larger than the {MAX_BYTES // 2**20} MiB allowed for one file")
        try:
            with self._zip.open(entry) as file:
                # No more than the entry declares: if it holds more, its checksum is wrong there.
                return file.read(entry.file_size)
        except (zipfile.BadZipFile, zlib.error, OSError, EOFError, RuntimeError) as error:
            raise ValueError(f"the zip entry is damaged: {reason_of(error)}") from error


def read_file(path: Path) -> bytes:
    """The bytes of a file. Raises OSError, or ValueError where to open it could be to wait."""
    path.stat()  # tells what is wrong with a link
    if not path.is_file():
        raise ValueError("not a regular file")
    return path.read_bytes()


def _relative(folder: str, root: Path) -> str:
    """What the names of files in a folder below the root begin with."""
    return "" if folder == str(root) else Path(folder).relative_to(root).as_posix() + "/"


def seed_of(name: str) -> int | None:
    """The seed that a file is named after, as 001000/001234.png, maybe in images/; or None."""
    match = re.fullmatch(r"(?:images/)?([0-9]{6,19})/([0-9]{6,19})\.png", name)
    if match is None or int(match[1]) != int(match[2]) // 1000 * 1000:
        return None
    return int(match[2])


def reason_of(error: Exception) -> str:
    """An exception as a few words on one printable line, and never advice to load pickles."""
    text = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    if "pickle" in text or "Python objects" in text:
        return "it holds Python objects, which are never loaded, or is damaged"
    return shown(text or type(error).__name__)[:200]


def shown(name: str) -> str:
    """A name from outside, fit to be printed: control and undecodable characters are escaped."""
    return "".join(char if char.isprintable() else ascii(char)[1:-1] for char in name)


def _is_hidden(name: str) -> bool:
    return name.startswith(".") or name == "__MACOSX"  # which macOS puts into zips
