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

    @property
    def identity(self) -> Config | None:
        """What decides the results, if there are any."""
        return self.planned and self.planned.settings.identity


@dataclass(frozen=True)
class Table:
    """All points of a sweep, one per row, and the configuration that they have in common.

    Attributes:
        are_metrics_chosen: whether somebody chose the metrics, and so wants all of them.
    """

    base: Composed
    entries: list[Entry]
    are_metrics_chosen: bool = True

    @property
    def name(self) -> str:
        """The experiment, or what is swept."""
        chosen = self.base.choices.get("experiment", "None")
        if chosen != "None":
            return chosen
        methods = {entry.planned.method for entry in self.entries if entry.planned}
        parts = list(methods) if len(methods) == 1 else []
        for key in dict.fromkeys(key for entry in self.entries for key in entry.values):
            values = list(dict.fromkeys(e.values[key] for e in self.entries if key in e.values))
            if key == "guidance" and len(values) == len(parts):
                continue  # named already
            name = "" if is_group(key) else re.split(r"[./]", key)[-1]
            parts.append(name + "+".join(values))
        return re.sub(r"[^\w.+-]+", "_", "-".join(parts))[:80]

    @property
    def doubts(self) -> list[str]:
        """What may not be as it was meant, with the points that it is about."""
        points: dict[str, list[str]] = {}
        for entry in self.entries:
            for doubt in entry.planned.doubts if entry.planned else ():
                points.setdefault(doubt, []).append(words_of(entry.values))
        return ["\n  at ".join([doubt, *filter(None, at)]) for doubt, at in points.items()]


def plan_table(words: Sequence[str], default: str | None = DEFAULT_EXPERIMENT) -> Table:
    """Compose and check every point.

    Axes on the command line replace those of the experiment that have the same key, and multiply
    the others. Where the words say neither what to sample nor an axis, they are about the default
    experiment, or, where that is None, about one point.

    Raises:
        UsageError: in any point; but in a table of bounds, combinations with lo >= hi are left out.
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
                entries[words_of(values)] = _entry(fixed, values, models, published)
    if not any(entry.planned for entry in entries.values()):
        raise UsageError(next(iter(entries.values())).missing or "the table has no points")
    return Table(base, list(entries.values()), are_metrics_chosen(words))


def _entry(
    fixed: Sequence[str],
    values: dict[str, str],
    models: dict[str, Models],
    published: dict[str, object],
) -> Entry:
    try:
        composed = compose("sweep", [*fixed, *(f"{key}={value}" for key, value in values.items())])
        composed.config["published"] = composed.config["published"] or published
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
