"""Figures of curves: each metric against the guidance weight, and precision against recall."""

import itertools
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.transforms import Bbox

from guidex.reports.labels import axis_label, length, metric_label, text, title
from guidex.reports.rows import MetricColumn, Row, main_metrics, shown, spread
from guidex.reports.series import Members, Series, curve_keys, panels_of, series_of

MOST_PANELS = 60  # of small ones in a figure; beyond them, only the first metrics are drawn

# Colours of matplotlib's tab10 without its grey, which is left to points that have no curve.
_COLOURS = [f"C{number}" for number in (0, 1, 2, 3, 4, 5, 6, 8, 9)]
_LINES = ["-", "-.", ":", (0, (5, 1, 1, 1, 1, 1))]
_MARKERS = ["o", "s", "^", "D"]
_LEVEL_LINES = ["--", (0, (1, 1)), (0, (6, 2, 1, 2))]


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
    sheet = _Sheet(len(drawn), groups, (3.7, 2.8), {"marker": ""})
    for panel, number, members in sheet.panels:
        for s in members:
            _draw(panel, s, drawn[number], sheet.style(s))
        # axhline alone may leave a line on the very edge.
        panel.autoscale_view()
        panel.set(xlabel=axis, ylabel=metric_label(drawn[number]))
    for panel, number, _ in sheet.panels:
        _limit(panel.yaxis, drawn[number])
    subject = text(metrics[0].title) if len(metrics) == 1 else "Metrics"
    remarks = _bands(rows, drawn) + (["others in table.csv"] if drawn != metrics else [])
    return sheet.finish(title(f"{subject} against {axis}", rows, remarks, sheet.width))


def precision_recall(rows: Sequence[Row]) -> Figure | None:
    """Precision against recall in the space of each detector, or None without them."""
    keys = curve_keys(rows)
    series = series_of(rows, keys)
    pairs = [
        (recall, precision)
        for precision, recall in itertools.product(main_metrics(rows), repeat=2)
        if precision.column.against == recall.column.name != ""
        and precision.detector == recall.detector
        and any(s.has(recall, precision) for s in series)
    ]
    series = [s for s in series if any(s.has(*pair) for pair in pairs)]
    if len(series) == 0:
        return None
    sheet = _Sheet(len(pairs), panels_of(series, rows), (4.8, 4.0), {"linestyle": "none"})
    for panel, number, members in sheet.panels:
        recall, precision = pairs[number]
        for s in members:
            panel.plot(s.values(recall), s.values(precision), **sheet.style(s))
        panel.set(xlabel=metric_label(recall), ylabel=metric_label(precision))
    for panel, number, _ in sheet.panels:
        _limit(panel.xaxis, pairs[number][0])
        _limit(panel.yaxis, pairs[number][1])
    numbered = any(s.is_curve for s in series)
    remarks = [f"numbers: {axis_label(keys[0], rows)}"] if numbered else []
    subject = f"{pairs[0][1].label} against {pairs[0][0].label.lower()}"
    figure = sheet.finish(title(subject, rows, remarks, sheet.width))
    figure.draw_without_rendering()  # only now are places known
    for panel, number, members in sheet.panels:
        _number(panel, {s: sheet.style(s)["color"] for s in members}, *pairs[number])
    return figure


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
    if metric.is_share:
        room = 0.05 * (min(high, 1) - max(low, 0))
        axis.set_view_interval(max(low, -room), min(high, 1 + room), ignore=True)


def _number(
    panel: Axes, colours: dict[Series, str], recall: MetricColumn, precision: MetricColumn
) -> None:
    """Write w beside the points that have room for it, the ends of curves first."""
    points = []
    for series, colour in colours.items():
        xy = np.stack([series.values(recall), series.values(precision)], axis=1)
        known = np.flatnonzero(np.isfinite(xy).all(axis=1)) if series.is_curve else []
        for rank, k in enumerate([*known[-1:], *known[:-1]]):
            points.append((min(rank, 2), tuple(xy[k]), shown(series.x[k]), colour))
    points.sort(key=lambda item: item[0])
    places = [panel.transData.transform(xy) for _, xy, _, _ in points]
    point = panel.figure.dpi / 72
    taken = [Bbox([at, at]).padded(3 * point) for at in places]
    for _, xy, words, colour in points:
        for x, y in ((1, 1), (-1, 1), (1, -1), (-1, -1), (0, 1), (0, -1), (1, 0), (-1, 0)):
            side = {"ha": ("center", "left", "right")[x], "va": ("center", "bottom", "top")[y]}
            style = {"textcoords": "offset points", "fontsize": 7.5, "color": colour, **side}
            note = panel.annotate(words, xy, (4 * x, 4 * y), **style)
            box = note.get_window_extent().padded(0.9 * point)
            if box.count_overlaps(taken) == 0:
                taken.append(box)
                break
            note.remove()


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
        groups: dict[str, Members],
        size: tuple[float, float],
        level: dict[str, Any],
    ) -> None:
        small = len(groups) > 1
        deep = math.ceil(len(groups) / 5)  # lines of small panels of a metric
        columns = math.ceil(len(groups) / deep) if small else {1: 1, 2: 2, 4: 2}.get(count, 3)
        lines = count * deep if small else math.ceil(count / columns)
        across, down = (0.7 * side for side in size) if small else size
        height = lines * down + 0.5
        self._labels = {s: label for members in groups.values() for s, label in members.items()}
        self._styles = _styles(self._labels, level)
        self.width = columns * across
        self._legend_columns = math.ceil(len(self._styles) / (height / 0.21))
        legend = self._legend_columns * (0.7 + 0.075 * max(map(length, self._styles)))
        self._figure = Figure((self.width + legend, height), layout="constrained")
        grid = self._figure.subplots(lines, columns, squeeze=False)
        # A line per metric.
        grid = grid.reshape(count, -1) if small else grid.reshape(-1, 1)
        for panel in (*grid[count:].flat, *grid[:, len(groups) :].flat):
            panel.remove()
        self.panels: list[tuple[Axes, int, Members]] = []
        for number, line in enumerate(grid[:count]):
            for k, (panel, name) in enumerate(zip(line, groups, strict=False)):
                if k > 0:
                    panel.sharex(line[0])
                    panel.sharey(line[0])
                panel.set_title(name if number == 0 or deep > 1 else "", fontsize=9)
                panel.grid(alpha=0.25)
                if small and k % columns > 0:
                    panel.tick_params(labelleft=False)
                    panel.yaxis.label.set_visible(False)
                if k + columns < len(groups):
                    panel.tick_params(labelbottom=False)
                    panel.xaxis.label.set_visible(False)
                self.panels.append((panel, number, groups[name]))

    def style(self, series: Series) -> dict[str, Any]:
        """Colour, line and marker of a series."""
        return self._styles[self._labels[series]]

    def finish(self, title: str) -> Figure:
        """Add the title above the panels, and the legend."""
        handles = [Line2D([], [], **style) for style in self._styles.values()]
        place = {"loc": "outside right upper", "ncols": self._legend_columns}
        self._figure.legend(handles, self._styles, **place)
        self._figure.suptitle(title, x=self.width / 2 / self._figure.get_figwidth())
        return self._figure


def _styles(labels: Members, level: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """A style for each label."""
    styles: dict[str, dict[str, Any]] = {}
    for k, name in enumerate(dict.fromkeys(label for s, label in labels.items() if s.is_curve)):
        turn, colour = divmod(k, len(_COLOURS))
        turn %= len(_LINES)
        styles[name] = {"color": _COLOURS[colour], "linewidth": 1.4, "markersize": 4}
        styles[name] |= {"linestyle": _LINES[turn], "marker": _MARKERS[turn]}
    for k, name in enumerate(dict.fromkeys(label for s, label in labels.items() if not s.is_curve)):
        turn, line = divmod(k, len(_LEVEL_LINES))
        styles[name] = {"color": ("black", "0.55")[turn % 2], "linestyle": _LEVEL_LINES[line]}
        styles[name] |= {"linewidth": 1.2, "marker": "*", "markersize": 8} | level
    return styles
