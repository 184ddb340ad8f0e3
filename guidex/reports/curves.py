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
from matplotlib.ticker import LogLocator

from guidex.reports.labels import axis_label, metric_label, text, title
from guidex.reports.rows import MetricColumn, Row, main_metrics, spread
from guidex.reports.series import Members, Series, curve_keys, panels_of, series_of

MOST_PANELS = 60  # of small ones in a figure; beyond them, only the first metrics are drawn

# What is drawn against what: recall, precision.
_Pair = tuple[MetricColumn, MetricColumn]

# Colours of matplotlib's tab10 without its grey, which is left to points that have no curve.
_COLOURS = [f"C{number}" for number in (0, 1, 2, 3, 4, 5, 6, 8, 9)]
_LINES = [("-", "o"), ("-.", "s"), (":", "^"), ((0, (5, 1, 1, 1, 1, 1)), "D")]
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
