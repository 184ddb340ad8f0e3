"""From configuration to objects: types, names, sharing, and what is never called."""

import math
import sys

import pytest

from guidex.config.instantiate import Models, instantiate
from guidex.errors import UsageError
from guidex.features.detectors import Detector
from guidex.guidance.directions import Difference
from guidex.guidance.guidance import Guidance
from guidex.guidance.rules import APG
from guidex.guidance.schedules import EmptyInterval, Interval, Product, Schedule
from guidex.metrics.metric import Metric
from guidex.models.classifier import BayesClassifier
from guidex.models.denoiser import Denoiser
from guidex.models.mixture import GaussianMixture
from guidex.sampling.solver import Solver
from guidex.sampling.solvers import Heun

INTERVAL = {"_target_": "guidex.guidance.schedules.Interval", "w": 3.0, "lo": 0.1, "hi": 1.0}
TOY = {"_target_": "guidex.models.toys.mixture1d", "conditional": True}
HEUN = {
    "_target_": "guidex.sampling.solvers.Heun",
    "grid": {"_target_": "guidex.sampling.grids.Karras", "steps": 4},
}
CFG = {
    "_target_": "guidex.guidance.methods.difference",
    "reference": {**TOY, "conditional": False},
    "schedule": INTERVAL,
    "rule": {"_target_": "guidex.guidance.rules.APG"},
}


def make(config, key="guidance.schedule", hint=object):
    return instantiate(config, key, Models(), hint)


def test_objects_are_made_from_the_inside_out():
    assert make(INTERVAL) == Interval(w=3.0, lo=0.1, hi=1.0)
    solver = make(HEUN)
    assert isinstance(solver, Heun) and solver.grid.steps == 4
    guidance = make(CFG)
    assert isinstance(guidance, Guidance) and guidance.rule == APG()
    [term] = guidance.terms.values()
    assert isinstance(term.direction, Difference) and term.schedule == Interval(w=3, lo=0.1, hi=1)
    assert isinstance(term.direction.queries[0].network, GaussianMixture)
    factors = {"interval": {k: v for k, v in INTERVAL.items() if k != "w"}}
    product = {"_target_": "guidex.guidance.schedules.Product", "w": 2, "factors": factors}
    assert make(product) == Product(w=2.0, factors={"interval": Interval(lo=0.1, hi=1.0)})


def test_plain_data_stays_plain():
    assert make({"a": [1, None, {"b": "x"}], "c": True}) == {"a": [1, None, {"b": "x"}], "c": True}
    hint = dict[str, list[Schedule] | None]
    assert make({"a": [INTERVAL]}, hint=hint) == {"a": [Interval(w=3.0, lo=0.1, hi=1.0)]}


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"w": "three"}, "guidance.schedule.w must be a number or null, not 'three'"),
        ({"w": True}, "guidance.schedule.w must be a number or null, not True"),
        ({"w": math.nan}, "guidance.schedule: w must be a finite number, not nan"),
        ({"lo": None}, "guidance.schedule.lo must be a number, not None"),
        ({"hi": ".inf"}, "guidance.schedule.hi must be a number, not '.inf'"),
        ({"gate": "stp"}, "guidance.schedule.gate must be 'step' or 'evaluation', not 'stp'"),
        ({"low": 1}, "there is no key guidance.schedule.low; did you mean lo"),
        ({"lo": -1}, "guidance.schedule: bounds must be numbers >= 0, not lo=-1, hi=1"),
    ],
)
def test_errors_name_the_key(change, match):
    with pytest.raises(UsageError, match=match):
        make({**INTERVAL, **change})


def test_errors_keep_their_kind_and_are_named_once():
    with pytest.raises(EmptyInterval, match="^guidance.schedule: lo must be below hi"):
        make({**INTERVAL, "lo": 2.0})
    factors = {"ramp": {"_target_": "guidex.guidance.schedules.PowerCosine", "power": -1.0}}
    product = {"_target_": "guidex.guidance.schedules.Product", "w": 2.0, "factors": factors}
    with pytest.raises(UsageError, match="^guidance.schedule.factors.ramp: power must be positive"):
        make(product)


def test_objects_of_the_wrong_kind_are_refused():
    with pytest.raises(UsageError, match="metrics.k.reals must be a whole number or null"):
        prdc = {"_target_": "guidex.metrics.prdc.PRDC", "reals": True}
        make({"k": prdc}, "metrics", dict[str, Metric])
    with pytest.raises(UsageError, match="sampler.grid must be given"):
        make({"_target_": "guidex.sampling.solvers.Euler"}, "sampler")
    with pytest.raises(UsageError, match="sampler.grid must be Grid, not 'karras'"):
        make({**HEUN, "grid": "karras"}, "sampler")
    with pytest.raises(UsageError, match="sampler.grid must be Grid, not "):
        make({**HEUN, "grid": INTERVAL}, "sampler")
    with pytest.raises(UsageError, match="factors must be dict, not 3"):
        make({"_target_": "guidex.guidance.schedules.Product", "w": 2.0, "factors": 3})


def test_whole_numbers_are_numbers():
    schedule = make({**INTERVAL, "w": 3, "lo": 0})
    assert (schedule.w, schedule.lo) == (3.0, 0.0)
    assert type(schedule.w) is float and type(schedule.lo) is float
    with pytest.raises(UsageError, match="grid.steps must be a whole number, not 4.0"):
        make({**HEUN["grid"], "steps": 4.0}, "grid")
    with pytest.raises(UsageError, match="grid.steps must be a whole number, not True"):
        make({**HEUN["grid"], "steps": True}, "grid")


@pytest.mark.parametrize(
    ("target", "match"),
    [
        ("os.system", "must name something in guidex, not os.system"),
        ("guidex.guidance.schedules.Intervall", "there is no guidex.guidance.schedules.Intervall"),
        ("guidex.nowhere.Thing", "there is no guidex.nowhere.Thing"),
        ("guidex.config.instantiate.importlib", "is no class or function of guidex"),
        ("guidex.models.kernel.checkpoint", "is no class or function of guidex"),
        ("guidex.models.kernel.CHUNK_BYTES", "is no class or function of guidex"),
        ("guidex.guidance.schedules.Schedule", "Schedule is an interface"),
        ("guidex.__main__.sys", "must name something in guidex"),
        ("guidex.models._x.y", "must name something in guidex"),
        ("guidex.a-b.c", "must name something in guidex"),
        (3, "must name something in guidex, not 3"),
    ],
)
def test_nothing_outside_guidex_is_called(target, match):
    with pytest.raises(UsageError, match=match) as caught:
        make({"_target_": target, "command": "false"})
    assert str(caught.value).startswith("guidance.schedule._target_")


@pytest.mark.parametrize(
    ("hint", "config"),
    [
        (Schedule, {"_target_": "guidex.cli.main", "arguments": ["list"]}),
        (Schedule, {"_target_": "guidex.models.pretrained.library", "name": "antigravity"}),
        (Guidance, {**CFG, "schedule": {"_target_": "guidex.cli.main", "arguments": ["list"]}}),
        (Guidance, {**CFG, "k": {"_target_": "guidex.cli.main", "arguments": ["list"]}}),
        (Guidance, {**CFG, "reference": {"_target_": "guidex.files.cache.fetch"}}),
        (Denoiser, {"_target_": "guidex.files.cache.fetch", "source": "https://x/y"}),
        (Detector, {"_target_": "guidex.models.toys.mixture1d"}),
        (Metric, {"_target_": "guidex.features.detectors.Pixels"}),
        (dict[str, Metric], {"a": {"_target_": "guidex.metrics.metric.check_whole"}}),
        (list[int], [{"_target_": "guidex.cli.main"}]),
        (Solver, {"_target_": "guidex.commands.words.flag", "settings": {}, "key": "a"}),
    ],
    ids=lambda value: value.get("_target_", "") if isinstance(value, dict) else "",
)
def test_only_what_makes_what_belongs_there_is_called(hint, config, monkeypatch):
    monkeypatch.setattr("guidex.cli._dispatch", lambda *_: pytest.fail("it was called"))
    with pytest.raises(UsageError, match="must be .*, not what _target_=guidex"):
        instantiate(config, "place", Models(), hint)
    assert "antigravity" not in sys.modules


def test_equal_models_are_one_object():
    models = Models()
    first = instantiate(TOY, "model", models, Denoiser)
    again = instantiate(dict(reversed(TOY.items())), "guidance.reference", models, Denoiser)
    with_references = {**TOY, "references": {"weaker": {**TOY, "blur": 0.5}}}
    assert first is again is instantiate(with_references, "model", models, Denoiser)
    other = instantiate({**TOY, "conditional": False}, "model", models, Denoiser)
    assert other is not first
    classifier = {"_target_": "guidex.models.classifier.BayesClassifier", "conditional": TOY}
    classifier["unconditional"] = {**TOY, "conditional": False}
    inner = instantiate(classifier, "x", models, BayesClassifier)
    assert inner.conditional is first and inner.unconditional is other
    assert make(INTERVAL) is not make(INTERVAL)
