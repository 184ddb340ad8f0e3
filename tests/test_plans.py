"""What a table will take is said before it runs."""

import json
from pathlib import Path

import pytest
from helpers import Calls, starts

from guidex.cli import main
from guidex.runs import cost
from guidex.runs.points import Planned, load
from guidex.runs.points_table import plan_table
from guidex.sampling.trajectories import trajectories

Captured = pytest.CaptureFixture[str]


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("GUIDEX_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def planned(*words: str) -> list[Planned]:
    return [entry.planned for entry in plan_table(words).entries if entry.planned is not None]


def plan_of(words: list[str], capsys: Captured, option: str = "--plan") -> str:
    assert main(["sweep", *words, option]) == 0
    return capsys.readouterr().out


def test_the_plane_of_interval_bounds(capsys: Captured) -> None:
    text = plan_of(["experiment=interval/bounds"], capsys, "--dry-run")
    assert "evaluations of main 33327 → 11503, of references 11936 → 1024; 7.79 PFLOP" in text
    assert "529 points" in text and "496 left out, such as " in text
    assert "79,350,000 images: 1,169 EFLOP → 362 EFLOP; features on disk: 650,035.2 MB" in text
    assert "hours" not in text  # nothing was measured here
    assert sum("edm2-img512-s-2147483-0.025 against" in line for line in text.splitlines()) == 528


def test_many_weights_in_one_interval(capsys: Captured) -> None:
    words = ["guidance=interval", "guidance.schedule.lo=0.19", "guidance.schedule.hi=1.61"]
    text = plan_of([*words, "guidance.schedule.w=range(1,4.05,0.1)"], capsys)
    assert "evaluations of main 1953 → 933, of references 360 → 360" in text
    heading, first, second = text.splitlines()[1:4]
    assert heading.split() == "w guided steps sigma weights evaluations GFLOP".split()
    assert first.split()[:5] == ["1.0", "–", "–", "–", "63"]
    assert second.split()[1:7] == "17–22 of 32 1.609 → 0.189".split()
    assert second.split()[7:11] == ["1.1", "63", "+", "12"]


@pytest.mark.parametrize("rule", ["extrapolate", "apg"])
@pytest.mark.parametrize("sampler", ["heun", "churn", "dpmpp_2m"])
def test_shared_costs_are_the_calls_that_are_made(sampler: str, rule: str) -> None:
    bounds = [f"guidance.schedule.{bound}=0,1,3" for bound in ("lo", "hi")]
    words = [*bounds, "guidance.schedule.unit=step", f"guidance/rule={rule}", f"sampler={sampler}"]
    words += ["sampler.grid.steps=4", "seeds=0-2", "device=cpu", "guidance=interval"]
    points = [load(one, {}) for one in planned(*words)]
    assert len(points) == 6
    calls, model = Calls(), points[0].model
    networks = [model, points[0].guidance.networks[0]]
    for network in networks:
        calls.watch(network)
    solver, seeds = points[0].planned.solver, points[0].planned.seeds
    trajectories([point.run for point in points], solver, starts(model, seeds, solver), seeds)
    shared = cost.cost([point.planned for point in points])
    assert [calls[network] for network in networks] == [3 * shared[0], 3 * shared[1]]
    gflops = shared[0] * model.gflops + shared[1] * networks[1].gflops
    assert shared[2] == pytest.approx(gflops)
    apart = sum(cost.cost([point.planned]) for point in points)
    assert apart[0] == 6 * points[0].planned.plan.evaluations_main > shared[0]
    assert apart[2] > shared[2]
    alone = [points[-1].planned.plan.evaluations_main, points[-1].planned.gflops]
    assert cost.cost([points[-1].planned])[[0, 2]] == pytest.approx(alone)


def test_hours_are_told_from_the_last_run(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch, capsys: Captured
) -> None:
    words = ["guidance.schedule.w=1,2", "seeds=0-19", "sampler.grid.steps=4", "metrics=[frechet]"]
    run = ["sweep", *words, "device=cpu", f"out={tmp_path / 'run'}"]
    assert main(run) == 0
    assert not (cache / "speeds.json").exists()  # too short to tell
    monkeypatch.setattr(cost, "LEAST", 0.0)
    assert main([*run, "overwrite=true"]) == 0
    [(key, speed)] = json.loads((cache / "speeds.json").read_text()).items()
    assert "guidex.models.kernel.kernel" in key and speed > 0
    before = (cache / "speeds.json").read_bytes()
    assert main(run) == 0 and (cache / "speeds.json").read_bytes() == before  # nothing was made
    capsys.readouterr()
    assert f" hours as fast as it last was on {cost.device_name('cpu')}" in plan_of(words, capsys)
    assert "hours" not in plan_of([*words, "model=fractal2d"], capsys)  # another model
    for damaged in (b"", b"[1]", b'{"%s": NaN}' % key.replace('"', '\\"').encode()):
        (cache / "speeds.json").write_bytes(damaged)
        assert "hours" not in plan_of(words, capsys)
