"""Where image files lie: in a folder or in a zip. Both list names and give bytes, nothing more."""

import os
import re
import zipfile
import zlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from guidex.errors import GuidexError, printable, reason_of

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp")


@dataclass
class Container:
    """A folder or zip: its files by name, relative to it, "/"-separated."""

    path: Path
    prefix: str  # what a table beside it puts before the names of its images
    files: Iterable[str]
    read: Callable[[str], bytes]  # raises OSError or ValueError, with the reason

    def __post_init__(self) -> None:
        images = {name for name in self.files if name.lower().endswith(SUFFIXES)}
        self.names = sorted(images)
        self.others = set(self.files) - images


def open_folder(path: Path) -> Container:
    """The files below a folder, but hidden ones. Links are followed, each folder is entered once.
    Raises GuidexError: some folder cannot be looked into."""
    path, files, entered = path.resolve(), [], set()
    for folder, folders, inside in os.walk(path, followlinks=True, onerror=_refuse):
        if os.path.realpath(folder) in entered:
            folders.clear()
            continue
        entered.add(os.path.realpath(folder))
        folders[:] = sorted(filter(_is_visible, folders))
        start = Path(folder).relative_to(path)
        files += [(start / name).as_posix() for name in filter(_is_visible, inside)]
    return Container(path, f"{path.name}/", files, lambda name: read_file(path / name))


def open_zip(path: Path) -> Container:
    """The files in a zip, which is read in place: nothing is ever extracted to the disk. Raises
    GuidexError: not a zip, or an entry whose name is absolute, has "..", or comes twice."""
    try:
        archive = zipfile.ZipFile(path)
    # What a damaged zip raises has no common type.
    except Exception as error:
        raise GuidexError(f"cannot read {path} as a zip: {reason_of(error)}") from error
    entries: dict[str, zipfile.ZipInfo] = {}
    for entry in archive.infolist():
        parts = entry.filename.replace("\\", "/").split("/")
        name = "/".join(part for part in parts if part != ".")
        escapes = ".." in parts or parts[0] == "" or parts[0].endswith(":")
        if escapes or name in entries:
            raise GuidexError(
                f"{path} is refused for its entry {entry.filename!a}: its name is absolute, has "
                "'..', or comes twice, which a safe zip has no use for."
            )
        if not entry.is_dir() and all(map(_is_visible, name.split("/"))):
            entries[name] = entry

    def read(name: str) -> bytes:
        try:
            with archive.open(entries[name]) as file:
                # No more than the entry declares: if it holds more, its checksum is wrong there.
                return file.read(entries[name].file_size)
        except (zipfile.BadZipFile, zlib.error, EOFError, RuntimeError) as error:
            raise ValueError(f"the zip entry is damaged: {reason_of(error)}") from error

    return Container(path, "", entries, read)


def read_file(path: Path) -> bytes:
    """The bytes of a file. Raises OSError, or ValueError where to open it could be to wait."""
    path.stat()  # tells what is wrong with a link
    if not path.is_file():
        raise ValueError("not a regular file")
    return path.read_bytes()


def seed_of(name: str) -> int | None:
    """The seed that a file is named after, as 001000/001234.png, maybe in images/; or None."""
    match = re.fullmatch(r"(?:images/)?([0-9]{6,19})/([0-9]{6,19})\.png", name)
    right = match is not None and int(match[1]) == int(match[2]) // 1000 * 1000
    return int(match[2]) if right else None


def _refuse(error: OSError) -> None:
    raise GuidexError(f"cannot look into {printable(error.filename)}: {reason_of(error)}")


def _is_visible(name: str) -> bool:
    return not name.startswith(".") and name != "__MACOSX"  # which macOS puts into zips
