"""The figure of heat maps: a metric over two swept keys."""

import itertools
import math
from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

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
from guidex.reports.series import numbers

_MAPS_PER_LINE = 4


def heat_maps(rows: Sequence[Row]) -> Figure | None:
    """FD over two keys, one map per combination of the others, or None without a grid."""
    choice = _maps_of(rows)
    if choice is None:
        return None
    keys, maps = choice
    drawn = [row for points in maps.values() for row in points]
    metrics = chief_metrics([m for m in main_metrics(drawn) if len(_values(drawn, m)) > 0])
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
        values = _values(drawn, metric)
        low, high = min(values), max(values)
        colours = "viridis" if metric.column.better == "higher" else "viridis_r"
        scale = ScalarMappable(Normalize(low, high if high > low else low + 1), colours)
        for number, (name, points) in enumerate(maps.items(), start=1):
            panel = part.add_subplot(lines, columns, number)
            panel.set_title(name, fontsize=9.5)
            panel.set(xlabel=axis_label(keys[0], drawn), ylabel=axis_label(keys[1], drawn))
            _draw_map(panel, points, drawn, metric, keys, scale)
        part.colorbar(scale, ax=part.axes, label=metric_label(metric))
        row, some = edge_of_best(drawn, metric)
        ends |= {value_label(row, drawn, key): None for key in some}
    if len(ends) > 0:
        remarks.append(f"better ones may lie beyond the edge, {' and '.join(ends)}")
    subject = " and ".join(text(metric.title) for metric in metrics)
    subject += f" over {' and '.join(axis_label(key, rows) for key in keys)}"
    figure.suptitle(title(subject, rows, remarks, figure.get_figwidth()))
    return figure


def _values(rows: Sequence[Row], metric: MetricColumn) -> list[float]:
    """All finite values of a metric."""
    values = (row.metrics.get(metric.name, math.nan) for row in rows)
    return [value for value in values if math.isfinite(value)]


def _draw_map(
    panel: Axes,
    points: Sequence[Row],
    drawn: Sequence[Row],
    metric: MetricColumn,
    keys: tuple[str, str],
    scale: ScalarMappable,
) -> None:
    """The points of a map in the colours of all that are drawn; brighter is better."""
    x, y = (sorted(numbers(drawn, key)) for key in keys)
    known = _values(drawn, metric)
    digits, best = metric.decimals(known), best_text(known, metric)
    values = np.full((len(y), len(x)), math.nan)
    for row in points:
        i, j = y.index(row.values[keys[1]]), x.index(row.values[keys[0]])
        value = values[i, j] = row.metrics.get(metric.name, math.nan)
        words, frame = f"{value:.{digits}f}", None
        if math.isfinite(value):
            dark = np.dot(scale.to_rgba(value)[:3], (0.299, 0.587, 0.114)) < 0.42
            style = {"ha": "center", "va": "center", "size": 8, "color": "w" if dark else "k"}
            panel.text(j, i, words, **style)
        else:
            frame = {"edgecolor": "0.6", "linewidth": 0, "hatch": "////"}
        if words == best:
            frame = {"edgecolor": "red", "linewidth": 2, "zorder": 3}
        if frame is not None:
            panel.add_patch(Rectangle((j - 0.5, i - 0.5), 1, 1, fill=False, **frame))
    place = {"origin": "lower", "aspect": "auto", "interpolation": "nearest"}
    panel.imshow(np.ma.masked_invalid(values), cmap=scale.cmap, norm=scale.norm, **place)
    panel.set_xticks(range(len(x)), [shown(value) for value in x])
    panel.set_yticks(range(len(y)), [shown(value) for value in y])
    panel.spines[:].set_visible(False)


def _maps_of(rows: Sequence[Row]) -> tuple[tuple[str, str], dict[str, list[Row]]] | None:
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
