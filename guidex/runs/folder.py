"""The folder of a run: who is working in it, what it was made by, and what is already there.

`run.json` says what a folder holds. Work that would give other results never goes into the same
folder, two processes never write to one, and everything is written whole or not at all.
"""

import json
import os
import shutil
import socket
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from guidex.assets.atomic import atomic_write
from guidex.errors import GuidexError, UsageError
from guidex.runs.ranks import ALONE, Rank

# Settings of a run that do not change its results, so that a run may be resumed with others.
VOLATILE = ("out", "overwrite", "batch", "eval", "figure")

_MARK, _INPUTS, _LOCK, _HOLDER = "run.json", "inputs.json", ".lock", ".holder.json"


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
    except (OSError, ValueError) as error:
        raise GuidexError(f"{path} cannot be read: {error}") from error


@contextmanager
def run_folder(
    folder: Path, identity: Mapping[str, Any], overwrite: bool, rank: Rank = ALONE
) -> Iterator[Path]:
    """Hold a folder for a run, new or to be resumed.

    Arguments:
        folder: made if it does not exist.
        identity: plain data that decides the results.
        overwrite: start again in a folder that holds another (or the same) run.
        rank: which of the processes this is that work on the run together.

    Raises:
        UsageError: the folder belongs to another run (naming the differences) or to something else.
        GuidexError: another process is working in it, or it cannot be written.
    """
    _check_place(folder)
    if overwrite and rank.count > 1:
        raise UsageError("overwrite=true is for one process; delete the folder before torchrun")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = FileLock(folder / (_LOCK if rank.first else f"{_LOCK}-{rank.index}"))
        lock.acquire(timeout=0)
    except Timeout as error:
        raise GuidexError(
            f"{folder} is in use by {_holder(folder)}; wait for it, or choose another out=FOLDER"
        ) from error
    except OSError as error:
        raise GuidexError(f"cannot write to {folder}: {error.strerror or error}") from error
    try:
        if rank.count == 1:  # what a killed process was writing, if no other is at work now
            for stale in folder.rglob(".guidex-*.tmp"):
                stale.unlink(missing_ok=True)
        write_json(folder / _HOLDER, {"pid": os.getpid(), "host": socket.gethostname()})
        _claim(folder, json.loads(json.dumps(identity, default=str)), overwrite)
        yield folder
    except BaseException:
        if rank.count == 1:  # the others may go on
            _release_if_empty(folder)
        raise
    finally:
        (folder / _HOLDER).unlink(missing_ok=True)
        lock.release()


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


def require_same_inputs(folder: Path, inputs: Iterable[Mapping[str, str]]) -> None:
    """Keep a run from going on with files of another content than it was begun with.

    Arguments:
        folder: of the run.
        inputs: "source" (name) and "sha256" of the files that results depend on.

    Raises:
        UsageError: naming the files that have changed.
    """
    record, now = folder / _INPUTS, {one["source"]: one["sha256"] for one in inputs}
    before = read_json(record) if record.exists() else now
    changed = [source for source in now if before.get(source, now[source]) != now[source]]
    if changed:
        names = "\n".join(f"  {source}" for source in changed[:6])
        raise UsageError(
            f"{folder} was begun with other content of:\n{names}\n"
            "Give another out=FOLDER, or overwrite=true to delete it and start again."
        )
    write_json(record, {**before, **now})


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


def _check_place(folder: Path) -> None:
    """Refuse a folder that holds something else, before anything is written into it."""
    if folder.exists() and not folder.is_dir():
        raise UsageError(f"out={folder} is a file; give a folder")
    if folder.is_dir():
        ours = (_LOCK, _HOLDER, ".guidex-")
        foreign = [item.name for item in folder.iterdir() if not item.name.startswith(ours)]
        # Looked for last: another process of this run may have written it in the meantime.
        if foreign and not (folder / _MARK).exists():
            raise UsageError(
                f"out={folder} holds other things ({', '.join(sorted(foreign)[:3])}, …) and no run "
                "of guidex; give an empty or new folder"
            )


def _claim(folder: Path, identity: dict[str, Any], overwrite: bool) -> None:
    mark = folder / _MARK
    if mark.exists() and overwrite:
        _clear(folder)
    if mark.exists():
        before = read_json(mark)
        if before != identity:
            raise UsageError(
                f"{folder} holds another run, which differs in:\n{_differences(before, identity)}\n"
                "Give another out=FOLDER, or overwrite=true to delete it and start again."
            )
        return
    write_json(mark, identity)


def _release_if_empty(folder: Path) -> None:
    """A run that failed before its first result does not keep its folder from another."""
    kept = (_MARK, _INPUTS, _LOCK, _HOLDER)
    if not any(item.is_file() and not item.name.startswith(kept) for item in folder.rglob("*")):
        (folder / _MARK).unlink(missing_ok=True)
        (folder / _INPUTS).unlink(missing_ok=True)
        for item in [item for item in folder.iterdir() if item.is_dir()]:
            shutil.rmtree(item)


def _clear(folder: Path) -> None:
    """Delete a run. The mark goes last, so that a half-deleted run is still known as one."""
    for item in folder.iterdir():
        if not item.name.startswith((_MARK, _LOCK, _HOLDER)):
            shutil.rmtree(item) if item.is_dir() and not item.is_symlink() else item.unlink()
    (folder / _MARK).unlink()


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
