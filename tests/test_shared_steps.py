"""Random sweeps: points that share steps end as each would alone, under every solver and rule."""

import functools

import pytest
import torch
from helpers import starts, two_classes

from guidex.config.compose import compose
from guidex.config.instantiate import Models, instantiate
from guidex.config.presets import options
from guidex.guidance.guidance import Guided
from guidex.guidance.methods import difference
from guidex.guidance.rules import Rule
from guidex.guidance.schedules import Hole, Interval
from guidex.sampling.solver import Solver
from guidex.sampling.trajectories import Run, taken, trajectories

hypothesis = pytest.importorskip("hypothesis", reason="random sweeps take hypothesis")
from hypothesis import strategies as st  # noqa: E402

SEEDS, STEPS = [4, 0, 17], 6


# All but DDPM's, which takes a model with a learned variance.
SAMPLERS = [name for name in options("sampler") if name != "ddpm"]


@functools.cache
def solver(name: str) -> Solver:
    words = [f"sampler={name}", f"sampler.grid.steps={STEPS}"]
    words += [] if name.startswith(("dd", "flow")) else ["sampler.grid.sigma_max=5"]
    config = compose("sample", words).config["sampler"]
    return instantiate(config, "sampler", Models(), Solver)


@functools.cache
def rule(name: str, strength: float) -> Rule:
    config = compose("sample", ["guidance=cfg", f"guidance/rule={name}"]).config
    config = config["guidance"]["rule"]
    number = {"apg": "momentum", "rescale": "phi"}.get(name)  # of others, the default
    config |= {number: strength} if number else {}
    return instantiate(config, "rule", Models(), Rule)


POINTS = st.lists(
    st.tuples(
        st.sampled_from(options("guidance/rule")),
        st.sampled_from([0.2, 0.7]),
        st.sampled_from([Interval, Hole]),
        st.sampled_from([1.0, 1.5, 3.0]),
        st.integers(0, STEPS - 1),
        st.integers(0, STEPS - 1),
    ),
    min_size=2,
    max_size=6,
)


@hypothesis.settings(max_examples=25, deadline=None, derandomize=True, database=None)
@hypothesis.given(st.sampled_from(SAMPLERS), POINTS)
def test_shared_and_unshared_runs_are_equal(name: str, points: list[tuple]) -> None:
    main, reference, sampler = two_classes(), two_classes(conditional=False), solver(name)
    runs = []
    for kind, strength, schedule, w, one, other in points:
        low, high = sorted((one, other))
        chosen = schedule(w=w, lo=low, hi=high, unit="step")
        guidance = difference(reference, chosen, rule(kind, strength))
        plan = guidance.plan(sampler.timeline())
        runs.append(Run(Guided(main, guidance, plan), f"{kind} {strength}"))
    begin = starts(main, SEEDS, sampler)
    together = trajectories(runs, sampler, begin, SEEDS)
    for run, outcome in zip(runs, together, strict=True):
        [alone] = trajectories([run], sampler, begin, SEEDS)
        assert torch.equal(outcome.x, alone.x)
    steps = len(runs[0].guided.plan.timeline.sigmas) - 1
    assert steps <= len(list(taken(runs, steps))) <= steps * len(runs)
