"""What figures show: which keys are axes, which points make a curve or a map, in which panel."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from guidex.reports.labels import last, point_label, relevant, value_label
from guidex.reports.rows import MetricColumn, Row, Value, is_number, swept_keys

MOST_CURVES = 8  # in one panel


@dataclass(frozen=True, eq=False)
class Series:
    """Points that differ in one value only.

    Attributes:
        rows: ordered by that value.
        key: its key; None for points that do not have it, which are no curve.
    """

    rows: Sequence[Row]
    key: str | None

    @property
    def is_curve(self) -> bool:
        return self.key is not None

    @property
    def x(self) -> list[float]:
        """The value [len(rows)] of a curve, 0 without one."""
        return [float(row.values[self.key]) if self.is_curve else 0.0 for row in self.rows]

    @property
    def place(self) -> dict[str, Value]:
        """What may tell it from others, by swept key; guidance is such a key of curves."""
        values = {key: value for key, value in relevant(self.rows[0]).items() if key != self.key}
        return {"guidance": self.rows[0].guidance, **values} if self.is_curve else values

    def values(self, metric: MetricColumn) -> np.ndarray:
        """A metric [len(rows)], float64, NaN where there is none."""
        return np.array([row.metrics.get(metric.name, math.nan) for row in self.rows])

    def has(self, *metrics: MetricColumn) -> bool:
        """Whether a point has all of these metrics."""
        return bool(np.isfinite([self.values(metric) for metric in metrics]).all(axis=0).any())


# The series of a panel with their labels.
Members = dict[Series, str]


def numbers(rows: Sequence[Row], key: str) -> set[float]:
    """The values under a key, if all that there are are numbers; else none."""
    values = [row.values[key] for row in rows if key in row.values]
    return {float(v) for v in values} if all(is_number(v) for v in values) else set()


def curve_keys(rows: Sequence[Row]) -> list[str]:
    """The keys that may be the horizontal axis: those of w, or the numeric one with most values."""
    values = {key: numbers(rows, key) for key in swept_keys(rows)}
    weights = [key for key in values if last(key) == "w" and len(values[key]) > 0]
    if len(set().union(*(values[key] for key in weights))) > 1:
        return weights
    most = max(values, key=lambda key: len(values[key]), default=None)
    return [most] if most is not None and len(values[most]) > 1 else []


def series_of(rows: Sequence[Row], keys: Sequence[str]) -> list[Series]:
    """The series along some keys, curves first."""
    members: dict[tuple[bool, str, str | None], list[Row]] = {}
    for row in rows:
        # Of several weights, the one that varies most.
        values = relevant(row)
        finite = [key for key in keys if key in values and math.isfinite(values[key])]
        alike = [other for other in rows if other.guidance == row.guidance]
        key = max(finite, key=lambda key: len(numbers(alike, key)), default=None)
        label = point_label(row, rows, without=(key,))
        members.setdefault((key is None, label, key), []).append(row)
    return [
        Series(sorted(some, key=lambda row: row.values.get(key, 0)), key)
        for (_, _, key), some in sorted(members.items(), key=lambda item: item[0][0])
    ]


def panels_of(series: Sequence[Series], rows: Sequence[Row]) -> dict[str, Members]:
    """The series of each small panel, by its title.

    Many series are parted by the key that makes the fewest panels; one without it is in all. Where
    no key will do, they are parted in their order.
    """
    if len(series) <= MOST_CURVES:
        return {"": _labelled(series, rows)}
    keys = dict.fromkeys(key for s in series for key in s.place)
    ways = [_parted(series, rows, key) for key in keys]
    few = len(series) // 2  # else hardly more than one series would be in each
    ways = [w for w in ways if len(w) <= few and max(map(len, w.values())) <= MOST_CURVES]
    if len(ways) > 0:
        return min(ways, key=len)
    labels = _labelled(series, rows)
    parts = [series[k : k + MOST_CURVES] for k in range(0, len(series), MOST_CURVES)]
    return {f"from {labels[part[0]]}": {s: labels[s] for s in part} for part in parts}


def _labelled(series: Sequence[Series], rows: Sequence[Row], key: str | None = None) -> Members:
    return {s: point_label(s.rows[0], rows, (s.key, key)) for s in series}


def _parted(series: Sequence[Series], rows: Sequence[Row], key: str) -> dict[str, Members]:
    """A panel for each value of a key."""
    firsts = {s.place[key]: s.rows[0] for s in reversed(series) if key in s.place}
    return {
        value_label(row, rows, key): _labelled(
            [s for s in series if s.place.get(key, value) == value], rows, key
        )
        for value, row in reversed(firsts.items())
    }
