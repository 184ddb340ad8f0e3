"""Where image files lie: in a folder or in a zip. Both list names and give bytes, nothing more."""

import os
import re
import stat
import zipfile
import zlib
from collections import deque
from pathlib import Path, PurePosixPath
from typing import Protocol

from guidex.errors import GuidexError

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp")

# No image file of MAX_PIXELS is larger, and no list of labels of ten million images.
MAX_BYTES = 256 * 2**20

# What reading a damaged zip entry raises.
_DAMAGED = (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError)


class Source(Protocol):
    """Image files, by name.

    Attributes:
        folder: the name of the folder that the image files lie in, "" for a zip.
        names: image files, relative to the source, "/"-separated; see `in_order`.
        closed: (name, reason) of sub-folders that cannot be looked into.
        others: the suffixes of the files that are no images, to tell what else lies there.
    """

    folder: str
    names: list[str]
    closed: list[tuple[str, str]]
    others: set[str]

    def read(self, name: str) -> bytes:
        """The bytes of an image file. Raises OSError or ValueError, with the reason."""

    def sidecar(self, name: str) -> bytes | None:
        """The bytes of a file that is no image, None if there is none. Raises GuidexError."""


class FolderSource:
    """The image files below a folder.

    Hidden files and folders are left out. Symbolic links are followed, yet each real folder is
    entered once: in its own place, or else by the first link to it, so that loops end.
    """

    def __init__(self, root: Path) -> None:
        self._root = root.resolve()
        self.folder = self._root.name
        self.closed: list[tuple[str, str]] = []
        self.others: set[str] = set()
        self.names = in_order(self._walk())

    def _walk(self) -> list[str]:
        names: list[str] = []
        pending = deque([""])
        entered: set[tuple[int, int]] = set()
        while pending:
            folder = pending.popleft()
            try:
                status = os.stat(self._root / folder)
                if (status.st_dev, status.st_ino) in entered:
                    continue
                entered.add((status.st_dev, status.st_ino))
                entries = sorted(os.scandir(self._root / folder), key=lambda entry: entry.name)
            except OSError as error:
                self.closed.append((folder, reason_of(error)))
                continue
            for entry in entries:
                name = f"{folder}/{entry.name}" if folder else entry.name
                if _ignored(entry.name):
                    continue
                if _is_folder(entry):
                    # Real folders first: a link to one of them must not take its place.
                    (pending.append if entry.is_symlink() else pending.appendleft)(name)
                elif entry.name.lower().endswith(SUFFIXES):
                    names.append(name)
                else:
                    self.others.add(PurePosixPath(name).suffix)
        return names

    def read(self, name: str) -> bytes:
        path = self._root / name
        status = path.stat()
        # Asked before opening, since opening a pipe would wait for its writer.
        if not stat.S_ISREG(status.st_mode):
            raise ValueError("not a regular file")
        if status.st_size > MAX_BYTES:
            raise _too_large()
        with open(path, "rb") as file:
            return file.read(status.st_size)

    def sidecar(self, name: str) -> bytes | None:
        path = self._root / name
        if not path.is_file():
            return None
        try:
            return self.read(name)
        except (OSError, ValueError) as error:
            raise GuidexError(f"cannot read {path.resolve()}: {reason_of(error)}") from error


class ZipSource:
    """The image files in a zip, which is read in place: nothing is ever extracted to the disk.

    Raises:
        GuidexError: not a zip; an entry whose name is absolute, has "..", or comes twice; entries
            that share their bytes, as in a zip bomb.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self.folder = ""
        self.closed: list[tuple[str, str]] = []
        try:
            self._zip = zipfile.ZipFile(path)
        except (OSError, ValueError, *_DAMAGED) as error:
            raise GuidexError(f"cannot read {path} as a zip: {reason_of(error)}") from error
        self._entries = self._checked(self._zip.infolist())
        seen = [name for name in self._entries if not any(map(_ignored, name.split("/")))]
        self.names = in_order([name for name in seen if name.lower().endswith(SUFFIXES)])
        self.others = {PurePosixPath(name).suffix for name in seen} - set(SUFFIXES)

    def _checked(self, entries: list[zipfile.ZipInfo]) -> dict[str, zipfile.ZipInfo]:
        """The files, by name; "./a.png" is called "a.png"."""
        found: dict[str, zipfile.ZipInfo] = {}
        for entry in entries:
            parts = entry.filename.replace("\\", "/").split("/")
            name = "/".join(part for part in parts if part != ".")
            if ".." in parts or parts[0] == "" or parts[0].endswith(":"):
                why = "its name is absolute or has '..', which a safe zip has no use for"
            elif name in found:
                why = "the name comes twice"
            else:
                found[name] = entry
                continue
            raise GuidexError(f"{self._path} is refused for its entry {entry.filename!a}: {why}.")
        if sum(entry.compress_size for entry in entries) > self._path.stat().st_size:
            raise GuidexError(
                f"{self._path} is refused: its entries claim more bytes than the file has, as in "
                "a zip bomb."
            )
        return {name: entry for name, entry in found.items() if not entry.is_dir()}

    def read(self, name: str) -> bytes:
        entry = self._entries[name]
        if entry.flag_bits & 0x1:
            raise ValueError("the zip entry is encrypted")
        # Other methods are rare, and Python's decompressors for them know no limit.
        if entry.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            raise ValueError("the zip entry is compressed, but not by deflate")
        if entry.file_size > MAX_BYTES:
            raise _too_large()
        try:
            with self._zip.open(entry) as file:
                # An entry may hold more than it declares: with a size, zipfile decompresses no
                # more than that, and finds the wrong checksum at its end.
                return file.read(entry.file_size)
        except _DAMAGED as error:
            raise ValueError(f"the zip entry is damaged: {reason_of(error)}") from error

    def sidecar(self, name: str) -> bytes | None:
        if name not in self._entries:
            return None
        try:
            return self.read(name)
        except (OSError, ValueError) as error:
            raise GuidexError(f"cannot read {name} in {self._path}: {reason_of(error)}") from error


def in_order(names: list[str]) -> list[str]:
    """Sorted as text; but the images of `guidex sample` by seed, which text of a million and more
    is not sorted by."""
    seeds = {name: seed_of(name) for name in names}
    return sorted(names) if None in seeds.values() else sorted(names, key=seeds.get)


def seed_of(name: str) -> int | None:
    """The seed that a file is named after, as 001000/001234.png, maybe in a folder; or None."""
    match = re.fullmatch(r"(?:images/)?([0-9]{6,19})/([0-9]{6,19})\.png", name)
    if match is None or int(match[1]) != int(match[2]) // 1000 * 1000:
        return None
    return int(match[2])


def reason_of(error: Exception) -> str:
    """An exception as a few words on one printable line, and never advice to load pickles."""
    text = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    if "pickle" in text:
        return "it holds Python objects, which are never loaded, or is damaged"
    return shown(text or type(error).__name__)[:200]


def shown(name: str) -> str:
    """A name from outside, fit to be printed: control and undecodable characters are escaped."""
    return "".join(char if char.isprintable() else ascii(char)[1:-1] for char in name)


def _ignored(name: str) -> bool:
    """Hidden files, and the folder of them that macOS puts into zips."""
    return name.startswith(".") or name == "__MACOSX"


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:
        # A link to itself, for one: left to `read`, to say so.
        return False


def _too_large() -> ValueError:
    return ValueError(f"larger than the {MAX_BYTES // 2**20} MiB allowed for one file")
