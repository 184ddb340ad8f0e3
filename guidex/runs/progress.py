"""Progress of long work: a bar on a terminal, now and then a line elsewhere."""

import sys
import time
from types import TracebackType
from typing import Self

from tqdm import tqdm

PLAIN_SECONDS = 15.0  # between two lines where there is no terminal


class Progress:
    """Counts towards a total on standard error.

    Arguments:
        label: what is being done.
        total: how much there is to do, in `unit`s.
        done: how much was done before (by a run that is resumed).
        unit: what is counted.
        quiet: say nothing (another process speaks for all).
    """

    def __init__(
        self, label: str, total: int, done: int = 0, unit: str = "images", quiet: bool = False
    ) -> None:
        self.label, self.total, self.unit = label, total, unit
        self.count, self.before = float(done), done
        self.started = self.said = time.monotonic()
        self.bar: tqdm | None = None
        self.quiet = quiet
        if sys.stderr.isatty() and not quiet:
            form = (
                "{desc} {percentage:3.0f}%|{bar:30}| {n:.0f}/{total} {unit} [{elapsed}<{remaining}]"
            )
            self.bar = tqdm(desc=label, total=total, initial=done, unit=unit, bar_format=form)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self.bar is not None:
            self.bar.close()
        elif kind is None:
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
