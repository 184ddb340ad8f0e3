"""The folder of a run: who is working in it, what it was made by, and what is already there.

`run.json` says what a folder holds. Results of another kind never go into the same folder, nobody
deletes what others work in, and everything is written whole or not at all. Records, which later
starts rely on, carry the run that they are of, what made them, and a checksum.
"""

import datetime
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
from guidex.files.cache import file_sha256
from guidex.runs.provenance import versions
from guidex.runs.ranks import this_rank

_MARK, _INPUTS = "run.json", "inputs.json"
_LOCK, _WORKER, _TEMPORARY = ".lock", ".worker-", ".guidex-"
_OWN = (_LOCK, _WORKER, _TEMPORARY, ".claims", ".jobs")  # what says nothing of results


def write_json(path: Path, data: Any) -> None:
    """Write data as JSON, whole or not at all."""
    text = json.dumps(data, indent=1, ensure_ascii=False, allow_nan=True)
    atomic_write(path, lambda file: file.write(text.encode()))


def read_json(path: Path) -> Any:
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
        lock: the file that this process has locked; nobody else has one of its name.
    """

    path: Path
    run: str
    lock: Path

    def check(self) -> None:
        """Refuse to write into what is no longer this process's folder.

        Raises:
            GuidexError: it was moved, deleted, or taken over by another run.
        """
        if not self.lock.exists():
            raise GuidexError(
                f"{self.path} is no longer the folder that this run was begun in: it was moved, "
                "deleted or begun anew; give the command again to go on where its results are"
            )

    def write(
        self, path: Path, content: bytes, files: Iterable[Path | tuple] = (), **more: Any
    ) -> None:
        """Write a record, whole or not at all, with the sizes of the files that belong to it (those
        that are not there yet by name, size and None), the checksums of those beside it, and more
        to say in its header."""
        self.check()
        path.parent.mkdir(parents=True, exist_ok=True)
        listed = []
        for file in files:
            if isinstance(file, Path):
                sha256 = file_sha256(file) if file.parent == path.parent else None
                file = (str(file.relative_to(self.path)), file.stat().st_size, sha256)
            listed.append(file)
        about = {"run": self.run, "versions": versions(), "files": listed, **more}
        sealed = b"%s\n%s" % (json.dumps(about).encode(), content)
        first = b"%s\n" % hashlib.sha256(sealed).hexdigest().encode()
        atomic_write(path, lambda file: file.writelines((first, sealed)))

    def header(self, path: Path) -> dict[str, Any] | None:
        """What the header of a record says; None where there is no record of this run, or a file of
        it is gone or has another size. The content of both is not looked at."""
        try:
            with path.open("rb") as file:
                file.readline()
                about = json.loads(file.readline())
            files = [(self.path / name, size) for name, size, _ in about["files"]]
            is_there = all(file.stat().st_size == size for file, size in files)
            return about if is_there and about["run"] == self.run else None
        except (OSError, ValueError, TypeError, KeyError):
            return None

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

    def workers(self) -> dict[Path, dict[str, Any]]:
        """Who works here, or did not come to an end, by file: host, process, begin, whether it is
        at work, and the error that it ended with."""
        found = {}
        for file in sorted(self.path.glob(f"{_WORKER}*")):
            lock = file.with_name(f"{_LOCK}-{file.stem.removeprefix(_WORKER)}")
            at_work = lock.exists() and _is_locked(lock)
            found[file] = {**(read_json(file) or {}), "at work": at_work}
        return found

    def forget_workers(self) -> None:
        """Of those that did not come to an end: another has made what they left."""
        for file, worker in self.workers().items():
            if not worker["at work"]:
                file.unlink(missing_ok=True)


def opened(folder: Path) -> RunFolder:
    """The folder of a run, to be looked into.

    Raises:
        UsageError: there is no run of this guidex.
    """
    mark = _mark(folder)
    if mark is None:
        raise UsageError(f"{folder} holds no run of this guidex; give the folder of one")
    return RunFolder(folder, mark["run"], folder / _LOCK)


@contextmanager
def run_folder(
    folder: Path, identity: Mapping[str, Any], overwrite: bool, reads: Any = None
) -> Iterator[RunFolder]:
    """Hold a folder for a run, new or to be resumed.

    Arguments:
        identity: plain data that decides what may go into the folder.
        overwrite: start again in a folder that holds another (or the same) run.
        reads: plain data that names what the command reads; `identity` by default.

    Raises:
        UsageError: the folder belongs to another run (naming the differences) or to something
            else, or holds what the command is to read.
        GuidexError: to be overwritten while another process works in it; it cannot be written.
    """
    identity, rank = json.loads(json.dumps(identity, default=str)), this_rank()
    _check_place(folder, identity if reads is None else reads)
    if overwrite and rank.count > 1:
        raise UsageError("overwrite=true is for one process; delete the folder before torchrun")
    with ExitStack() as held:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            name = secrets.token_hex(4)
            lock, worker = folder / f"{_LOCK}-{name}", folder / f"{_WORKER}{name}.json"
            # One after the other, so that the first of several processes knows that it is.
            with FileLock(folder / _LOCK):
                others = list(folder.glob(f"{_LOCK}-*"))
                is_alone = not any(map(_is_locked, others))
                if overwrite and not is_alone:
                    raise Timeout(str(lock))
                if is_alone:  # what killed processes were writing
                    for stale in [*others, *folder.rglob(f"{_TEMPORARY}*.tmp")]:
                        stale.unlink(missing_ok=True)
                held.enter_context(FileLock(lock))
                overwrite = overwrite or (is_alone and _is_empty(folder))
                mark = _claim(folder, identity, overwrite)
                begun = datetime.datetime.now(datetime.UTC).isoformat(" ", "seconds")
                about = {"host": socket.gethostname(), "process": os.getpid(), "begun": begun}
                write_json(worker, about)
        except Timeout as error:
            raise GuidexError(
                f"{folder} is in use by another process; wait for it, or choose another out=FOLDER"
            ) from error
        except OSError as error:
            raise GuidexError(f"cannot write to {folder}: {error.strerror or error}") from error
        if rank.first:
            _tell_versions(folder, mark["versions"])
        try:
            yield RunFolder(folder, mark["run"], lock)
        except BaseException as error:
            if worker.exists():  # and with it the folder
                write_json(worker, about | {"error": str(error) or type(error).__name__})
            raise
        worker.unlink(missing_ok=True)
        lock.unlink(missing_ok=True)


def require_same_inputs(folder: Path, inputs: Iterable[tuple[str, str | None]]) -> None:
    """Keep results from going on with files of another content than they were begun with.

    Arguments:
        folder: of a run, or of one of its points.
        inputs: role and place of each file that results depend on, as one text, and its SHA-256.

    Raises:
        UsageError: naming the files that have changed.
    """
    now: dict[str, str] = {}
    for name, sha256 in sorted(set(inputs), key=str):  # several, where it changed in between
        now[name] = " ".join(filter(None, [now.get(name), str(sha256)]))
    before = read_json(folder / _INPUTS) or {}
    known = {name: before[name] for name in now if name in before}
    asked = {name: now[name] for name in known}
    _require_same(f"{folder} was begun with other content of", known, asked)
    if known != now:
        folder.mkdir(parents=True, exist_ok=True)
        write_json(folder / _INPUTS, before | now)


def _flat(data: Any, prefix: str = "") -> dict[str, Any]:
    """Nested dicts as one dict with dotted keys."""
    if not isinstance(data, dict):
        return {prefix.rstrip("."): data}
    return {k: v for key in data for k, v in _flat(data[key], f"{prefix}{key}.").items()}


def _require_same(what: str, before: dict[str, Any], now: dict[str, Any]) -> None:
    """Raise UsageError, with a line for each key that has another value."""
    old, new = ({k: repr(v) for k, v in _flat(data).items()} for data in (before, now))
    lines = [
        f"  {key}: {old.get(key, 'nothing'):.60} there, {new.get(key, 'nothing'):.60} now"
        for key in {**old, **new}
        if old.get(key) != new.get(key)
    ]
    if lines:
        advice = "Give another out=FOLDER, or overwrite=true to delete it and start again."
        raise UsageError("\n".join([f"{what}:", *lines, advice]))


def _check_place(folder: Path, identity: dict[str, Any]) -> None:
    """Refuse a folder that holds something else, before anything is written into it."""
    if not folder.exists():
        return
    if not folder.is_dir():
        raise UsageError(f"out={folder} is a file; give a folder")
    foreign = [item.name for item in folder.iterdir() if not item.name.startswith(_OWN)]
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
    mark = read_json(folder / _MARK)
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
    ours = (_MARK, _INPUTS, "asked.json", *_OWN)
    return not any(item.is_file() and not item.name.startswith(ours) for item in folder.rglob("*"))


def _is_locked(lock: Path) -> bool:
    try:
        with FileLock(lock, timeout=0):
            return False
    except Timeout:
        return True
