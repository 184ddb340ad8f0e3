"""What predictions are conditioned on: nothing, or a class of each image (later: a prompt).

A model numbers its conditions 0 ... count - 1. People write numbers or names, seeds draw numbers,
and numbers are what a run records. Only `Conditions.batch` makes of them what a network takes, and
only networks look into that: guidance and sampling hand it on.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from guidex.config.presets import nearest
from guidex.errors import UsageError

Condition = Tensor | None
"""Of a batch of B images: their classes, int64 [B], or None for predictions without a condition.
A family that takes something else, such as embeddings of prompts, adds its type here."""


@dataclass(frozen=True)
class Conditions:
    """The classes of a model: how many, and what they are called, if that is known. A family that
    takes something else has a subclass of its own, whose names (the prompts, say) are numbered in
    the same way, with another `batch`."""

    count: int = 0
    names: tuple[str, ...] = ()

    def draw(self, generator: torch.Generator) -> Tensor | None:
        """The next number from a generator, int64 [] on its device; None, and nothing is drawn,
        for a model without conditions."""
        if self.count == 0:
            return None
        return torch.randint(self.count, [], generator=generator, device=generator.device)

    def batch(self, numbers: Tensor | None) -> Condition:
        """What the network takes, from numbers, int64 [B], or None; on their device."""
        return numbers

    def name(self, number: int) -> str:
        """What people call it: its name, else its number."""
        return self.names[number] if self.names else str(number)

    def check(self, numbers: Tensor, count: int) -> None:
        """Refuse, with a UsageError, what are not the numbers of `count` images."""
        if numbers.shape != (count,) or numbers.is_floating_point():
            raise UsageError(
                f"labels must be integers [{count}], one per sample, not {list(numbers.shape)} of "
                f"{numbers.dtype}"
            )
        low, high = (int(bound) for bound in numbers.aminmax()) if count > 0 else (0, 0)
        if count > 0 and not 0 <= low <= high < self.count:
            raise UsageError(f"labels go from 0 to {self.count - 1}, not {low} … {high}")

    def numbers(self, written: "Sequence[int | str | Turn]") -> list[int]:
        """The numbers of conditions that people wrote by number or name, or whose turn it is; a
        UsageError for one that the model does not have."""
        known = {name: number for number, name in enumerate(self.names)}
        known |= {number: number for number in range(self.count)}
        turns = {given for given in written if isinstance(given, Turn)}
        known |= {turn: turn.seed % self.count for turn in turns if self.count > 0}
        for given in set(written) - known.keys():
            allowed = f"0 … {self.count - 1}" if self.count else "none: use labels=random"
            hint = nearest(given, self.names) if isinstance(given, str) else ""
            given = "balanced" if given in turns else given
            raise UsageError(f"labels={given}: the classes of this model are {allowed}{hint}")
        return [known[given] for given in written]


class Turn(NamedTuple):
    """The class whose turn it is where seeds go through all classes: seed modulo their number."""

    seed: int


def parse_labels(text: Any, seeds: Sequence[int]) -> list[int | str | Turn] | None:
    """Conditions as people write them, one for each seed: random (None), balanced (as many of every
    class, where seeds follow one another), 3, circle, or a list, repeated as needed; a UsageError
    where they are not of this form."""
    if text == "random":
        return None
    if text == "balanced":
        return [Turn(seed) for seed in seeds]
    labels = text if isinstance(text, list) else [text]
    wrong = [y for y in labels if isinstance(y, bool) or not isinstance(y, int | str)]
    if wrong or not labels or "random" in labels or any(y < 0 for y in labels if y != str(y)):
        raise UsageError(
            "labels must be random, balanced, a class such as 3 or its name, or a list [0,1,2], "
            f"not {text!r}"
        )
    return [labels[k % len(labels)] for k in range(len(seeds))]
