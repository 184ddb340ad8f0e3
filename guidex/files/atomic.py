"""Files that are either whole or absent, whatever happens while they are written."""

import errno
import os
import secrets
import shutil
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO

from guidex.errors import GuidexError, reason_of

_FULL = {
    errno.ENOSPC: "the disk is full",
    errno.EDQUOT: "the disk quota is used up",
    errno.EFBIG: "it grew beyond the largest file allowed here (`ulimit -f`)",
}


def atomic_write(path: str | Path, write: Callable[[BinaryIO], object]) -> None:
    """Create or replace a file in one step: readers see the old content or the new, never a part.

    `write` is called with an open binary file, `.guidex-<random>.tmp` in the same folder, which is
    flushed to the disk and renamed. Only a killed process leaves that hidden file behind. Raises
    GuidexError: the file system refuses. Other exceptions of `write` pass.
    """
    path = Path(path)
    # Not named after `path`: that name may already be as long as the file system allows.
    temporary = path.with_name(f".guidex-{secrets.token_hex(8)}.tmp")
    try:
        # "x+b" and not "xb": NumPy writes to the latter with C's fwrite, which loses the errno.
        with open(temporary, "x+b") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException as error:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
        cause = error
        # torch.save hides a full disk behind a RuntimeError.
        while cause is not None and getattr(cause, "errno", None) not in _FULL:
            cause = cause.__context__
        if cause is None and not isinstance(error, OSError):
            raise
        reason = f"{reason_of(error)}. Check that its folder exists and can be written."
        if cause is not None:
            free = shutil.disk_usage(path.parent).free
            reason = (
                f"{_FULL[cause.errno]}; {free / 2**20:.1f} MiB are free in "
                f"{path.parent.absolute()}. Free some space and start the same command again: "
                "finished work is kept and the run resumes after it."
            )
        raise GuidexError(f"cannot write {path}: {reason}") from error


def require_space(folder: Path, needed: int, advice: str) -> None:
    """Raise GuidexError, with advice, where the disk has less space left than needed, bytes."""
    place = next(place for place in (folder, *folder.absolute().parents) if place.exists())
    free = shutil.disk_usage(place).free
    if free < needed:
        raise GuidexError(
            f"not enough disk space for {folder}: about {needed / 2**20:.1f} MiB needed, "
            f"{free / 2**20:.1f} MiB free. Free some, or {advice}."
        )
