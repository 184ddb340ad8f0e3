"""What was last asked of a run's folder, `asked.json`: its points, and what is kept of each."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from guidex.config import plugin
from guidex.config.compose import Composed
from guidex.errors import UsageError
from guidex.runs.blocks import Block, Store
from guidex.runs.engine import Task
from guidex.runs.folder import RunFolder, read_json, write_json
from guidex.runs.points import check, words_of
from guidex.runs.points_table import Entry, Table
from guidex.runs.settings import Settings

_FILE = "asked.json"


def ask(folder: RunFolder, entries: Sequence[Entry], tasks: Sequence[Task], **about: Any) -> None:
    """Write it down."""
    points = [{"values": entry.values, "missing": entry.missing} for entry in entries]
    for task in tasks:
        planned = task.point.planned
        points[task.index] |= {
            "choices": planned.choices,
            "config": {**planned.config, **planned.settings.identity},
            "point": task.name,
            "kept": [output.name for output in task.outputs if output.seeds is None],
            **Block(planned.seeds, planned.labels).spelled,
        }
    write_json(folder.path / _FILE, {**about, "points": points})


def asked(folder: Path) -> dict[str, Any]:
    """What was written down.

    Raises:
        UsageError: nothing, yet.
    """
    found = read_json(folder / _FILE)
    if not isinstance(found, dict) or "points" not in found:
        raise UsageError(f"{folder} holds no points of guidex sweep or sample; give their folder")
    return found


def seeds_asked(folder: Path) -> set[int]:
    """All seeds, of all points; none where nothing was asked."""
    points = (read_json(folder / _FILE) or {}).get("points", ())
    return {seed for point in points if "seeds" in point for seed in Block.of(point).seeds}


def progress(folder: RunFolder) -> Iterator[tuple[str, int, int]]:
    """Of each point its swept values, its seeds, and how many of them are missing."""
    for point in asked(folder.path)["points"]:
        if "point" in point:
            store = Store(folder, Block.of(point))
            lacks = sum(store.lacks(point["point"], output) for output in point["kept"])
            yield words_of(point["values"]), len(lacks), int((lacks > 0).sum())


def table_of(folder: Path, plugin_word: str | None) -> Table:
    """The table last asked for, planned anew; on a machine without the device that it was made on,
    for the CPU.

    Raises:
        UsageError: it is no table; it names code of the user's own, and that is not given.
    """
    found = asked(folder)
    if found["command"] != "sweep":
        raise UsageError(f"{folder} holds images of guidex sample, no table; guidex eval measures")
    needed = {point["config"].get("plugin") for point in found["points"] if "point" in point}
    if plugin_word is not None:
        plugin.register(plugin_word)
    elif needed != {None}:
        raise UsageError(
            f"{folder} was made with code of your own, plugin={max(needed - {None})}; say so "
            "again, since this code is run"
        )
    entries, models = [], {}
    for point in found["points"]:
        planned, values = None, point["values"]
        if "point" in point:
            composed = Composed(point["config"], point["choices"])
            planned = check(composed, values, models, Settings.anywhere(composed.config))
        entries.append(Entry(values, planned, point["missing"]))
    base = next(entry.planned for entry in entries if entry.planned)
    return Table(Composed(base.config, base.choices), entries, found["chosen"])
