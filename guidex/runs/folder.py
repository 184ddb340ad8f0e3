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
import socket
import sys
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from guidex.errors import GuidexError, UsageError
from guidex.files.atomic import atomic_write
from guidex.runs.provenance import versions
from guidex.runs.ranks import ALONE, Rank

# Settings of a run that do not change its results, so that a run may be resumed with others.
VOLATILE = ("out", "overwrite", "batch", "eval", "figure", "published")

_MARK, _INPUTS, _LOCK, _HOLDER = "run.json", "inputs.json", ".lock", ".holder.json"
_CLAIM = ".lock-claim"


def write_json(path: Path, data: Any) -> None:
    """Write data as JSON, whole or not at all."""
    text = json.dumps(data, indent=1, ensure_ascii=False, allow_nan=True)
    atomic_write(path, lambda file: file.write(text.encode()))


def read_json(path: Path) -> Any:
    """Read JSON.

    Raises:
        GuidexError: the file is not JSON.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise GuidexError(f"{path} cannot be read: {error}") from error


@dataclass(frozen=True)
class RunFolder:
    """A folder that this process holds for a run.

    A record is a line with a SHA-256, a line of JSON that says whose it is, and the content.

    Attributes:
        path: of the folder.
        run: drawn at random when the run was begun; another run in the same place has another.
        lock: the file that this process has locked.
        seen: which files mark and lock the folder.
    """

    path: Path
    run: str
    lock: Path
    seen: tuple[int, ...]

    def check(self) -> None:
        """Refuse to write into what is no longer this process's folder.

        Raises:
            GuidexError: it was moved, deleted, or taken over by another run.
        """
        if _seen(self.path, self.lock) != self.seen:
            raise GuidexError(
                f"{self.path} is no longer the folder that this run was begun in: it was moved, "
                "deleted or begun anew; give the command again to go on where its results are"
            )

    def write(self, path: Path, content: bytes) -> None:
        """Write a record, whole or not at all."""
        self.check()
        path.parent.mkdir(parents=True, exist_ok=True)
        about = json.dumps({"run": self.run, "versions": versions()})
        sealed = b"%s\n%s" % (about.encode(), content)
        first = b"%s\n" % hashlib.sha256(sealed).hexdigest().encode()
        atomic_write(path, lambda file: file.writelines((first, sealed)))

    def holds(self, path: Path) -> bool:
        """Whether a record of this run is there; its content is not looked at."""
        try:
            with path.open("rb") as file:
                file.readline(100)
                return json.loads(file.readline(10_000))["run"] == self.run
        except (OSError, ValueError, TypeError, KeyError):
            return False

    def read(self, path: Path) -> tuple[bytes, dict[str, str]] | None:
        """A record of this run, and the versions that it was made with; None where there is none,
        or a damaged one."""
        try:
            first, _, sealed = path.read_bytes().partition(b"\n")
        except OSError:
            return None
        if hashlib.sha256(sealed).hexdigest().encode() != first:
            return None
        line, _, content = sealed.partition(b"\n")
        about = json.loads(line)
        return (content, about["versions"]) if about["run"] == self.run else None


@contextmanager
def run_folder(
    folder: Path, identity: Mapping[str, Any], overwrite: bool, rank: Rank = ALONE
) -> Iterator[RunFolder]:
    """Hold a folder for a run, new or to be resumed.

    Arguments:
        folder: made if it does not exist.
        identity: plain data that decides the results.
        overwrite: start again in a folder that holds another (or the same) run.
        rank: which of the processes this is that work on the run together.

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
            lock = folder / (_LOCK if rank.first else f"{_LOCK}-{rank.index}")
            # One after the other, so that the first of several processes knows that it is.
            with FileLock(folder / _CLAIM):
                held.enter_context(FileLock(lock, timeout=0))
                others = set(folder.glob(f"{_LOCK}*")) - {lock, folder / _CLAIM}
                alone = not any(map(_is_locked, others))
                if rank.count == 1 and not alone:
                    raise Timeout(str(lock))
                if alone:  # what killed processes were writing
                    for stale in folder.rglob(".guidex-*.tmp"):
                        stale.unlink(missing_ok=True)
                began = _claim(folder, identity, overwrite or alone and _is_empty(folder))
        except Timeout as error:
            raise GuidexError(
                f"{folder} is in use by {_holder(folder)}; wait for it, or choose another "
                "out=FOLDER"
            ) from error
        except OSError as error:
            raise GuidexError(f"cannot write to {folder}: {error.strerror or error}") from error
        if rank.first:
            _tell_versions(folder, began["versions"])
        write_json(folder / _HOLDER, {"pid": os.getpid(), "host": socket.gethostname()})
        try:
            yield RunFolder(folder, began["run"], lock, _seen(folder, lock))
        finally:
            (folder / _HOLDER).unlink(missing_ok=True)


class Finish:
    """The turn to finish a run, once all of it is there: one process's, though several come to it.

    Arguments:
        result: a file that finishing writes, in the run's folder.
    """

    def __init__(self, result: Path) -> None:
        self._result, self._before = result, _written(result)

    @contextmanager
    def turn(self) -> Iterator[bool]:
        """Whether to finish: not where another process has done it since this was made."""
        with FileLock(self._result.parent / ".finish.lock"):
            yield _written(self._result) == self._before


def require_same_inputs(folder: Path, inputs: Iterable[tuple[str, str | None]]) -> None:
    """Keep a run from going on with files of another content than it was begun with.

    Arguments:
        folder: of the run.
        inputs: role and place of each file that results depend on, as one text, and its SHA-256.

    Raises:
        UsageError: naming the files that have changed.
    """
    found: dict[str, set[str]] = {}
    for name, sha256 in inputs:
        found.setdefault(name, set()).add(str(sha256))
    record, now = folder / _INPUTS, {name: sorted(found[name]) for name in found}
    before = read_json(record) if record.exists() else now
    changed = [name for name in now if before.get(name) != now[name]]
    if changed:
        names = "\n".join(f"  {name}" for name in changed[:6])
        raise UsageError(
            f"{folder} was begun with other content of:\n{names}\n"
            "Give another out=FOLDER, or overwrite=true to delete it and start again."
        )
    write_json(record, now)


def require_space(folder: Path, needed: int) -> None:
    """Check the free disk space before any work.

    Raises:
        GuidexError: naming the space needed and free.
    """
    place = folder
    while not place.exists():
        place = place.parent
    free = shutil.disk_usage(place).free
    if free < needed:
        raise GuidexError(
            f"not enough disk space for {folder}: about {needed / 2**20:.0f} MiB needed, "
            f"{free / 2**20:.0f} MiB free; free some, or choose another out=FOLDER"
        )


def flatten(data: Any, prefix: str = "") -> dict[str, Any]:
    """Nested dicts as one dict with dotted keys."""
    if not isinstance(data, dict):
        return {prefix.rstrip("."): data}
    flat: dict[str, Any] = {}
    for key, value in data.items():
        flat.update(flatten(value, f"{prefix}{key}."))
    return flat


def _written(file: Path) -> int | None:
    """When a file was written, in ns; None if it is not there."""
    return file.stat().st_mtime_ns if file.exists() else None


def _check_place(folder: Path, identity: Mapping[str, Any]) -> None:
    """Refuse a folder that holds something else, before anything is written into it."""
    if folder.exists() and not folder.is_dir():
        raise UsageError(f"out={folder} is a file; give a folder")
    if not folder.is_dir():
        return
    ours = (_LOCK, _HOLDER, ".guidex-")
    foreign = [item.name for item in folder.iterdir() if not item.name.startswith(ours)]
    # Looked for last: another process of this run may have written it in the meantime.
    if foreign and _mark(folder) is None:
        raise UsageError(
            f"out={folder} holds other things ({', '.join(sorted(foreign)[:3])}, …) and no run "
            "of this guidex; give an empty or new folder"
        )
    place = folder.resolve()
    for key, value in flatten(dict(identity)).items():
        file = os.path.expanduser(value) if isinstance(value, str) else ""
        if file != "." and os.path.exists(file) and Path(file).resolve().is_relative_to(place):
            raise UsageError(
                f"out={folder} holds what is to be read, {key}={value}; give another folder"
            )


def _mark(folder: Path) -> dict[str, Any] | None:
    """What `run.json` says, if guidex has written it."""
    try:
        mark = read_json(folder / _MARK)
    except GuidexError:
        return None
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
    if before != identity:
        raise UsageError(
            f"{folder} holds another run, which differs in:\n{_differences(before, identity)}\n"
            "Give another out=FOLDER, or overwrite=true to delete it and start again."
        )
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
        if not item.name.startswith((_MARK, _LOCK, _HOLDER)):
            shutil.rmtree(item) if item.is_dir() and not item.is_symlink() else item.unlink()


def _is_empty(folder: Path) -> bool:
    """Whether a run failed before its first result: it keeps its folder from no other."""
    ours = (_MARK, _INPUTS, _LOCK, _HOLDER)
    return not any(item.is_file() and not item.name.startswith(ours) for item in folder.rglob("*"))


def _seen(folder: Path, lock: Path) -> tuple[int, ...]:
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


def _differences(before: Any, now: Any, most: int = 6) -> str:
    old, new = flatten(before), flatten(now)
    keys = [key for key in {**old, **new} if old.get(key, _ABSENT) != new.get(key, _ABSENT)]
    lines = [f"  {key}: {_short(old, key)} there, {_short(new, key)} now" for key in keys[:most]]
    if len(keys) > most:
        lines.append(f"  … and {len(keys) - most} more")
    return "\n".join(lines)


_ABSENT = object()


def _short(flat: dict[str, Any], key: str) -> str:
    text = str(flat[key]) if key in flat else "nothing"
    return text if len(text) <= 60 else text[:57] + "…"


def _holder(folder: Path) -> str:
    try:
        holder = read_json(folder / _HOLDER)
        return f"process {holder['pid']} on {holder['host']}"
    except (GuidexError, KeyError, TypeError):
        return "another process"
