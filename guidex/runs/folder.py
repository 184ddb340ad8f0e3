"""The folder of a run: who is working in it, what it was made by, and what is already there.

`run.json` says what a folder holds. Work that would give other results never goes into the same
folder, two processes never write to one, and everything is written whole or not at all. Records,
which later starts rely on, carry the run that they are of, what made them, and a checksum.
"""

import hashlib
import json
import os
import secrets
import shutil
import sys
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from guidex.errors import GuidexError, UsageError
from guidex.files.atomic import atomic_write
from guidex.files.cache import file_sha256
from guidex.runs.provenance import versions
from guidex.runs.ranks import ALONE, Rank

_MARK, _INPUTS, _LOCK = "run.json", "inputs.json", ".lock"
_TEMPORARY = ".guidex-"


def write_json(path: Path, data: Any) -> None:
    """Write data as JSON, whole or not at all."""
    text = json.dumps(data, indent=1, ensure_ascii=False, allow_nan=True)
    atomic_write(path, lambda file: file.write(text.encode()))


def _read_json(path: Path) -> Any:
    """What a file of guidex's own holds; None where there is none, or something else."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return None


@dataclass(frozen=True)
class RunFolder:
    """A folder that this process holds for a run.

    A record is a line with a SHA-256, a line of JSON that says whose it is, and the content.

    Attributes:
        run: drawn at random when the run was begun; another run in the same place has another.
        lock: the file that this process has locked.
        stamps: which files mark and lock the folder.
    """

    path: Path
    run: str
    lock: Path
    stamps: tuple[int, ...]

    def check(self) -> None:
        """Refuse to write into what is no longer this process's folder.

        Raises:
            GuidexError: it was moved, deleted, or taken over by another run.
        """
        if _stamps(self.path, self.lock) != self.stamps:
            raise GuidexError(
                f"{self.path} is no longer the folder that this run was begun in: it was moved, "
                "deleted or begun anew; give the command again to go on where its results are"
            )

    def write(self, path: Path, content: bytes, files: Iterable[Path] = ()) -> None:
        """Write a record, whole or not at all, with the sizes of the files that belong to it, and
        the checksums of those beside it."""
        self.check()
        path.parent.mkdir(parents=True, exist_ok=True)
        listed = []
        for file in files:
            sha256 = file_sha256(file) if file.parent == path.parent else None
            listed.append((str(file.relative_to(self.path)), file.stat().st_size, sha256))
        about = json.dumps({"run": self.run, "versions": versions(), "files": listed})
        sealed = b"%s\n%s" % (about.encode(), content)
        first = b"%s\n" % hashlib.sha256(sealed).hexdigest().encode()
        atomic_write(path, lambda file: file.writelines((first, sealed)))

    def holds(self, path: Path, unneeded: Collection[Path] = ()) -> bool:
        """Whether a record of this run is there, and its files in their sizes, but those that are
        not needed; the content of both is not looked at."""
        try:
            with path.open("rb") as file:
                file.readline()
                about = json.loads(file.readline())
            files = [(self.path / name, size) for name, size, _ in about["files"]]
            return about["run"] == self.run and all(
                file in unneeded or file.stat().st_size == size for file, size in files
            )
        except (OSError, ValueError, TypeError, KeyError):
            return False

    def read(self, path: Path) -> tuple[bytes, dict[str, str]] | None:
        """A record of this run, and the versions that it was made with; None where there is none,
        or it or a file beside it is damaged. Files that are gone are let be."""
        try:
            first, _, sealed = path.read_bytes().partition(b"\n")
        except OSError:
            return None
        if hashlib.sha256(sealed).hexdigest().encode() != first:
            return None
        line, _, content = sealed.partition(b"\n")
        about = json.loads(line)
        files = [(self.path / name, sha256) for name, _, sha256 in about["files"] if sha256]
        is_whole = all(file_sha256(file) == sha256 for file, sha256 in files if file.exists())
        return (content, about["versions"]) if is_whole and about["run"] == self.run else None


@contextmanager
def run_folder(
    folder: Path, identity: Mapping[str, Any], overwrite: bool, rank: Rank = ALONE
) -> Iterator[RunFolder]:
    """Hold a folder for a run, new or to be resumed.

    Arguments:
        identity: plain data that decides the results.
        overwrite: start again in a folder that holds another (or the same) run.

    Raises:
        UsageError: the folder belongs to another run (naming the differences) or to something
            else, or holds what the command is to read.
        GuidexError: another process is working in it, or it cannot be written.
    """
    identity = json.loads(json.dumps(identity, default=str))
    _check_place(folder, identity)
    if overwrite and rank.count > 1:
        raise UsageError("overwrite=true is for one process; delete the folder before torchrun")
    with ExitStack() as held:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            lock, claim = folder / f"{_LOCK}-{rank.index}", folder / f"{_LOCK}-claim"
            # One after the other, so that the first of several processes knows that it is.
            with FileLock(claim):
                held.enter_context(FileLock(lock, timeout=0))
                others = set(folder.glob(f"{_LOCK}*")) - {lock, claim}
                is_alone = not any(map(_is_locked, others))
                if rank.count == 1 and not is_alone:
                    raise Timeout(str(lock))
                if is_alone:  # what killed processes were writing
                    for stale in folder.rglob(f"{_TEMPORARY}*.tmp"):
                        stale.unlink(missing_ok=True)
                overwrite = overwrite or (is_alone and _is_empty(folder))
                mark = _claim(folder, identity, overwrite)
        except Timeout as error:
            raise GuidexError(
                f"{folder} is in use by another process; wait for it, or choose another out=FOLDER"
            ) from error
        except OSError as error:
            raise GuidexError(f"cannot write to {folder}: {error.strerror or error}") from error
        if rank.first:
            _tell_versions(folder, mark["versions"])
        yield RunFolder(folder, mark["run"], lock, _stamps(folder, lock))


def require_same_inputs(folder: Path, inputs: Iterable[tuple[str, str | None]]) -> None:
    """Keep a run from going on with files of another content than it was begun with.

    Arguments:
        inputs: role and place of each file that results depend on, as one text, and its SHA-256.

    Raises:
        UsageError: naming the files that have changed.
    """
    now: dict[str, list[str]] = {}
    for name, sha256 in sorted(set(inputs), key=str):
        now.setdefault(name, []).append(str(sha256))
    before = _read_json(folder / _INPUTS) or now
    _require_same(f"{folder} was begun with other content of", before, now)
    write_json(folder / _INPUTS, now)


def require_space(folder: Path, needed: int) -> None:
    """Raise GuidexError where the disk has less space left than needed, bytes."""
    place = next(place for place in (folder, *folder.absolute().parents) if place.exists())
    free = shutil.disk_usage(place).free
    if free < needed:
        raise GuidexError(
            f"not enough disk space for {folder}: about {needed / 2**20:.0f} MiB needed, "
            f"{free / 2**20:.0f} MiB free; free some, or choose another out=FOLDER"
        )


def _flat(data: Any, prefix: str = "") -> dict[str, Any]:
    """Nested dicts as one dict with dotted keys."""
    if not isinstance(data, dict):
        return {prefix.rstrip("."): data}
    return {k: v for key in data for k, v in _flat(data[key], f"{prefix}{key}.").items()}


def _require_same(what: str, before: dict[str, Any], now: dict[str, Any], most: int = 6) -> None:
    """Raise UsageError, with a line for each key that has another value."""
    old, new = ({k: repr(v) for k, v in _flat(data).items()} for data in (before, now))
    lines = [
        f"  {key}: {old.get(key, 'nothing'):.60} there, {new.get(key, 'nothing'):.60} now"
        for key in {**old, **new}
        if old.get(key) != new.get(key)
    ]
    if lines:
        more = [f"  … and {len(lines) - most} more"] if len(lines) > most else []
        advice = "Give another out=FOLDER, or overwrite=true to delete it and start again."
        raise UsageError("\n".join([f"{what}:", *lines[:most], *more, advice]))


def _check_place(folder: Path, identity: dict[str, Any]) -> None:
    """Refuse a folder that holds something else, before anything is written into it."""
    if not folder.exists():
        return
    if not folder.is_dir():
        raise UsageError(f"out={folder} is a file; give a folder")
    foreign = [
        item.name for item in folder.iterdir() if not item.name.startswith((_LOCK, _TEMPORARY))
    ]
    # Looked for last: another process of this run may have written it in the meantime.
    if foreign and _mark(folder) is None:
        raise UsageError(
            f"out={folder} holds other things ({', '.join(sorted(foreign)[:3])}, …) and no run "
            "of this guidex; give an empty or new folder"
        )
    place = folder.resolve()
    for key, value in _flat(identity).items():
        file = os.path.expanduser(value) if isinstance(value, str) else ""
        if file != "." and os.path.exists(file) and Path(file).resolve().is_relative_to(place):
            raise UsageError(
                f"out={folder} holds what is to be read, {key}={value}; give another folder"
            )


def _mark(folder: Path) -> dict[str, Any] | None:
    """What `run.json` says, if guidex has written it."""
    mark = _read_json(folder / _MARK)
    return mark if isinstance(mark, dict) and {"run", "versions"} <= set(mark) else None


def _claim(folder: Path, identity: dict[str, Any], overwrite: bool) -> dict[str, Any]:
    """The mark of the folder: what is there, if it is of the same run, or a new one."""
    mark = _mark(folder)
    if mark is not None and (overwrite or "clearing" in mark):
        _clear(folder, mark)
        mark = None
    if mark is None:
        mark = {"run": secrets.token_hex(16), "versions": versions(), **identity}
        write_json(folder / _MARK, mark)
    before = {key: value for key, value in mark.items() if key not in ("run", "versions")}
    _require_same(f"{folder} holds another run, which differs in", before, identity)
    return mark


def _tell_versions(folder: Path, before: Mapping[str, str]) -> None:
    """Say what a run was begun with, where that is not what it goes on with."""
    changed = [f"{k} {before[k]} (now {v})" for k, v in versions().items() if before.get(k, v) != v]
    if changed:
        print(
            f"guidex: warning: {folder} was begun with {', '.join(changed)}; what is missing is "
            "made with the new, and rows name both; overwrite=true makes all anew",
            file=sys.stderr,
        )


def _clear(folder: Path, mark: dict[str, Any]) -> None:
    """Delete a run. The mark says so first, so that what is left of it is never taken for one; and
    files go before folders, so that no table lists images that are gone."""
    write_json(folder / _MARK, {**mark, "clearing": True})
    for item in sorted(folder.iterdir(), key=Path.is_dir):
        if not item.name.startswith((_MARK, _LOCK)):
            shutil.rmtree(item) if item.is_dir() and not item.is_symlink() else item.unlink()


def _is_empty(folder: Path) -> bool:
    """Whether a run failed before its first result: it keeps its folder from no other."""
    ours = (_MARK, _INPUTS, _LOCK)
    return not any(item.is_file() and not item.name.startswith(ours) for item in folder.rglob("*"))


def _stamps(folder: Path, lock: Path) -> tuple[int, ...]:
    """Which files mark and lock a folder; the number of a deleted one may be another's later."""
    try:
        mark = (folder / _MARK).stat()
        return mark.st_ino, mark.st_mtime_ns, lock.stat().st_ino
    except OSError:
        return ()


def _is_locked(lock: Path) -> bool:
    try:
        with FileLock(lock, timeout=0):
            return False
    except Timeout:
        return True
