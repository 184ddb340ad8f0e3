"""The plan: all guidance weights of a run, on the sampler's grid, before anything runs."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from guidex.guidance.timeline import Timeline
from guidex.models.native_time import NATIVE, NativeUnit


@dataclass(frozen=True)
class Plan:
    """Weights of every term of a guidance at every network evaluation.

    Attributes:
        weights: float64 [terms, steps, stages]; 1 = no guidance, NaN = no evaluation.
        costs: evaluations of a reference that each term makes where it acts, [terms].
        idle: names of the terms that have a weight, but no evaluation to act at.
    """

    timeline: Timeline
    weights: np.ndarray
    costs: tuple[int, ...]
    idle: tuple[str, ...] = ()

    @property
    def guided(self) -> np.ndarray:
        """Evaluations at which a term acts, bool [terms, steps, stages]."""
        return ~np.isnan(self.weights) & (self.weights != 1)

    @property
    def evaluations_main(self) -> int:
        """Evaluations of the main network per image (NFE)."""
        return int(np.count_nonzero(~np.isnan(self.timeline.evaluations)))

    @property
    def calls(self) -> list[int]:
        """How often each term's direction is asked for, per image."""
        return [int(term.sum()) for term in self.guided]

    @property
    def evaluations_ref(self) -> list[int]:
        """Evaluations of each term's reference per image."""
        return [cost * calls for cost, calls in zip(self.costs, self.calls, strict=True)]

    @property
    def guided_steps(self) -> list[int]:
        """Steps with a guided evaluation."""
        return np.flatnonzero(self.guided.any(axis=(0, 2))).tolist()

    def describe(self, unit: NativeUnit | None = None) -> str:
        """One line, such as "guided steps 17–22 of 32, sigma 1.609 → 0.189; 63 + 12 evaluations
        per image; w 2", with noise levels also in the unit of a network's own time."""
        steps, sigmas = self.guided_steps, self.timeline.sigmas
        total = len(sigmas) - 1
        if not steps:
            ends = "" if unit is None else f", {_span(sigmas[0], sigmas[-1], unit)}"
            return f"no guided step of {total}{ends}; {self.evaluations_main} evaluations per image"
        span = _span(sigmas[steps[0]], sigmas[steps[-1] + 1], unit)
        weights = self.weights[self.guided]
        low, high = weights.min(), weights.max()
        w = f"w {low:.4g}" if low == high else f"w {low:.3g} … {high:.3g}"
        cost = " + ".join(str(count) for count in [self.evaluations_main, *self.evaluations_ref])
        return f"guided steps {ranges(steps)} of {total}, {span}; {cost} evaluations per image; {w}"

    def record(self) -> dict[str, object]:
        """The plan as plain data, for rows and manifests."""
        return {
            "steps": len(self.timeline.sigmas) - 1,
            "guided_steps": ranges(self.guided_steps),
            "idle": list(self.idle),
            "sigmas": self.timeline.sigmas.tolist(),
            "weights": np.where(np.isnan(self.weights), 1.0, self.weights).tolist(),
            "evals_main": self.evaluations_main,
            "evals_ref": self.evaluations_ref,
            "summary": self.describe(),
        }


def level(sigma: float) -> str:
    """A noise level for people: three decimals as in the papers, more where that would be 0.00…"""
    return f"{sigma:.3f}".rstrip("0").rstrip(".") if sigma >= 0.01 or sigma == 0 else f"{sigma:.2g}"


def _span(start: float, end: float, unit: NativeUnit | None) -> str:
    text = f"sigma {level(start)} → {level(end)}"
    return text if unit is None else f"{text}, {native_span(start, end, unit)}"


def native_span(start: float, end: float, unit: NativeUnit) -> str:
    """Two noise levels in the time of a family, for people."""
    first, last = NATIVE[unit](np.array([start, end]))
    return f"{unit} {first:.4g} → {last:.4g}"


def ranges(values: Sequence[int]) -> str:
    """Increasing integers as text: [1, 2, 3, 7] -> "1-3, 7"."""
    parts: list[list[int]] = []
    for value in values:
        if parts and value == parts[-1][-1] + 1:
            parts[-1].append(value)
        else:
            parts.append([value])
    return ", ".join(str(p[0]) if len(p) == 1 else f"{p[0]}–{p[-1]}" for p in parts)
