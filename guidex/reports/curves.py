"""Figures of curves: each metric against the guidance weight, and precision against recall."""

import itertools
import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.transforms import Bbox

from guidex.reports.figure_text import (
    axis_label,
    last,
    length,
    metric_label,
    numbers,
    point_label,
    relevant,
    text,
    title,
    value_label,
)
from guidex.reports.rows import Metric, Row, Value, main_metrics, shown, spread, swept_keys

MOST_CURVES = 8  # in one panel
MOST_PANELS = 60  # of small ones in a figure; beyond them, only the first metrics are drawn

# Colours of matplotlib's tab10 without its grey, which is left to points that have no curve.
_COLOURS = [f"C{number}" for number in (0, 1, 2, 3, 4, 5, 6, 8, 9)]
_LINES = ["-", "-.", ":", (0, (5, 1, 1, 1, 1, 1))]
_MARKERS = ["o", "s", "^", "D"]
_LEVEL_LINES = ["--", (0, (1, 1)), (0, (6, 2, 1, 2))]


def curves(rows: Sequence[Row]) -> Figure | None:
    """Each metric against w, or None where no numeric key has two values."""
    axis, series = _series(rows)
    metrics = [m for m in main_metrics(rows) if any(one.has(m) for one in series)]
    series = [one for one in series if any(one.has(m) for m in metrics)]
    if not any(one.is_curve for one in series):
        return None
    groups = _groups(series, rows)
    drawn = metrics[: max(1, MOST_PANELS // len(groups))] if len(groups) > 1 else metrics
    sheet = _Sheet(len(drawn), groups, (3.7, 2.8), {"marker": ""})
    for panel, number, own in sheet.panels:
        metric = drawn[number]
        for one in own:
            one.draw(panel, metric, sheet.style(one))
        # axhline alone may leave a line on the very edge.
        panel.autoscale_view()
        panel.set(xlabel=axis, ylabel=metric_label(metric))
    for panel, number, _ in sheet.panels:
        _limit(panel.yaxis, drawn[number])
    subject = text(metrics[0].title) if len(metrics) == 1 else "Metrics"
    remarks = _bands(rows, drawn) + (["others in table.csv"] if drawn != metrics else [])
    return sheet.finish(title(f"{subject} against {axis}", rows, remarks, sheet.width))


def precision_recall(rows: Sequence[Row]) -> Figure | None:
    """Precision against recall in the space of each detector, or None without them."""
    axis, series = _series(rows)
    pairs = [
        (recall, precision)
        for precision, recall in itertools.product(main_metrics(rows), repeat=2)
        if precision.column.against == recall.column.name != ""
        and precision.detector == recall.detector
        and any(one.has(recall, precision) for one in series)
    ]
    series = [one for one in series if any(one.has(*pair) for pair in pairs)]
    if len(series) == 0:
        return None
    groups = _groups(series, rows)
    sheet = _Sheet(len(pairs), groups, (4.8, 4.0), {"linestyle": "none"})
    for panel, number, own in sheet.panels:
        recall, precision = pairs[number]
        for one in own:
            x, y = one.values(recall), one.values(precision)
            panel.plot(x, y, **sheet.style(one))
        panel.set(xlabel=metric_label(recall), ylabel=metric_label(precision))
    for panel, number, _ in sheet.panels:
        _limit(panel.xaxis, pairs[number][0])
        _limit(panel.yaxis, pairs[number][1])
    remarks = [f"numbers: {axis}"] if any(one.is_curve for one in series) else []
    name = f"{pairs[0][1].label} against {pairs[0][0].label.lower()}"
    figure = sheet.finish(title(name, rows, remarks, sheet.width))
    figure.draw_without_rendering()  # only now are places known
    for panel, number, own in sheet.panels:
        _number(panel, [(one, sheet.style(one)["color"]) for one in own], *pairs[number])
    return figure


def _bands(rows: Sequence[Row], metrics: Sequence[Metric]) -> list[str]:
    """What curves and bands show."""
    found = (spread(row, metric.name) for row in rows for metric in metrics)
    sources = {one.source for one in found if one is not None}
    names = {"repeats": "median, band: min–max", "confidence": "band: confidence interval"}
    return [name for source, name in names.items() if source in sources]


def _limit(axis: Axis, metric: Metric) -> None:
    """Keep an axis of shares between 0 and 1, but for room for the markers there."""
    low, high = axis.get_view_interval()
    if metric.is_share:
        room = 0.05 * (min(high, 1) - max(low, 0))
        axis.set_view_interval(max(low, -room), min(high, 1 + room), ignore=True)


def _number(
    panel: Axes, series: Sequence[tuple["_Series", str]], recall: Metric, precision: Metric
) -> None:
    """Write w beside the points that have room for it, the ends of curves first."""
    points = []
    for one, colour in series:
        x, y = one.values(recall), one.values(precision)
        known = np.flatnonzero(np.isfinite(x + y)) if one.is_curve else []
        for rank, k in enumerate([*known[-1:], *known[:-1]]):
            points.append((min(rank, 2), (x[k], y[k]), shown(one.x[k]), colour))
    points.sort(key=lambda point: point[0])
    # In points of type, 1/72 inch.
    places = [panel.transData.transform(xy) * 72 / panel.figure.dpi for _, xy, _, _ in points]
    taken = [Bbox.from_extents(*(at - 3), *(at + 3)) for at in places]
    for (_, xy, words, colour), at in zip(points, places, strict=True):
        half = np.array([2.4 * len(words) + 1, 3.6])
        for side in ((1, 1), (-1, 1), (1, -1), (-1, -1), (0, 1), (0, -1), (1, 0), (-1, 0)):
            away = side * (half + 3)
            box = Bbox.from_extents(*(at + away - half), *(at + away + half))
            if box.count_overlaps(taken) == 0:
                taken.append(box)
                style = {"ha": "center", "va": "center", "fontsize": 7.5, "color": colour}
                panel.annotate(words, xy, away, textcoords="offset points", **style)
                break


@dataclass(frozen=True, eq=False)
class _Series:
    """Points that differ in one value only.

    Attributes:
        rows: ordered by that value.
        key: its key; None for points that do not have it.
    """

    rows: Sequence[Row]
    key: str | None

    @property
    def is_curve(self) -> bool:
        return self.key is not None

    @property
    def x(self) -> list[float]:
        """The value [len(rows)] of a curve."""
        return [float(row.values[self.key]) for row in self.rows]

    def apart(self) -> dict[str, Value]:
        """What may tell it from others, by swept key; guidance is such a key of curves."""
        values = {key: value for key, value in relevant(self.rows[0]).items() if key != self.key}
        return {"guidance": self.rows[0].guidance, **values} if self.is_curve else values

    def values(self, metric: Metric) -> np.ndarray:
        """A metric [len(rows)], float64, NaN where there is none."""
        return np.array([row.metrics.get(metric.name, math.nan) for row in self.rows])

    def has(self, *metrics: Metric) -> bool:
        """Whether a point has all of these metrics."""
        return bool(np.isfinite([self.values(metric) for metric in metrics]).all(axis=0).any())

    def draw(self, panel: Axes, metric: Metric, style: dict[str, Any]) -> None:
        """The curve with its band, or a line across the panel."""
        values = self.values(metric)
        if not self.is_curve:
            for value in np.unique(values[np.isfinite(values)]):
                panel.axhline(value, **style, zorder=1.5)
            return
        panel.plot(self.x, values, **style)
        spreads = [spread(row, metric.name) for row in self.rows]
        low = [math.nan if one is None else one.low for one in spreads]
        high = [math.nan if one is None else one.high for one in spreads]
        panel.fill_between(self.x, low, high, color=style["color"], alpha=0.12, linewidth=0)


def _series(rows: Sequence[Row]) -> tuple[str, list[_Series]]:
    """The label of the horizontal axis ("" without one), and the series, curves first."""
    keys = _x_keys(rows)
    groups: dict[tuple[bool, str, str | None], list[Row]] = {}
    for row in rows:
        key = _x_key(row, rows, keys)
        label = point_label(row, rows, without=(key,))
        groups.setdefault((key is None, label, key), []).append(row)
    series = []
    for (_, _, key), own in sorted(groups.items(), key=lambda item: item[0][0]):
        series.append(_Series(sorted(own, key=lambda row: row.values.get(key, 0)), key))
    return (axis_label(keys[0], rows) if len(keys) > 0 else ""), series


def _x_keys(rows: Sequence[Row]) -> list[str]:
    """The keys that may be the horizontal axis: those of w, or the numeric one with most values."""
    values = {key: numbers(rows, key) for key in swept_keys(rows)}
    weights = [key for key in values if last(key) == "w" and len(values[key]) > 0]
    if len(set().union(*(values[key] for key in weights))) > 1:
        return weights
    most = max(values, key=lambda key: len(values[key]), default=None)
    return [most] if most is not None and len(values[most]) > 1 else []


def _x_key(row: Row, rows: Sequence[Row], keys: Sequence[str]) -> str | None:
    """The key of this row's horizontal place; of several weights, the one that varies most."""
    values = relevant(row)
    own = [key for key in keys if key in values and math.isfinite(values[key])]
    alike = [other for other in rows if other.guidance == row.guidance]
    return max(own, key=lambda key: len(numbers(alike, key)), default=None)


def _groups(series: Sequence[_Series], rows: Sequence[Row]) -> dict[str, dict[_Series, str]]:
    """The series of each small panel by its title, with their labels.

    Many series are parted by as few keys as it takes, so that they make the fewest panels; one
    without some of these keys is in all panels that agree with it in the others. Where that would
    leave hardly more than one series in each, they are parted in their order.
    """

    def labelled(some: Collection[_Series], without: Sequence[str] = ()) -> dict[_Series, str]:
        return {one: point_label(one.rows[0], rows, without=(one.key, *without)) for one in some}

    if len(series) <= MOST_CURVES:
        return {"": labelled(series)}
    values = [one.apart() for one in series]
    names = dict.fromkeys(key for own in values for key in own)
    keys = [key for key in names if len({shown(own[key]) for own in values if key in own}) > 1]
    for count in range(1, len(keys) + 1):
        ways = []
        for chosen in itertools.combinations(keys, count):
            places = [frozenset((k, own[k]) for k in chosen if k in own) for own in values]
            groups = {}
            for first, place in zip(series, places, strict=True):
                if not any(place < other for other in places):
                    own = [one for one, at in zip(series, places, strict=True) if at <= place]
                    named = [key for key in chosen if key in dict(place)]
                    name = ", ".join(value_label(first.rows[0], rows, key) for key in named)
                    groups[name] = labelled(own, chosen)
            if max(map(len, groups.values())) <= MOST_CURVES and 2 * len(groups) <= len(series):
                ways.append(groups)
        if len(ways) > 0:
            return min(ways, key=len)
    parts = (series[k : k + MOST_CURVES] for k in range(0, len(series), MOST_CURVES))
    return {f"from {point_label(p[0].rows[0], rows, (p[0].key,))}": labelled(p) for p in parts}


class _Sheet:
    """A figure of panels, the groups of a metric side by side, with one legend to their right.

    Arguments:
        count: how many metrics, or pairs of them, are drawn.
        groups: the series of each panel with their labels, by title.
        size: of a panel in inches where there is one group.
        level: what is special about the style of points that have no curve.

    Attributes:
        panels: with the number of the metric and the series of each.
        width: of all panels together, in inches.
    """

    def __init__(
        self,
        count: int,
        groups: dict[str, dict[_Series, str]],
        size: tuple[float, float],
        level: dict[str, Any],
    ) -> None:
        small = len(groups) > 1
        deep = math.ceil(len(groups) / 5)  # lines of small panels of a metric
        columns = math.ceil(len(groups) / deep) if small else {1: 1, 2: 2, 4: 2}.get(count, 3)
        lines = count * deep if small else math.ceil(count / columns)
        across, down = (0.7 * side for side in size) if small else size
        height = lines * down + 0.5
        self._labels = {one: label for own in groups.values() for one, label in own.items()}
        self._styles = _styles(self._labels, level)
        self.width = columns * across
        self._legend_columns = math.ceil(len(self._styles) / (height / 0.21))
        legend = self._legend_columns * (0.7 + 0.075 * max(map(length, self._styles)))
        self._figure = Figure(figsize=(self.width + legend, height), layout="constrained")
        grid = self._figure.add_gridspec(lines, columns)
        self.panels: list[tuple[Axes, int, Collection[_Series]]] = []
        for number in range(count):
            first = None
            for k, (name, own) in enumerate(groups.items()):
                line, column = divmod(k if small else number, columns)
                place = grid[line + number * deep if small else line, column]
                panel = self._figure.add_subplot(place, sharex=first, sharey=first)
                first = first or panel
                panel.set_title(name if number == 0 or deep > 1 else "", fontsize=9)
                panel.grid(alpha=0.25)
                if small and column > 0:
                    panel.tick_params(labelleft=False)
                    panel.yaxis.label.set_visible(False)
                if k + columns < len(groups):
                    panel.tick_params(labelbottom=False)
                    panel.xaxis.label.set_visible(False)
                self.panels.append((panel, number, own))

    def style(self, one: _Series) -> dict[str, Any]:
        """Colour, line and marker of a series."""
        return self._styles[self._labels[one]]

    def finish(self, title: str) -> Figure:
        """Add the title above the panels, and the legend."""
        handles = [Line2D([], [], **style) for style in self._styles.values()]
        self._figure.legend(
            handles, self._styles, loc="outside right upper", ncols=self._legend_columns
        )
        self._figure.suptitle(title, x=self.width / 2 / self._figure.get_figwidth())
        return self._figure


def _styles(labels: dict[_Series, str], level: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """A style for each label."""
    styles: dict[str, dict[str, Any]] = {}
    names = dict.fromkeys(label for one, label in labels.items() if one.is_curve)
    for k, name in enumerate(names):
        turn, colour = divmod(k, len(_COLOURS))
        turn %= len(_LINES)
        styles[name] = {"color": _COLOURS[colour], "linewidth": 1.4, "markersize": 4}
        styles[name] |= {"linestyle": _LINES[turn], "marker": _MARKERS[turn]}
    names = dict.fromkeys(label for one, label in labels.items() if not one.is_curve)
    for k, name in enumerate(names):
        turn, line = divmod(k, len(_LEVEL_LINES))
        styles[name] = {"color": ("black", "0.55")[turn % 2], "linestyle": _LEVEL_LINES[line]}
        styles[name] |= {"linewidth": 1.2, "marker": "*", "markersize": 8} | level
    return styles
