"""What a person sees of a download."""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from tqdm import tqdm

Progress = Callable[[int, int | None], None]  # of (bytes so far, bytes in all or None)


@contextmanager
def download_bar(what: str) -> Iterator[Progress]:
    """Progress for `fetch` on standard error, from the first byte on; nothing for a cached file.

    A bar on a terminal; elsewhere (a batch job's log) one line that says what is being waited for.

    Arguments:
        what: is being downloaded, for people.
    """
    bar: tqdm | None = None

    def progress(count: int, total: int | None) -> None:
        nonlocal bar
        if bar is None:
            title, hidden = f"downloading {what}", not sys.stderr.isatty()
            if hidden:
                size = "" if total is None else f" ({megabytes(total)})"
                print(f"{title}{size}", file=sys.stderr, flush=True)
            bar = tqdm(
                desc=title, total=total, unit="B", unit_scale=True, leave=False, disable=hidden
            )
        bar.update(count - bar.n)

    try:
        yield progress
    finally:
        if bar is not None:
            bar.close()


def megabytes(size: int) -> str:
    """A number of bytes in words, such as "559.6 MB" (10^6 bytes)."""
    return f"{size / 1e6:.1f} MB"
