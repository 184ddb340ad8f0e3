"""Which points of a table make a curve, in which panel; and figures of curves: each metric against
the guidance weight, and precision against recall."""

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import LogLocator

from guidex.reports.labels import (
    axis_label,
    last,
    metric_label,
    point_label,
    relevant,
    text,
    title,
    value_label,
)
from guidex.reports.rows import (
    MetricColumn,
    Row,
    Value,
    is_number,
    main_metrics,
    spread,
    swept_keys,
)

MOST_PANELS = 60  # of small ones in a figure; beyond them, only the first metrics are drawn

# What is drawn against what: recall, precision.
_Pair = tuple[MetricColumn, MetricColumn]

# Colours of matplotlib's tab10 without its grey, which is left to points that have no curve.
_COLOURS = [f"C{number}" for number in (0, 1, 2, 3, 4, 5, 6, 8, 9)]
_LINES = [("-", "o"), ("-.", "s"), (":", "^"), ((0, (5, 1, 1, 1, 1, 1)), "D")]
_LEVEL_LINES = ["--", (0, (1, 1)), (0, (6, 2, 1, 2))]
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


def curves(rows: Sequence[Row]) -> Figure | None:
    """Each metric against w, or None where no numeric key has two values."""
    keys = curve_keys(rows)
    series = series_of(rows, keys)
    metrics = [metric for metric in main_metrics(rows) if any(s.has(metric) for s in series)]
    series = [s for s in series if any(s.has(metric) for metric in metrics)]
    if not any(s.is_curve for s in series):
        return None
    axis, groups = axis_label(keys[0], rows), panels_of(series, rows)
    drawn = metrics[: max(1, MOST_PANELS // len(groups))] if len(groups) > 1 else metrics
    figure, panels, styles = _sheet(len(drawn), groups, (3.7, 2.8), {"marker": ""})
    for panel, number, members in panels:
        for s, label in members.items():
            _draw(panel, s, drawn[number], styles[label])
        # axhline alone may leave a line on the very edge.
        panel.autoscale_view()
        panel.set(xlabel=axis, ylabel=metric_label(drawn[number]))
        values = [value for s in series for value in s.values(drawn[number]) if value > 0]
        if drawn[number].column.is_chief and max(values, default=0) > 8 * min(values, default=1):
            panel.set_yscale("log")
            panel.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
            panel.yaxis.set(major_formatter="{x:g}", minor_formatter="")
    for panel, number, _ in panels:
        _limit(panel.yaxis, drawn[number])
    subject = text(metrics[0].title) if len(metrics) == 1 else "Metrics"
    remarks = _bands(rows, drawn) + (["others in table.csv"] if drawn != metrics else [])
    subject = f"{subject} against {axis}"
    figure.suptitle(title(subject, rows, remarks, figure.get_figwidth()))
    return figure


def precision_recall(rows: Sequence[Row]) -> Figure | None:
    """Precision against recall in the space of each detector, or None without them."""
    keys = curve_keys(rows)
    series = series_of(rows, keys)
    pairs = pairs_of(rows, series)
    series = [s for s in series if any(s.has(*pair) for pair in pairs)]
    if len(series) == 0:
        return None
    groups = panels_of(series, rows)
    figure, panels, styles = _sheet(len(pairs), groups, (4.8, 4.0), {"linestyle": "none"})
    for panel, number, members in panels:
        recall, precision = pairs[number]
        for s, label in members.items():
            panel.plot(s.values(recall), s.values(precision), **styles[label])
        panel.set(xlabel=metric_label(recall), ylabel=metric_label(precision))
    for panel, number, _ in panels:
        for axis, metric in zip((panel.xaxis, panel.yaxis), pairs[number], strict=True):
            _limit(axis, metric)
    subject = f"{pairs[0][1].column.label} against {pairs[0][0].column.label.lower()}"
    figure.suptitle(title(subject, rows, [], figure.get_figwidth()))
    return figure


def pairs_of(rows: Sequence[Row], series: Sequence[Series]) -> list[_Pair]:
    """Recall and precision, of each detector whose features some point has both of."""
    return [
        (recall, precision)
        for precision, recall in itertools.product(main_metrics(rows), repeat=2)
        if precision.column.against == recall.column.name != ""
        and precision.detector == recall.detector
        and any(s.has(recall, precision) for s in series)
    ]


def _draw(panel: Axes, series: Series, metric: MetricColumn, style: dict[str, Any]) -> None:
    """The curve with its band, or a line across the panel."""
    values = series.values(metric)
    if not series.is_curve:
        for value in np.unique(values[np.isfinite(values)]):
            panel.axhline(value, **style, zorder=1.5)
        return
    panel.plot(series.x, values, **style)
    spreads = [spread(row, metric.name) or (math.nan, math.nan) for row in series.rows]
    low, high = [ends[0] for ends in spreads], [ends[1] for ends in spreads]
    panel.fill_between(series.x, low, high, color=style["color"], alpha=0.12, linewidth=0)


def _bands(rows: Sequence[Row], metrics: Sequence[MetricColumn]) -> list[str]:
    """What curves and bands show."""
    spreads = (spread(row, metric.name) for row in rows for metric in metrics)
    sources = {ends.source for ends in spreads if ends is not None}
    names = {"repeats": "median, band: min–max", "confidence": "band: confidence interval"}
    return [name for source, name in names.items() if source in sources]


def _limit(axis: Axis, metric: MetricColumn) -> None:
    """Keep an axis of shares between 0 and 1, but for room for the markers there."""
    low, high = axis.get_view_interval()
    if metric.column.is_share:
        room = 0.05 * (min(high, 1) - max(low, 0))
        axis.set_view_interval(max(low, -room), min(high, 1 + room), ignore=True)


def _sheet(
    count: int, groups: dict[str, Members], size: tuple[float, float], level: dict[str, Any]
) -> tuple[Figure, list[tuple[Axes, int, Members]], dict[str, dict[str, Any]]]:
    """A figure of panels, the groups of a metric side by side, with one legend to their right.

    Arguments:
        count: how many metrics, or pairs of them, are drawn.
        groups: the series of each panel with their labels, by title.
        size: of a panel in inches where there is one group.
        level: what is special about the style of points that have no curve.

    Returns:
        Also the panels, with the number of the metric and the series, and the style by label.
    """
    small = len(groups) > 1
    deep = math.ceil(len(groups) / 5)  # lines of small panels of a metric
    columns = math.ceil(len(groups) / deep) if small else {1: 1, 2: 2, 4: 2}.get(count, 3)
    lines = count * deep if small else math.ceil(count / columns)
    across, down = (0.7 * side for side in size) if small else size
    height = lines * down + 0.5
    figure = Figure((columns * across, height), layout="constrained")
    panels = []
    for number in range(count):
        first = None
        for k, (name, members) in enumerate(groups.items()):
            place = number * deep * columns + k if small else number
            panel = figure.add_subplot(lines, columns, place + 1, sharex=first, sharey=first)
            first = first or panel
            panel.set_title(name if number == 0 or deep > 1 else "", fontsize=9)
            panel.grid(alpha=0.25)
            if small and k % columns > 0:
                panel.tick_params(labelleft=False)
                panel.yaxis.label.set_visible(False)
            if k + columns < len(groups):
                panel.tick_params(labelbottom=False)
                panel.xaxis.label.set_visible(False)
            panels.append((panel, number, members))
    styles = _styles(groups, level)
    # Outside of the figure, which grows by it when it is saved.
    columns = math.ceil(len(styles) / (height / 0.21))
    handles = [Line2D([], [], **style) for style in styles.values()]
    figure.legend(handles, styles, loc="upper left", bbox_to_anchor=(1, 1), ncols=columns)
    return figure, panels, styles


def _styles(groups: dict[str, Members], level: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """A style for each label."""
    labels = {s: label for members in groups.values() for s, label in members.items()}
    styles: dict[str, dict[str, Any]] = {}
    for k, name in enumerate(dict.fromkeys(label for s, label in labels.items() if s.is_curve)):
        turn, colour = divmod(k, len(_COLOURS))
        line, marker = _LINES[turn % len(_LINES)]
        styles[name] = {"color": _COLOURS[colour], "linestyle": line, "marker": marker}
        styles[name] |= {"linewidth": 1.4, "markersize": 4}
    for k, name in enumerate(dict.fromkeys(label for s, label in labels.items() if not s.is_curve)):
        styles[name] = {"color": "black", "linestyle": _LEVEL_LINES[k % len(_LEVEL_LINES)]}
        styles[name] |= {"linewidth": 1.2, "marker": "*", "markersize": 8} | level
    return styles
