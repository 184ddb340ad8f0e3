"""The figure of heat maps: a metric over two swept keys."""

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure, SubFigure
from matplotlib.patches import Rectangle

from guidex.reports.columns import edge_of_best
from guidex.reports.labels import (
    axis_label,
    last,
    metric_label,
    numbers,
    parent,
    point_label,
    relevant,
    text,
    title,
    value_label,
)
from guidex.reports.rows import Metric, Row, chief_metrics, main_metrics, shown, swept_keys

# Values are written into the cells of maps with at most so many columns.
_WRITTEN_COLUMNS = 8

_MAPS_PER_LINE = 4


def heat_maps(rows: Sequence[Row]) -> Figure | None:
    """FD over two keys, one map per combination of the others, or None without a grid."""
    maps: list[_Map] = []
    for x_key, y_key in _pairs(rows):
        maps = _maps(rows, x_key, y_key)
        if len(maps) > 0:
            break
    metrics = [m for m in main_metrics(rows) if any(one.has(m) for one in maps)]
    metrics = chief_metrics(metrics)
    if len(metrics) == 0:
        return None
    columns = min(_MAPS_PER_LINE, len(maps))
    lines = math.ceil(len(maps) / columns)
    width, height = maps[0].size
    figure = Figure(
        figsize=(max(5.0, columns * width + 1.3), len(metrics) * lines * height + 0.6),
        layout="constrained",
    )
    parts = figure.subfigures(len(metrics), 1, squeeze=False)[:, 0]
    for part, metric in zip(parts, metrics, strict=True):
        _draw_maps(part, maps, metric, lines, columns)
    subject = " and ".join(text(metric.title) for metric in metrics)
    subject += f" over {axis_label(x_key, rows)} and {axis_label(y_key, rows)}"
    medians = ["medians"] if any(row.repeats > 1 for row in rows) else []
    lacking = any(not row.is_measured for one in maps for row in one.rows.values())
    framed = "framed: best" + (", hatched: missing" if lacking else "")
    drawn = [row for one in maps for row in one.rows.values()]
    edges = filter(None, (edge_of_best(drawn, metric) for metric in metrics))
    ends = dict.fromkeys(value_label(row, drawn, key) for row, keys in edges for key in keys)
    doubts = [f"better ones may lie beyond the edge, {' and '.join(ends)}"] if ends else []
    remarks = [*medians, framed, *doubts]
    figure.suptitle(title(subject, rows, remarks, figure.get_figwidth()))
    return figure


@dataclass(frozen=True)
class _Map:
    """One heat map.

    Attributes:
        title: what its rows have in common.
        x, y: values of the axes, ascending, the same for all maps of a figure.
        x_label, y_label: of the axes.
        rows: by (index in y, index in x).
    """

    title: str
    x: list[float]
    y: list[float]
    x_label: str
    y_label: str
    rows: dict[tuple[int, int], Row]

    @property
    def size(self) -> tuple[float, float]:
        """Width and height in inches."""
        return 0.9 + 0.52 * max(3, len(self.x)), 0.95 + 0.4 * max(3, len(self.y))

    def values(self, metric: Metric) -> np.ndarray:
        """[len(y), len(x)], float64, NaN where there is none."""
        values = np.full((len(self.y), len(self.x)), math.nan)
        for place, row in self.rows.items():
            values[place] = row.metrics.get(metric.name, math.nan)
        return values

    def has(self, metric: Metric) -> bool:
        return bool(np.isfinite(self.values(metric)).any())


def _pairs(rows: Sequence[Row]) -> Iterator[tuple[str, str]]:
    """Pairs of numeric keys that may span a map, horizontal one first, the likeliest first."""
    keys = [key for key in swept_keys(rows) if len(numbers(rows, key)) > 1]
    for key in keys:
        if last(key) == "hi" and parent(key) + "lo" in keys:
            yield key, parent(key) + "lo"
    yield from itertools.combinations(keys, 2)


def _maps(rows: Sequence[Row], x_key: str, y_key: str) -> list[_Map]:
    """A map for each combination of other values whose points form a grid."""
    both = [row for row in rows if x_key in relevant(row) and y_key in relevant(row)]
    groups: dict[str, list[Row]] = {}
    for row in both:
        groups.setdefault(point_label(row, rows, without=(x_key, y_key)), []).append(row)
    groups = {label: own for label, own in groups.items() if _is_grid(own, x_key, y_key)}
    kept = [row for own in groups.values() for row in own]
    x, y = sorted(numbers(kept, x_key)), sorted(numbers(kept, y_key))
    labels = [axis_label(key, kept) for key in (x_key, y_key)] if len(kept) > 0 else ["", ""]
    maps = []
    for label, own in groups.items():
        places = {(y.index(row.values[y_key]), x.index(row.values[x_key])): row for row in own}
        maps.append(_Map(label, x, y, *labels, places))
    return maps


def _is_grid(rows: Sequence[Row], x_key: str, y_key: str) -> bool:
    """Whether there are more points than in a cross, where one key rests while the other varies."""
    x, y = len(numbers(rows, x_key)), len(numbers(rows, y_key))
    points = {(row.values[x_key], row.values[y_key]) for row in rows}
    return min(x, y) > 1 and len(points) >= x + y


def _draw_maps(
    figure: SubFigure, maps: Sequence[_Map], metric: Metric, lines: int, columns: int
) -> None:
    """All maps of one metric, on one scale of colours on which brighter is better."""
    values = [one.values(metric) for one in maps]
    low = min(float(np.nanmin(own)) for own in values if np.isfinite(own).any())
    high = max(float(np.nanmax(own)) for own in values if np.isfinite(own).any())
    scale = ScalarMappable(
        Normalize(*((low, high) if high > low else (0, 1) if metric.is_share else (low, low + 1))),
        "viridis" if metric.better == "higher" else "viridis_r",
    )
    best = {"lower": low, "higher": high, None: None}[metric.better]
    grid = figure.add_gridspec(lines, columns)
    panels = []
    for number, (one, own) in enumerate(zip(maps, values, strict=True)):
        panel = figure.add_subplot(grid[divmod(number, columns)])
        panels.append(panel)
        _draw_map(panel, one, own, scale, best, metric.decimals(np.concatenate(values).ravel()))
    figure.colorbar(scale, ax=panels, label=metric_label(metric))


def _draw_map(
    panel: Axes,
    one: _Map,
    values: np.ndarray,
    scale: ScalarMappable,
    best: float | None,
    digits: int,
) -> None:
    # Colours are set here and not by imshow, which would also colour the cells without a value.
    colours = scale.to_rgba(np.nan_to_num(values))
    colours[~np.isfinite(values)] = (1.0, 1.0, 1.0, 0.0)
    panel.imshow(colours, origin="lower", aspect="auto", interpolation="nearest")
    for i, j in one.rows:
        value = values[i, j]
        if not math.isfinite(value):
            _frame(panel, i, j, hatch="////", edgecolor="0.6", linewidth=0)
            continue
        if value == best:
            _frame(panel, i, j, edgecolor="red", linewidth=2, zorder=3)
        if len(one.x) <= _WRITTEN_COLUMNS:
            dark = colours[i, j, :3] @ (0.299, 0.587, 0.114) < 0.42
            ink = "white" if dark else "black"
            panel.text(j, i, f"{value:.{digits}f}", ha="center", va="center", size=8, color=ink)
    panel.set_xticks(range(len(one.x)), [shown(value) for value in one.x])
    panel.set_yticks(range(len(one.y)), [shown(value) for value in one.y])
    panel.set_xlabel(one.x_label)
    panel.set_ylabel(one.y_label)
    panel.set_title(one.title, fontsize=9.5)
    panel.spines[:].set_visible(False)


def _frame(panel: Axes, i: int, j: int, **style: str | float) -> None:
    panel.add_patch(Rectangle((j - 0.5, i - 0.5), 1, 1, fill=False, **style))
