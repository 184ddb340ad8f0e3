"""What a person sees of downloads and other long work: one line that is rewritten on a terminal,
and lines now and then elsewhere."""

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Self

Received = Callable[[int, int], None]  # told (bytes so far, bytes in all)

PLAIN_SECONDS = 15.0  # between two lines where there is no terminal


@contextmanager
def download_bar(what: str) -> Iterator[Received]:
    """Progress for `fetch` on standard error, from the first byte on; nothing for a cached file."""
    bars: list[Progress] = []
    with ExitStack() as stack:

        def progress(count: int, total: int) -> None:
            if not bars:
                bar = Progress(f"downloading {what}", round(total / 1e6), unit="MB")
                bars.append(stack.enter_context(bar))
            bars[0].update(count / 1e6 - bars[0].count)

        yield progress


def megabytes(size: int) -> str:
    """A number of bytes in words, such as "559.6 MB" (10^6 bytes)."""
    return f"{size / 1e6:.1f} MB"


@dataclass
class Progress:
    """Counts `unit`s towards a total on standard error, of which `done` were done before (by a run
    that is resumed); nothing if `quiet`, or before `delay` seconds."""

    label: str
    total: int
    done: int = 0
    unit: str = "images"
    quiet: bool = False
    delay: float = 0.0

    def __post_init__(self) -> None:
        self.count = float(self.done)
        self.terminal = sys.stderr.isatty()
        self.started = self.said = time.monotonic()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if self.terminal or kind is None:
            self._say("\n")

    def update(self, amount: float) -> None:
        """Count further; parts of a unit are fine."""
        self.count += amount
        if time.monotonic() - self.said >= (0.2 if self.terminal else PLAIN_SECONDS):
            self._say("" if self.terminal else "\n")

    def _say(self, end: str) -> None:
        self.said = time.monotonic()
        seconds = self.said - self.started
        if self.quiet or seconds < self.delay:
            return
        text = f"{self.label} {self.count:.0f}/{self.total} {self.unit} in {seconds:.0f} s"
        if self.done < self.count < self.total - 0.5:
            left = seconds * (self.total - self.count) / (self.count - self.done)
            text += f", {left:.0f} s left"
        print(f"\r{text:79}" if self.terminal else text, end=end, file=sys.stderr, flush=True)
