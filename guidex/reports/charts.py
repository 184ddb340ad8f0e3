"""What the charts of a table show: which points make a curve, in which panel, each metric against
the guidance weight, precision against recall, and quality against cost."""

import itertools
import math
from collections.abc import Iterable, Sequence
from typing import NamedTuple

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
    """Traces over two labelled axes, one of several panels or of none (""); a share ends at 1."""

    x: str
    y: str
    panel: str
    traces: list[Trace]
    is_share: bool
    is_log: bool = False
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


# The rows of each series by its label and the key along which it is a curve, ordered by that; None
# where points do not have it, which are no curve.
Series = dict[tuple[str, str | None], list[Row]]


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


def series_of(rows: Sequence[Row], keys: Sequence[str]) -> Series:
    """Points that differ in the value under one of some keys only, curves first; series of which
    nothing is measured are left out."""
    series: Series = {}
    for row in rows:
        # Of several weights, the one that varies most.
        values = relevant(row)
        finite = [key for key in keys if key in values and math.isfinite(values[key])]
        alike = [other for other in rows if other.guidance == row.guidance]
        key = max(finite, key=lambda key: len(numbers(alike, key)), default=None)
        series.setdefault((point_label(row, rows, without=(key,)), key), []).append(row)
    return {
        (label, key): sorted(some, key=lambda row: row.values.get(key, 0))
        for (label, key), some in sorted(series.items(), key=lambda item: item[0][1] is None)
        if any(row.metrics for row in some)
    }


def panels_of(rows: Sequence[Row], keys: Sequence[str]) -> dict[str, Series]:
    """The series of each small panel, by its title.

    Many series are parted by the key that makes the fewest panels; one without it is in all. Where
    no key will do, they are parted in their order.
    """
    series = series_of(rows, keys)
    if len(series) <= MOST_CURVES:
        return {"": series}
    ways = [_parted(series, rows, key) for key in dict.fromkeys(["guidance", *swept_keys(rows)])]
    few = len(series) // 2  # else hardly more than one series would be in each
    ways = [w for w in ways if 0 < len(w) <= few and max(map(len, w.values())) <= MOST_CURVES]
    if len(ways) > 0:
        return min(ways, key=len)
    names = [*series]
    parts = [names[k : k + MOST_CURVES] for k in range(0, len(names), MOST_CURVES)]
    return {f"from {part[0][0]}": {name: series[name] for name in part} for part in parts}


def _parted(series: Series, rows: Sequence[Row], by: str) -> dict[str, Series]:
    """A panel for each value of a key."""
    titles = {}
    for (label, key), (row, *_) in series.items():
        # Curves alone are told apart by their guidance.
        if by != key and (key is not None if by == "guidance" else by in relevant(row)):
            titles[label, key] = value_label(row, rows, by)
    panels: dict[str, Series] = {title: {} for title in titles.values()}
    for title, panel in panels.items():
        for (label, key), some in series.items():
            if titles.get((label, key), title) == title:
                panel[point_label(some[0], rows, (key, by)), key] = some
    return panels


def names_of(rows: Sequence[Row]) -> dict[int, str]:
    """What each point is called, by its number."""
    return {row.point: plain(point_label(row, rows, ())) for row in rows}


def curves(rows: Sequence[Row]) -> list[Chart]:
    """Each metric against w, in its panels; none where no numeric key has two values."""
    keys, charts, names = curve_keys(rows), [], names_of(rows)
    metrics = [m for m in main_metrics(rows) if len(m.finite(rows)) > 0] if len(keys) > 0 else []
    bands = "median, band: min–max" if any(row.repeats > 1 for row in rows) else None
    for metric, (panel, series) in itertools.product(metrics, panels_of(rows, keys).items()):
        traces = []
        for (label, key), some in series.items():
            x = [row.values.get(key, 0.0) for row in some]
            for kind in ("level",) if key is None else ("line", "published"):
                traces.append(_trace(kind, label, some, x, metric, names))
        traces = _seen(traces)
        values = metric.finite(rows)
        is_log = metric.column.is_chief and max(values) > 8 * min(values) > 0
        has_bands = any(math.isfinite(spot.low) for trace in traces for spot in trace.spots)
        remarks = [bands or "band: confidence interval"] if has_bands else []
        remarks += ["open marks: published"] if any(t.kind == "published" for t in traces) else []
        axes = axis_label(keys[0], rows), metric_label(metric)
        charts.append(Chart(*axes, panel, traces, metric.column.is_share, is_log, remarks))
    return charts


def precision_recall(rows: Sequence[Row]) -> list[Chart]:
    """Precision against recall in the space of each detector; none without them."""
    panels, charts, names = panels_of(rows, curve_keys(rows)), [], names_of(rows)
    for precision, recall in itertools.product(main_metrics(rows), repeat=2):
        about = (recall.column.name, recall.detector)
        if "" in about or (precision.column.against, precision.detector) != about:
            continue
        for panel, series in panels.items():
            traces = []
            for (label, key), some in series.items():
                x = [row.metrics.get(recall.name, math.nan) for row in some]
                kind = "dots" if key is None else "path"
                traces.append(_trace(kind, label, some, x, precision, names))
            axes = metric_label(recall), metric_label(precision)
            charts.append(Chart(*axes, panel, _seen(traces), precision.column.is_share))
    return charts if any(chart.traces for chart in charts) else []


def costs(rows: Sequence[Row]) -> list[Chart]:
    """The chief metrics against evaluations and GFLOP, where they differ, with what nothing cheaper
    is better than."""
    panels, charts, names = panels_of(rows, curve_keys(rows)), [], names_of(rows)
    for metric, name in itertools.product(chief_metrics(main_metrics(rows)), _COSTS):
        cost = _COSTS[name]
        known = [row for row in rows if row.is_priced and metric.name in row.metrics]
        if len({cost(row) for row in known}) > 1:
            traces = [
                _trace(kind, label, some, [cost(row) for row in some], metric, names)
                for series in panels.values()
                for (label, _), some in series.items()
                for kind in ("dots", "published")
            ]
            traces = _seen([_front(metric, traces), *traces])
            charts.append(Chart(name, metric_label(metric), "", traces, metric.column.is_share))
    return charts


_COSTS = {
    "evaluations per image": lambda row: float(row.evals_main + row.evals_ref),
    "GFLOP per image": lambda row: row.gflops,
}


def _trace(
    kind: str,
    label: str,
    rows: Sequence[Row],
    x: Sequence[float],
    metric: MetricColumn,
    names: dict[int, str],
) -> Trace:
    """A metric of a series, or what was published of it, over the values x."""
    digits, name, spots = metric.decimals(metric.finite(rows)), plain(metric_label(metric)), []
    for row, place in zip(rows, x, strict=True):
        y, ends, said = row.metrics.get(metric.name), spread(row, metric.name), ""
        if kind == "published":
            y, said = published_value(row, metric.name), " as published"
        band = (ends.low, ends.high) if ends and kind == "line" else (math.nan, math.nan)
        y = math.nan if y is None or not math.isfinite(place) else y
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
