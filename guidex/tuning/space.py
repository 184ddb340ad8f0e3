"""What is searched: ranges of keys, under a budget."""

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from guidex.config.compose import compose, split_axes, value_at
from guidex.errors import UsageError

UNITS = ("evaluations", "GFLOP", "images", "seconds")
_NUMBER = r"-?\d+(?:\.\d+)?(?:e-?\d+)?"
_RANGE = re.compile(rf"(.+?)= *({_NUMBER})\.\.({_NUMBER})(?::(log|{_NUMBER}))? *")


@dataclass(frozen=True)
class Range:
    """Values of a key, from which Optuna chooses.

    Attributes:
        low, high: both included.
        step: between values; None for any, of three significant digits.
        log: whether equal ratios are equally likely, not equal differences.
        preset: what the key is without the range.
    """

    key: str
    low: float
    high: float
    step: float | None
    log: bool
    preset: Any

    def __post_init__(self) -> None:
        step = 1.0 if self.step is None else self.step
        is_uneven = self.whole and any(number % 1 for number in (self.low, self.high, step))
        if not (self.low < self.high and step > 0) or is_uneven or (self.log and self.low <= 0):
            raise UsageError(
                f"{self.key}: a range goes from a lower to a higher value, with :log from above 0, "
                "and of a key that takes whole numbers, it has whole ends and steps"
            )

    @property
    def whole(self) -> bool:
        return type(self.preset) is int

    def ask(self, trial: Any) -> str:
        """A value that a trial suggests, as it is typed."""
        if self.whole:
            low, high, step = int(self.low), int(self.high), int(self.step or 1)
            return str(trial.suggest_int(self.key, low, high, step=step, log=self.log))
        value = trial.suggest_float(self.key, self.low, self.high, step=self.step, log=self.log)
        return f"{value:.3g}" if self.step is None else f"{value:.12g}"

    @property
    def ends(self) -> list[str]:
        """Its ends, but where nothing is beyond: at 0, and at w = 1, which is no guidance."""
        last = 1 if self.key.endswith(".w") else 0
        return [f"{end:.12g}" for end in (self.low, self.high) if end != last]


@dataclass(frozen=True)
class Choice:
    """Values of a key without an order, such as presets."""

    key: str
    values: tuple[str, ...]
    ends = ()

    def ask(self, trial: Any) -> str:
        return trial.suggest_categorical(self.key, self.values)


def ranges_of(words: Sequence[str]) -> tuple[list[str], list[Range | Choice]]:
    """Words without those that are to be searched, `key=a..b`, `key=a..b:log`, `key=a..b:STEP` or
    `key=a,b,c`, and these. Raises UsageError: ranges that are none, or nothing to be searched."""
    words, axes = split_axes(words)
    found = [match for word in words if (match := _RANGE.fullmatch(word))]
    fixed = [word for word in words if not _RANGE.fullmatch(word)]
    config = compose("sweep", fixed, complete=False).config
    space: list[Range | Choice] = [Choice(key, values) for key, values in axes.items()]
    for key, low, high, how in (match.groups() for match in found):
        step = float(how) if how not in (None, "log") else None
        preset = value_at(config, key)
        space.append(Range(key, float(low), float(high), step, how == "log", preset))
    if not space:
        raise UsageError(
            "there is nothing to search; give a range, for example guidance.schedule.w=1..4 "
            "(or 0.1..10:log, 1..4:0.5), or values, sampler=heun,euler"
        )
    return fixed, space


@dataclass(frozen=True)
class Budget:
    """How much may be spent, in one of UNITS. Steps that candidates share are paid once."""

    amount: float
    unit: str

    @classmethod
    def of(cls, text: Any) -> "Budget":
        """From text such as "2e6 evaluations"; UsageError where it says something else."""
        units = {unit.lower().rstrip("s"): unit for unit in UNITS}
        found = re.fullmatch(rf"({_NUMBER}) *({'|'.join(units)})s?", str(text).strip().lower())
        if found is None or not 0 < float(found[1]) < math.inf:
            allowed = ", ".join(UNITS)
            raise UsageError(f"budget={text}: give a number, such as 2e6, and one of {allowed}")
        return cls(float(found[1]), units[found[2]])
