"""Solvers against exact solutions: order, moments, noise, and the reference implementation."""

import math

import numpy as np
import pytest
import torch
from helpers import CPU, Open, concrete, gaussian, golden
from torch import Tensor

from guidex.errors import UsageError
from guidex.guidance.guidance import Guided
from guidex.guidance.methods import difference, none
from guidex.guidance.rules import Extrapolate
from guidex.guidance.schedules import Constant
from guidex.models.condition import Conditions
from guidex.models.toys import fractal2d, mixture1d
from guidex.sampling import solvers
from guidex.sampling.grids import Karras
from guidex.sampling.seeds import Draws, start
from guidex.sampling.solver import Solver, State
from guidex.sampling.solvers import DDIM, DPMpp2M, Euler, Heun

NO_DRAWS = Draws((), CPU)
ALL = [one for one in concrete(Solver) if one.__module__ == solvers.__name__]


def walk(solver: Solver, state: State, denoise) -> list[State]:
    """The states at all step boundaries, where denoise takes x, sigma, step and stage."""
    states, sigmas = [state], solver.sigmas()
    for i in range(len(sigmas) - 1):
        own = lambda x, sigma, stage, i=i: denoise(x, sigma, i, stage)  # noqa: E731
        states.append(solver.step(states[-1], sigmas, i, own))
    return states


def solve(solver: Solver, x: Tensor, model, draws: Draws = NO_DRAWS) -> list[Tensor]:
    """As `walk`, of a model that takes x and sigma."""
    states = walk(solver, State(x, draws), lambda x, sigma, step, stage: model(x, sigma))
    return [state.x for state in states]


def draws_of(count: int, shape: tuple[int, ...]) -> Draws:
    return start(range(count), shape, Conditions(), None, CPU, CPU, keep_drawing=True).draws


def order(solver: type[Solver], model, x: Tensor, exact: Tensor) -> float:
    """How the error falls with the number of steps, as a power."""
    counts, errors = (64, 128, 256), []
    for steps in counts:
        grid = Open(steps=steps, sigma_min=0.05, sigma_max=5.0)
        found = solve(solver(grid=grid), x, model)[-1]
        errors.append(float((found - exact).abs().max()))
    return -float(np.polyfit(np.log(counts), np.log(errors), 1)[0])


ORDERS = {Euler: 1, Heun: 2, DPMpp2M: 2, DDIM: 1}
assert set(ORDERS) == set(ALL)  # those of guidex.sampling.flow: tests/test_dit_samplers.py


@pytest.fixture(scope="module")
def fine() -> tuple[Tensor, Tensor]:
    """Where the trajectories of the 1D mixture start and, by many small steps, end."""
    x = torch.tensor([[-4.0], [0.4], [3.0]], dtype=torch.float64)
    grid = Open(steps=1000, sigma_min=0.05, sigma_max=5.0)
    return x, solve(Heun(grid=grid), x, mixture1d())[-1]


@pytest.mark.parametrize("solver", ALL)
def test_order_on_a_mixture(solver, fine):
    """DDIM without noise is Euler's method."""
    assert order(solver, mixture1d(), *fine) == pytest.approx(ORDERS[solver], abs=0.08)


def test_dpmpp_extrapolates_over_steps_of_unequal_length():
    """From sigma 8 to 4 to 1, the second step is twice as long in log sigma: r = 1 / 2."""
    sigmas, predictions = np.array([8.0, 4.0, 1.0]), iter([2.0, 3.0])
    solver = DPMpp2M(grid=Open())
    state = State(torch.tensor([[6.0]], dtype=torch.float64), NO_DRAWS)
    for i in range(2):
        x0 = torch.tensor([[next(predictions)]], dtype=torch.float64)
        state = solver.step(state, sigmas, i, lambda x, sigma, stage, x0=x0: x0)
    first = 6.0 * 4 / 8 + (1 - 4 / 8) * 2.0
    corrected = 3.0 + (3.0 - 2.0) / (2 * 0.5)
    assert state.x.item() == pytest.approx(first * 1 / 4 + (1 - 1 / 4) * corrected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("solver", ALL)
def test_the_last_step_to_0_gives_the_last_prediction_in_the_dtype_asked_for(solver, dtype):
    solver = solver(grid=Karras(steps=1, sigma_max=2.0), dtype=str(dtype).removeprefix("torch."))
    model, state = gaussian(1.0, 0.5), solver.init(torch.ones(2, 1), NO_DRAWS)
    expected = model(torch.full((2, 1), 2.0, dtype=dtype), 2.0)
    torch.testing.assert_close(solve(solver, state.x, model)[-1], expected)


@pytest.mark.parametrize("grid", [Karras(steps=9), Open(steps=9)])
@pytest.mark.parametrize("solver", ALL)
def test_evaluations_are_those_of_the_timeline(solver, grid):
    solver = solver(grid=grid)
    timeline = solver.timeline()
    seen = np.full_like(timeline.evaluations, np.nan)

    def denoise(x: Tensor, sigma: float, step: int, stage: int) -> Tensor:
        assert np.isnan(seen[step, stage])
        seen[step, stage] = sigma
        return x / 2

    walk(solver, State(torch.ones(1, 1, dtype=torch.float64), NO_DRAWS), denoise)
    np.testing.assert_array_equal(seen, timeline.evaluations)
    open_end = grid.sigmas()[-1] > 0
    expected = {Heun: 18 if open_end else 17}.get(type(solver), 9)
    assert np.count_nonzero(~np.isnan(seen)) == expected


def test_churn_is_planned_at_its_own_noise_levels():
    solver = Heun(grid=Karras(steps=8), s_churn=4.0, s_min=1.0, s_max=50.0)
    timeline, sigmas = solver.timeline(), solver.sigmas()
    raised = (sigmas[:-1] >= 1.0) & (sigmas[:-1] <= 50.0)
    assert 0 < raised.sum() < 8
    assert (timeline.evaluations[:, 0] > sigmas[:-1]).tolist() == raised.tolist()
    found = solve(solver, torch.ones(2, 3).double(), lambda x, sigma: x, draws_of(2, (3,)))
    moved = [not torch.equal(a, b) for a, b in zip(found[:-1], found[1:], strict=True)]
    assert moved == raised.tolist()  # D = x makes no drift, so only churn moves


@pytest.mark.parametrize(("s_churn", "gamma"), [(4.0, 0.5), (100.0, math.sqrt(2) - 1)])
def test_churn_adds_the_noise_of_the_paper(s_churn, gamma):
    gamma = min(gamma, math.sqrt(2) - 1)
    solver = Heun(grid=Karras(steps=8), s_churn=s_churn, s_noise=1.1)
    draws = draws_of(2, (3,))
    x = torch.zeros(2, 3, dtype=torch.float64)
    state = solver.step(State(x, draws), solver.sigmas(), 0, lambda x, sigma, stage: x)
    noise, after = draws.draw(x)
    amplitude = 80 * math.sqrt((1 + gamma) ** 2 - 1) * 1.1
    torch.testing.assert_close(state.x, amplitude * noise)
    assert all(map(torch.equal, state.draws.states, after.states))


@pytest.mark.parametrize(("eta", "kept"), [(1.0, 1 / 4), (0.5, math.sqrt(13) / 8)])
def test_ddim_with_noise_is_the_posterior_of_ddpm(eta, kept):
    """q(x_s | x_t, x0) = N(x0 + s^2 / t^2 (x_t - x0), s^2 (t^2 - s^2) / t^2) for eta = 1.

    With less noise, v = eta^2 times its variance, sqrt(s^2 - v) / t of x_t - x0 is kept.
    """
    solver = DDIM(grid=Open(steps=1, sigma_min=1.0, sigma_max=2.0), eta=eta)
    draws = draws_of(2, (3,))
    x, x0 = 2 * torch.ones(2, 3).double(), torch.full((2, 3), 0.5).double()
    state = solver.step(State(x, draws), solver.sigmas(), 0, lambda x, sigma, stage: x0)
    noise, _ = draws.draw(x)
    torch.testing.assert_close(state.x, x0 + kept * (x - x0) + eta * math.sqrt(3 / 4) * noise)


@pytest.mark.parametrize(
    "solver",
    [
        pytest.param(lambda grid: DDIM(grid=grid, eta=1.0), id="ancestral"),
        pytest.param(lambda grid: Heun(grid=grid, s_churn=40.0), id="churn"),
        pytest.param(lambda grid: Heun(grid=grid), id="deterministic"),
    ],
)
def test_marginals_of_a_gaussian(solver):
    """At every noise level the states have mean m and variance s^2 + sigma^2."""
    solver = solver(Open(steps=100, sigma_min=0.05, sigma_max=5.0))
    model = lambda x, sigma: 1 + (x - 1) * 0.25 / (0.25 + sigma**2)  # noqa: E731
    size = 40_000
    noise = torch.randn(1, size, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    paths = solve(solver, 1 + math.sqrt(25.25) * noise, model, draws_of(1, (size,)))
    for x, sigma in zip(paths, solver.sigmas(), strict=True):
        expected = math.sqrt(0.25 + sigma**2)
        assert float(x.std()) == pytest.approx(expected, rel=0.04)
        assert float(x.mean()) == pytest.approx(1.0, abs=0.01 * expected + 0.005)


@pytest.mark.parametrize(("w", "name"), [(1.0, "traj_final_A"), (3.0, "traj_final_A_cfg3_AB")])
def test_heun_agrees_with_the_reference_implementation(w, name):
    toy = golden("toy2d.npz")
    main, reference = fractal2d("A"), fractal2d("AB", conditional=False)
    solver = Heun(grid=Karras(sigma_max=5.0))
    guidance = none() if w == 1 else difference(reference, Constant(w=w), Extrapolate())
    guided = Guided(main, guidance, guidance.plan(solver.timeline()))
    state = State(torch.from_numpy(toy["traj_init"]).double(), NO_DRAWS)
    state = walk(solver, state, lambda x, sigma, i, stage: guided(x, sigma, None, i, stage)[0])[-1]
    expected = torch.from_numpy(toy[name]).double()
    torch.testing.assert_close(state.x, expected, rtol=1e-5, atol=1e-5)


def test_impossible_settings_are_refused():
    for churn in (-1.0, math.nan):
        with pytest.raises(UsageError, match="s_churn must be >= 0"):
            Heun(grid=Karras(), s_churn=churn)
    for eta in (-0.1, 1.1, math.nan):
        with pytest.raises(UsageError, match="eta lies in 0 ... 1"):
            DDIM(grid=Karras(), eta=eta)
