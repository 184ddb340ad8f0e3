"""`guidex compare`: the tables of several runs as one, where they were measured alike."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from guidex.commands.words import split_words
from guidex.config.compose import value_at
from guidex.errors import UsageError
from guidex.reports.baselines import with_differences
from guidex.reports.plots import write_plots
from guidex.reports.rows import Row, read_rows, swept_keys
from guidex.reports.tables import terminal_table, write_tables
from guidex.runs.folder import run_folder

# What numbers depend on, whatever the metric; other settings concern those who have them.
_PROTOCOL = ("detector", "reference", "resize", "weights", "precision", "fakes", "labels")
_PROTOCOL += ("read as",)


def compare(words: Sequence[str]) -> None:
    """Run the command: folders of runs, maybe baseline=… and out=FOLDER."""
    places, settings = split_words(words, ("baseline", "out"))
    folders = [Path(place).expanduser() for place in places]
    if len({folder.resolve() for folder in folders}) != len(folders) or len(folders) < 2:
        raise UsageError("compare takes the folders of two or more runs, each once")
    names = [folder.resolve().name for folder in folders]
    names = names if len(set(names)) == len(names) else places
    runs = {name: read_rows(folder) for name, folder in zip(names, folders, strict=True)}
    baseline = settings.get("baseline", "best")
    _check_alike(runs)
    keys = swept_keys(row for own in runs.values() for row in own)
    rows: list[Row] = []
    for name, own in runs.items():
        print(f"{name}: {'; '.join({row.provenance.get('command', ''): None for row in own})}")
        for row in own:
            found = {"run": name, **{k: value_at(row.config, k, {}) for k in keys}, **row.values}
            values = {key: value for key, value in found.items() if not isinstance(value, dict)}
            config = {**row.config, "baseline": baseline}
            rows.append(replace(row, point=len(rows), values=values, config=config))
    rows, files = with_differences(rows, baseline), []
    if (out := settings.get("out")) is not None:
        identity = {"command": "compare", "runs": [str(f.resolve()) for f in folders]}
        with run_folder(Path(str(out)).expanduser(), identity, overwrite=False) as held:
            files = [*write_tables(rows, held.path), *write_plots(rows, held.path)]
    print("", terminal_table(rows), *files, sep="\n")


def _check_alike(runs: Mapping[str, Sequence[Row]]) -> None:
    """Refuse runs that were not measured alike, naming what differs."""
    found: dict[str, dict[str, dict[str, None]]] = {}  # names of runs by key and value
    for name, rows in runs.items():
        for record in (_protocol(row) for row in rows if row.is_measured):
            for key, value in {**dict.fromkeys(_PROTOCOL, "none"), **record}.items():
                found.setdefault(key, {}).setdefault(str(value), {})[name] = None
    lines = ["these runs do not compare, since they differ in"]
    for key, values in found.items():
        each = (f"{value:.60} in {', '.join(names)}" for value, names in values.items())
        lines += [f"  {key}: {'; '.join(each)}"] if len(values) > 1 else []
    if len(lines) > 1:
        raise UsageError("\n".join(lines))


def _protocol(row: Row) -> dict[str, Any]:
    """What its numbers depend on beside the images, with the content of files."""
    about = {**row.config, **row.provenance}
    record = {"images": row.images, **row.settings}
    for real in about.get("reals", []):
        sha256 = real.get("sha256") or about.get("origins", {}).get("main", {}).get("sha256")
        record |= {f"content of {real.get('path', real.get('model'))}": sha256} if sha256 else {}
    for detector in about.get("detectors", []):
        identity = detector.get("detector", {})
        record |= {f"weights of {identity['name']}": identity["weights"]} if identity else {}
    return record
