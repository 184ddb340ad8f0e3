"""What was last asked of a run's folder, `asked.json`: its points, and what is kept of each."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

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


class Progress(NamedTuple):
    """Of a point: its swept values, and how many of its seeds are wanted and there."""

    values: str
    seeds: int
    done: int


def ask(folder: RunFolder, entries: Sequence[Entry], tasks: Sequence[Task], **about: Any) -> None:
    """Write it down."""
    kept = {task.index: task for task in tasks}
    points = []
    for index, entry in enumerate(entries):
        point: dict[str, Any] = {"values": entry.values, "missing": entry.missing}
        if index in kept:
            planned = kept[index].point.planned
            point |= {
                "choices": planned.choices,
                "config": {**planned.config, **planned.settings.identity},
                "point": kept[index].name,
                "kept": [output.name for output in kept[index].outputs if output.seeds is None],
                **Block(planned.seeds, planned.labels).spelled,
            }
        points.append(point)
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


def progress(folder: RunFolder) -> Iterator[Progress]:
    """How far each point is."""
    for point in asked(folder.path)["points"]:
        if "point" in point:
            block = Block.of(point)
            store = Store(folder, block)
            lacks = sum(store.lacks(point["point"], output) for output in point["kept"])
            done = len(block.seeds) - int((lacks > 0).sum())
            yield Progress(words_of(point["values"]), len(block.seeds), done)


def table_of(folder: Path, plugin_word: str | None) -> Table:
    """The table last asked for, planned anew; on a machine without the device that it was made on,
    for the CPU.

    Raises:
        UsageError: it is no table; it names code of the user's own, and that is not given.
    """
    found = asked(folder)
    if found["command"] != "sweep":
        raise UsageError(f"{folder} holds images of guidex sample, no table; guidex eval measures")
    if plugin_word is not None:
        plugin.register(plugin_word)
    entries, models = [], {}
    for point in found["points"]:
        if "point" not in point:
            entries.append(Entry(point["values"], None, point["missing"]))
            continue
        config = point["config"]
        if config.get("plugin") and plugin_word is None:
            raise UsageError(
                f"{folder} was made with code of your own, plugin={config['plugin']}; say so "
                "again, since this code is run"
            )
        composed = Composed(config, point["choices"])
        planned = check(composed, point["values"], models, Settings.anywhere(config))
        entries.append(Entry(point["values"], planned, None))
    base = next(entry.planned for entry in entries if entry.planned)
    return Table(Composed(base.config, base.choices), entries, found["chosen"])
