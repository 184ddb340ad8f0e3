"""Rows with their differences to a baseline, and which of them may be the best, with confidence
(see `guidex.metrics.differences`)."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from guidex.errors import UsageError
from guidex.metrics.differences import among_best, difference
from guidex.reports.notes import differing
from guidex.reports.rows import MetricColumn, Row, Value, exact, main_metrics

# Swept values of a point; None for one that will have no numbers.
Point = Mapping[str, Value] | None


def with_differences(rows: Sequence[Row], baseline: Any) -> list[Row]:
    """Of each metric that has pseudo-values the columns <metric>_difference, to the baseline, with
    its interval, _lo and _hi; and in `among_best` the metrics that a row may be the best in. Only
    rows of the same seeds, measured alike, are compared.

    Arguments:
        baseline: see `baseline_of`; None for no differences.
    """
    if baseline is None:
        return list(rows)
    number = baseline_of(baseline, [row.values if row.is_measured else None for row in rows])
    ends = ("_difference", "_difference_lo", "_difference_hi")
    rows = [
        replace(
            row,
            metrics={k: v for k, v in row.metrics.items() if not k.endswith(ends)},
            among_best=[],
        )
        for row in rows
    ]
    for metric in main_metrics(rows):
        name, best = metric.name, _best(rows, metric)
        base = best if number is None else rows[number]
        for row in _alike(rows, base, name):
            if row is not base:
                values = row.pseudovalues[name], base.pseudovalues[name]
                apart = difference(*values, least=_least(base, metric))
                row.metrics.update({name + end: x for end, x in zip(ends, apart, strict=True)})
        alike = [] if differing(rows) else _alike(rows, best, name)
        sign = 1 if metric.column.better == "lower" else -1
        values = [row.pseudovalues[name] for row in alike]
        least = _least(best, metric) if alike else 0.0
        for row in among_best(alike, values, best, sign, least=least):
            row.among_best.append(name)
    return rows


def baseline_of(baseline: Any, points: Sequence[Point]) -> int | None:
    """The number of the point that a baseline names; None for "best", which is by each metric.

    Arguments:
        baseline: a number, from 0, or swept values that only one point has, such as
            "guidance=interval w=8", keys maybe without what is before their last names.

    Raises:
        UsageError: no such point, or several.
    """
    if baseline in (None, "best"):
        return None
    words = [word.partition("=") for word in str(baseline).split()]
    found = [
        number
        for number, values in enumerate(points)
        if values is not None
        and (str(number) == str(baseline) or all(_has(values, key, text) for key, _, text in words))
    ]
    if len(found) != 1:
        example = next(values for values in reversed(points) if values is not None)
        words = " ".join(f"{key}={exact(value)}" for key, value in example.items())
        raise UsageError(
            f"baseline={baseline} names {len(found) or 'none'} of the points; give best, a number "
            f"from 0 to {len(points) - 1}, or values that one point has, such as 'baseline={words}'"
        )
    return found[0]


def _has(values: Mapping[str, Value], key: str, text: str) -> bool:
    """Whether a point has a value under a key, or under one that ends in it."""
    found = [value for name, value in values.items() if f".{name}".endswith(f".{key}")]
    return any(text in (exact(value), exact(value).removesuffix(".0")) for value in found)


def _best(rows: Sequence[Row], metric: MetricColumn) -> Row | None:
    """None without a direction or values."""
    finite = [row for row in rows if math.isfinite(row.metrics.get(metric.name, math.nan))]
    better = {"lower": min, "higher": max}.get(metric.column.better)
    return better(finite, key=lambda row: row.metrics[metric.name]) if better and finite else None


def _least(row: Row, metric: MetricColumn) -> float:
    """The least standard error of a difference to a row."""
    return 1 / (row.images * row.repeats) if metric.column.is_share else 0.0


def _alike(rows: Sequence[Row], base: Row | None, name: str) -> list[Row]:
    """Those of the same seeds as one of them, measured alike; none where that has no
    pseudo-values."""

    def seeds(row: Row) -> list[Any]:
        asked = [row.config.get(key) for key in ("seeds", "labels", "rng")]
        return [asked, row.images, row.repeats, row.settings, len(row.pseudovalues[name])]

    if base is None or name not in base.pseudovalues:
        return []
    return [row for row in rows if name in row.pseudovalues and seeds(row) == seeds(base)]
