"""Guidance: a sum of directions, each with its own schedule, joined by a rule."""

from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np
import torch
from torch import Tensor

from guidex.errors import UsageError
from guidex.guidance.directions import Direction
from guidex.guidance.plan import Plan
from guidex.guidance.queries import Query, answer
from guidex.guidance.rules import Offset, Rule
from guidex.guidance.schedules import Schedule
from guidex.guidance.timeline import Timeline
from guidex.models.condition import Condition
from guidex.models.denoiser import Denoiser
from guidex.models.spec import Model


@dataclass(frozen=True)
class Term:
    """One direction and the schedule of its weight."""

    direction: Direction
    schedule: Schedule

    def plan(self, timeline: Timeline) -> np.ndarray:
        """The schedule's weights; 1 everywhere for a direction that is 0."""
        weights = self.schedule.plan(timeline)
        return np.where(np.isnan(weights), weights, 1.0) if self.direction.zero else weights

    def is_idle(self, weights: np.ndarray) -> bool:
        """Whether it acts nowhere by these weights of its plan, though it was given a weight."""
        acts = bool(np.any(weights[~np.isnan(weights)] != 1))
        return not (acts or self.direction.zero or self.schedule.w == 1)


@dataclass(frozen=True)
class Guidance:
    """What to move along, how much and when: D_w = rule(D_main, (w_k - 1, direction_k) for all
    terms k). Terms are named, in the order of the plan; there are none for no guidance."""

    terms: dict[str, Term]
    rule: Rule

    def plan(self, timeline: Timeline) -> Plan:
        """All weights on a sampler's grid."""
        weights = [term.plan(timeline) for term in self.terms.values()]
        costs = tuple(term.direction.evaluations for term in self.terms.values())
        named = zip(self.terms.items(), weights, strict=True)
        idle = tuple(name for (name, term), own in named if term.is_idle(own))
        weights = np.array(weights).reshape(-1, *timeline.evaluations.shape)
        return Plan(timeline, weights, costs, idle)

    @property
    def networks(self) -> list[Model]:
        """What guidance is measured against, in the order of the terms."""
        return [query.network for term in self.terms.values() for query in term.direction.queries]

    def on(self, device: str | torch.device) -> "Guidance":
        """The same with its networks on a device, ready to be called; it raises what
        `guidex.models.spec.ModelSpec.load` does."""
        terms = {}
        for name, term in self.terms.items():
            terms[name] = Term(term.direction.on(device), term.schedule)
        return Guidance(terms, self.rule)

    def gflops(self, plan: Plan) -> float:
        """Cost of all reference evaluations of one image, 10^9 floating-point operations."""
        costs = [term.direction.gflops for term in self.terms.values()]
        return sum(cost * count for cost, count in zip(costs, plan.calls, strict=True))


@dataclass(frozen=True)
class Guided:
    """The guided denoiser: wraps the main one for one plan. Outside guided evaluations it *is* the
    main one."""

    main: Denoiser
    guidance: Guidance
    plan: Plan

    def __call__(
        self,
        x: Tensor,
        sigma: float,
        condition: Condition,
        step: int,
        stage: int,
        state: Any = None,
        extras: dict[str, Tensor] | None = None,
    ) -> tuple[Tensor, Any]:
        """D_w(x; sigma, condition) [B, *shape] at an evaluation of the plan, in the dtype of x
        (float32 or float64), and the rule's memory, which goes into the next evaluation.
        `extras`: see `View`, of the main model."""
        omegas = self.plan.weights[:, step, stage] - 1
        if np.isnan(omegas).any():
            raise UsageError(f"the plan has no evaluation {stage} in step {step}")
        terms = zip(omegas.tolist(), self.guidance.terms.values(), strict=True)
        active = [(k, omega, term.direction) for k, (omega, term) in enumerate(terms) if omega != 0]
        queries = [query for _, _, direction in active for query in direction.queries]
        main, *rest = answer([Query(self.main, extras=extras), *queries], x, sigma, condition)
        if not active:
            return main, state
        predictions = iter(rest)
        offsets = []
        for k, omega, direction in active:
            own = islice(predictions, len(direction.queries))
            offsets.append(Offset(k, omega, direction(x, sigma, condition, main, *own)))
        return self.guidance.rule(main, offsets, state)
