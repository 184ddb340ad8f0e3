"""What heat maps show: a metric over two swept keys, a map for each combination of the others."""

import itertools
import math
from collections.abc import Sequence

from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize

from guidex.reports.charts import Map, Square, names_of, numbers
from guidex.reports.labels import (
    axis_label,
    last,
    metric_label,
    parent,
    plain,
    point_label,
    relevant,
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


def heat_maps(rows: Sequence[Row]) -> list[Map]:
    """The chief metrics over the first pair of keys that forms grids; brighter is better."""
    keys, grids = _grids(rows)
    drawn = [row for points in grids.values() for row in points]
    values = [sorted(numbers(drawn, key)) for key in keys]
    ticks = [[shown(value) for value in some] for some in values]
    axes = [axis_label(key, drawn) for key in keys]
    names, maps = names_of(rows), []
    for metric in chief_metrics([m for m in main_metrics(drawn) if len(m.finite(drawn)) > 0]):
        known = metric.finite(drawn)
        digits, best = metric.decimals(known), best_text(known, metric)
        low, high = min(known), max(known)
        name = "viridis" if metric.column.better == "higher" else "viridis_r"
        colours = ScalarMappable(Normalize(low, high if high > low else low + 1), name)
        remarks = _remarks(drawn, metric)
        for panel, points in grids.items():
            squares = []
            for row in points:
                x, y = (some.index(row.values[key]) for key, some in zip(keys, values, strict=True))
                value = row.metrics.get(metric.name, math.nan)
                words = f"{value:.{digits}f}" if math.isfinite(value) else ""
                text = f"{names[row.point]}: {plain(metric_label(metric))} {words or 'missing'}"
                squares.append(Square(x, y, row, text, value, words, words == best))
            squares.sort(key=lambda square: square.is_best)  # whose frame lies over others
            label = metric_label(metric)
            maps.append(Map(*axes, panel, label, squares, (ticks[0], ticks[1]), colours, remarks))
    return maps


def _remarks(drawn: Sequence[Row], metric: MetricColumn) -> list[str]:
    medians = ["medians"] if any(row.repeats > 1 for row in drawn) else []
    missing = ", hatched: missing" if not all(row.is_measured for row in drawn) else ""
    row, keys = edge_of_best(drawn, metric)
    edge = " and ".join(value_label(row, drawn, key) for key in keys)
    doubts = [f"better ones may lie beyond the edge, {edge}"] if edge else []
    return [*medians, f"framed: best{missing}", *doubts]


def _grids(rows: Sequence[Row]) -> tuple[tuple[str, ...], dict[str, list[Row]]]:
    """The first pair of numeric keys (horizontal, vertical) whose points form grids, and the points
    of each grid by what they have in common: a combination of other values."""
    keys = [key for key in swept_keys(rows) if len(numbers(rows, key)) > 1]
    bounds = [(k, f"{parent(k)}lo") for k in keys if last(k) == "hi" and f"{parent(k)}lo" in keys]
    for pair in [*bounds, *itertools.combinations(keys, 2)]:
        grids: dict[str, list[Row]] = {}
        for row in rows:
            if set(pair) <= relevant(row).keys():
                grids.setdefault(point_label(row, rows, without=pair), []).append(row)
        grids = {label: points for label, points in grids.items() if _is_grid(points, *pair)}
        if len(grids) > 0:
            return pair, grids
    return (), {}


def _is_grid(rows: Sequence[Row], x_key: str, y_key: str) -> bool:
    """Whether there are more points than in a cross, where one key rests while the other varies."""
    x, y = len(numbers(rows, x_key)), len(numbers(rows, y_key))
    points = {(row.values[x_key], row.values[y_key]) for row in rows}
    return min(x, y) > 1 and len(points) >= x + y
