"""Plans: what is printed, counted and recorded before anything runs."""

import json

import numpy as np
import pytest
import torch
from helpers import Calls, gaussian

from guidex.errors import UsageError
from guidex.guidance.directions import Difference
from guidex.guidance.guidance import Guidance, Guided, Term
from guidex.guidance.methods import difference, none
from guidex.guidance.plan import Plan, ranges
from guidex.guidance.rules import Extrapolate
from guidex.guidance.schedules import Constant, Hole, Interval, Linear, Schedule
from guidex.sampling.grids import Karras
from guidex.sampling.solvers import Euler, Heun

HEUN = Heun(grid=Karras()).timeline()
XXL = Interval(w=2.0, lo=0.19, hi=1.61)


def plan(*schedules: Schedule) -> Plan:
    terms = {str(k): Term(Difference(gaussian()), one) for k, one in enumerate(schedules)}
    return Guidance(terms, Extrapolate()).plan(HEUN)


def test_the_interval_of_the_paper():
    """EDM2-XXL: 6 of 32 steps, 63 + 12 evaluations instead of 63 + 63."""
    found = plan(XXL)
    assert found.describe() == (
        "guided steps 17–22 of 32, sigma 1.609 → 0.189; 63 + 12 evaluations per image; w 2"
    )
    assert found.guided_steps == [17, 18, 19, 20, 21, 22]
    assert (found.evaluations_main, found.evaluations_ref) == (63, [12])
    assert plan(Constant(w=1.2)).evaluations_ref == [63]
    assert plan(Constant(w=0.5)).evaluations_ref == [63]  # away from the main model, but guided


def test_no_guidance():
    for nothing in (none().plan(HEUN), plan(Constant(w=1.0)), plan(Interval(w=2.0, lo=90, hi=99))):
        assert nothing.describe() == "no guided step of 32; 63 evaluations per image"
        assert nothing.guided_steps == [] and sum(nothing.evaluations_ref) == 0
    assert none().plan(HEUN).weights.shape == (0, 32, 2)


def test_terms_that_find_no_step():
    """Between two boundaries of the grid that snap to one, or beyond its noisiest step."""
    found = plan(Interval(w=2.0, lo=1.3, hi=1.35), XXL, Interval(w=2.0, lo=90, hi=99))
    assert found.idle == ("0", "2") and found.record()["idle"] == ["0", "2"]
    for meant in (Constant(w=1.0), Interval(w=1.0, lo=90, hi=99), XXL):
        assert plan(meant).idle == ()
    assert none().plan(HEUN).idle == ()


def test_several_terms():
    found = plan(XXL, Constant(w=1.5), Constant(w=1.0))
    assert found.weights.shape == (3, 32, 2)
    assert found.evaluations_ref == [12, 63, 0]
    assert found.describe() == (
        "guided steps 0–31 of 32, sigma 80 → 0; 63 + 12 + 63 + 0 evaluations per image; w 1.5 … 2"
    )


def test_a_hole_has_two_ranges():
    text = plan(Hole(w=2.0, lo=0.19, hi=1.61)).describe()
    assert text.startswith("guided steps 0–16, 23–31 of 32, sigma 80 → 0; 63 + 51 ")


def test_gating_evaluations_is_seen_in_the_plan():
    found = plan(Interval(w=2.0, lo=0.19, hi=1.61, gate="evaluation"))
    assert found.guided_steps == [16, 17, 18, 19, 20, 21, 22]
    assert found.evaluations_ref == [12]


def test_a_step_with_one_evaluation_has_one_weight():
    weights = plan(XXL).weights
    assert np.isnan(weights[0]).nonzero() == (np.array([31]), np.array([1]))
    euler = Guidance({}, Extrapolate()).plan(Euler(grid=Karras()).timeline())
    assert euler.evaluations_main == 32


def test_records_are_plain_data():
    record = json.loads(json.dumps(plan(XXL, Linear(w=3.0)).record(), allow_nan=False))
    assert record["steps"] == 32 and record["guided_steps"] == "1–31"
    assert record["evals_main"] == 63 and record["evals_ref"] == [12, 61]
    assert record["sigmas"] == HEUN.sigmas.tolist()
    assert record["weights"][0][17] == [2.0, 2.0] and record["weights"][0][31] == [1.0, 1.0]
    assert record["summary"] == plan(XXL, Linear(w=3.0)).describe()


@pytest.mark.parametrize(
    ("values", "text"),
    [
        ([], ""),
        ([0], "0"),
        ([1, 2, 3, 7], "1–3, 7"),
        ([0, 2, 4, 5], "0, 2, 4–5"),
        (list(range(32)), "0–31"),
    ],
)
def test_ranges(values, text):
    assert ranges(values) == text


def test_costs_are_the_references():
    model = gaussian()
    guidance = difference(model, XXL, Extrapolate())
    assert model.gflops > 0
    assert guidance.gflops(guidance.plan(HEUN)) == pytest.approx(12 * model.gflops)
    assert none().gflops(none().plan(HEUN)) == 0


def test_outside_guided_evaluations_it_is_the_main_model():
    main, calls = gaussian(), Calls()
    reference = calls.watch(gaussian(std=2.0))
    guidance = difference(reference, XXL, Extrapolate())
    guided = Guided(main, guidance, guidance.plan(HEUN))
    x, state = torch.ones(3, 1, dtype=torch.float64), object()
    for step, stage, acts in ((16, 1, False), (17, 0, True), (22, 1, True), (23, 0, False)):
        x0, after = guided(x, 0.5, None, step, stage, state)
        assert after is state  # what a rule remembers outlasts a pause
        assert torch.equal(x0, main(x, 0.5)) != acts
    assert calls[reference] == 2 * 3


def test_an_evaluation_that_the_plan_lacks_is_refused():
    model = gaussian()
    guidance = difference(model, XXL, Extrapolate())
    guided = Guided(model, guidance, guidance.plan(HEUN))
    with pytest.raises(UsageError, match="no evaluation 1 in step 31"):
        guided(torch.zeros(1, 1), 0.002, None, step=31, stage=1)
