"""Whole trajectories of EDM2 networks through guidex's own guidance, plans and solvers, against
the golden samples of the reference implementations.

Measured agreement: 6e-7 relative, whatever the dtype of the state; 1e-5 is asked for.
"""

import functools
from collections.abc import Sequence

import pytest
import torch
from edm2_networks import golden_model, golden_tensors, relative
from helpers import CPU

from guidex.guidance.guidance import Guidance, Guided
from guidex.guidance.methods import difference, none
from guidex.guidance.rules import Extrapolate
from guidex.guidance.schedules import Constant, Interval, Schedule
from guidex.models.condition import Conditions
from guidex.models.edm2.folded import fold
from guidex.models.edm2.network import EDM2
from guidex.sampling.grids import Karras
from guidex.sampling.seeds import Draws, Start, start
from guidex.sampling.solvers import Heun
from guidex.sampling.trajectories import Run, sample, trajectories

TOLERANCE = 1e-5


@functools.cache
def network(name: str) -> EDM2:
    return fold(golden_model(name))


@pytest.fixture(scope="module")
def seeds() -> list[int]:
    return golden_tensors("seeds.npz")["seeds"].tolist()


def guided_by(schedule: Schedule) -> Guidance:
    """Away from the unconditional network, which the golden "auto" trajectory uses as well."""
    return difference(network("uncond"), schedule, Extrapolate())


def check(solver: Heun, guidance: Guidance, seeds: Sequence[int], name: str) -> None:
    x, labels = sample(network("cond"), guidance, solver, seeds)
    assert labels.tolist() == golden_tensors("seeds.npz")["classes"].tolist()
    assert x.dtype == getattr(torch, solver.dtype)
    assert relative(x.double(), golden_tensors("sampler.npz")[name].double()) < TOLERANCE


def test_seeds_make_the_golden_noise_and_classes(seeds):
    golden = golden_tensors("seeds.npz")
    begin = start(seeds, (4, 16, 16), Conditions(int(golden["num_classes"])), None, CPU, CPU, False)
    assert torch.equal(begin.noise, golden["noise"])
    assert torch.equal(begin.labels, golden["classes"])


@pytest.mark.parametrize("bits", [32, 64])
@pytest.mark.parametrize(
    "grid, w, name",
    [
        (Karras(steps=18), None, "none_18"),
        (Karras(steps=32), 2.5, "cfg_2.5_32"),
        (Karras(steps=12, sigma_max=40.0, rho=5.0), 1.7, "auto_1.7_12"),
    ],
)
def test_golden_samples(seeds, grid, w, name, bits):
    guidance = none() if w is None else guided_by(Constant(w=w))
    check(Heun(grid=grid, dtype=f"float{bits}"), guidance, seeds, f"{name}_{bits}")


@pytest.mark.parametrize("lo, hi, w", [(17, 22, 2.0), (5, 11, 4.0)])
def test_limited_interval(seeds, lo, hi, w):
    solver = Heun(grid=Karras(steps=32))
    name = f"interval_steps_{lo}_{hi}_w{w:g}"
    by_step = guided_by(Interval(w=w, lo=lo, hi=hi, unit="step"))
    check(solver, by_step, seeds, name)
    # The bounds in sigma that the paper prints for the first one give the same plan.
    sigmas = {17: (0.19, 1.61), 5: (6.46, 31.2)}[lo]
    by_sigma = guided_by(Interval(w=w, lo=sigmas[0], hi=sigmas[1]))
    plans = [guidance.plan(solver.timeline()) for guidance in (by_step, by_sigma)]
    assert plans[0].weights.tobytes() == plans[1].weights.tobytes()


def test_stochastic_sampling(seeds):
    """In float32, as the golden run: in float64 the same seeds draw other fresh noise."""
    churn = {"s_churn": 40.0, "s_min": 0.05, "s_max": 50.0, "s_noise": 1.003}
    solver = Heun(grid=Karras(steps=18), dtype="float32", **churn)
    guidance = guided_by(Constant(w=1.5))
    run = Run(Guided(network("cond"), guidance, guidance.plan(solver.timeline())), key=None)
    # The classes of the golden run were given and not drawn again, so that its fresh noise follows
    # the first noise at once; the runner draws the class in between, as EDM2's does.
    golden = golden_tensors("seeds.npz")
    noise, classes = golden["noise"], golden["classes"]
    begin = Start(noise, classes, classes, Draws(tuple(map(_after_the_noise, seeds)), CPU))
    [outcome] = trajectories([run], solver, begin, seeds)
    golden = golden_tensors("sampler.npz")["churn_18_32"]
    assert relative(outcome.x.double(), golden.double()) < TOLERANCE


def _after_the_noise(seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    torch.randn(4, 16, 16, generator=generator)
    return generator.get_state()
