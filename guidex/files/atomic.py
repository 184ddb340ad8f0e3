"""Files that are either whole or absent, whatever happens while they are written."""

import errno
import os
import secrets
import shutil
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO

from guidex.errors import GuidexError

_FULL = {errno.ENOSPC: "the disk is full", errno.EDQUOT: "the disk quota is used up"}
_TOLD = (*_FULL, errno.EFBIG)


def atomic_write(path: str | Path, write: Callable[[BinaryIO], object]) -> None:
    """Create or replace a file in one step: readers see the old content or the new, never a part.

    The content goes to `.guidex-<random>.tmp` in the same folder (so that the final rename stays
    within one file system), is flushed to the disk, and is renamed. After an error, Ctrl-C
    included, the temporary file is gone and the old file untouched; only a killed process leaves
    the temporary file behind, under a hidden name that no reader of guidex looks at.

    Arguments:
        path: the file; its folder must exist.
        write: called once with the open binary file, for example
            `lambda file: np.savez(file, mu=mu, sigma=sigma)`.

    Raises:
        GuidexError: the file system refuses. A full disk is told with the folder, the space
            needed and free, and that the run can be resumed. Other exceptions of `write` pass.
    """
    path = Path(path)
    # Not named after `path`: that name may already be as long as the file system allows.
    temporary = path.with_name(f".guidex-{secrets.token_hex(8)}.tmp")
    size = 0
    try:
        # "x+b" and not "xb": NumPy writes to the latter with C's fwrite, which loses the errno.
        with open(temporary, "x+b") as file:
            try:
                write(file)
                file.flush()
                os.fsync(file.fileno())
            finally:
                size = file.tell()
        os.replace(temporary, path)
    except BaseException as error:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
        refusal = error
        # torch.save hides a full disk behind a RuntimeError.
        while refusal is not None and not isinstance(refusal, OSError | GuidexError):
            refusal = refusal.__context__
        if isinstance(refusal, OSError) and (refusal is error or refusal.errno in _TOLD):
            raise GuidexError(_explain(refusal, path, size)) from error
        raise


def _explain(error: OSError, path: Path, size: int) -> str:
    """What to tell of a failed write, of which `size` bytes were asked for before it failed."""
    needed = f"{size / 2**20:.1f} MiB"
    if error.errno in _FULL:
        free = shutil.disk_usage(path.parent).free
        return (
            f"cannot write {path}: {_FULL[error.errno]}. The file needs at least {needed}, and "
            f"{free / 2**20:.1f} MiB are free in {path.parent.absolute()}. Free some space and "
            "start the same command again: finished work is kept and the run resumes after it."
        )
    if error.errno == errno.EFBIG:
        return (
            f"cannot write {path}: it grew beyond the largest file allowed here, at {needed}. "
            "Raise the limit (`ulimit -f`) or choose a folder on another file system, then start "
            "the same command again: finished work is kept."
        )
    reason = error.strerror or str(error)
    return f"cannot write {path}: {reason}. Check that its folder exists and may be written to."
