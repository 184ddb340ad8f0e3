"""What a table answers: the best point of each metric, and the command that samples it."""

import functools
import json
import shlex
from collections.abc import Sequence
from typing import NamedTuple

from guidex.config.compose import as_text, compose, flat
from guidex.config.presets import own_folder
from guidex.errors import UsageError
from guidex.reports.labels import plain, point_label
from guidex.reports.notes import differing
from guidex.reports.rows import Row, best_rows, best_text, exact, main_metrics, metric_name

# What decides images, and may differ between points of a table.
_PARTS = ("model", "guidance", "sampler", "decoder", "seeds", "labels", "rng")


class Answer(NamedTuple):
    """The best point of some metrics in words, and the command that samples it, if there is one."""

    text: str
    command: str | None
    row: Row


def answers(rows: Sequence[Row]) -> list[Answer]:
    """The best points, each with all the metrics that it is best in; of points that print alike the
    one of fewest evaluations. None where points do not compare."""
    names: dict[int, list[str]] = {}
    metrics = main_metrics(rows) if not differing(rows) else []
    for metric in metrics:
        values = metric.finite(rows)
        best, alike = best_text(values, metric), best_rows(rows, metric)
        if 0 < len(alike) <= len(values) / 2:  # else most are as good
            row = min(alike, key=lambda row: row.evals_main + row.evals_ref)
            of = f" (level with {len(alike) - 1} more)" if len(alike) > 1 else ""
            names.setdefault(row.point, []).append(f"{metric_name(metric, metrics)} {best}{of}")
    by_point = {row.point: row for row in rows}
    return [
        Answer(f"Best {', '.join(found)}: {plain(point_label(row, rows, ()))}", command(row), row)
        for row, found in ((by_point[point], found) for point, found in names.items())
    ]


def command(row: Row) -> str | None:
    """The words that sample a row's point, `guidex sample …`; None where its record does not say
    enough, or says what today's presets cannot."""
    parts = {name: row.config.get(name) for name in _PARTS}
    extra = [] if own_folder() is None else ["--config-dir", str(own_folder())]
    if (plugin := row.config.get("plugin")) is not None:
        extra.append(f"plugin={plugin}")
    words = _words(json.dumps([parts, row.provenance.get("presets", {}), row.values]))
    line = shlex.join(["guidex", "sample", *(words or ()), *extra])
    return line if words is not None and line.isprintable() else None


@functools.lru_cache(maxsize=256)
def _words(record: str) -> list[str] | None:
    """Overrides of `guidex sample` that compose the parts of a record, given as JSON: the presets
    chosen, the swept values, and whatever else is not as these make it."""
    wanted, presets, values = json.loads(record)
    try:
        words = [f"guidance={presets['guidance']}"]
        for groups in (("model", "sampler", "decoder"), presets):
            usual = compose("sample", words).choices
            known = [group for group in groups if group in usual and group != "experiment"]
            words += [f"{k}={presets[k]}" for k in known if presets[k] != usual[k]]
        own = [key for key in values if key.partition(".")[0] in wanted and "." in key]
        words += [f"{key}={exact(values[key])}" for key in own]
        for _ in range(20):
            found = flat({key: compose("sample", words).config[key] for key in wanted})
            other = [(k, v) for k, v in flat(wanted).items() if k not in found or found[k] != v]
            if not other:
                return words
            key, value = other[0]
            if key.endswith("_target_"):
                return None  # of a preset that is another one today
            words.append(f"{key}={as_text(value)}")
    except (UsageError, KeyError):
        pass
    return None
