"""guidex tune: ranges and budgets, what is paid, the search, and its answer."""

import csv
import itertools
import os
import shlex
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from helpers import CPU, Calls

from guidex.cli import main
from guidex.config.compose import compose
from guidex.errors import UsageError
from guidex.runs.points import Planned, check, load
from guidex.sampling.seeds import start
from guidex.sampling.trajectories import trajectories
from guidex.tuning.answer import front
from guidex.tuning.search import Objective, Search, identity, new_study, price
from guidex.tuning.space import Budget, Choice, Range, ranges_of

W, LO, HI = (f"guidance.schedule.{name}" for name in ("w", "lo", "hi"))
MODELS: dict = {}


def planned(*words: str, models: dict = MODELS) -> Planned:
    return check(compose("sweep", ["sampler.grid.steps=8", *words]), {}, models)


def values(w: float, lo: float, hi: float) -> dict[str, str]:
    return {W: f"{w:g}", LO: f"{lo:g}", HI: f"{hi:g}"}


def plan(given: dict[str, str]) -> Planned | None:
    if float(given[LO]) >= float(given[HI]):
        return None
    return planned(*(f"{key}={value}" for key, value in given.items()))


def test_ranges_are_told_from_other_words():
    words = [f"{W}=1..4", f"{LO}=0..0.5:0.25", f"{HI}=0.1..10:log", "sampler=heun,euler", "seeds=7"]
    fixed, (sampler, w, lo, hi) = ranges_of(words)
    assert fixed == ["seeds=7"]
    assert sampler == Choice("sampler", ("heun", "euler"))
    assert (w.low, w.high, w.step, w.log, w.whole) == (1, 4, None, False, False)
    assert (lo.step, hi.log, hi.ends, w.ends, lo.ends) == (
        0.25,
        True,
        ["0.1", "10"],
        ["4"],
        ["0.5"],
    )
    assert ranges_of(["sampler.grid.steps=8..32"])[1][0].whole


@pytest.mark.parametrize(
    ("word", "said"),
    [
        (f"{W}=3", "nothing to search"),
        (f"{W}=4..1", "from a lower to a higher"),
        (f"{HI}=0..1:log", "from above 0"),
        ("sampler.grid.steps=8..32:0.5", "whole"),
    ],
)
def test_ranges_that_are_none(word: str, said: str):
    with pytest.raises(UsageError, match=said):
        ranges_of([word])


@pytest.mark.parametrize("text", ["2e4 evaluations", "20000evaluation", "20000 Evaluations"])
def test_budgets(text: str):
    assert Budget.of(text) == Budget(20000, "evaluations")


@pytest.mark.parametrize(
    "text", ["20000", "0 images", "much", "3 hours", "1e400 images", "-1 images"]
)
def test_budgets_that_are_none(text: str):
    with pytest.raises(UsageError, match="budget="):
        Budget.of(text)


def test_the_price_is_what_is_called():
    """Of one seed, for points that share steps; counted at the networks."""
    grid = [values(*each) for each in itertools.product((1, 2, 5), (0, 0.2), (0.8, 3))]
    models: dict = {}  # of its own, since they are watched
    words = [[f"{key}={value}" for key, value in each.items()] for each in grid]
    points = [load(planned(*each, models=models), {}) for each in words]
    calls, first = Calls(), points[0]
    for network in {id(n): n for p in points for n in (p.model, *p.guidance.networks)}.values():
        calls.watch(network)
    begin = start([7], first.model.shape, first.model.conditions, None, CPU, CPU, False)
    trajectories([point.run for point in points], first.planned.solver, begin, [7])
    spent = price([point.planned for point in points])
    assert spent["evaluations"] == calls.images.total()
    assert spent["images"] == len(points)
    alone = [price([point.planned])["evaluations"] for point in points]
    assert spent["evaluations"] < sum(alone)
    one = points[-1].planned
    assert alone[-1] == one.plan.evaluations_main + sum(one.plan.evaluations_ref)
    assert price([one])["GFLOP"] == pytest.approx(one.gflops)


def test_a_plan_is_the_identity():
    assert identity(plan(values(2, 0.2, 3))) == identity(plan(values(2, 0.21, 3.1)))
    assert identity(plan(values(1, 0.2, 3))) == identity(plan(values(1, 0, 9)))  # both none
    assert identity(plan(values(2, 0.2, 3))) != identity(plan(values(2.1, 0.2, 3)))


def searched(amount: float, objectives: int = 1, space: list | None = None) -> Search:
    """A search over a known landscape, best at w = 3 in (0.05, 1.5]."""
    pytest.importorskip("optuna")
    seen = []

    def measure(group: list, rung: int) -> list[SimpleNamespace]:
        rows = []
        for one in group:
            w, lo, hi = (float(one.values[key]) for key in (W, LO, HI))
            miss = (w - 3) ** 2 + (np.log(hi / 1.5)) ** 2 + (lo - 0.05) ** 2
            metrics = {"a": 1 + miss + 3 / search.rungs[rung], "b": w}
            rows.append(SimpleNamespace(metrics=metrics, images=search.rungs[rung], seconds=0.0))
            seen.append((identity(one.planned), rung))
        return rows

    los, his = Range(LO, 0, 0.5, None, False, 0.1), Range(HI, 0.3, 10, None, True, 1.0)
    search = Search(
        study=new_study("TPE", 0, objectives),
        space=space or [Range(W, 1, 6, 0.5, False, 3.0), los, his],
        objectives=[Objective("a", "lower"), Objective("b", "higher")][:objectives],
        budget=Budget(amount, "evaluations"),
        rungs=[10, 30, 90],
        count=6,
        keep=3,
        plan=plan,
        measure=measure,
    )
    assert len(list(search.rounds())) > 0
    assert len(seen) == len(set(seen))  # nothing is measured twice
    return search


def test_a_search_finds_the_best_within_its_budget():
    search = searched(12_000)
    best = search.finalists[0]
    assert search.losses(best)[0] < 1.35
    assert search.spent["evaluations"] <= 12_000
    counts = [sum(len(one.rows) > rung for one in search.candidates.values()) for rung in range(3)]
    assert counts[0] > counts[1] > counts[2] > 0
    states = {trial.state.name for trial in search.study.trials}
    assert {"COMPLETE", "PRUNED"} <= states and "RUNNING" not in states
    assert search.study.best_value == pytest.approx(search.losses(best)[0])


def test_a_search_goes_the_same_way_again_and_further_with_more():
    short, again, far = (list(searched(amount).candidates) for amount in (3_000, 3_000, 5_000))
    assert short == again
    assert len(far) > len(short) and far[:6] == short[:6]


def test_a_small_space_is_measured_in_full_where_the_budget_pays_for_it():
    weights = tuple(f"{w / 2:g}" for w in range(3, 11))
    space = [Choice(W, weights), Choice(LO, ("0",)), Choice(HI, ("1",))]
    search = searched(100_000, space=space)
    assert len(search.finalists) == len(search.candidates) == 8
    scarce = searched(4_000, space=space)
    assert 0 < len(scarce.finalists) < len(scarce.candidates)
    assert scarce.spent["evaluations"] <= 4_000


def test_two_objectives_end_with_what_none_beats():
    search = searched(5_000, objectives=2)
    best = front(search.finalists, search.losses)
    assert 1 <= len(best) <= len(search.finalists)
    losses = np.array([search.losses(one) for one in best])
    order = losses[:, 0].argsort()
    assert (np.diff(losses[order, 1]) <= 0).all()  # better in one is worse in the other


def test_a_budget_for_nothing_is_refused():
    with pytest.raises(UsageError, match="do not pay"):
        searched(100)


TUNE = [
    *("tune", "seeds=0-143", "sampler.grid.steps=6", "guidance=interval", "metrics=[frechet]"),
    *("metric=fd_pixels", "search.candidates=4", "search.rungs=2"),
    *(f"{W}=1..3", f"{LO}=0..0.5", f"{HI}=0.5..10:log"),
]


def test_tune_ends_with_an_answer_and_goes_on(tmp_path: Path, capsys):
    pytest.importorskip("optuna")
    out = tmp_path / "run"
    assert main([*TUNE, "budget=6000 evaluations", f"out={out}"]) == 0
    text = (out / "answer.txt").read_text()
    assert text in capsys.readouterr().out
    with (out / "table.csv").open() as file:
        rows = list(csv.DictReader(file))
    whole = [row for row in rows if row["images"] == "144"]
    assert len(rows) > len(whole) >= 2
    assert "recall_pixels" not in rows[0]
    best = min(whole, key=lambda row: float(row["fd_pixels"]))
    assert f"best fd_pixels {float(best['fd_pixels']):.4g}" in text
    assert "against evaluations per image" in text and "90%" in text

    line = next(line for line in text.splitlines() if "again:" in line)
    again = shlex.split(line)[2:]
    assert main([*again, f"out={tmp_path / 'again'}"]) == 0
    with (tmp_path / "again" / "table.csv").open() as file:
        (row,) = csv.DictReader(file)
    assert row["fd_pixels"] == best["fd_pixels"]

    records = {path: os.stat(path).st_mtime_ns for path in out.rglob("*.record")}
    assert main([*TUNE, "budget=10000 evaluations", f"out={out}"]) == 0
    later = {path: os.stat(path).st_mtime_ns for path in out.rglob("*.record")}
    assert records.items() < later.items()


def test_an_edge_is_told(tmp_path: Path, capsys):
    pytest.importorskip("optuna")
    words = [*TUNE[:-3], f"{W}=1..1.2:0.1", "search.rungs=1"]
    assert main([*words, "budget=9000 evaluations", f"out={tmp_path / 'run'}"]) == 0
    assert "on the edge of its range" in (tmp_path / "run" / "answer.txt").read_text()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["metric=fid"], "metric=fid is not measured here"),
        (["metric=fid", "detector=inception", "device=auto"], "here; there are fd_inception"),
        (["metric=[fd_pixels,fd_pixels]"], "one column, or two"),
        (["budget=5"], "budget=5"),
        (["seeds=[1,5]"], "one range of seeds"),
        (["seeds=0-4"], "too few"),
        (["repeats=3"], "one range of seeds"),
        (["search.sampler=Grid"], "no such sampler"),
        (["search.keep=1"], "keep must be a whole number"),
        (["guidance.schedule.ww=1..3"], "did you mean"),
        (["experiment=interval/digits"], "axes of its own"),
    ],
)
def test_mistakes_are_told_before_anything_is_made(words: list[str], said: str, capsys, tmp_path):
    pytest.importorskip("optuna")
    assert main([*TUNE, "budget=5000 images", f"out={tmp_path / 'run'}", *words]) == 2
    assert said in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_without_optuna_it_says_what_to_install(monkeypatch, capsys, tmp_path):
    monkeypatch.setitem(sys.modules, "optuna", None)
    assert main([*TUNE, "budget=5000 images", f"out={tmp_path}"]) == 1
    assert "guidex[tune]" in capsys.readouterr().err
