"""`guidex table` and `guidex status`: what a folder has of the points last asked for."""

from collections.abc import Sequence
from pathlib import Path

from guidex.commands.sweep import fill, show
from guidex.commands.words import split_words
from guidex.errors import GuidexError, UsageError
from guidex.reports.rows import counted
from guidex.runs.asked import asked, progress, table_of
from guidex.runs.folder import opened


def table_command(words: Sequence[str]) -> None:
    """Write tables and figures of what is there.

    Raises:
        GuidexError: points are missing; said last.
    """
    folders, settings = split_words(words, ["plugin"])
    folder = _only(folders)
    table = table_of(folder, settings.get("plugin"))
    rows = fill(table, folder, asked(folder)["made"], sampling=False)
    show(rows, folder)
    wanted = [row for row, entry in zip(rows, table.entries, strict=True) if entry.planned]
    missing = sum(row.missing is not None for row in wanted)
    if missing:
        raise GuidexError(
            f"samples of {missing} of {counted(len(wanted), 'point')} are missing; guidex status "
            f"{folder} tells how many"
        )


def status(words: Sequence[str]) -> None:
    """Print how far each point is, who is at work, and who did not come to an end."""
    folder = opened(_only(split_words(words, [])[0]))
    points = list(progress(folder))
    whole = sum(missing == 0 for *_, missing in points)
    seeds, left = sum(point[1] for point in points), sum(point[2] for point in points)
    said = f"{whole} of {counted(len(points), 'point')}, {seeds - left} of {seeds} samples"
    print(f"{folder.path}: {said}")
    for values, count, missing in points:
        if missing:
            print(f"  missing: {missing} of {count} at {values or 'the point'}")
    for worker in folder.workers().values():
        error = worker.get("error", "it was killed, or its machine went down")
        state = "at work" if worker["at work"] else f"did not come to an end: {error}"
        print(f"  {worker['host']}, process {worker['process']}, since {worker['begun']}: {state}")


def _only(folders: Sequence[str]) -> Path:
    if len(folders) != 1:
        raise UsageError("give the folder of one run, for example outputs/sweep/interval-digits")
    return Path(folders[0]).expanduser()
