"""What a person sees of downloads and other long work: a bar on a terminal, lines elsewhere."""

import sys
import time
from dataclasses import dataclass
from typing import Self

from tqdm import tqdm

PLAIN_SECONDS = 15.0  # between two lines where there is no terminal


def megabytes(size: int) -> str:
    """A number of bytes in words, such as "559.6 MB" (10^6 bytes)."""
    return f"{size / 1e6:.1f} MB"


@dataclass
class Progress:
    """Counts `unit`s towards a total on standard error, of which `done` were done before (by a run
    that is resumed); nothing if `quiet`, or before `delay` seconds."""

    label: str
    total: int
    done: float = 0
    unit: str = "images"
    quiet: bool = False
    delay: float = 0.0

    def __post_init__(self) -> None:
        self.count = float(self.done)
        self.started = self.said = time.monotonic()
        self.bar = None
        if sys.stderr.isatty() and not self.quiet:
            form = (
                "{desc} {percentage:3.0f}%|{bar:30}| {n:.0f}/{total} {unit} [{elapsed}<{remaining}]"
            )
            names = {"desc": self.label, "unit": self.unit, "initial": self.done}
            self.bar = tqdm(total=self.total, bar_format=form, delay=self.delay, **names)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
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
        self.said = time.monotonic()
        seconds = self.said - self.started
        if self.quiet or seconds < self.delay:
            return
        text = f"{self.label} {self.count:.0f}/{self.total} {self.unit} in {seconds:.0f} s"
        if self.done < self.count < self.total - 0.5:
            left = seconds * (self.total - self.count) / (self.count - self.done)
            text += f", {left:.0f} s left"
        print(text, file=sys.stderr, flush=True)
