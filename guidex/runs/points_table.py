"""The points of a sweep: from axes on the command line and in experiments to plans."""

import re
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass

from guidex.config.compose import Composed, Config, axes_from_yaml, compose, points, split_axes
from guidex.config.instantiate import Models
from guidex.config.presets import is_group
from guidex.errors import UsageError
from guidex.guidance.schedules import EmptyInterval
from guidex.runs.measure import are_metrics_chosen
from guidex.runs.points import Planned, at_the_point, check, words_of

DEFAULT_EXPERIMENT = "interval/digits"
# Words with these keys say what to sample: the default experiment, which says it too, is not meant.
_SAMPLED = {"experiment", "model", "guidance", "sampler", "decoder", "sweep"}


@dataclass(frozen=True)
class Entry:
    """A row to be: its swept values, and its plan or the reason why it has none."""

    values: dict[str, str]
    planned: Planned | None
    missing: str | None


@dataclass(frozen=True)
class Table:
    """All points of a sweep, one per row, the configuration that they have in common, and whether
    somebody chose the metrics, and so wants all of them."""

    base: Composed
    entries: list[Entry]
    are_metrics_chosen: bool = True

    @property
    def planned(self) -> list[Planned]:
        """The points that can be run."""
        return [entry.planned for entry in self.entries if entry.planned is not None]

    @property
    def name(self) -> str:
        """The experiment, or what is swept."""
        chosen = self.base.choices.get("experiment", "None")
        if chosen != "None":
            return chosen
        values = {"guidance": dict.fromkeys(point.method for point in self.planned)}
        for key, value in (pair for entry in self.entries for pair in entry.values.items()):
            values.setdefault(key, {})[value] = None
        names = ("" if is_group(key) else re.split(r"[./]", key)[-1] for key in values)
        parts = [name + "+".join(each) for name, each in zip(names, values.values(), strict=True)]
        return re.sub(r"[^\w.+-]+", "_", "-".join(parts))[:80]

    @property
    def identity(self) -> Config:
        """What decides the results of each point, if there are any, by its swept values."""
        points = {words_of(entry.values): entry.planned for entry in self.entries}
        return {words: planned and planned.settings.identity for words, planned in points.items()}


def plan_table(words: Sequence[str], default: str | None = DEFAULT_EXPERIMENT) -> Table:
    """Compose and check every point; UsageError where one is wrong, but in a table of bounds,
    combinations with lo >= hi are left out.

    Axes on the command line replace those of the experiment that have the same key, and multiply
    the others. Where the words say neither what to sample nor an axis, they are about the default
    experiment, or, where that is None, about one point.
    """
    fixed, given = split_axes(words)
    said = {re.split(r"[./=]", word)[0] for word in fixed}
    if default is not None and not given and said.isdisjoint(_SAMPLED):
        fixed = [f"experiment={default}", *fixed]
    base = compose("sweep", fixed)
    sweep = base.config["sweep"]
    if sweep["mode"] not in ("grid", "zip"):
        raise UsageError(f"sweep.mode must be grid or zip, not {sweep['mode']!r}")
    fixed_keys = {word.partition("=")[0] for word in fixed}
    entries: dict[str, Entry] = {}
    models: dict[str, Models] = {}
    for table in sweep["axes"] or [{}]:
        aside = {"published"} | fixed_keys
        own = axes_from_yaml({key: value for key, value in table.items() if key not in aside})
        for values in points(own | given, sweep["mode"]):
            if words_of(values) not in entries:
                published = table.get("published", {})
                entries[words_of(values)] = plan_entry(fixed, values, models, published)
    table = Table(base, list(entries.values()), are_metrics_chosen(words))
    if not table.planned:
        raise UsageError(table.entries[0].missing)
    return table


def plan_entry(
    fixed: Sequence[str],
    values: dict[str, str],
    models: dict[str, Models],
    published: Config | None = None,
) -> Entry:
    """Compose and check a point; without a plan, where its swept bounds have lo >= hi. `models`:
    see `check`; `published`: what an experiment says of the point."""
    try:
        composed = compose("sweep", [*fixed, *(f"{key}={value}" for key, value in values.items())])
        composed.config["published"] = composed.config["published"] or published or {}
        return Entry(values, check(composed, values, models), None)
    except EmptyInterval as error:
        if not any(key.endswith((".lo", ".hi")) for key in values):
            raise
        return Entry(values, None, str(error))
    except UsageError as error:
        raise UsageError(at_the_point(error, values)) from error


def typed(values: dict[str, str]) -> dict[str, str | int | float | bool | None]:
    """Swept values as what they say: numbers as numbers."""
    return {key: _typed(value) for key, value in values.items()}


def _typed(text: str) -> str | int | float | bool | None:
    for kind in (int, float):
        with suppress(ValueError):
            return kind(text)
    return {"null": None, "true": True, "false": False}.get(text, text)
