"""Figures of curves: each metric against the guidance weight, and precision against recall."""

import itertools
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from guidex.reports.labels import (
    axis_label,
    last,
    metric_label,
    numbers,
    point_label,
    relevant,
    text,
    title,
)
from guidex.reports.rows import Metric, Row, main_metrics, shown, spread, swept_keys

# Colours of matplotlib's tab10 without its grey, which is left to points that have no curve.
_COLOURS = [f"C{number}" for number in (0, 1, 2, 3, 4, 5, 6, 8, 9)]
_LINES = ["-", "-.", ":", (0, (5, 1, 1, 1, 1, 1))]
_MARKERS = ["o", "s", "^", "D"]
_LEVEL_LINES = ["--", (0, (1, 1)), (0, (6, 2, 1, 2))]

# With more points, only the last of each curve of precision and recall is numbered.
_NUMBERED = 30

# With more curves, their bands are paler.
_FEW_CURVES = 6


def curves(rows: Sequence[Row]) -> Figure | None:
    """Each metric against w, or None where no numeric key has two values."""
    axis, series = _series(rows)
    metrics = [m for m in main_metrics(rows) if any(one.has(m.name) for one in series)]
    if len(metrics) == 0 or not any(one.is_curve for one in series):
        return None
    columns = {1: 1, 2: 2, 4: 2}.get(len(metrics), 3)
    figure = _Sheet(len(metrics), columns, (3.7, 2.8), series)
    band_alpha = 0.16 if len(series) <= _FEW_CURVES else 0.07
    for panel, metric in zip(figure.panels, metrics, strict=True):
        for one in series:
            one.draw(panel, metric, band_alpha)
        # axhline alone may leave a line on the very edge.
        panel.autoscale_view()
        panel.set_xlabel(axis)
        panel.set_ylabel(metric_label(metric))
    subject = text(metrics[0].title) if len(metrics) == 1 else "Metrics"
    words = title(f"{subject} against {axis}", rows, _bands(rows, metrics), figure.width)
    return figure.finish(words, [one.style_across for one in series])


def precision_recall(rows: Sequence[Row]) -> Figure | None:
    """Precision against recall in the space of each detector, or None without them."""
    axis, series = _series(rows)
    pairs = _trades(rows, series)
    if len(pairs) == 0:
        return None
    figure = _Sheet(len(pairs), min(3, len(pairs)), (4.8, 4.0), series)
    few = sum(len(one.rows) for one in series) <= _NUMBERED
    for panel, (recall, precision) in zip(figure.panels, pairs, strict=True):
        for one in series:
            one.draw_trade(panel, recall.name, precision.name, every=few)
        panel.set_xlabel(metric_label(recall))
        panel.set_ylabel(metric_label(precision))
    remarks = [f"numbers: {axis}"] if any(one.is_curve for one in series) else []
    words = title("Precision against recall", rows, remarks, figure.width)
    return figure.finish(words, [one.style_of_points for one in series])


def _bands(rows: Sequence[Row], metrics: Sequence[Metric]) -> list[str]:
    """What curves and bands show."""
    found = (spread(row, metric.name) for row in rows for metric in metrics)
    sources = {one.source for one in found if one is not None}
    names = {"repeats": "median, band: min–max", "confidence": "band: confidence interval"}
    return [name for source, name in names.items() if source in sources]


def _trades(rows: Sequence[Row], series: Sequence["_Series"]) -> list[tuple[Metric, Metric]]:
    """Recall and precision of each detector that has points with both."""
    return [
        (recall, precision)
        for precision, recall in itertools.product(main_metrics(rows), repeat=2)
        if (precision.kind, recall.kind) == ("precision", "recall")
        and precision.detector == recall.detector
        and any(one.both(recall.name, precision.name).any() for one in series)
    ]


@dataclass(frozen=True)
class _Series:
    """Points that differ in one value only.

    Attributes:
        label: what they have in common.
        rows: ordered by that value.
        x: that value [len(rows)]; empty for points that do not have it.
        style: colour, line and marker.
    """

    label: str
    rows: Sequence[Row]
    x: Sequence[float]
    style: dict[str, Any]

    @property
    def is_curve(self) -> bool:
        return len(self.x) > 0

    def values(self, name: str) -> np.ndarray:
        """A metric column [len(rows)], float64, NaN where there is none."""
        return np.array([row.metrics.get(name, math.nan) for row in self.rows])

    def has(self, name: str) -> bool:
        return bool(np.isfinite(self.values(name)).any())

    def both(self, x: str, y: str) -> np.ndarray:
        """Which points have both metrics, bool [len(rows)]."""
        return np.isfinite(self.values(x)) & np.isfinite(self.values(y))

    @property
    def style_across(self) -> dict[str, Any]:
        """For figures against w, where a point without w is a line across."""
        return self.style if self.is_curve else self.style | {"marker": ""}

    @property
    def style_of_points(self) -> dict[str, Any]:
        """For figures of two metrics, where points without w are not joined."""
        return self.style if self.is_curve else self.style | {"linestyle": "none"}

    def draw(self, panel: Axes, metric: Metric, band_alpha: float) -> None:
        """The curve with its band, or a line across the panel."""
        values = self.values(metric.name)
        if not self.is_curve:
            for value in np.unique(values[np.isfinite(values)]):
                panel.axhline(value, **self.style_across, zorder=1.5)
            return
        panel.plot(self.x, values, **self.style)
        spreads = [spread(row, metric.name) for row in self.rows]
        low = [math.nan if one is None else one.low for one in spreads]
        high = [math.nan if one is None else one.high for one in spreads]
        colour = self.style["color"]
        panel.fill_between(self.x, low, high, color=colour, alpha=band_alpha, linewidth=0)

    def draw_trade(self, panel: Axes, x: str, y: str, every: bool) -> None:
        """One metric against another; w beside every point, or beside the last."""
        horizontal, vertical = self.values(x), self.values(y)
        panel.plot(horizontal, vertical, **self.style_of_points)
        known = np.flatnonzero(self.both(x, y))
        if not self.is_curve or len(known) == 0:
            return
        for index in known if every else known[-1:]:
            panel.annotate(
                shown(self.x[index]),
                (horizontal[index], vertical[index]),
                textcoords="offset points",
                xytext=(4, 3),
                fontsize=7.5,
                color=self.style["color"],
            )


def _series(rows: Sequence[Row]) -> tuple[str, list[_Series]]:
    """The label of the horizontal axis ("" without one), and the series, curves first."""
    keys = _x_keys(rows)
    joined: dict[str, list[tuple[float, Row]]] = {}
    levels: dict[str, list[Row]] = {}
    for row in rows:
        key = _x_key(row, rows, keys)
        label = point_label(row, rows, without=(key,))
        if key is None:
            levels.setdefault(label, []).append(row)
        else:
            joined.setdefault(label, []).append((float(row.values[key]), row))
    series = []
    for number, (label, points) in enumerate(joined.items()):
        x, members = zip(*sorted(points, key=lambda point: point[0]), strict=True)
        series.append(_Series(label, members, x, _curve_style(number)))
    for number, (label, members) in enumerate(levels.items()):
        series.append(_Series(label, members, (), _level_style(number)))
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


def _curve_style(number: int) -> dict[str, Any]:
    turn = number // len(_COLOURS)
    return {
        "color": _COLOURS[number % len(_COLOURS)],
        "linestyle": _LINES[turn % len(_LINES)],
        "linewidth": 1.4,
        "marker": _MARKERS[turn % len(_MARKERS)],
        "markersize": 4,
    }


def _level_style(number: int) -> dict[str, Any]:
    turn = number // len(_LEVEL_LINES)
    return {
        "color": ("black", "0.55")[turn % 2],
        "linestyle": _LEVEL_LINES[number % len(_LEVEL_LINES)],
        "linewidth": 1.2,
        "marker": "*",
        "markersize": 8,
    }


class _Sheet:
    """A figure of equal panels with one legend to their right.

    Attributes:
        panels: line by line.
        width: of all panels together, in inches.
    """

    def __init__(
        self, count: int, columns: int, size: tuple[float, float], series: Sequence[_Series]
    ) -> None:
        lines = math.ceil(count / columns)
        height = lines * size[1] + 0.5
        self._labels = [one.label for one in series]
        self.width = columns * size[0]
        self._legend_columns = math.ceil(len(series) / (height / 0.21))
        legend = self._legend_columns * (0.7 + 0.075 * _length(self._labels))
        self._figure = Figure(figsize=(self.width + legend, height), layout="constrained")
        grid = self._figure.add_gridspec(lines, columns)
        self.panels = [self._figure.add_subplot(grid[divmod(n, columns)]) for n in range(count)]

    def finish(self, title: str, styles: Sequence[dict[str, Any]]) -> Figure:
        """Add grids, the title above the panels, and the legend with a style for each series."""
        for panel in self.panels:
            panel.grid(alpha=0.25)
        handles = [Line2D([], [], **style) for style in styles]
        self._figure.legend(
            handles, self._labels, loc="outside right upper", ncols=self._legend_columns
        )
        centre = self.width / 2 / self._figure.get_figwidth()
        self._figure.suptitle(title, x=centre)
        return self._figure


def _length(labels: Iterable[str]) -> int:
    """Characters of the longest label, without the commands of its formulas."""
    plain = (label.replace(r"\sigma", "s").replace(r"\mathrm", "") for label in labels)
    return max(len(label) for label in plain)
