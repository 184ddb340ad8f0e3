"""Best values that lie on the edge of what was tried, beyond which better ones may lie."""

from collections.abc import Sequence

import numpy as np

from guidex.reports.labels import last, method_label, relevant, short_names, unit
from guidex.reports.rows import (
    MetricColumn,
    Row,
    Value,
    best_text,
    chief_metrics,
    is_number,
    main_metrics,
    metric_name,
    shown,
    swept_keys,
)


def edges(rows: Sequence[Row]) -> list[str]:
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
    nothing beyond: at w = 1, which is no guidance, at 0, at infinity, and where an interval
    reaches the sampler's first or last step.

    Missing rows are part of their axes, and values that print alike are equally good. There are no
    keys without two values, a direction of better ones, or a common edge of equally good ones.
    """
    measured = [row for row in rows if metric.name in row.metrics]
    values = [row.metrics[metric.name] for row in measured]
    best, digits = best_text(values, metric), metric.decimals(values)
    if best is None:
        return rows[0], []
    alike = [row for row in measured if f"{row.metrics[metric.name]:.{digits}f}" == best]
    common = set.intersection(*(_ends(row, rows) for row in alike))
    return alike[0], [key for key, value in alike[0].values.items() if (key, value) in common]


def _ends(row: Row, rows: Sequence[Row]) -> set[tuple[str, Value]]:
    """The keys and values of a row that are the first or last of their axes."""
    ends = set()
    for key, value in relevant(row).items():
        others = [
            other.values.get(key) for other in rows if _without(other, key) == _without(row, key)
        ]
        axis = {other for other in others if is_number(other)}
        if "." in key and is_number(value) and len(axis) > 1:
            lowest = value == min(axis) and not _is_natural(row, key, low=True)
            if lowest or (value == max(axis) and not _is_natural(row, key, low=False)):
                ends.add((key, value))
    return ends


def _without(row: Row, key: str) -> dict[str, Value]:
    """What a row has in common with the others of an axis."""
    paired = row.config.get("sweep", {}).get("mode") == "zip"
    return {k: v for k, v in row.values.items() if k != key and not (paired and is_number(v))}


def _is_natural(row: Row, key: str, low: bool) -> bool:
    """Whether there is nothing beyond the lowest or highest value of an axis, which the row has."""
    name, value = last(key), row.values[key]
    if np.isinf(value) or (low and value == (1 if name == "w" else 0)):
        return True
    if name != ("lo" if low else "hi") or "weights" not in row.plan:
        return False
    guided = (np.array(row.plan["weights"]) != 1).any(axis=(0, 2))
    # A bound in sigma counts down to 0, steps count up to the last.
    return bool(guided[0 if (name == "hi") == (unit(row, key) == "sigma") else -1])
