"""The figure of heat maps: a metric over two swept keys."""

import itertools
import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from guidex.reports.charts import numbers
from guidex.reports.labels import (
    axis_label,
    last,
    metric_label,
    parent,
    point_label,
    relevant,
    text,
    title,
    value_label,
)
from guidex.reports.notes import edge_of_best
from guidex.reports.rows import (
    MetricColumn,
    Row,
    best_text,
    chief_metrics,
    main_metrics,
    shown,
    swept_keys,
)

_MAPS_PER_LINE = 4


def heat_maps(rows: Sequence[Row]) -> Figure | None:
    """FD over two keys, one map per combination of the others, or None without a grid."""
    choice = maps_of(rows)
    if choice is None:
        return None
    keys, maps = choice
    drawn = [row for points in maps.values() for row in points]
    metrics = chief_metrics([m for m in main_metrics(drawn) if len(finite_values(drawn, m)) > 0])
    if len(metrics) == 0:
        return None
    columns = min(_MAPS_PER_LINE, len(maps))
    lines = math.ceil(len(maps) / columns)
    x, y = (max(3, len(numbers(drawn, key))) for key in keys)
    size = max(5.0, columns * (0.9 + 0.52 * x) + 1.3), len(metrics) * lines * (0.95 + 0.4 * y) + 0.6
    figure = Figure(size, layout="constrained")
    parts = figure.subfigures(len(metrics), 1, squeeze=False)[:, 0]
    remarks = ["medians"] if any(row.repeats > 1 for row in rows) else []
    missing = ", hatched: missing" if not all(row.is_measured for row in drawn) else ""
    remarks.append(f"framed: best{missing}")
    ends: dict[str, None] = {}
    for part, metric in zip(parts, metrics, strict=True):
        for number, (name, points) in enumerate(maps.items(), start=1):
            panel = part.add_subplot(lines, columns, number)
            panel.set_title(name, fontsize=9.5)
            panel.set(xlabel=axis_label(keys[0], drawn), ylabel=axis_label(keys[1], drawn))
            _draw_map(panel, points, drawn, metric, keys)
        part.colorbar(scale_of(drawn, metric), ax=part.axes, label=metric_label(metric))
        row, some = edge_of_best(drawn, metric)
        ends |= {value_label(row, drawn, key): None for key in some}
    if len(ends) > 0:
        remarks.append(f"better ones may lie beyond the edge, {' and '.join(ends)}")
    subject = " and ".join(text(metric.title) for metric in metrics)
    subject += f" over {' and '.join(axis_label(key, rows) for key in keys)}"
    figure.suptitle(title(subject, rows, remarks, figure.get_figwidth()))
    return figure


def finite_values(rows: Sequence[Row], metric: MetricColumn) -> list[float]:
    """All finite values of a metric."""
    values = (row.metrics.get(metric.name, math.nan) for row in rows)
    return [value for value in values if math.isfinite(value)]


class Square(NamedTuple):
    """A point in a map: column, row, its value as text, the colour behind it as RGBA, whether that
    is dark, and whether the value is the best; a point without one is transparent."""

    row: Row
    x: int
    y: int
    text: str
    rgba: tuple[float, float, float, float]
    is_dark: bool
    is_best: bool


def scale_of(drawn: Sequence[Row], metric: MetricColumn) -> ScalarMappable:
    """The colours of all values; brighter is better."""
    values = finite_values(drawn, metric)
    low, high = min(values), max(values)
    colours = "viridis" if metric.column.better == "higher" else "viridis_r"
    return ScalarMappable(Normalize(low, high if high > low else low + 1), colours)


def squares(
    points: Sequence[Row], drawn: Sequence[Row], metric: MetricColumn, keys: tuple[str, str]
) -> list[Square]:
    """The points of a map, in the colours of all that are drawn."""
    x, y = (sorted(numbers(drawn, key)) for key in keys)
    known, scale = finite_values(drawn, metric), scale_of(drawn, metric)
    digits, best = metric.decimals(known), best_text(known, metric)
    found = []
    for row in points:
        place = x.index(row.values[keys[0]]), y.index(row.values[keys[1]])
        value = row.metrics.get(metric.name, math.nan)
        words = f"{value:.{digits}f}" if math.isfinite(value) else ""
        rgba = scale.to_rgba(value) if words else (0.0,) * 4
        dark = np.dot(rgba[:3], (0.299, 0.587, 0.114)) < 0.42
        found.append(Square(row, *place, words, rgba, bool(dark), words == best))
    return found


def _draw_map(
    panel: Axes,
    points: Sequence[Row],
    drawn: Sequence[Row],
    metric: MetricColumn,
    keys: tuple[str, str],
) -> None:
    x, y = (sorted(numbers(drawn, key)) for key in keys)
    colours = np.zeros((len(y), len(x), 4))
    for one in squares(points, drawn, metric, keys):
        colours[one.y, one.x] = one.rgba
        style = {"ha": "center", "va": "center", "size": 8, "color": "w" if one.is_dark else "k"}
        if one.text != "":
            panel.text(one.x, one.y, one.text, **style)
        place = Rectangle((one.x - 0.5, one.y - 0.5), 1, 1, fill=False)
        if one.text == "":
            panel.add_patch(place).set(edgecolor="0.6", linewidth=0, hatch="////")
        elif one.is_best:
            panel.add_patch(place).set(edgecolor="red", linewidth=2, zorder=3)
    panel.imshow(colours, origin="lower", aspect="auto", interpolation="nearest")
    panel.set_xticks(range(len(x)), [shown(value) for value in x])
    panel.set_yticks(range(len(y)), [shown(value) for value in y])
    panel.spines[:].set_visible(False)


def maps_of(rows: Sequence[Row]) -> tuple[tuple[str, str], dict[str, list[Row]]] | None:
    """The first pair of numeric keys (horizontal, vertical) whose points form grids, and the points
    of each grid by what they have in common: a combination of other values."""
    keys = [key for key in swept_keys(rows) if len(numbers(rows, key)) > 1]
    bounds = [(k, f"{parent(k)}lo") for k in keys if last(k) == "hi" and f"{parent(k)}lo" in keys]
    for pair in [*bounds, *itertools.combinations(keys, 2)]:
        maps: dict[str, list[Row]] = {}
        for row in rows:
            if set(pair) <= relevant(row).keys():
                maps.setdefault(point_label(row, rows, without=pair), []).append(row)
        maps = {label: points for label, points in maps.items() if _is_grid(points, *pair)}
        if len(maps) > 0:
            return pair, maps
    return None


def _is_grid(rows: Sequence[Row], x_key: str, y_key: str) -> bool:
    """Whether there are more points than in a cross, where one key rests while the other varies."""
    x, y = len(numbers(rows, x_key)), len(numbers(rows, y_key))
    points = {(row.values[x_key], row.values[y_key]) for row in rows}
    return min(x, y) > 1 and len(points) >= x + y
