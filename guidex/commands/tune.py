"""`guidex tune`: the best values of ranges under a budget; every candidate is a row of a table.

A rung of a round is a table that `fill` makes in the one folder, where what a candidate's images
have made is kept; so the same command goes on where it was, and a larger budget goes further.
"""

import contextlib
import io
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

from guidex.commands.sweep import fill
from guidex.config.compose import Composed, compose
from guidex.config.instantiate import Models, instantiate
from guidex.config.presets import nearest
from guidex.errors import UsageError
from guidex.files.atomic import atomic_write
from guidex.guidance.schedules import EmptyInterval
from guidex.metrics.metric import Metric
from guidex.reports.rows import Row
from guidex.reports.tables import terminal_table, write_tables
from guidex.runs.kinds import KINDS
from guidex.runs.measure import Detectors, are_metrics_chosen, parts_of
from guidex.runs.points import Planned, at_the_point, check
from guidex.runs.points_table import Entry, Table
from guidex.runs.provenance import made_by, output_folder
from guidex.runs.ranks import this_rank
from guidex.runs.settings import VOLATILE, whole
from guidex.sampling.seeds import parse_seeds
from guidex.tuning.answer import answer, summary
from guidex.tuning.cost import price
from guidex.tuning.search import Candidate, Objective, Search, Values, new_study
from guidex.tuning.space import Budget, Range, ranges_of

_OWN = ("metric", "budget", "search")  # keys that are not of a sweep
_EXTENT = ("seeds", "repeats", "block", "sweep")  # keys that a folder may be filled with others of
_LEAST = {"candidates": 1, "keep": 2, "rungs": 1, "seed": 0}
BLOCKS = 8  # at least, for the confidence


def tune(words: Sequence[str], plan_only: bool) -> None:
    """Run the command."""
    own = [word for word in words if word.partition("=")[0].partition(".")[0] in _OWN]
    fixed, space = ranges_of([word for word in words if word not in own])
    config = compose("tune", [*fixed, *own]).config
    settings, budget = config["search"], Budget.of(config["budget"])
    for key, least in _LEAST.items():
        whole(settings, key, least)
    runs = _Runs(words, fixed, parse_seeds(config["seeds"]), settings["rungs"], settings["keep"])
    first = {one.key: f"{one.low:g}" for one in space if isinstance(one, Range)}
    runs.check(first)
    objectives = _objectives(config["metric"], runs, first)
    study = new_study(settings["sampler"], settings["seed"], objectives, settings["storage"])
    study.enqueue_trial(_preset(runs.base.config, space))
    search = Search(
        study,
        space,
        objectives,
        budget,
        runs.rungs,
        settings["candidates"],
        settings["keep"],
        runs.plan,
        runs.measure,
        runs.say,
    )
    print(
        f"{', '.join(one.key for one in space)}: {budget.amount:g} {budget.unit}, rungs of "
        f"{', '.join(map(str, runs.rungs))} images"
    )
    if plan_only:
        _print_round(search)
        return
    search.run()
    lines = answer(search, runs.sampled, len(runs.blocks), runs.without)
    text = "\n".join([*lines, ""])
    path = runs.folder / "answer.txt"
    atomic_write(path, lambda file: file.write(text.encode()))
    print("", terminal_table([one.rows[-1] for one in search.finalists]), "", text, sep="\n")
    print(*runs.write(search), path, sep="\n")


@dataclass
class _Runs:
    """Candidates as points of tables in one folder.

    Attributes:
        words, fixed: of the command; those that are not searched, without those of the search.
        seeds: all of them; the rungs are their beginnings.
    """

    words: Sequence[str]
    fixed: Sequence[str]
    seeds: list[int]
    count: int
    keep: int

    def __post_init__(self) -> None:
        self.models: dict[str, Models] = {}
        parts = self.keep ** (self.count - 1)
        each = math.ceil(BLOCKS / parts)
        self.block = math.ceil(len(self.seeds) / (parts * each))
        rungs = [self.block * each * self.keep**rung for rung in range(self.count)]
        self.rungs = [*rungs[:-1], len(self.seeds)]
        if rungs[0] < 2 or self.rungs != sorted(set(self.rungs)):
            raise UsageError(
                f"{len(self.seeds)} seeds are too few for {self.count} rungs of {self.keep} times "
                "as many images each; give more seeds, or a smaller search.rungs"
            )

    @cached_property
    def base(self) -> Composed:
        """What all candidates have in common."""
        return compose("sweep", self.sampled)

    @property
    def sampled(self) -> list[str]:
        """The words that say what is sampled, for all seeds."""
        aside = ("out", "overwrite")
        return [word for word in self.fixed if word.partition("=")[0] not in aside]

    @cached_property
    def identity(self) -> dict:
        """What the folder belongs to."""
        aside = (*VOLATILE, *_EXTENT)
        kept = {key: value for key, value in self.base.config.items() if key not in aside}
        return {"command": "tune", **kept}

    @cached_property
    def folder(self) -> Path:
        name = "-".join(self.base.choices[group] for group in ("model", "guidance"))
        out = compose("sweep", self.fixed).config["out"]
        return output_folder(out, "tune", name, self.identity)

    @property
    def blocks(self) -> list[list[int]]:
        """All seeds, in the blocks that they are made in."""
        return [self.seeds[k : k + self.block] for k in range(0, len(self.seeds), self.block)]

    def check(self, values: Values) -> None:
        """Refuse what cannot be tuned, before anything is loaded."""
        config = self.base.config
        if config["sweep"]["axes"]:
            raise UsageError("the experiment has axes of its own; tune takes ranges instead")
        if config["repeats"] != 1:
            raise UsageError("tune compares candidates on one range of seeds; leave out repeats=")
        if this_rank().count > 1:
            raise UsageError("tune is for one process, not for torchrun")
        if config["overwrite"] or "overwrite=true" in self.fixed:
            raise UsageError("tune goes on in its folder; delete it, or choose another out=FOLDER")
        self.planned(values, self.seeds)

    def planned(self, values: Values, seeds: Sequence[int]) -> Planned | None:
        """The point of some values; None where an interval is empty."""
        words = [*self.sampled, f"seeds={_ranges(seeds)}", f"block={self.block}", "gallery=0"]
        try:
            given = [f"{key}={value}" for key, value in values.items()]
            return check(compose("sweep", [*words, *given]), values, self.models)
        except EmptyInterval:
            return None
        except UsageError as error:
            raise UsageError(at_the_point(error, values)) from error

    def plan(self, values: Values) -> Planned | None:
        return self.planned(values, self.seeds)

    def measure(self, group: Sequence[Candidate], rung: int) -> list[Row]:
        return self._rows(group, self.seeds[: self.rungs[rung]])

    def without(self, group: Sequence[Candidate], block: int) -> list[Row]:
        """Rows of all images but those of a block."""
        blocks = self.blocks
        return self._rows(group, sum(blocks[:block] + blocks[block + 1 :], []))

    def _rows(self, group: Sequence[Candidate], seeds: Sequence[int]) -> list[Row]:
        entries = [Entry(one.values, self.planned(one.values, seeds), None) for one in group]
        chosen = are_metrics_chosen(self.fixed)
        with contextlib.redirect_stdout(io.StringIO()):
            rows = fill(
                Table(self.base, entries),
                self.folder,
                made_by("tune", self.words),
                chosen=chosen,
                identity=self.identity,
            )
        return rows

    def say(self, search: Search) -> None:
        """Tell of a round, and write its table."""
        print(summary(search), flush=True)
        self.write(search)

    def write(self, search: Search) -> list[Path]:
        """The table of all candidates, each by the most images it has."""
        rows = [one.rows[-1] for one in search.candidates.values()]
        return write_tables([replace(row, point=k) for k, row in enumerate(rows)], self.folder)


def _objectives(given: object, runs: _Runs, values: Values) -> list[Objective]:
    """One or two columns that the configuration measures, and their directions."""
    names = [str(name) for name in (given if isinstance(given, list) else [given])]
    config, model = runs.base.config, runs.planned(values, runs.seeds)
    is_image = model is None or KINDS[model.model.space].is_image
    better: dict[str, str] = {}
    for part in parts_of(config):
        detector = Detectors().get(vars(part), f"{part.key}detector", points=not is_image)
        metrics = instantiate(part.metrics, f"{part.key}metrics", Models(), dict[str, Metric])
        columns = [column for metric in metrics.values() for column in metric.columns]
        better |= {f"{one.name}_{detector.name}": one.better for one in columns if one.better}
    for name in names:
        if name not in better:
            raise UsageError(f"metric={name}: no such column{nearest(name, better)}")
    if not 1 <= len(set(names)) == len(names) <= 2:
        raise UsageError("metric is one column, or two different ones: metric=[fd_pixels,…]")
    return [Objective(name, better[name]) for name in names]


def _preset(config: dict, space: Sequence) -> dict[str, float]:
    """What the presets say of the searched keys, where it is in the ranges: the first candidate."""
    found = {}
    for one in space:
        node: object = config
        for name in one.key.split("."):
            node = node.get(name) if isinstance(node, dict) else None
        is_range = isinstance(one, Range) and one.step is None
        if is_range and isinstance(node, int | float) and one.low <= node <= one.high:
            found[one.key] = node
    return found


def _print_round(search: Search) -> None:
    """The plans of a first round, and what their images cost with and without sharing."""
    points = [one.planned for one in search._asked()]
    together, alone = price(points), sum((price([one]) for one in points), start=price([]))
    for point in points:
        print(point.describe())
    unit = search.budget.unit
    if unit != "seconds":
        print(f"{together[unit]:g} {unit} for a seed of all, {alone[unit]:g} without sharing")


def _ranges(seeds: Sequence[int]) -> str:
    """Seeds as they are typed, such as 0-199,400-599."""
    parts: list[list[int]] = []
    for seed in seeds:
        if parts and seed == parts[-1][1] + 1:
            parts[-1][1] = seed
        else:
            parts.append([seed, seed])
    texts = [f"{low}-{high}" for low, high in parts]
    return texts[0] if len(texts) == 1 else f"[{','.join(texts)}]"
