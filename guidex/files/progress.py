"""What a person sees of downloads and other long work: a bar on a terminal, lines elsewhere."""

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Self

from tqdm import tqdm

Received = Callable[[int, int], None]  # told (bytes so far, bytes in all)

PLAIN_SECONDS = 15.0  # between two lines where there is no terminal


@contextmanager
def download_bar(what: str) -> Iterator[Received]:
    """Progress for `fetch` on standard error, from the first byte on; nothing for a cached file."""
    pause = 0.1 if sys.stderr.isatty() else PLAIN_SECONDS
    # With a delay, tqdm says nothing before the first update.
    look = {"unit": "B", "unit_scale": True, "mininterval": pause, "delay": 1e-6}
    with tqdm(desc=f"downloading {what}", leave=False, **look) as bar:

        def progress(count: int, total: int) -> None:
            bar.total = total
            bar.update(count - bar.n)

        yield progress


def megabytes(size: int) -> str:
    """A number of bytes in words, such as "559.6 MB" (10^6 bytes)."""
    return f"{size / 1e6:.1f} MB"


class Progress:
    """Counts `unit`s towards a total on standard error, of which `done` were done before (by a run
    that is resumed); nothing if `quiet`, or before `delay` seconds."""

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
        self.bar: tqdm | None = None
        if sys.stderr.isatty() and not quiet:
            form = "{desc} {percentage:3.0f}%|{bar:30}| {n:.0f}/{total} {unit} "
            look = {"bar_format": form + "[{elapsed}<{remaining}]", "unit": unit, "delay": delay}
            self.bar = tqdm(desc=label, total=total, initial=done, **look)

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
        text = f"{self.label} {self.count:.0f}/{self.total} {self.unit} in {seconds:.0f} s"
        if self.before < self.count < self.total - 0.5:
            left = seconds * (self.total - self.count) / (self.count - self.before)
            text += f", {left:.0f} s left"
        print(text, file=sys.stderr, flush=True)
