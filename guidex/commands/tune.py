"""`guidex tune`: the best values of ranges under a budget; every candidate is a row of a table.

A rung of a round is a table that `fill` makes in the one folder, where what a candidate's images
have made is kept; so the same command goes on where it was, and a larger budget goes further.
"""

import contextlib
import io
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from guidex.commands.sweep import fill
from guidex.config.compose import Composed, compose
from guidex.config.instantiate import Models, instantiate
from guidex.config.presets import nearest
from guidex.errors import GuidexError, UsageError
from guidex.files.atomic import atomic_write
from guidex.guidance.schedules import EmptyInterval
from guidex.metrics.metric import Metric
from guidex.models.spec import Model
from guidex.reports.differences import with_differences
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
from guidex.tuning.search import Candidate, Objective, Search, Values, new_study
from guidex.tuning.space import Budget, Range, ranges_of

_OWN = ("metric", "budget", "search")  # keys that are not of a sweep
_EXTENT = ("seeds", "repeats", "block", "sweep", "gallery")  # keys that differ within a folder
_LEAST = {"candidates": 1, "keep": 2, "rungs": 1, "seed": 0}


def tune(words: Sequence[str]) -> None:
    """Run the command."""
    own = [word for word in words if re.split(r"[.=]", word)[0] in _OWN]
    fixed, space = ranges_of([word for word in words if word not in own])
    base = compose("tune", [*fixed, *own])
    settings, budget = base.config["search"], Budget.of(base.config["budget"])
    for key, least in _LEAST.items():
        whole(settings, key, least)
    runs = _Runs(list(words), fixed, base, settings["keep"], settings["rungs"])
    objectives = _objectives(base)
    sampler = (settings["sampler"], settings["seed"], len(objectives), settings["storage"])
    search = Search(
        study=new_study(*sampler),
        space=space,
        objectives=objectives,
        budget=budget,
        rungs=runs.rungs,
        count=settings["candidates"],
        keep=settings["keep"],
        plan=runs.plan,
        measure=runs.measure,
        say=runs.say,
    )
    ranges = [one for one in space if isinstance(one, Range) and one.step is None]
    inside = [one for one in ranges if isinstance(one.preset, int | float)]
    first = {one.key: one.preset for one in inside if one.low <= one.preset <= one.high}
    search.study.enqueue_trial(first)
    print(f"rungs of {', '.join(map(str, runs.rungs))} images", flush=True)
    search.run()
    text = "\n".join([*answer(search, runs.sampled), ""])
    path = runs.folder / "answer.txt"
    atomic_write(path, lambda file: file.write(text.encode()))
    print("", terminal_table(_numbered(search.finalists)), "", text, sep="\n")
    print(*runs.write(search), path, sep="\n")


@dataclass
class _Runs:
    """Candidates as points of tables in one folder, on the first so many of all seeds.

    Attributes:
        words: of the command; `fixed` are not searched, and not about the search.
        rungs: numbers of images; the last is all.
        block: images of a block, of which a rung has a whole number.
    """

    words: list[str]
    fixed: list[str]
    base: Composed
    keep: int
    count: int
    models: dict[str, Models] = field(default_factory=dict)

    def __post_init__(self) -> None:
        config, seeds = self.base.config, parse_seeds(self.base.config["seeds"])
        self.first, self.images = seeds[0], len(seeds)
        if config["sweep"]["axes"]:
            raise UsageError("the experiment has axes of its own; tune takes ranges instead")
        if seeds != list(range(self.first, self.first + self.images)) or config["repeats"] != 1:
            raise UsageError("tune compares candidates on one range of seeds, such as seeds=0-1799")
        if config["overwrite"] or this_rank().count > 1:
            raise UsageError("tune is for one process, and goes on in its folder (no overwrite)")
        self.block = self.images // self.keep ** (self.count - 1)
        least = [self.block * self.keep**rung for rung in range(self.count - 1)]
        self.rungs = [*least, self.images]
        if self.block < 2:
            raise UsageError(
                f"{self.images} seeds are too few for {self.count} rungs, each of {self.keep} "
                "times as many images; give more, or fewer search.rungs"
            )
        self.sampled = [word for word in self.fixed if not word.startswith("out=")]
        aside = (*VOLATILE, *_EXTENT, *_OWN)
        identity = {key: value for key, value in config.items() if key not in aside}
        name = "-".join(self.base.choices[group] for group in ("model", "guidance"))
        self.folder: Path = output_folder(config["out"], "tune", name, identity)

    def plan(self, values: Values, seeds: str | None = None) -> Planned | None:
        """The point of some values; None where an interval is empty."""
        extent = [f"seeds={seeds or self._seeds(self.images)}", f"block={self.block}"]
        given = [f"{key}={value}" for key, value in values.items()]
        try:
            composed = compose("sweep", [*self.sampled, *extent, "gallery=0", *given])
            return check(composed, values, self.models)
        except EmptyInterval:
            return None
        except UsageError as error:
            raise UsageError(at_the_point(error, values)) from error

    def measure(self, group: Sequence[Candidate], rung: int) -> list[Row]:
        """Rows of a rung."""
        seeds = self._seeds(self.rungs[rung])
        entries = [Entry(one.values, self.plan(one.values, seeds), None) for one in group]
        table = Table(self.base, entries, are_metrics_chosen(self.fixed))
        with contextlib.redirect_stdout(io.StringIO()):
            rows = fill(table, self.folder, made_by("tune", self.words), figures=False)
        if rows is None:
            raise GuidexError(f"{self.folder} is in use by another process")
        return rows

    def _seeds(self, count: int) -> str:
        return f"{self.first}-{self.first + count - 1}"

    def say(self, search: Search) -> None:
        """Tell of a round, and write its table."""
        print(summary(search), flush=True)
        self.write(search)

    def write(self, search: Search) -> list[Path]:
        """The table of all candidates, each with the most images it has."""
        return write_tables(_numbered(search.candidates.values()), self.folder)


def _numbered(candidates: Iterable[Candidate]) -> list[Row]:
    """The rows of candidates with the most images as one table, compared with its best."""
    rows = [replace(one.rows[-1], point=k) for k, one in enumerate(candidates)]
    return with_differences(rows, "best")


def _objectives(base: Composed) -> list[Objective]:
    """One or two columns that a configuration measures, with their directions."""
    config, better = base.config, dict[str, str]()
    model = instantiate(config["model"], "model", Models(), Model)
    for part in parts_of(config):
        points = not KINDS[model.space].is_image
        detector = Detectors().get(vars(part), f"{part.key}detector", points)
        metrics = instantiate(part.metrics, f"{part.key}metrics", Models(), dict[str, Metric])
        columns = [column for metric in metrics.values() for column in metric.columns]
        better |= {f"{one.name}_{detector.name}": one.better for one in columns if one.better}
    given = config["metric"] if isinstance(config["metric"], list) else [config["metric"]]
    for name in given:
        if name not in better:
            raise UsageError(f"metric={name} is not measured here{nearest(str(name), better)}")
    if not 1 <= len(set(given)) == len(given) <= 2:
        raise UsageError("metric is one column, or two: metric=[fd_pixels,recall_pixels]")
    return [Objective(name, better[name]) for name in given]
