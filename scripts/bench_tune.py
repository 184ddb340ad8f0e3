"""Evaluations that `guidex tune` spends until it has found a point within 2 % of the best of a fine
grid, against the whole grid, Optuna alone, and the interval paper's recipe.

The fine grid is sampled in full for each range of seeds, so that every way of searching can be
followed over it, on the same images, without sampling again. What is counted is what each would
have spent: evaluations of all networks. Optuna alone has the same sampler, and points that it asks
for again are free for it, too; the recipe tunes w and hi at lo = 0, then lo, with a ninth
or a third of the images, and measures its choice with all. Ways that draw are tried several times
on each range of seeds, with seeds of their own; their medians are printed.

Run: .venv/bin/python scripts/bench_tune.py [digits|fractal] [--ranges 5] [--tries 9]
"""

import argparse
import math
import operator
import statistics
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from types import SimpleNamespace

import torch

from guidex.config.compose import compose
from guidex.config.instantiate import Models
from guidex.features.features import FeatureSet
from guidex.features.samples import PassSettings
from guidex.guidance.schedules import EmptyInterval
from guidex.models.memory import Halving
from guidex.runs.blocks import Block
from guidex.runs.engine import run_block
from guidex.runs.measure import Measures
from guidex.runs.points import Planned, check, load
from guidex.tuning.search import Objective, Search, Values, identity, new_study, price
from guidex.tuning.space import Budget, ranges_of

NEAR = 0.02
W, LO, HI = (f"guidance.schedule.{name}" for name in ("w", "lo", "hi"))


@dataclass(frozen=True)
class Setting:
    """A model, the fine grid of w, lo and hi (all boundaries of steps between two levels), and what
    is measured of how many images."""

    words: list[str]
    ws: range
    los: tuple[float, float]
    his: tuple[float, float]
    metric: str
    better: str
    images: int


SETTINGS = {
    "digits": Setting(
        ["guidance=interval", "metrics=[frechet]", "sampler.grid.steps=16"],
        range(2, 13),
        (0, 0.3),
        (0.26, 4),
        "fd_pixels",
        "lower",
        900,
    ),
    "fractal": Setting(
        [
            *("model=fractal2d", "model.blur=0.02", "ref=fractal2d"),
            *("metrics=[toy]", "metrics.toy.draws=1000", "metrics.toy.min_expected=1"),
            *("guidance=autoguidance", "guidance/schedule=interval"),
            *("sampler.grid.sigma_max=5", "sampler.grid.steps=16"),
        ],
        range(2, 13, 2),
        (0, 0.06),
        (0.08, 1.3),
        "log_density_coordinates",
        "higher",
        450,
    ),
}


class Landscape:
    """The fine grid on one range of seeds: what every point measures, by number of images."""

    def __init__(self, setting: Setting, number: int) -> None:
        self.setting, self.models = setting, dict[str, Models]()
        count = setting.images
        self.seeds = f"{number * count}-{(number + 1) * count - 1}"
        self.rungs = [count // 9, count // 3, count]
        sigmas = self.plan({W: "2", LO: "0", HI: "1"}).plan.timeline.sigmas
        los = [f"{s:.6g}" for s in sigmas if setting.los[0] <= s <= setting.los[1]]
        his = [f"{s:.6g}" for s in sigmas if setting.his[0] <= s <= setting.his[1]]
        ws = setting.ws
        words = [f"{W}={ws[0]}..{ws[-1]}:{ws.step}", f"{LO}=0..{los[0]}"]
        _, self.space = ranges_of([*setting.words, *words, f"{HI}={his[-1]}..{his[0]}:log"])
        self.grid = [{W: str(w), LO: lo, HI: hi} for w in ws for hi in his for lo in los]
        self.points = {}
        for values in (*self.grid, {W: "1", LO: "0", HI: "1"}):  # or no guidance, where lo = hi
            planned = self.plan(values)
            if planned is not None:
                self.points[identity(planned)] = planned
        self.losses = dict(zip(self.points, self.measured(), strict=True))
        self.best = min(losses[count] for losses in self.losses.values())
        self.enough = self.best + NEAR * abs(self.best)

    def plan(self, values: Values) -> Planned | None:
        words = [*self.setting.words, f"seeds={self.seeds}", "repeats=1"]
        try:
            given = [f"{key}={value}" for key, value in values.items()]
            return check(compose("sweep", [*words, *given]), {}, self.models)
        except EmptyInterval:
            return None

    def measured(self) -> Iterator[dict[int, float]]:
        """The loss of each point by number of images."""
        models = Models()
        points = [load(planned, models) for planned in self.points.values()]
        planned, sign = points[0].planned, 1 if self.setting.better == "lower" else -1
        is_toy = points[0].kind.image_shape is None
        measures = Measures(PassSettings(rank=0, ranks=1))
        (measure,) = measures.get(
            planned.config,
            points[0].model,
            planned.choices["model"],
            count=len(planned.seeds),
            points=is_toy,
        )
        measures.make_features()
        features = [[] for _ in points]
        labels = []
        block = Block(planned.seeds, None)
        for _, own, outcomes in run_block(points, block, Halving(450), 0, lambda amount: None):
            labels.append(own)
            for kept, point, outcome in zip(features, points, outcomes, strict=True):
                kept.append(measure.detector(point.kind.decode(outcome.x)).cpu())
        labels = torch.cat(labels).cpu()
        for kept in features:
            values, losses = torch.cat(kept), {}
            for count in self.rungs:
                fakes = FeatureSet(measure.name, values[:count], labels[:count])
                numbers, _ = measure.measured(fakes, blockwise=False)
                losses[count] = sign * numbers[self.setting.metric]
            yield losses

    def loss(self, planned: Planned, count: int) -> float:
        return self.losses[identity(planned)][count]

    def whole_grid(self) -> dict[str, float]:
        """The grid with shared steps and without."""
        points = list(self.points.values())
        alone = sum(price([point])["evaluations"] for point in points)
        count = self.setting.images
        return {
            "full grid": count * alone,
            "full grid, shared steps": count * price(points)["evaluations"],
        }

    def optuna(self, seed: int, most: int = 200) -> float:
        """The sampler alone, a point at a time, all images each."""
        study, spent, seen = new_study("TPE", seed, 1), 0, set()
        for _ in range(most):
            trial = study.ask()
            planned = self.plan({one.key: one.ask(trial) for one in self.space})
            if planned is None:
                study.tell(trial, state=FAIL)
                continue
            if identity(planned) not in seen:
                spent += price([planned])["evaluations"] * self.setting.images
                seen.add(identity(planned))
            loss = self.loss(planned, self.setting.images)
            study.tell(trial, loss)
            if loss <= self.enough:
                return spent
        return math.inf

    def recipe(self, count: int) -> float:
        """Grids of w and hi at lo = 0, then of lo, with fewer images; the choice with all. Infinite
        where the choice is not near the best, like every way that finds none."""
        whole, spent = self.setting.images, 0.0

        def best(grid: list[Values]) -> Values:
            nonlocal spent
            plans = [(values, self.plan(values)) for values in grid]
            plans = [(values, planned) for values, planned in plans if planned is not None]
            spent += count * sum(price([planned])["evaluations"] for _, planned in plans)
            return min(plans, key=lambda pair: self.loss(pair[1], count))[0]

        los = list(dict.fromkeys(values[LO] for values in self.grid))
        found = best([values for values in self.grid if values[LO] == los[-1]])
        found = best([{**found, LO: lo} for lo in los[:-1]] + [found])
        planned = self.plan(found)
        spent += (whole - count) * price([planned])["evaluations"]
        return spent if self.loss(planned, whole) <= self.enough else math.inf

    def tune(self, seed: int, rungs: Sequence[int], count: int = 8, keep: int = 3) -> float:
        """guidex tune, over the same measurements."""
        name = OBJECTIVE.metric

        def measure(group: list, rung: int) -> list[SimpleNamespace]:
            images = rungs[rung]
            losses = [self.loss(one.planned, images) for one in group]
            return [
                SimpleNamespace(metrics={name: loss}, images=images, seconds=0.0) for loss in losses
            ]

        study = new_study("TPE", seed, 1)
        search = Search(
            study,
            self.space,
            [OBJECTIVE],
            Budget(1e9, "evaluations"),
            rungs,
            count,
            keep,
            self.plan,
            measure,
        )
        for _ in search.rounds():
            if any(search.losses(one)[0] <= self.enough for one in search.finalists):
                return search.spent["evaluations"]
        return math.inf


OBJECTIVE = Objective("loss", "lower")


def main(name: str, ranges: int, tries: int) -> None:
    """Print what each way spends, in 1000 evaluations, by range of seeds and in the median."""
    setting, results = SETTINGS[name], dict[str, list[float]]()
    wins = 0
    for number in range(ranges):
        land = Landscape(setting, number)
        told = f"{len(land.points)} points, best {land.best:.4g}"
        print(f"seeds {land.seeds}: {told}", flush=True)
        drawn = {
            "Optuna alone": [land.optuna(seed) for seed in range(tries)],
            "guidex tune": [land.tune(seed, land.rungs) for seed in range(tries)],
            "guidex tune, without halving": [
                land.tune(seed, land.rungs[-1:]) for seed in range(tries)
            ],
        }
        wins += sum(map(operator.lt, drawn["guidex tune"], drawn["Optuna alone"]))
        medians = {way: statistics.median(spent) for way, spent in drawn.items()}
        rows = {**land.whole_grid(), **medians}
        for count in land.rungs[:-1]:
            rows[f"the recipe, {count} images"] = land.recipe(count)
        for way, spent in rows.items():
            results.setdefault(way, []).append(spent)
    for way, spent in results.items():
        cells = [f"{one / 1000:.0f}" for one in (*spent, statistics.median(spent))]
        print(f"| {way} | {' | '.join(cells)} |".replace("inf", "–"))
    print(f"guidex tune spends less than Optuna alone in {wins} of {ranges * tries} tries")


if __name__ == "__main__":
    from optuna.trial import TrialState

    FAIL = TrialState.FAIL
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("setting", nargs="?", choices=SETTINGS, default="digits")
    parser.add_argument("--ranges", type=int, default=5, help="of seeds of the images")
    parser.add_argument("--tries", type=int, default=9, help="on each range, by ways that draw")
    args = parser.parse_args()
    main(args.setting, args.ranges, args.tries)
