"""A tree of plans gives what each plan gives alone, in as few steps as it claims."""

from collections import Counter

import pytest
import torch
from helpers import Calls, starts, two_classes
from torch import Tensor

from guidex.guidance.directions import Difference
from guidex.guidance.guidance import Guidance, Guided, Term
from guidex.guidance.methods import difference, none
from guidex.guidance.rules import APG, Extrapolate, Rescale, Rule
from guidex.guidance.schedules import Constant, Hole, Interval, Linear, Schedule
from guidex.models.denoiser import Denoiser
from guidex.sampling import trajectories as walk
from guidex.sampling.grids import Karras
from guidex.sampling.solver import Solver
from guidex.sampling.solvers import DDIM, DPMpp2M, Euler, Heun
from guidex.sampling.trajectories import NonFinite, Run, sample, taken, trajectories

SEEDS = [4, 0, 17]
GRID = Karras(steps=8, sigma_max=5.0)


def interval(w: float, first: int, last: int) -> Interval:
    return Interval(w=w, lo=first, hi=last, unit="step")


class Table:
    """Plans of one main model, which is counted."""

    def __init__(self, solver: Solver) -> None:
        self.solver = solver
        self.calls = Calls()
        self.main = self.calls.watch(two_classes())
        self.reference = self.calls.watch(two_classes(conditional=False))
        self.weaker = self.calls.watch(two_classes(blur=0.1))
        self.runs: list[Run] = []

    def add(self, schedule: Schedule | None, rule: Rule | None = None, key: str = "cfg") -> None:
        guidance = none()
        if schedule is not None:
            guidance = difference(self.reference, schedule, rule or Extrapolate())
        self.add_guidance(guidance, key)

    def add_guidance(self, guidance: Guidance, key: str) -> None:
        plan = guidance.plan(self.solver.timeline())
        self.runs.append(Run(Guided(self.main, guidance, plan), key))

    def sample(self, runs: list[Run], **options):
        begin = starts(self.main, SEEDS, self.solver)
        return trajectories(runs, self.solver, begin, SEEDS, **options)

    def alone(self, run: Run) -> Tensor:
        return self.sample([run])[0].x


def full_table(solver: Solver) -> Table:
    """Plans that leave each other early, late and never, under several rules."""
    table = Table(solver)
    table.add(None)
    for w, first, last in ((2, 2, 4), (2, 2, 5), (3, 2, 4), (2, 4, 5), (2, 2, 4)):
        table.add(interval(w, first, last))
    table.add(Hole(w=2.0, lo=2, hi=4, unit="step"))
    table.add(Linear(w=3.0))
    _, _, high, low, *_ = GRID.sigmas()
    for w in (2, 3):  # of step 2 only the second evaluation
        table.add(Interval(w=w, lo=low * 0.9, hi=(high * low) ** 0.5, gate="evaluation"))
    momentum = APG(momentum=-0.5, norm_threshold=0.5)
    for last in (5, 6):
        table.add(interval(4, 1, last), momentum, key="apg")
    table.add(Interval(w=4.0, lo=1, hi=5, unit="step"), APG(momentum=0.5), key="other apg")
    table.add(interval(2, 2, 4), Rescale(phi=1.0), key="rescale")
    terms = {
        "cfg": Term(Difference(table.reference), interval(2, 2, 4)),
        "autoguidance": Term(Difference(table.weaker), Constant(w=1.5)),
    }
    table.add_guidance(Guidance(terms, momentum), key="both")
    return table


SOLVERS = {
    "heun": Heun(grid=GRID),
    "churn": Heun(grid=GRID, s_churn=3.0),
    "euler": Euler(grid=GRID),
    "dpmpp_2m": DPMpp2M(grid=GRID),
    "ancestral": DDIM(grid=GRID, eta=1.0),
}


@pytest.mark.parametrize("solver", SOLVERS)
def test_a_tree_equals_its_branches_bit_for_bit(solver):
    table = full_table(SOLVERS[solver])
    found = [outcome.x for outcome in table.sample(table.runs)]
    for k, run in enumerate(table.runs):
        assert torch.equal(found[k], table.alone(run)), k
        assert torch.isfinite(found[k]).all()
    assert torch.equal(found[1], found[5])  # the same plan twice
    different = {tuple(x.flatten().tolist()) for x in found}
    assert len(different) == len(table.runs) - 1


def test_shared_steps_are_taken_once():
    """8 Euler steps; the plans are the same up to step 3, guided or not from then on."""
    table = Table(Euler(grid=GRID))
    table.add(None)
    table.add(interval(2, 3, 4))
    table.add(interval(3, 3, 4))
    table.add(interval(2, 3, 5))
    table.add(interval(2, 3, 4), key="same weights, other guidance")
    table.sample(table.runs)
    # Steps 0-2: 1 branch; 3 and 4: none, w 2, w 3, other; 5-7: and w 2 splits in two.
    steps = 3 * 1 + 2 * 4 + 3 * 5
    assert len(list(taken(table.runs, 8))) == steps
    assert table.calls[table.main] == steps * len(SEEDS)
    assert table.calls[table.reference] == (2 * 3 + 1) * len(SEEDS)


def test_one_plan_costs_what_it_says():
    table = full_table(SOLVERS["churn"])
    for run in table.runs:
        plan = run.guided.plan
        table.calls.images.clear()
        table.sample([run])
        expected = Counter({id(table.main): plan.evaluations_main * len(SEEDS)})
        networks = run.guided.guidance.networks
        for network, count in zip(networks, plan.evaluations_ref, strict=True):
            expected[id(network)] += count * len(SEEDS)
        assert table.calls.images == expected
        assert len(list(taken([run], 8))) == 8


def test_momentum_is_carried_over_steps_without_guidance():
    """What is remembered when the guidance pauses counts when it goes on."""
    table = Table(Euler(grid=GRID))
    pause = Hole(w=4.0, lo=2, hi=5, unit="step")
    for momentum in (-0.5, 0.0):
        table.add(pause, APG(momentum=momentum), key=f"{momentum}")
    with_memory, without = (table.alone(run) for run in table.runs)
    assert not torch.equal(with_memory, without)
    assert torch.equal(table.sample(table.runs)[0].x, with_memory)


def test_the_path_is_recorded_at_every_boundary():
    table = Table(Heun(grid=GRID))
    table.add(interval(2, 3, 4))
    table.add(interval(3, 3, 4))
    found = table.sample(table.runs, record=2)
    begin = starts(table.main, SEEDS, table.solver)
    for outcome in found:
        assert outcome.path.shape == (9, 2, 2)
        assert torch.equal(outcome.path[0], begin.noise[:2].double() * float(GRID.sigmas()[0]))
        assert torch.equal(outcome.path[-1], outcome.x[:2])
    assert torch.equal(found[0].path[:4], found[1].path[:4])
    assert not torch.equal(found[0].path[4], found[1].path[4])


def test_a_path_keeps_no_more_than_it_shows(monkeypatch):
    """A view of a few rows would keep the whole batch, of every step."""
    table, kept = Table(Heun(grid=GRID)), []
    table.add(interval(2, 3, 4))
    recorded = walk._Tree.recorded
    monkeypatch.setattr(
        walk._Tree, "recorded", lambda *given: kept.append(recorded(*given)) or kept[-1]
    )
    (outcome,) = table.sample(table.runs)
    assert outcome.path is None and kept == [[]] * 9
    kept.clear()
    table.sample(table.runs, record=1)
    assert [part.untyped_storage().nbytes() for (part,) in kept] == [outcome.x[:1].nbytes] * 9


def test_ticks_add_up_to_the_images():
    table = full_table(Heun(grid=GRID))
    ticks: list[float] = []
    outcomes = table.sample(table.runs, tick=ticks.append)
    assert sum(ticks) == pytest.approx(len(SEEDS) * len(table.runs))
    assert len(ticks) == len(list(taken(table.runs, 8)))
    assert all(outcome.seconds > 0 for outcome in outcomes)


class Failing(Denoiser):
    """Predicts 0, except infinity for one row from some noise level down."""

    shape, num_classes, sigma_data = (2,), 0, 1.0
    sigma_min, sigma_max, gflops = 0.0, 1e9, 0.0

    def __init__(self, row: int, sigma: float, value: float) -> None:
        super().__init__()
        self.row, self.sigma, self.value = row, sigma, value

    def forward(self, x: Tensor, sigma: float, labels: Tensor | None = None) -> Tensor:
        x0 = torch.zeros_like(x)
        if sigma <= self.sigma:
            x0[self.row] = self.value
        return x0


@pytest.mark.parametrize(("row", "value"), [(0, float("inf")), (2, float("nan"))])
def test_what_is_not_finite_is_named(row, value):
    sigmas = GRID.sigmas()
    with pytest.raises(NonFinite) as caught:
        sample(Failing(row, float(sigmas[5]), value), none(), Euler(grid=GRID), SEEDS)
    assert f"seed {SEEDS[row]} became infinite or not a number in step 5 " in str(caught.value)
    assert f"(sigma {sigmas[5]:.4g} → {sigmas[6]:.4g})" in str(caught.value)


def test_the_first_failure_of_all_branches_is_named():
    """A branch walked later may fail at an earlier step."""
    table = Table(Euler(grid=GRID))
    table.main = Failing(0, -1.0, 0.0)
    for step, row in ((6, 0), (3, 1)):
        table.reference = Failing(row, float(GRID.sigmas()[step]), float("inf"))
        table.add(Constant(w=1 + 0.1 * step), key=f"{step}")
    with pytest.raises(NonFinite, match="seed 0 .* in step 3 "):
        table.sample(table.runs)


def test_sampling_leaves_no_gradients():
    model = two_classes()
    model.weights.requires_grad_()
    x, _ = sample(model, none(), Euler(grid=GRID), SEEDS)
    assert not x.requires_grad
    with torch.inference_mode():
        inside, _ = sample(model, none(), Euler(grid=GRID), SEEDS)
    assert torch.equal(inside, x)
