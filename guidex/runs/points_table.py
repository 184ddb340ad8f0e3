"""The points of a sweep: from axes on the command line and in experiments to plans."""

import re
from collections.abc import Sequence
from dataclasses import dataclass

from guidex.config.compose import (
    Axis,
    Composed,
    Config,
    axes_from_yaml,
    compose,
    points,
    split_axes,
)
from guidex.config.instantiate import Models
from guidex.config.presets import is_group
from guidex.errors import UsageError
from guidex.guidance.schedules import EmptyInterval
from guidex.runs.points import Planned, check

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
    """All points of a sweep.

    Attributes:
        base: the configuration that the points have in common.
        entries: one per row, at least one of them planned.
    """

    base: Composed
    entries: list[Entry]

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
            name = "" if is_group(key) else key.rpartition(".")[2].rpartition("/")[2]
            numbers = not any(isinstance(_typed(value), str) for value in values)
            ends = values[:: max(1, len(values) - 1)]
            parts.append(name + ("..".join(ends) if numbers else "+".join(values)))
        return re.sub(r"[^\w.+-]+", "_", "-".join(parts))[:80]

    @property
    def doubts(self) -> list[str]:
        """What may not be as it was meant, with the points that it is about."""
        points: dict[str, list[str]] = {}
        for entry in self.entries:
            for doubt in entry.planned.doubts if entry.planned else ():
                at = " ".join(f"{key}={value}" for key, value in entry.values.items())
                points.setdefault(doubt, []).append(at)
        return ["\n  at ".join([doubt, *filter(None, at)]) for doubt, at in points.items()]


def plan_table(words: Sequence[str], default: str | None = DEFAULT_EXPERIMENT) -> Table:
    """Compose and check every point.

    Axes on the command line replace those of the experiment that have the same key, and multiply
    the others.

    Arguments:
        words: Hydra overrides.
        default: experiment that is taken where the words say neither what to sample nor an axis;
            None for a table of one point.

    Raises:
        UsageError: in any point; but in a table of bounds, combinations with lo >= hi are left out.
    """
    fixed, axes = split_axes(words)
    said = {re.split(r"[./=]", word)[0] for word in fixed}
    if default is not None and not axes and said.isdisjoint(_SAMPLED):
        fixed = [f"experiment={default}", *fixed]
    base = compose("sweep", fixed)
    swept = base.config["sweep"]
    if swept["mode"] not in ("grid", "zip"):
        raise UsageError(f"sweep.mode must be grid or zip, not {swept['mode']!r}")
    entries: dict[tuple[tuple[str, str], ...], Entry] = {}
    models: dict[str, Models] = {}  # by device
    for table in swept["axes"] or [{}]:
        published = table.get("published", {})
        swept_keys = {key: value for key, value in table.items() if key != "published"}
        for values in points(_axes(swept_keys, axes, fixed), swept["mode"]):
            entries.setdefault(tuple(values.items()), _entry(fixed, values, models, published))
    if not any(entry.planned for entry in entries.values()):
        raise UsageError(next(iter(entries.values())).missing or "the table has no points")
    return Table(base, list(entries.values()))


def print_plans(table: Table) -> None:
    """A line for each point: its swept values and its plan."""
    for entry in table.entries:
        values = " ".join(f"{key}={value}" for key, value in entry.values.items())
        if entry.planned is None:
            print(f"{values}: left out, {entry.missing}")
        else:
            print(f"{values or entry.planned.method}: {entry.planned.describe()}")


def _axes(table: dict[str, object], given: Sequence[Axis], fixed: Sequence[str]) -> list[Axis]:
    """A table's axes, with what the command line says about the same keys."""
    fixed_keys = {word.partition("=")[0] for word in fixed}
    replaced = {axis.key: axis for axis in given}
    own = [axis for axis in axes_from_yaml(table) if axis.key not in fixed_keys]
    merged = [replaced.pop(axis.key, axis) for axis in own]
    return merged + list(replaced.values())


def _entry(
    fixed: Sequence[str],
    values: dict[str, str],
    models: dict[str, Models],
    published: dict[str, object],
) -> Entry:
    words = [*fixed, *(f"{key}={value}" for key, value in values.items())]
    try:
        composed = compose("sweep", words)
        composed.config["published"] = composed.config["published"] or published
        known = models.setdefault(composed.config["device"], Models())
        return Entry(values, check(composed, values, known), None)
    except EmptyInterval as error:
        if not any(key.endswith((".lo", ".hi")) for key in values):
            raise
        return Entry(values, None, str(error))
    except UsageError as error:
        at = " ".join(f"{key}={value}" for key, value in values.items())
        raise UsageError(f"{error}\n  at the point {at}" if at else str(error)) from error


def typed(values: dict[str, str]) -> dict[str, str | int | float | bool | None]:
    """Swept values as what they say: numbers as numbers."""
    return {key: _typed(value) for key, value in values.items()}


def _typed(text: str) -> str | int | float | bool | None:
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return {"null": None, "true": True, "false": False}.get(text, text)
