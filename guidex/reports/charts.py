"""What the charts of a table show: which points make a curve, in which panel, each metric against
the guidance weight, precision against recall, and quality against cost."""

import itertools
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from matplotlib.cm import ScalarMappable

from guidex.reports.labels import (
    axis_label,
    last,
    metric_label,
    plain,
    point_label,
    relevant,
    value_label,
)
from guidex.reports.published import published_value
from guidex.reports.rows import (
    MetricColumn,
    Row,
    Value,
    chief_metrics,
    is_number,
    main_metrics,
    spread,
    swept_keys,
)

MOST_CURVES = 8  # in one panel


class Spot(NamedTuple):
    """A point of a chart, what is read out of it, and the ends of its band; NaN for what there is
    not."""

    x: float
    y: float
    row: Row
    text: str
    low: float = math.nan
    high: float = math.nan


class Square(NamedTuple):
    """A point of a map: its column and line, what is read out of it, and its value, also as text;
    NaN and "" for none."""

    x: int
    y: int
    row: Row
    text: str
    value: float
    words: str
    is_best: bool


class Trace(NamedTuple):
    """Spots of one label. The kind is line or path (neighbours are joined, with their band or
    without), dots, level (lines across, whatever x is), published (open marks), front (a stair) or
    map (squares).
    """

    kind: str
    label: str
    spots: Sequence[Spot] | Sequence[Square]


class Chart(NamedTuple):
    """Traces over two labelled axes, one of several panels or of none (""); shares end at 1."""

    x: str
    y: str
    panel: str
    traces: list[Trace]
    is_log: bool = False
    are_shares: tuple[bool, bool] = (False, False)
    remarks: Sequence[str] = ()

    @property
    def subject(self) -> tuple[str, str]:
        """What is shown, over what."""
        return self.y, f"against {self.x}"


class Map(NamedTuple):
    """A metric over two labelled axes with names of columns and lines, one of several panels."""

    x: str
    y: str
    panel: str
    metric: str
    squares: list[Square]
    ticks: tuple[list[str], list[str]]
    colours: ScalarMappable
    remarks: Sequence[str]

    @property
    def traces(self) -> list[Trace]:
        return [Trace("map", "", self.squares)]

    @property
    def subject(self) -> tuple[str, str]:
        return self.metric, f"over {self.x} and {self.y}"


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


def names_of(rows: Sequence[Row]) -> dict[int, str]:
    """What each point is called, by its number."""
    return {row.point: plain(point_label(row, rows, ())) for row in rows}


def curves(rows: Sequence[Row]) -> list[Chart]:
    """Each metric against w, in its panels; none where no numeric key has two values."""
    keys = curve_keys(rows)
    series = series_of(rows, keys)
    metrics = [metric for metric in main_metrics(rows) if any(s.has(metric) for s in series)]
    series = [s for s in series if any(s.has(metric) for metric in metrics)]
    charts, names = [], names_of(rows)
    panels = panels_of(series, rows) if any(s.is_curve for s in series) else {}
    for metric, (panel, members) in itertools.product(metrics, panels.items()):
        traces = []
        for s, label in members.items():
            traces.append(_trace("line" if s.is_curve else "level", s, label, metric, s.x, names))
            if s.is_curve:
                traces.append(_trace("published", s, label, metric, s.x, names))
        values = [value for s in series for value in s.values(metric) if math.isfinite(value)]
        is_log = metric.column.is_chief and max(values) > 8 * min(values) > 0
        shares = (False, metric.column.is_share)
        axis = axis_label(keys[0], rows)
        seen = _seen(traces)
        sources = {ends.source for row in rows if (ends := spread(row, metric.name)) is not None}
        remarks = [text for source, text in _BANDS.items() if source in sources]
        published = ["open marks: published"] if any(t.kind == "published" for t in seen) else []
        about = (is_log, shares, [*remarks, *published])
        charts.append(Chart(axis, metric_label(metric), panel, seen, *about))
    return charts


_BANDS = {"repeats": "median, band: min–max", "confidence": "band: confidence interval"}


def precision_recall(rows: Sequence[Row]) -> list[Chart]:
    """Precision against recall in the space of each detector; none without them."""
    series = series_of(rows, curve_keys(rows))
    pairs = [
        (recall, precision)
        for precision, recall in itertools.product(main_metrics(rows), repeat=2)
        if precision.column.against == recall.column.name != ""
        and precision.detector == recall.detector
        and any(s.has(recall, precision) for s in series)
    ]
    series = [s for s in series if any(s.has(*pair) for pair in pairs)]
    charts, names = [], names_of(rows)
    panels = panels_of(series, rows) if len(series) > 0 else {}
    for (recall, precision), (panel, members) in itertools.product(pairs, panels.items()):
        traces = [
            _trace("path" if s.is_curve else "dots", s, label, precision, s.values(recall), names)
            for s, label in members.items()
        ]
        shares = (recall.column.is_share, precision.column.is_share)
        axes = metric_label(recall), metric_label(precision)
        charts.append(Chart(*axes, panel, _seen(traces), are_shares=shares))
    return charts


def costs(rows: Sequence[Row]) -> list[Chart]:
    """The chief metrics against evaluations and GFLOP, where they differ, with what nothing cheaper
    is better than."""
    series, names = series_of(rows, curve_keys(rows)), names_of(rows)
    charts = []
    for metric, name in itertools.product(chief_metrics(main_metrics(rows)), _COSTS):
        known = [row for row in rows if row.is_priced and metric.name in row.metrics]
        if len({_COSTS[name](row) for row in known}) > 1:
            traces = [
                _trace(kind, s, label, metric, map(_COSTS[name], s.rows), names)
                for members in panels_of(series, rows).values()
                for s, label in members.items()
                for kind in ("dots", "published")
            ]
            traces = _seen([_front(metric, traces), *traces])
            charts.append(Chart(name, metric_label(metric), "", traces))
    return charts


_COSTS = {
    "evaluations per image": lambda row: float(row.evals_main + row.evals_ref),
    "GFLOP per image": lambda row: row.gflops,
}


def _trace(
    kind: str,
    s: Series,
    label: str,
    metric: MetricColumn,
    x: Iterable[float],
    names: dict[int, str],
) -> Trace:
    """A metric of a series, or what was published of it, over the values x."""
    digits, name = metric.decimals(s.values(metric)), plain(metric_label(metric))
    spots = []
    for row, place in zip(s.rows, x, strict=True):
        y, ends = row.metrics.get(metric.name, math.nan), spread(row, metric.name)
        said = ""
        if kind == "published":
            y, said = published_value(row, metric.name), " as published"
            y = math.nan if y is None else y
        band = (ends.low, ends.high) if ends and kind == "line" else (math.nan, math.nan)
        y = y if math.isfinite(place) else math.nan
        spots.append(Spot(place, y, row, f"{names[row.point]}: {name} {y:.{digits}f}{said}", *band))
    return Trace(kind, label, spots)


def _seen(traces: Iterable[Trace]) -> list[Trace]:
    """Those of which there is something to be seen."""
    return [t for t in traces if any(math.isfinite(spot.y) for spot in t.spots)]


def _front(metric: MetricColumn, traces: Sequence[Trace]) -> Trace:
    """The points that no cheaper one, and none of the same cost, is better than."""
    spots = [s for t in traces if t.kind == "dots" for s in t.spots if math.isfinite(s.y)]
    sign = -1 if metric.column.better == "higher" else 1
    front: list[Spot] = []
    for spot in sorted(spots, key=lambda spot: (spot.x, sign * spot.y)):
        if metric.column.better and (not front or sign * spot.y < sign * front[-1].y):
            front.append(spot)
    return Trace("front", "", front)
