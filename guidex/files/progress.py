"""What a person sees of downloads and other long work: a bar on a terminal, lines elsewhere."""

import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Self, TypeVar

from tqdm import tqdm

Received = Callable[[int, int | None], None]  # told (bytes so far, bytes in all or None)

_T = TypeVar("_T")

PLAIN_SECONDS = 15.0  # between two lines where there is no terminal


@contextmanager
def download_bar(what: str) -> Iterator[Received]:
    """Progress for `fetch` on standard error, from the first byte on; nothing for a cached file.

    A bar on a terminal; elsewhere (a batch job's log) one line that says what is being waited for.

    Arguments:
        what: is being downloaded, for people.
    """
    bars: list[tqdm] = []
    title, hidden = f"downloading {what}", not sys.stderr.isatty()

    def progress(count: int, total: int | None) -> None:
        if not bars:
            if hidden:
                size = "" if total is None else f" ({megabytes(total)})"
                print(f"{title}{size}", file=sys.stderr, flush=True)
            bars.append(
                tqdm(
                    desc=title, total=total, unit="B", unit_scale=True, leave=False, disable=hidden
                )
            )
        bars[0].update(count - bars[0].n)

    try:
        yield progress
    finally:
        for bar in bars:
            bar.close()


def megabytes(size: int) -> str:
    """A number of bytes in words, such as "559.6 MB" (10^6 bytes)."""
    return f"{size / 1e6:.1f} MB"


class Progress:
    """Counts towards a total on standard error.

    Arguments:
        label: what is being done.
        total: how much there is to do, in `unit`s.
        done: how much was done before (by a run that is resumed).
        unit: what is counted.
        quiet: say nothing (another process speaks for all).
        delay: seconds within which there is nothing to say.
    """

    def __init__(
        self,
        label: str,
        total: int,
        done: int = 0,
        unit: str = "images",
        quiet: bool = False,
        delay: float = 0.0,
    ) -> None:
        self.label, self.total, self.unit = label, total, unit
        self.count, self.before = float(done), done
        self.quiet, self.delay = quiet, delay
        self.started = self.said = time.monotonic()
        form = "{desc} {percentage:3.0f}%|{bar:30}| {n:.0f}/{total} {unit} [{elapsed}<{remaining}]"
        shown = sys.stderr.isatty() and not quiet
        self.bar = (
            tqdm(desc=label, total=total, initial=done, unit=unit, bar_format=form, delay=delay)
            if shown
            else None
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if self.bar is not None:
            self.bar.close()
        elif kind is None and time.monotonic() - self.started >= self.delay:
            self._say()

    def update(self, amount: float) -> None:
        """Count further; parts of a unit are fine."""
        self.count += amount
        if self.bar is not None:
            # Sums of fractions may end a hair above the total, at which tqdm would drop its bar.
            self.bar.update(min(amount, self.total - self.bar.n))
        elif time.monotonic() - self.said >= PLAIN_SECONDS:
            self._say()

    def _say(self) -> None:
        if self.quiet:
            return
        self.said = time.monotonic()
        seconds = self.said - self.started
        rate = (self.count - self.before) / seconds if seconds > 0 else 0.0
        left = (self.total - self.count) / rate if rate > 0 else float("inf")
        ahead = "" if self.count >= self.total - 0.5 else f", {left:.0f} s left"
        print(
            f"{self.label} {self.count:.0f}/{self.total} {self.unit} in {seconds:.0f} s{ahead}",
            file=sys.stderr,
            flush=True,
        )


def counted(items: Sequence[_T], label: str) -> Iterator[_T]:
    """The items, images, with a `Progress` of how many have been taken."""
    with Progress(label, len(items), delay=2) as progress:
        for item in items:
            yield item
            progress.update(1)
