"""The figure of heat maps: a metric over two swept keys."""

import math
from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure, SubFigure
from matplotlib.patches import Rectangle

from guidex.reports.edges import edge_of_best
from guidex.reports.labels import axis_label, metric_label, text, title, value_label
from guidex.reports.rows import MetricColumn, Row, chief_metrics, main_metrics, shown
from guidex.reports.series import maps_of, numbers

# Values are written into the cells of maps with at most so many columns.
_WRITTEN_COLUMNS = 8

_MAPS_PER_LINE = 4


def heat_maps(rows: Sequence[Row]) -> Figure | None:
    """FD over two keys, one map per combination of the others, or None without a grid."""
    choice = maps_of(rows)
    if choice is None:
        return None
    keys, maps = choice
    drawn = [row for points in maps.values() for row in points]
    metrics = chief_metrics([m for m in main_metrics(drawn) if len(_values(drawn, m)) > 0])
    if len(metrics) == 0:
        return None
    columns = min(_MAPS_PER_LINE, len(maps))
    lines = len(metrics) * math.ceil(len(maps) / columns)
    x, y = (max(3, len(numbers(drawn, key))) for key in keys)
    size = max(5.0, columns * (0.9 + 0.52 * x) + 1.3), lines * (0.95 + 0.4 * y) + 0.6
    figure = Figure(size, layout="constrained")
    parts = figure.subfigures(len(metrics), 1, squeeze=False)[:, 0]
    for part, metric in zip(parts, metrics, strict=True):
        _draw_maps(part, maps, metric, keys, columns)
    subject = " and ".join(text(metric.title) for metric in metrics)
    subject += f" over {' and '.join(axis_label(key, rows) for key in keys)}"
    remarks = ["medians"] if any(row.repeats > 1 for row in rows) else []
    missing = ", hatched: missing" if not all(row.is_measured for row in drawn) else ""
    remarks.append(f"framed: best{missing}")
    edges = filter(None, (edge_of_best(drawn, metric) for metric in metrics))
    ends = dict.fromkeys(value_label(row, drawn, key) for row, some in edges for key in some)
    if len(ends) > 0:
        remarks.append(f"better ones may lie beyond the edge, {' and '.join(ends)}")
    figure.suptitle(title(subject, rows, remarks, figure.get_figwidth()))
    return figure


def _values(rows: Sequence[Row], metric: MetricColumn) -> list[float]:
    """All finite values of a metric."""
    values = (row.metrics.get(metric.name, math.nan) for row in rows)
    return [value for value in values if math.isfinite(value)]


def _draw_maps(
    figure: SubFigure,
    maps: dict[str, list[Row]],
    metric: MetricColumn,
    keys: tuple[str, str],
    columns: int,
) -> None:
    """All maps of one metric, on one scale of colours on which brighter is better."""
    drawn = [row for points in maps.values() for row in points]
    x, y = (sorted(numbers(drawn, key)) for key in keys)
    known = _values(drawn, metric)
    low, high, digits = min(known), max(known), metric.decimals(known)
    best = {"lower": low, "higher": high, None: None}[metric.better]
    if low == high:
        low, high = (0.0, 1.0) if metric.is_share else (low, low + 1.0)
    colours = "viridis" if metric.better == "higher" else "viridis_r"
    scale = ScalarMappable(Normalize(low, high), colours)
    for number, (name, points) in enumerate(maps.items(), start=1):
        panel = figure.add_subplot(math.ceil(len(maps) / columns), columns, number)
        values = np.full((len(y), len(x)), math.nan)
        for row in points:
            i, j = y.index(row.values[keys[1]]), x.index(row.values[keys[0]])
            value = values[i, j] = row.metrics.get(metric.name, math.nan)
            if not math.isfinite(value):
                _frame(panel, i, j, hatch="////", edgecolor="0.6", linewidth=0)
                continue
            if value == best:
                _frame(panel, i, j, edgecolor="red", linewidth=2, zorder=3)
            if len(x) <= _WRITTEN_COLUMNS:
                dark = np.dot(scale.to_rgba(value)[:3], (0.299, 0.587, 0.114)) < 0.42
                style = {"ha": "center", "va": "center", "size": 8}
                panel.text(j, i, f"{value:.{digits}f}", color="white" if dark else "black", **style)
        place = {"origin": "lower", "aspect": "auto", "interpolation": "nearest"}
        panel.imshow(np.ma.masked_invalid(values), cmap=scale.cmap, norm=scale.norm, **place)
        panel.set_xticks(range(len(x)), [shown(value) for value in x])
        panel.set_yticks(range(len(y)), [shown(value) for value in y])
        panel.set(xlabel=axis_label(keys[0], drawn), ylabel=axis_label(keys[1], drawn))
        panel.set_title(name, fontsize=9.5)
        panel.spines[:].set_visible(False)
    figure.colorbar(scale, ax=figure.axes, label=metric_label(metric))


def _frame(panel: Axes, i: int, j: int, **style: str | float) -> None:
    panel.add_patch(Rectangle((j - 0.5, i - 0.5), 1, 1, fill=False, **style))
