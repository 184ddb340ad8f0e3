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


@pytest.mark.parametrize(
    ("schedules", "text", "evaluations"),
    [
        # EDM2-XXL: 6 of 32 steps, 63 + 12 evaluations instead of 63 + 63.
        ([XXL], "17–22 of 32, sigma 1.609 → 0.189; 63 + 12 evaluations per image; w 2", [12]),
        # Away from the main model, but guided.
        ([Constant(w=0.5)], "0–31 of 32, sigma 80 → 0; 63 + 63 evaluations per image; w 0.5", [63]),
        (
            [XXL, Constant(w=1.5), Constant(w=1.0)],
            "0–31 of 32, sigma 80 → 0; 63 + 12 + 63 + 0 evaluations per image; w 1.5 … 2",
            [12, 63, 0],
        ),
        (
            [Hole(w=2.0, lo=0.19, hi=1.61)],
            "0–16, 23–31 of 32, sigma 80 → 0; 63 + 51 evaluations per image; w 2",
            [51],
        ),
        (
            [Interval(w=2.0, lo=0.19, hi=1.61, gate="evaluation")],
            "16–22 of 32, sigma 2.174 → 0.189; 63 + 12 evaluations per image; w 2",
            [12],
        ),
    ],
)
def test_what_a_plan_says(schedules, text, evaluations):
    found = plan(*schedules)
    assert found.describe() == f"guided steps {text}"
    assert (found.evaluations_main, found.evaluations_ref) == (63, evaluations)
    assert found.weights.shape == (len(schedules), 32, 2)
    # The last step has one evaluation.
    assert np.isnan(found.weights[0]).nonzero() == (np.array([31]), np.array([1]))


def test_no_guidance():
    for nothing in (none().plan(HEUN), plan(Constant(w=1.0)), plan(Interval(w=2.0, lo=90, hi=99))):
        assert nothing.describe() == "no guided step of 32; 63 evaluations per image"
        assert nothing.guided_steps == [] and sum(nothing.evaluations_ref) == 0
    assert none().plan(Euler(grid=Karras()).timeline()).evaluations_main == 32


def test_terms_that_find_no_step():
    """Between two boundaries of the grid that snap to one, or beyond its noisiest step."""
    found = plan(Interval(w=2.0, lo=1.3, hi=1.35), XXL, Interval(w=2.0, lo=90, hi=99))
    assert found.idle == ("0", "2") and found.record()["idle"] == ["0", "2"]
    for meant in (Constant(w=1.0), Interval(w=1.0, lo=90, hi=99), XXL):
        assert plan(meant).idle == ()


def test_records_are_plain_data():
    record = json.loads(json.dumps(plan(XXL, Linear(w=3.0)).record(), allow_nan=False))
    assert record["steps"] == 32 and record["guided_steps"] == "1–31"
    assert record["evals_main"] == 63 and record["evals_ref"] == [12, 61]
    assert record["sigmas"] == HEUN.sigmas.tolist()
    assert record["weights"][0][17] == [2.0, 2.0] and record["weights"][0][31] == [1.0, 1.0]
    assert record["summary"] == plan(XXL, Linear(w=3.0)).describe()


def test_ranges():
    for values, text in (([], ""), ([0], "0"), ([1, 2, 3, 7], "1–3, 7"), ([0, 2, 3], "0, 2–3")):
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
    with pytest.raises(UsageError, match="no evaluation 1 in step 31"):
        guided(x, 0.002, None, step=31, stage=1)
