"""`guidex tune`: the best values of ranges under a budget; every candidate is a row of a table.

A rung of a round is a table that `fill` makes in the one folder, where what a candidate's images
have made is kept; so the same command goes on where it was, and a larger budget goes further.
"""

import contextlib
import io
import re
from collections.abc import Iterable, Sequence
from dataclasses import replace

from guidex.commands.sweep import fill, show
from guidex.config.compose import Composed, compose
from guidex.config.instantiate import Models, instantiate
from guidex.config.presets import nearest
from guidex.errors import GuidexError, UsageError
from guidex.features.samples import PassSettings
from guidex.files.atomic import atomic_write
from guidex.models.spec import Model
from guidex.reports.baselines import with_differences
from guidex.reports.rows import Row
from guidex.reports.tables import write_tables
from guidex.runs.kinds import KINDS
from guidex.runs.measure import Measures, are_metrics_chosen
from guidex.runs.points import Planned
from guidex.runs.points_table import Entry, Table, plan_entry
from guidex.runs.provenance import made_by, output_folder
from guidex.runs.ranks import this_rank
from guidex.runs.settings import VOLATILE, resolve_device, whole
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
    runs = _Runs(words, fixed, base)
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
    )
    ranges = [one for one in space if isinstance(one, Range) and one.step is None]
    inside = [one for one in ranges if isinstance(one.preset, int | float)]
    first = {one.key: one.preset for one in inside if one.low <= one.preset <= one.high}
    search.study.enqueue_trial(first)
    print(f"rungs of {', '.join(map(str, runs.rungs))} images", flush=True)
    for _ in search.rounds():
        print(summary(search), flush=True)
        write_tables(_numbered(search.candidates.values()), runs.folder)
    text = "\n".join([*answer(search, runs.sampled), ""])
    path = runs.folder / "answer.txt"
    atomic_write(path, lambda file: file.write(text.encode()))
    show(_numbered(search.finalists), runs.folder)
    print("", text, path, sep="\n")


class _Runs:
    """Candidates as points of tables in one folder, on the first so many of all seeds.

    Attributes:
        rungs: numbers of images; the last is all.
        sampled: words of the command that are not searched, and not about the search.
        block: images of a block, of which a rung has a whole number.
    """

    def __init__(self, words: Sequence[str], fixed: Sequence[str], base: Composed) -> None:
        self.words, self.fixed, self.base = words, fixed, base
        self.models: dict[str, Models] = {}
        config, seeds = base.config, parse_seeds(base.config["seeds"])
        keep, rungs = config["search"]["keep"], config["search"]["rungs"]
        self.first, self.images = seeds[0], len(seeds)
        if config["sweep"]["axes"]:
            raise UsageError("the experiment has axes of its own; tune takes ranges instead")
        if seeds != list(range(self.first, self.first + self.images)) or config["repeats"] != 1:
            raise UsageError("tune compares candidates on one range of seeds, such as seeds=0-1799")
        if config["overwrite"] or this_rank().count > 1:
            raise UsageError("tune is for one process, and goes on in its folder (no overwrite)")
        self.block = self.images // keep ** (rungs - 1)
        self.rungs = [*(self.block * keep**rung for rung in range(rungs - 1)), self.images]
        if self.block < 2:
            raise UsageError(
                f"{self.images} seeds are too few for {rungs} rungs, each of {keep} times as many "
                "images; give more, or fewer search.rungs"
            )
        self.sampled = [word for word in fixed if not word.startswith("out=")]
        aside = (*VOLATILE, *_EXTENT, *_OWN)
        identity = {key: value for key, value in config.items() if key not in aside}
        name = "-".join(base.choices[group] for group in ("model", "guidance"))
        self.folder = output_folder(config["out"], "tune", name, identity)

    def entry(self, values: Values, images: int) -> Entry:
        """The point of some values, with its first images."""
        seeds = f"seeds={self.first}-{self.first + images - 1}"
        words = [*self.sampled, seeds, f"block={self.block}", "gallery=0"]
        return plan_entry(words, values, self.models)

    def plan(self, values: Values) -> Planned | None:
        """The same with all images; None where an interval is empty."""
        return self.entry(values, self.images).planned

    def measure(self, group: Sequence[Candidate], rung: int) -> list[Row]:
        """Rows of a rung."""
        entries = [self.entry(one.values, self.rungs[rung]) for one in group]
        table = Table(self.base, entries, are_metrics_chosen(self.fixed))
        with contextlib.redirect_stdout(io.StringIO()):
            rows = fill(table, self.folder, made_by("tune", self.words), figures=False)
        if rows is None:
            raise GuidexError(f"{self.folder} is in use by another process")
        return rows


def _numbered(candidates: Iterable[Candidate]) -> list[Row]:
    """The rows of candidates with the most images as one table, compared with its best."""
    rows = [replace(one.rows[-1], point=k) for k, one in enumerate(candidates)]
    return with_differences(rows, "best")


def _objectives(base: Composed) -> list[Objective]:
    """One or two columns that a configuration measures, with their directions."""
    config = {**base.config, "device": resolve_device(base.config["device"])}
    model = instantiate(config["model"], "model", Models(), Model)
    better: dict[str, str | None] = {}
    for measure in Measures(PassSettings()).detected(config, not KINDS[model.space].is_image):
        better |= measure.columns
    given = config["metric"] if isinstance(config["metric"], list) else [config["metric"]]
    for name in given:
        if better.get(name) is None:
            raise UsageError(f"metric={name} is not measured here{nearest(str(name), better)}")
    if not 1 <= len(set(given)) == len(given) <= 2:
        raise UsageError("metric is one column, or two: metric=[fd_pixels,recall_pixels]")
    return [Objective(name, better[name]) for name in given]
