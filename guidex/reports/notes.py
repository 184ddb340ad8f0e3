"""What must be said below a table: what its numbers are, what hinders their comparison, and which
best values lie on the edge of what was tried, beyond which better ones may lie."""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from guidex.metrics.differences import LEVEL
from guidex.reports.labels import last, method_label, relevant, short_names
from guidex.reports.published import published_notes
from guidex.reports.rows import (
    MetricColumn,
    Row,
    Value,
    best_rows,
    chief_metrics,
    is_number,
    main_metrics,
    metric_name,
    one_line,
    runs,
    shown,
    spread,
    swept_keys,
)


def notes(rows: Sequence[Row], remarks: Sequence[str]) -> list[str]:
    """What the numbers are, with some remarks, in one line, and what hinders their comparison in
    others."""
    parts = [*_common(rows), *_settings(rows), runs(rows)]
    metrics = main_metrics(rows)
    spreads = {spread(row, metric.name) for row in rows for metric in metrics}
    sources = {ends.source for ends in spreads - {None}}
    if any(row.repeats > 1 for row in rows):
        around = " (min–max in parentheses)" if "repeats" in sources else ""
        parts.append(f"values are medians of the repeats{around}")
    if "confidence" in sources:
        parts.append("confidence interval, with its centre, in brackets")
    if (baseline := rows[0].config.get("baseline", "best")) not in (None, "best"):
        told = any(f"{m.name}_difference" in r.metrics for r in rows for m in main_metrics(rows))
        lack = "" if told else " are not known: too few images, or none of the same seeds"
        parts.append(f"differences to the baseline, {baseline}, with {LEVEL:.0%} intervals{lack}")
    lines = ["; ".join([*parts, *remarks]) + "."]
    if apart := differing(rows):
        lines.append(
            f"No best values are marked, since points differ in {', '.join(apart)}, which metrics "
            "depend on."
        )
    elif places := _edges(rows):
        lines.append(
            "Best values on the edge of an axis, beyond which better ones may lie: "
            f"{'; '.join(places)}."
        )
    lines += published_notes(rows)
    short = short_names(swept_keys(rows))
    for row in rows:
        unnamed = row.guidance == "" or "guidance" in row.values
        values = [] if unnamed else [f"guidance {shown(row.guidance)}"]
        values += [f"{short[key]} {shown(value)}" for key, value in row.values.items()]
        point = f"{row.point} ({', '.join(values)})"
        if not row.is_measured:
            lines.append(f"Missing: point {point}: {one_line(row.missing)}")
        elif row.note is not None:
            lines.append(f"Point {point}: {one_line(row.note)}")
    return lines


def origin(rows: Sequence[Row]) -> list[str]:
    """The version, the date and the command that made the rows, for tables that travel."""
    made = [row.provenance for row in rows if {"guidex", "command"} <= row.provenance.keys()]
    return list(dict.fromkeys("guidex {guidex}, {date}: {command}".format(**m) for m in made))


def differing(rows: Sequence[Row]) -> list[str]:
    """Settings that metrics depend on and are not the same for all rows; with any, no value is the
    best."""
    records = [{"images": row.images, **row.settings} for row in rows if len(row.metrics) > 0]
    names = dict.fromkeys(name for record in records for name in record)
    return [name for name in names if len({shown(record.get(name)) for record in records}) > 1]


def _common(rows: Sequence[Row]) -> list[str]:
    """What all points have in common, as no column says it: weights and bounds, model, sampler,
    steps, seeds, images."""
    several = len({row.guidance for row in rows} - {"none"}) > 1
    records = []
    for row in rows:
        presets = row.provenance.get("presets", {})
        record = {name: presets.get(name) for name in ("model", "sampler")}
        record |= {name: row.config.get(name) for name in ("seeds", "images")}
        record |= {"steps": row.plan.get("steps")}
        schedules = {
            key: value
            for key, value in _leaves("guidance", row.config.get("guidance"))
            if last(key) in ("w", "lo", "hi") or (last(key) == "unit" and value != "sigma")
            if key not in row.values
        }
        prefix = f"{row.guidance} " if several else ""
        for key, short in short_names(list(schedules)).items():
            record[f"{prefix}{short}"] = schedules[key]
        records.append({k: v for k, v in record.items() if v is not None and k not in row.values})
    return [f"{name} {values[0]}" for name, values in _by_name(records).items() if len(values) == 1]


def _leaves(key: str, node: Any) -> Iterator[tuple[str, Any]]:
    """The values of nested dicts with their dotted keys."""
    if not isinstance(node, dict):
        yield key, node
        return
    for name, child in node.items():
        yield from _leaves(f"{key}.{name}", child)


def _settings(rows: Sequence[Row]) -> list[str]:
    """Each setting with its values over all rows."""
    return [f"{name} {' / '.join(v)}" for name, v in _by_name(row.settings for row in rows).items()]


def _by_name(records: Iterable[Mapping[str, Value]]) -> dict[str, list[str]]:
    """All values under each name, as shown, in order of first appearance."""
    texts: dict[str, dict[str, None]] = {}
    for record in records:
        for name, value in record.items():
            texts.setdefault(name, {})[shown(value)] = None
    return {name: list(values) for name, values in texts.items()}


def _edges(rows: Sequence[Row]) -> list[str]:
    """Which metrics are best on an edge, and where: of all rows, and the chief ones, by which one
    compares, also of each method."""
    short, metrics = short_names(swept_keys(rows)), main_metrics(rows)
    methods: dict[str, list[Row]] = {}
    for row in rows:
        methods.setdefault(method_label(row), []).append(row)
    places: dict[str, list[str]] = {}
    for metric in metrics:
        for some in methods.values() if metric in chief_metrics(metrics) else [rows]:
            row, keys = edge_of_best(some, metric)
            place = ", ".join(f"{short[key]} = {shown(row.values[key])}" for key in keys)
            place += f" of {method_label(row)}" if len(methods.keys() - {""}) > 1 else ""
            if len(keys) > 0:
                places.setdefault(place, []).append(metric_name(metric, metrics))
    return [f"{', '.join(names)} at {place}" for place, names in places.items()]


def edge_of_best(rows: Sequence[Row], metric: MetricColumn) -> tuple[Row, list[str]]:
    """The best row, and the swept keys at whose first or last value it lies.

    An axis of a row is a numeric key of guidance, sampler or model, over the rows that agree with
    it in all other keys (in zip mode, in all that are no numbers). It does not end where there is
    nothing beyond: at w = 1, which is no guidance, at 0, and at infinity.

    Missing rows are part of their axes, and values that print alike are equally good. There are no
    keys without two values, a direction of better ones, or a common edge of equally good ones.
    """
    alike = best_rows(rows, metric)
    if len(alike) == 0:
        return rows[0], []
    common = set.intersection(*(_ends(row, rows) for row in alike))
    return alike[0], [key for key, value in alike[0].values.items() if (key, value) in common]


def _ends(row: Row, rows: Sequence[Row]) -> set[tuple[str, Value]]:
    """The keys and values of a row that are the first or last of their axes."""
    ends = set()
    for key, value in relevant(row).items():
        alike = [other for other in rows if _without(other, key) == _without(row, key)]
        axis = {other.values.get(key) for other in alike}
        axis = {other for other in axis if is_number(other)}
        nothing_beyond = {1 if last(key) == "w" else 0, math.inf}
        if "." in key and is_number(value) and len(axis) > 1:
            ends |= {(key, end) for end in {min(axis), max(axis)} - nothing_beyond if end == value}
    return ends


def _without(row: Row, key: str) -> dict[str, Value]:
    """What a row has in common with the others of an axis."""
    paired = row.config.get("sweep", {}).get("mode") == "zip"
    return {k: v for k, v in row.values.items() if k != key and not (paired and is_number(v))}
