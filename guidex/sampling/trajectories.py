"""Running solvers under guidance: many plans at once, each shared step taken once.

Plans that agree up to a step have the same state there, so a sweep is a tree: the trunk is computed
once and branches where plans begin to differ. One plan is a tree without branches.
"""

import itertools
import time
from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from guidex.errors import GuidexError
from guidex.guidance.guidance import Guidance, Guided
from guidex.models.denoiser import Denoiser
from guidex.sampling.seeds import Start, start
from guidex.sampling.solver import Solver, State


@dataclass(frozen=True)
class Run:
    """One plan to carry out; two runs with equal keys and equal weights do the same."""

    guided: Guided
    key: Hashable

    def signature(self, step: int) -> Hashable:
        """Equal for two runs if and only if they do the same in this step."""
        plan = self.guided.plan
        if not plan.guided[:, step].any():
            return None
        return self.key, plan.weights[:, step].tobytes()


@dataclass
class Outcome:
    """What one run made of a batch.

    Attributes:
        x: samples [B, *shape].
        path: states of the recorded rows at every step boundary [steps + 1, R, *shape], or None.
        seconds: time spent; that of shared steps is divided among those that share them.
    """

    x: Tensor
    path: Tensor | None
    seconds: float


class NonFinite(GuidexError):
    """A sample, of the run of this number, became infinite or not a number."""

    def __init__(self, message: str, run: int) -> None:
        super().__init__(message)
        self.run = run


def taken(runs: Sequence[Run], steps: int) -> Iterator[tuple[int, int]]:
    """The steps that are really taken for all runs together: for each, one of the runs that share
    it, by number, and the step."""
    return _nodes(list(range(len(runs))), runs, 0, steps)


def trajectories(
    runs: Sequence[Run],
    solver: Solver,
    begin: Start,
    seeds: Sequence[int],
    record: int = 0,
    tick: Callable[[float], None] = lambda amount: None,
) -> list[Outcome]:
    """Sample a batch under every run.

    Arguments:
        runs: plans on the solver's grid, all with the same main denoiser.
        begin: noise and conditions of the batch.
        seeds: of the batch, for the message of `NonFinite`.
        record: how many rows (from the first) to record at every step boundary.
        tick: told after each step how many images have been finished, counting parts.
    """
    tree = _Tree(runs, solver, begin, record, tick)
    began = time.perf_counter()
    with torch.inference_mode(mode=False), torch.no_grad():
        tree.grow(list(range(len(runs))), 0, solver.init(begin.noise, begin.draws), None, [], 0.0)
    tree.check(seeds)
    outcomes = [tree.outcomes[k] for k in range(len(runs))]
    # What was timed step by step is, on a GPU, the launching; the whole has now been waited for.
    scale = (time.perf_counter() - began) / sum(outcome.seconds for outcome in outcomes)
    for outcome in outcomes:
        outcome.seconds *= scale
    return outcomes


class _Tree:
    """The depth-first walk; holds what all branches share."""

    def __init__(
        self,
        runs: Sequence[Run],
        solver: Solver,
        begin: Start,
        record: int,
        tick: Callable[[float], None],
    ) -> None:
        self.runs, self.solver, self.begin = runs, solver, begin
        self.record, self.tick = record, tick
        self.sigmas = solver.sigmas()
        self.outcomes: dict[int, Outcome] = {}
        self.finite: list[tuple[int, int, Tensor]] = []  # step, run, whether a row is

    def grow(
        self, group: list[int], i: int, state: State, memory: Any, path: list[Tensor], spent: float
    ) -> None:
        """Take the steps from i on for the runs in `group`, which have done the same so far."""
        path = path or self.recorded(state)
        while i < len(self.sigmas) - 1:
            branches = _branches(group, self.runs, i)
            if len(branches) > 1:
                for branch in branches:
                    self.grow(branch, i, state, memory, path, spent)
                return
            began = time.perf_counter()
            state, memory = self.advance(self.runs[group[0]].guided, i, state, memory)
            spent += (time.perf_counter() - began) / len(group)
            self.finite.append((i, group[0], torch.isfinite(state.x).flatten(1).all(1)))
            path = path + self.recorded(state)
            self.tick(len(state.x) * len(group) / (len(self.sigmas) - 1))
            i += 1
        recorded = torch.stack(path) if self.record > 0 else None
        for k in group:
            self.outcomes[k] = Outcome(state.x, recorded, spent)

    def recorded(self, state: State) -> list[Tensor]:
        """What a path keeps of a state: a copy, since a view would keep all of it."""
        return [state.x[: self.record].clone()] if self.record > 0 else []

    def advance(self, guided: Guided, i: int, state: State, memory: Any) -> tuple[State, Any]:
        """One solver step; the rule's memory is threaded through its evaluations."""

        def denoise(
            x: Tensor, sigma: float, stage: int, extras: dict[str, Tensor] | None = None
        ) -> Tensor:
            nonlocal memory
            x0, memory = guided(x, sigma, self.begin.condition, i, stage, memory, extras)
            return x0

        return self.solver.step(state, self.sigmas, i, denoise), memory

    def check(self, seeds: Sequence[int]) -> None:
        """Look for non-finite values, once per batch so that a device never waits between steps."""
        if torch.stack([finite for _, _, finite in self.finite]).all():
            return
        step, run, finite = min(
            (entry for entry in self.finite if not entry[2].all()), key=lambda entry: entry[0]
        )
        seed = seeds[int((~finite).nonzero()[0])]
        raise NonFinite(
            f"seed {seed} became infinite or not a number in step {step} "
            f"(sigma {self.sigmas[step]:.4g} → {self.sigmas[step + 1]:.4g}); "
            "a smaller guidance weight may help, or float32 for a network in half precision",
            run,
        )


def _branches(group: list[int], runs: Sequence[Run], step: int) -> list[list[int]]:
    """The group cut into those that do the same in this step."""
    branches: dict[Hashable, list[int]] = {}
    for k in group:
        branches.setdefault(runs[k].signature(step), []).append(k)
    return list(branches.values())


def _nodes(
    group: list[int], runs: Sequence[Run], step: int, steps: int
) -> Iterator[tuple[int, int]]:
    """The tree's steps, as the walk takes them."""
    if step == steps:
        return
    for branch in _branches(group, runs, step):
        yield branch[0], step
        yield from _nodes(branch, runs, step + 1, steps)


def sample(
    main: Denoiser,
    guidance: Guidance,
    solver: Solver,
    seeds: Sequence[int],
    labels: Sequence[int] | None = None,
    batch: int = 256,
) -> tuple[Tensor, Tensor | None]:
    """Sample from Python: one image per seed, on the CPU's generators.

    Arguments:
        labels: numbers of classes, one per seed, or None to draw them from the seeds.
        batch: images per network call; it does not change the images.

    Returns:
        Samples [N, *shape] and their labels, int64 [N] or None.
    """
    run = Run(Guided(main, guidance, guidance.plan(solver.timeline())), key=None)
    device = next(itertools.chain(main.parameters(), main.buffers()), torch.empty(0)).device
    xs, ys = [], []
    for first in range(0, len(seeds), batch):
        part = seeds[first : first + batch]
        chosen = None if labels is None else labels[first : first + batch]
        cpu, shape = torch.device("cpu"), main.shape
        begin = start(part, shape, main.conditions, chosen, device, cpu, solver.stochastic)
        xs.append(trajectories([run], solver, begin, part)[0].x)
        ys.append(begin.labels)
    return torch.cat(xs), None if ys[0] is None else torch.cat(ys)
