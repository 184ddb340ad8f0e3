"""What is searched: ranges of keys, under a budget."""

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from guidex.config.compose import compose, split_axes
from guidex.config.presets import nearest
from guidex.errors import UsageError

UNITS = ("evaluations", "GFLOP", "images", "seconds")
_NUMBER = r"-?\d+(?:\.\d+)?(?:e-?\d+)?"
_RANGE = re.compile(rf"({_NUMBER})\.\.({_NUMBER})(?::(log|{_NUMBER}))?")


@dataclass(frozen=True)
class Range:
    """Values of a key, from which Optuna chooses.

    Attributes:
        low, high: both included.
        step: between values; None for any, of three significant digits.
        log: whether equal ratios are equally likely, not equal differences.
        whole: whether values are whole numbers.
    """

    key: str
    low: float
    high: float
    step: float | None = None
    log: bool = False
    whole: bool = False

    def ask(self, trial: Any) -> str:
        """A value that a trial suggests, as it is typed."""
        if self.whole:
            step = 1 if self.step is None else int(self.step)
            low, high = int(self.low), int(self.high)
            return str(trial.suggest_int(self.key, low, high, step=step, log=self.log))
        value = trial.suggest_float(self.key, self.low, self.high, step=self.step, log=self.log)
        return f"{value:.3g}" if self.step is None else f"{value:.12g}"

    @property
    def ends(self) -> list[str]:
        """Its ends beyond which there are other values: not 0, nor w = 1, which is no guidance."""
        nothing_beyond = 1 if self.key.rpartition(".")[2] == "w" else 0
        return [f"{end:.12g}" for end in (self.low, self.high) if end != nothing_beyond]


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
    `key=a,b,c`, and these.

    Raises:
        UsageError: unknown keys, ranges that are none, or nothing to be searched.
    """
    words, axes = split_axes(words)
    texts = [word.partition("=") for word in words if ".." in word.partition("=")[2]]
    found = {key: match for key, _, text in texts if (match := _RANGE.fullmatch(text.strip()))}
    fixed = [word for word in words if word.partition("=")[0] not in found]
    space: list[Range | Choice] = [_range(fixed, key, match) for key, match in found.items()]
    space += [Choice(axis.key, axis.values) for axis in axes]
    if not space:
        raise UsageError(
            "there is nothing to search; give a range, for example guidance.schedule.w=1..4 "
            "(or 0.1..10:log, 1..4:0.5, or values: sampler=heun,euler)"
        )
    return fixed, space


def _range(fixed: Sequence[str], key: str, match: re.Match[str]) -> Range:
    low, high, how = match.groups()
    node: Any = compose("sweep", [*fixed, f"{key}={low}"], complete=False).config
    preset: Any = compose("sweep", fixed, complete=False).config
    for name in key.split("."):
        node, preset = node[name], preset.get(name) if isinstance(preset, dict) else None
    step = float(how) if how not in (None, "log") else None
    found = Range(key, float(low), float(high), step, how == "log", type(preset) is int)
    numbers = [found.low, found.high, *([] if step is None else [step])]
    if not found.low < found.high or (step is not None and not 0 < step <= found.high - found.low):
        raise UsageError(f"{key}={match[0]}: a range goes from a lower to a higher value, by steps")
    if found.log and found.low <= 0:
        raise UsageError(f"{key}={match[0]}: a range with :log begins above 0")
    if found.whole and any(number % 1 for number in numbers):
        raise UsageError(f"{key}={match[0]}: {key} takes whole numbers")
    return found


@dataclass(frozen=True)
class Budget:
    """How much may be spent, in one of UNITS. Steps that candidates share are paid once."""

    amount: float
    unit: str

    @classmethod
    def of(cls, text: Any) -> "Budget":
        """From text such as "2e6 evaluations"; UsageError where it says something else."""
        found = re.fullmatch(r"([\d.]+(?:e\d+)?) *([A-Za-z]+)", str(text).strip())
        try:
            amount = float(found[1])
        except (TypeError, ValueError):
            amount = 0.0
        if not amount > 0:
            raise UsageError(
                f"budget={text}: a budget is a number above 0 and what is counted "
                f"({', '.join(UNITS)}), such as budget='2e6 evaluations'"
            )
        units = {unit.lower().rstrip("s"): unit for unit in UNITS}
        unit = found[2].lower().rstrip("s")
        if unit not in units:
            raise UsageError(f"budget={text}: {found[2]} is not counted{nearest(found[2], UNITS)}")
        return cls(amount, units[unit])

    def left(self, spent: Counter) -> float:
        """How much of it is left."""
        return self.amount - spent[self.unit]
