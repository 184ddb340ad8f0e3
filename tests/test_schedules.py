"""Schedules against the formulas and the printed intervals of their papers."""

import math

import numpy as np
import pytest
from helpers import concrete

from guidex.errors import UsageError
from guidex.guidance import schedules as module
from guidex.guidance.schedules import (
    ClampCosine,
    ClampLinear,
    Constant,
    Cosine,
    EmptyInterval,
    Hole,
    Interval,
    InverseLinear,
    Linear,
    PowerCosine,
    Product,
    Ramp,
    Schedule,
)
from guidex.guidance.timeline import Timeline
from guidex.sampling.grids import IDDPM, VP, Grid, Karras, Log
from guidex.sampling.solvers import Euler, Heun

ALL = list(concrete(Schedule))
RAMPS = list(concrete(Ramp))
GATES = pytest.mark.parametrize("gate", ["step", "evaluation"])

# omega(t) / omega as Wang et al. 2024 (arXiv 2404.13040) write them, t = 1 at pure noise.
PUBLISHED = {
    Linear: lambda t: 2 * (1 - t),
    Cosine: lambda t: math.cos(math.pi * t) + 1,
    InverseLinear: lambda t: 2 * t,
    module.Sine: lambda t: math.sin(math.pi * t - math.pi / 2) + 1,
    module.VShape: lambda t: 2 * abs(1 - 2 * t),
    module.LambdaShape: lambda t: 2 * (1 - abs(1 - 2 * t)),
    PowerCosine: lambda t: (1 - math.cos(math.pi * (1 - t) ** 2)) / 2,
    ClampLinear: lambda t: 2 * (1 - t),
    ClampCosine: lambda t: math.cos(math.pi * t) + 1,
}


def euler(steps: int = 11) -> Timeline:
    return Euler(grid=Karras(steps=steps)).timeline()


def heun(grid: Grid | None = None) -> Timeline:
    return Heun(grid=Karras() if grid is None else grid).timeline()


def published(ramp: type[Ramp]) -> np.ndarray:
    """The shape on the 11 steps of `euler`."""
    return np.array([PUBLISHED[ramp](1 - i / 10) for i in range(11)])


def weights(schedule: Schedule) -> np.ndarray:
    return schedule.plan(euler())[:, 0]


def guided(schedule: Schedule, timeline: Timeline) -> list[list[int]]:
    """The steps whose evaluations are guided, for each stage."""
    planned = schedule.plan(timeline)
    on = ~np.isnan(planned) & (planned != 1)
    return [np.flatnonzero(stage).tolist() for stage in on.T]


def steps(first: int, last: int) -> list[int]:
    return list(range(first, last + 1))


def test_every_schedule_of_the_module_is_tested():
    assert set(PUBLISHED) == set(RAMPS)
    assert set(ALL) == {*RAMPS, Constant, Interval, Hole, Product}


@pytest.mark.parametrize("schedule", ALL)
def test_w_1_is_exactly_no_guidance_and_w_must_be_given_and_finite(schedule):
    timeline = heun()
    for gate in ("step", "evaluation"):
        planned = schedule(w=1.0, gate=gate).plan(timeline)
        assert np.array_equal(np.isnan(planned), np.isnan(timeline.evaluations))
        assert (planned[~np.isnan(planned)] == 1).all()
    for w in (math.nan, math.inf):
        with pytest.raises(UsageError, match="w must be a finite number"):
            schedule(w=w)
    with pytest.raises(UsageError, match="needs its own w|w is missing"):
        schedule().plan(timeline)


def test_constant():
    planned = Constant(w=2.5).plan(heun())
    assert planned.shape == (32, 2) and planned.dtype == np.float64
    assert (planned[:-1] == 2.5).all() and planned[-1, 0] == 2.5 and np.isnan(planned[-1, 1])


@pytest.mark.parametrize("ramp", RAMPS)
def test_ramps_are_as_published_and_normalised(ramp):
    np.testing.assert_allclose(weights(ramp(w=5.0)), 1 + 4 * published(ramp), atol=1e-8)
    integral, peak = (
        ramp(w=3.0, normalise=normalise).plan(euler(1001))[:, 0] - 1
        for normalise in ("integral", "peak")
    )
    assert integral.mean() == pytest.approx(2.0, rel=1e-2)  # as much as a constant w = 3
    assert peak.max() == pytest.approx(2.0)


def test_power_moves_the_onset():
    for power in (4.0, 0.5):
        expected = 1 + (1 - math.cos(math.pi * 0.5**power)) / 2
        assert weights(PowerCosine(w=2.0, power=power))[5] == pytest.approx(expected)


def test_the_axes_of_time():
    """On the rho = 7 grid, 1 - sigma / sigma_max exceeds 0.9 from step 12 on."""
    timeline = euler(32)
    progress = Linear(w=2.0, normalise="peak", axis="sigma").plan(timeline)[:, 0] - 1
    np.testing.assert_allclose(progress, 1 - timeline.sigmas[:-1] / 80)
    assert (progress > 0.9).tolist() == [i >= 12 for i in range(32)]
    timeline = Euler(grid=VP(steps=21, epsilon=0.01)).timeline()
    t = 1 + np.arange(21) / 20 * (0.01 - 1)
    planned = Linear(w=2.0, axis="vp").plan(timeline)[:, 0]
    np.testing.assert_allclose(planned, 1 + 2 * (1 - t), rtol=1e-9)


def test_a_ramp_of_w_starts_from_the_bare_reference():
    found = weights(Cosine(w=3.0, ramps="w", normalise="peak"))
    assert found[0] == 0 and found[-1] == 3
    np.testing.assert_allclose(found, 1.5 * published(Cosine))


def test_the_gate_decides_whose_time_counts():
    by_step = Linear(w=2.0).plan(heun())
    by_evaluation = Linear(w=2.0, gate="evaluation").plan(heun())
    assert np.array_equal(by_step[:-1, 0], by_step[:-1, 1])
    assert np.array_equal(by_evaluation[:, 0], by_step[:, 0])
    assert np.array_equal(by_evaluation[:-1, 1], by_step[1:, 0])  # the next boundary's


@pytest.mark.parametrize("ramp", [ClampLinear, ClampCosine])
def test_clamps_stay_between_their_floor_and_the_constant_schedule(ramp):
    shape = published(ramp)
    for w, floor, expected in (
        (3.0, 0.8, 1 + np.maximum(0.8, 2 * shape)),
        (1.5, 4.0, 1 + np.maximum(0.5, 0.5 * shape)),
        (0.5, 4.0, 1 - 0.5 * shape),
    ):
        np.testing.assert_allclose(weights(ramp(w=w, floor=floor)), expected, atol=1e-8)


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
    literal = Interval(w=2.0, lo=0.19, hi=1.61, gate="evaluation")
    assert guided(literal, heun()) == [steps(17, 22), steps(16, 21)]


@GATES
def test_bounds_are_half_open_and_all_by_default(gate):
    sigmas = EDM.sigmas()
    schedule = Interval(w=2.0, lo=sigmas[23], hi=sigmas[17], gate=gate)
    assert guided(schedule, heun())[0] == steps(17, 22)
    for unit in ("sigma", "step", "fraction"):
        assert guided(Interval(w=2.0, gate=gate, unit=unit), heun()) == [steps(0, 31), steps(0, 30)]


LOG = Log(steps=3, sigma_min=0.01, sigma_max=1.0)


@pytest.mark.parametrize(
    ("grid", "bounds", "expected"),
    [
        pytest.param(EDM, {"lo": 100, "hi": 200}, [], id="above all"),
        pytest.param(EDM, {"lo": 1.0, "hi": 1.05}, [], id="both snap to one boundary"),
        pytest.param(EDM, {"lo": 0, "hi": 0.001}, [], id="below all"),
        pytest.param(EDM, {"lo": 0, "hi": 0.002}, [31], id="the last step"),
        pytest.param(EDM, {"lo": 67, "hi": 200}, [0], id="the first step"),
        pytest.param(EDM, {"lo": 0.0012, "hi": 0.0044}, [30, 31], id="where it would go on"),
        pytest.param(EDM, {"lo": 0.0017, "hi": 0.0044}, [30], id="nearer to 0.002"),
        # Of 46.19 and 38.07, the geometric mean is 41.93, the arithmetic one 42.13.
        pytest.param(EDM, {"hi": 42.0}, steps(3, 31), id="in log sigma"),
        pytest.param(EDM, {"hi": 41.9}, steps(4, 31), id="in log sigma"),
        # 0.001 would follow; the border between it and 0.01 is 0.0032.
        pytest.param(LOG, {"lo": 0.004}, [0, 1], id="below the last level"),
        pytest.param(LOG, {"lo": 0.003}, [0, 1, 2], id="below the last level"),
        pytest.param(Karras(steps=1), {"lo": 1, "hi": 100}, [0], id="one step"),
        pytest.param(Karras(steps=1), {"lo": 60, "hi": 100}, [], id="one step"),
        pytest.param(EDM, {"lo": 17, "hi": 22, "unit": "step"}, steps(17, 22), id="inclusive"),
        pytest.param(EDM, {"lo": 0, "hi": 0, "unit": "step"}, [0], id="inclusive"),
        pytest.param(EDM, {"lo": 0.25, "hi": 0.5, "unit": "fraction"}, steps(8, 15), id="share"),
        pytest.param(EDM, {"lo": 0.5, "hi": 1.0, "unit": "fraction"}, steps(16, 31), id="share"),
        pytest.param(EDM, {"hi": 0.26, "unit": "fraction"}, steps(0, 7), id="share"),
    ],
)
def test_bounds_in_every_unit(grid, bounds, expected):
    assert guided(Interval(w=2.0, **bounds), Euler(grid=grid).timeline()) == [expected]


@pytest.mark.parametrize(
    ("bounds", "match"),
    [
        ({"lo": 2.0, "hi": 1.0}, "lo must be below hi, but lo=2 and hi=1"),
        ({"lo": 0.5, "hi": 0.5, "unit": "fraction"}, "lo must be below hi"),
        ({"lo": 6, "hi": 5, "unit": "step"}, "lo must be below hi"),
        ({"lo": -1.0}, "must be numbers >= 0"),
        ({"hi": math.nan}, "must be numbers >= 0"),
        ({"hi": 1.5, "unit": "fraction"}, "from 0 to 1"),
        ({"lo": 2.5, "unit": "step"}, "whole numbers"),
        ({"lo": 32, "unit": "step"}, "step 32 does not exist: steps go from 0 to 31"),
    ],
)
def test_impossible_bounds_are_refused(bounds, match):
    with pytest.raises(UsageError, match=match) as caught:
        Interval(w=2.0, **bounds).plan(heun())
    assert (caught.type is EmptyInterval) == match.startswith("lo must be below")


@GATES
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


@GATES
def test_a_product_multiplies_shapes(gate):
    cosine = Cosine(normalise="peak", gate=gate)
    interval = Interval(lo=0.19, hi=1.61, gate=gate)
    product = Product(w=3.0, gate=gate, factors={"ramp": cosine, "interval": interval})
    ramp = Cosine(w=2.0, normalise="peak", gate=gate).plan(heun()) - 1
    inside = Interval(w=2.0, lo=0.19, hi=1.61, gate=gate).plan(heun()) - 1
    np.testing.assert_allclose(product.plan(heun()), 1 + 2 * ramp * inside, rtol=1e-14)
    assert np.nanmax(product.plan(heun())) > 2
    # Up and down at once: t (1 - t).
    factors = {"up": Linear(normalise="peak"), "down": InverseLinear(normalise="peak")}
    expected = [1 + 4 * (i / 10) * (1 - i / 10) for i in range(11)]
    np.testing.assert_allclose(weights(Product(w=5.0, factors=factors)), expected)
    assert (weights(Product(w=3.0)) == 3).all()


@pytest.mark.parametrize(
    ("make", "match"),
    [
        (lambda: PowerCosine(w=2.0, power=0.0), "power must be positive"),
        (lambda: ClampLinear(w=2.0, floor=-0.1), "floor is the least w - 1"),
        (lambda: ClampLinear(w=2.0, ramps="w"), "ramps=w is not defined"),
        (lambda: weights(Product(w=2.0, factors={"a": ClampLinear()})), "cannot be a factor"),
        (lambda: Product(w=3.0, factors={"a": Cosine(w=2.0)}), "factor a has a weight"),
        (lambda: Product(w=3.0, factors={"a": Cosine(gate="evaluation")}), "the product step"),
        (lambda: Product(w=3.0, factors={"a": Cosine(ramps="w")}), "factor a has ramps=w"),
    ],
)
def test_what_has_no_meaning_is_refused(make, match):
    with pytest.raises(UsageError, match=match):
        make()
