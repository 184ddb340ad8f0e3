"""Schedules against the formulas and the printed intervals of their papers."""

import math

import numpy as np
import pytest
from helpers import concrete

from guidex.errors import UsageError
from guidex.guidance.schedules import (
    ClampCosine,
    ClampLinear,
    Constant,
    Cosine,
    EmptyInterval,
    Hole,
    Interval,
    InverseLinear,
    LambdaShape,
    Linear,
    PowerCosine,
    Product,
    Ramp,
    Schedule,
    Sine,
    VShape,
)
from guidex.guidance.timeline import Timeline
from guidex.sampling.grids import IDDPM, VP, Grid, Karras, Log
from guidex.sampling.solvers import Euler, Heun

ALL = list(concrete(Schedule))
RAMPS = list(concrete(Ramp))

# omega(t) / omega as Wang et al. 2024 (arXiv 2404.13040) write them, t = 1 at pure noise.
PUBLISHED = {
    Linear: lambda t: 2 * (1 - t),
    Cosine: lambda t: math.cos(math.pi * t) + 1,
    InverseLinear: lambda t: 2 * t,
    Sine: lambda t: math.sin(math.pi * t - math.pi / 2) + 1,
    VShape: lambda t: 2 * abs(1 - 2 * t),
    LambdaShape: lambda t: 2 * (1 - abs(1 - 2 * t)),
    PowerCosine: lambda t: (1 - math.cos(math.pi * (1 - t) ** 2)) / 2,
    ClampLinear: lambda t: 2 * (1 - t),
    ClampCosine: lambda t: math.cos(math.pi * t) + 1,
}


def euler(steps: int = 11) -> Timeline:
    return Euler(grid=Karras(steps=steps)).timeline()


def heun(grid: Grid | None = None) -> Timeline:
    return Heun(grid=Karras() if grid is None else grid).timeline()


def guided(schedule: Schedule, timeline: Timeline) -> list[list[int]]:
    """The steps whose evaluations are guided, for each stage."""
    weights = schedule.plan(timeline)
    on = ~np.isnan(weights) & (weights != 1)
    return [np.flatnonzero(stage).tolist() for stage in on.T]


def steps(first: int, last: int) -> list[int]:
    return list(range(first, last + 1))


def test_every_schedule_of_the_module_is_tested():
    assert set(PUBLISHED) == set(RAMPS)
    assert set(ALL) == {*RAMPS, Constant, Interval, Hole, Product}


@pytest.mark.parametrize("schedule", ALL)
@pytest.mark.parametrize("gate", ["step", "evaluation"])
def test_w_1_is_exactly_no_guidance(schedule, gate):
    timeline = heun()
    weights = schedule(w=1.0, gate=gate).plan(timeline)
    assert np.array_equal(np.isnan(weights), np.isnan(timeline.evaluations))
    assert (weights[~np.isnan(weights)] == 1).all()


@pytest.mark.parametrize("schedule", ALL)
@pytest.mark.parametrize("w", [math.nan, math.inf, -math.inf])
def test_w_must_be_finite(schedule, w):
    with pytest.raises(UsageError, match="w must be a finite number"):
        schedule(w=w)


@pytest.mark.parametrize("schedule", ALL)
def test_w_must_be_given(schedule):
    with pytest.raises(UsageError, match="needs its own w|w is missing"):
        schedule().plan(heun())


def test_constant():
    timeline = heun()
    weights = Constant(w=2.5).plan(timeline)
    assert weights.shape == (32, 2) and weights.dtype == np.float64
    assert (weights[:-1] == 2.5).all() and weights[-1, 0] == 2.5 and np.isnan(weights[-1, 1])


@pytest.mark.parametrize("ramp", RAMPS)
def test_ramps_are_as_published(ramp):
    t = 1 - np.arange(11) / 10
    expected = [1 + 4 * PUBLISHED[ramp](one) for one in t]
    np.testing.assert_allclose(ramp(w=5.0).plan(euler(11))[:, 0], expected, atol=1e-8)


@pytest.mark.parametrize("ramp", RAMPS)
@pytest.mark.parametrize("normalise", ["integral", "peak"])
def test_ramps_are_normalised(ramp, normalise):
    excess = ramp(w=3.0, normalise=normalise).plan(euler(5001))[:, 0] - 1
    if normalise == "integral":
        assert excess.mean() == pytest.approx(2.0, rel=1e-3)  # as much as a constant w = 3
    else:
        assert excess.max() == pytest.approx(2.0)


@pytest.mark.parametrize("ramp", RAMPS)
def test_docstrings_say_that_omega_is_ramped(ramp):
    assert "omega(t) = " in ramp.__doc__


def test_power_moves_the_onset():
    late, early = (PowerCosine(w=2.0, power=p).plan(euler(11))[5, 0] for p in (4.0, 0.5))
    assert late == pytest.approx(1 + (1 - math.cos(math.pi * 0.5**4)) / 2)
    assert early == pytest.approx(1 + (1 - math.cos(math.pi * 0.5**0.5)) / 2)
    with pytest.raises(UsageError, match="power must be positive"):
        PowerCosine(w=2.0, power=0.0)


def test_the_sigma_axis_is_steep_on_the_edm_grid():
    """On the rho = 7 grid, 1 - sigma / sigma_max exceeds 0.9 from step 12 on."""
    timeline = euler(32)
    progress = Linear(w=2.0, normalise="peak", axis="sigma").plan(timeline)[:, 0] - 1
    np.testing.assert_allclose(progress, 1 - timeline.sigmas[:-1] / 80)
    assert (progress > 0.9).tolist() == [i >= 12 for i in range(32)]


def test_the_vp_axis_is_the_time_of_the_vp_sde():
    timeline = Euler(grid=VP(steps=21, epsilon=0.01)).timeline()
    t = 1 + np.arange(21) / 20 * (0.01 - 1)
    expected = 1 + 2 * (1 - t)
    np.testing.assert_allclose(Linear(w=2.0, axis="vp").plan(timeline)[:, 0], expected, rtol=1e-9)


def test_a_ramp_of_w_starts_from_the_bare_reference():
    weights = Cosine(w=3.0, ramps="w", normalise="peak").plan(euler(11))[:, 0]
    assert weights[0] == 0 and weights[-1] == 3
    np.testing.assert_allclose(weights, [1.5 * PUBLISHED[Cosine](1 - i / 10) for i in range(11)])


def test_the_gate_decides_whose_time_counts():
    by_step = Linear(w=2.0).plan(heun())
    by_evaluation = Linear(w=2.0, gate="evaluation").plan(heun())
    assert np.array_equal(by_step[:-1, 0], by_step[:-1, 1])
    assert np.array_equal(by_evaluation[:, 0], by_step[:, 0])
    assert np.array_equal(by_evaluation[:-1, 1], by_step[1:, 0])  # the next boundary's


@pytest.mark.parametrize("ramp", [ClampLinear, ClampCosine])
def test_clamps_never_fall_below_their_floor(ramp):
    plain = [PUBLISHED[ramp](1 - i / 10) * 2 for i in range(11)]
    weights = ramp(w=3.0, floor=0.8).plan(euler(11))[:, 0]
    np.testing.assert_allclose(weights, [1 + max(0.8, omega) for omega in plain], atol=1e-8)


@pytest.mark.parametrize("ramp", [ClampLinear, ClampCosine])
def test_clamps_never_exceed_the_constant_schedule_where_they_clamp(ramp):
    weights = ramp(w=1.5, floor=4.0).plan(euler(11))[:, 0]
    ramped = [1 + PUBLISHED[ramp](1 - i / 10) * 0.5 for i in range(11)]
    np.testing.assert_allclose(weights, np.maximum(1.5, ramped), atol=1e-8)
    below = ramp(w=0.5, floor=4.0).plan(euler(11))[:, 0]
    ramped = [1 - PUBLISHED[ramp](1 - i / 10) * 0.5 for i in range(11)]
    np.testing.assert_allclose(below, ramped, atol=1e-8)


def test_clamps_refuse_what_they_have_no_meaning_for():
    with pytest.raises(UsageError, match="floor is the least w - 1"):
        ClampLinear(w=2.0, floor=-0.1)
    with pytest.raises(UsageError, match="ramps=w is not defined"):
        ClampLinear(w=2.0, ramps="w")
    with pytest.raises(UsageError, match="cannot be a factor"):
        Product(w=2.0, factors={"clamp": ClampLinear()}).plan(heun())


# Kynkäänniemi et al. 2024 (arXiv 2404.07724): the printed bounds, and the steps of their code.
EDM = Karras()
SDXL = Karras(sigma_min=0.03, sigma_max=14.61, rho=3.0)


@pytest.mark.parametrize(
    ("grid", "lo", "hi", "expected"),
    [
        pytest.param(EDM, 0.19, 1.61, steps(17, 22), id="EDM2-XXL FID"),
        pytest.param(EDM, 0.60, 5.00, steps(13, 19), id="EDM2 FD_DINOv2"),
        pytest.param(EDM, 0.28, 2.90, steps(15, 21), id="EDM2-S FID"),
        pytest.param(SDXL, 0.28, 5.42, steps(10, 25), id="SDXL"),
        pytest.param(SDXL, 0.28, math.inf, steps(0, 25), id="SDXL, figure 8"),
        pytest.param(SDXL, 0.28, 8.39, steps(6, 25), id="SDXL, figure 8"),
        pytest.param(SDXL, 0.28, 4.24, steps(12, 25), id="SDXL, figure 8"),
        pytest.param(SDXL, 0.28, 1.75, steps(18, 25), id="SDXL, figure 8"),
        pytest.param(SDXL, 0.0, 5.42, steps(10, 31), id="SDXL, figure 8"),
        pytest.param(SDXL, 1.00, 5.42, steps(10, 20), id="SDXL, figure 8"),
        pytest.param(SDXL, 2.42, 5.42, steps(10, 15), id="SDXL, figure 8"),
        pytest.param(SDXL, 3.72, 5.42, steps(10, 12), id="SDXL, figure 8"),
        pytest.param(IDDPM(), 0.34, 1.02, steps(124, 198), id="DiT FID"),
    ],
)
def test_printed_bounds_snap_to_the_steps_of_the_paper(grid, lo, hi, expected):
    assert guided(Interval(w=2.0, lo=lo, hi=hi), Euler(grid=grid).timeline()) == [expected]
    last = grid.steps - 1  # whose corrector does not exist
    correctors = [step for step in expected if step != last]
    assert guided(Interval(w=2.0, lo=lo, hi=hi), heun(grid)) == [expected, correctors]


def test_literal_bounds_are_another_experiment():
    """Unrounded, 2.9015 > 2.90 drops step 15 and 0.2830 > 0.28 adds step 22."""
    literal = Interval(w=2.0, lo=0.28, hi=2.90, gate="evaluation")
    assert guided(literal, heun())[0] == steps(16, 22)


def test_gating_evaluations_gives_as_many_but_others():
    bounds = {"w": 2.0, "lo": 0.19, "hi": 1.61}
    by_step = guided(Interval(**bounds), heun())
    by_evaluation = guided(Interval(**bounds, gate="evaluation"), heun())
    assert by_step == [steps(17, 22), steps(17, 22)]
    assert by_evaluation == [steps(17, 22), steps(16, 21)]


@pytest.mark.parametrize("gate", ["step", "evaluation"])
def test_bounds_are_half_open(gate):
    sigmas = EDM.sigmas()
    schedule = Interval(w=2.0, lo=sigmas[23], hi=sigmas[17], gate=gate)
    assert guided(schedule, heun())[0] == steps(17, 22)


@pytest.mark.parametrize("gate", ["step", "evaluation"])
@pytest.mark.parametrize("unit", ["sigma", "step", "fraction"])
def test_default_bounds_guide_everywhere(gate, unit):
    weights = Interval(w=2.0, gate=gate, unit=unit).plan(heun())
    assert np.array_equal(weights, Constant(w=2.0).plan(heun()), equal_nan=True)


@pytest.mark.parametrize(
    ("lo", "hi", "expected"),
    [
        pytest.param(100, 200, [], id="above all"),
        pytest.param(1.0, 1.05, [], id="both snap to one boundary"),
        pytest.param(0, 0.001, [], id="below all"),
        pytest.param(0, 0.002, [31], id="the last step"),
        pytest.param(67, 200, [0], id="the first step"),
        pytest.param(0.0012, 0.0044, [30, 31], id="where the grid would have gone on"),
        pytest.param(0.0017, 0.0044, [30], id="nearer to 0.002"),
    ],
)
def test_bounds_at_the_ends_of_the_grid(lo, hi, expected):
    assert guided(Interval(w=2.0, lo=lo, hi=hi), euler(32)) == [expected]


def test_bounds_snap_in_log_sigma():
    # Between the boundaries 46.19 and 38.07, the geometric mean is 41.93, the arithmetic one 42.13.
    assert guided(Interval(w=2.0, hi=42.0), euler(32)) == [steps(3, 31)]
    assert guided(Interval(w=2.0, hi=41.9), euler(32)) == [steps(4, 31)]


def test_below_the_last_level_the_grid_is_taken_to_go_on():
    timeline = Euler(grid=Log(steps=3, sigma_min=0.01, sigma_max=1.0)).timeline()
    # 0.001 would follow; the border between it and 0.01 is 0.0032.
    assert guided(Interval(w=2.0, lo=0.004), timeline) == [[0, 1]]
    assert guided(Interval(w=2.0, lo=0.003), timeline) == [[0, 1, 2]]


def test_one_step_is_a_grid_too():
    assert guided(Interval(w=2.0, lo=1, hi=100), euler(1)) == [[0]]
    assert guided(Interval(w=2.0, lo=60, hi=100), euler(1)) == [[]]
    assert Linear(w=2.0).plan(euler(1)).tolist() == [[1.0]]


@pytest.mark.parametrize("gate", ["step", "evaluation"])
def test_steps_are_inclusive(gate):
    both = [steps(17, 22), steps(17, 22)]
    assert guided(Interval(w=2.0, lo=17, hi=22, unit="step", gate=gate), heun()) == both
    assert guided(Interval(w=2.0, lo=5, hi=5, unit="step", gate=gate), heun()) == [[5], [5]]
    assert guided(Interval(w=2.0, lo=0, hi=0, unit="step", gate=gate), heun()) == [[0], [0]]


def test_fractions_count_steps():
    assert guided(Interval(w=2.0, lo=0.25, hi=0.5, unit="fraction"), euler(32)) == [steps(8, 15)]
    assert guided(Interval(w=2.0, lo=0.5, hi=1.0, unit="fraction"), euler(32)) == [steps(16, 31)]
    assert guided(Interval(w=2.0, hi=0.26, unit="fraction"), euler(32)) == [steps(0, 7)]


@pytest.mark.parametrize(
    ("bounds", "match"),
    [
        ({"lo": 2.0, "hi": 1.0}, "lo must be below hi, but lo=2 and hi=1"),
        ({"lo": 1.0, "hi": 1.0}, "lo must be below hi"),
        ({"lo": 0.5, "hi": 0.5, "unit": "fraction"}, "lo must be below hi"),
        ({"lo": 6, "hi": 5, "unit": "step"}, "lo must be below hi"),
        ({"lo": -1.0}, "must be numbers >= 0"),
        ({"lo": math.nan}, "must be numbers >= 0"),
        ({"hi": math.nan}, "must be numbers >= 0"),
        ({"hi": 1.5, "unit": "fraction"}, "from 0 to 1"),
        ({"lo": 1.5, "unit": "fraction"}, "from 0 to 1"),
        ({"lo": 2.5, "unit": "step"}, "whole numbers"),
        ({"hi": 2.5, "unit": "step"}, "whole numbers"),
    ],
)
def test_impossible_bounds_are_refused(bounds, match):
    with pytest.raises(UsageError, match=match) as caught:
        Interval(w=2.0, **bounds)
    assert (caught.type is EmptyInterval) == match.startswith("lo must be below")


def test_a_step_that_does_not_exist_is_refused():
    with pytest.raises(UsageError, match="step 32 does not exist: steps go from 0 to 31"):
        Interval(w=2.0, lo=32, unit="step").plan(heun())


@pytest.mark.parametrize("gate", ["step", "evaluation"])
@pytest.mark.parametrize(
    "bounds",
    [
        {"lo": 0.19, "hi": 1.61},
        {"lo": 3, "hi": 4, "unit": "step"},
        {"lo": 0.1, "hi": 0.7, "unit": "fraction"},
    ],
)
def test_a_hole_is_what_the_interval_leaves(bounds, gate):
    inside = Interval(w=3.0, **bounds, gate=gate).plan(heun())
    outside = Hole(w=3.0, **bounds, gate=gate).plan(heun())
    there = ~np.isnan(inside)
    assert 0 < (inside[there] == 3).sum() < there.sum()
    assert np.array_equal(outside[there], 4 - inside[there])
    assert np.array_equal(np.isnan(outside), ~there)


@pytest.mark.parametrize("gate", ["step", "evaluation"])
def test_a_product_is_a_ramp_inside_an_interval(gate):
    cosine = Cosine(normalise="peak", gate=gate)
    interval = Interval(lo=0.19, hi=1.61, gate=gate)
    product = Product(w=3.0, gate=gate, factors={"ramp": cosine, "interval": interval})
    ramp = Cosine(w=2.0, normalise="peak", gate=gate).plan(heun()) - 1
    inside = Interval(w=2.0, lo=0.19, hi=1.61, gate=gate).plan(heun()) - 1
    np.testing.assert_allclose(product.plan(heun()), 1 + 2 * ramp * inside, rtol=1e-14)
    assert np.nanmax(product.plan(heun())) > 2


def test_a_product_multiplies():
    """Up and down at once: t (1 - t)."""
    factors = {"up": Linear(normalise="peak"), "down": InverseLinear(normalise="peak")}
    weights = Product(w=5.0, factors=factors).plan(euler(11))[:, 0]
    np.testing.assert_allclose(weights, [1 + 4 * (i / 10) * (1 - i / 10) for i in range(11)])


def test_a_product_of_nothing_is_constant():
    assert np.array_equal(Product(w=3.0).plan(heun()), Constant(w=3.0).plan(heun()), equal_nan=True)


def test_products_refuse_ambiguous_factors():
    with pytest.raises(UsageError, match="factor ramp has a weight"):
        Product(w=3.0, factors={"ramp": Cosine(w=2.0)})
    with pytest.raises(UsageError, match="factor ramp has gate=evaluation, the product step"):
        Product(w=3.0, factors={"ramp": Cosine(gate="evaluation")})
    with pytest.raises(UsageError, match="factor ramp has ramps=w"):
        Product(w=3.0, factors={"ramp": Cosine(ramps="w")})


def test_planning_changes_nothing():
    timeline = heun()
    sigmas, evaluations = timeline.sigmas.copy(), timeline.evaluations.copy()
    for schedule in ALL:
        first, second = (schedule(w=2.0).plan(timeline) for _ in range(2))
        assert np.array_equal(first, second, equal_nan=True)
    assert np.array_equal(timeline.sigmas, sigmas)
    assert np.array_equal(timeline.evaluations, evaluations, equal_nan=True)
