"""What the report draws of a table: the figures of the folder, and quality against cost."""

import itertools
import math
from collections.abc import Iterable, Iterator, Sequence
from xml.etree.ElementTree import Element

from guidex.reports.charts import Spot, Trace, chart, heat_map, tag
from guidex.reports.curves import Series, curve_keys, numbers, pairs_of, panels_of, series_of
from guidex.reports.heat_maps import finite_values, maps_of, squares
from guidex.reports.labels import axis_label, plain, point_label
from guidex.reports.published import published_value
from guidex.reports.rows import MetricColumn, Row, chief_metrics, main_metrics, spread

_COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#7f4f24", "#444")
_COSTS = {
    "evaluations per image": lambda row: float(row.evals_main + row.evals_ref),
    "GFLOP per image": lambda row: row.gflops,
}


class Figures:
    """The charts of a table, in which points of a series have one colour."""

    def __init__(self, rows: Sequence[Row]) -> None:
        self._rows, self._keys = rows, curve_keys(rows)
        series = [s for s in series_of(rows, self._keys) if any(row.is_measured for row in s.rows)]
        names = [plain(point_label(s.rows[0], rows, (s.key,))) for s in series]
        styles = {}
        for k, name in enumerate(dict.fromkeys(names)):
            dashes = "" if k < len(_COLOURS) else ";stroke-dasharray:6 3"
            styles[name] = f"--colour:{_COLOURS[k % len(_COLOURS)]}{dashes}"
        self._labels = dict(zip(series, names, strict=True))
        self._styles = {s: styles[name] for s, name in self._labels.items()}
        self.names = {row.point: plain(point_label(row, rows, ())) for row in rows}

    def legend(self) -> Element:
        """A button for each series, which picks all of its points."""
        picks = {s: " ".join(str(row.point) for row in s.rows) for s in self._labels}
        buttons = [
            tag("button", name, data_pick=picks[s], style=self._styles[s])
            for s, name in self._labels.items()
        ]
        return tag("div", *buttons, class_="legend")

    def charts(self) -> Iterator[Element]:
        """Each metric against w, precision against recall, the chief metrics against their cost."""
        metrics, series = main_metrics(self._rows), list(self._labels)
        panels = panels_of(series, self._rows) if any(s.is_curve for s in series) else {}
        for metric, (panel, members) in itertools.product(metrics, panels.items()):
            traces = []
            for s in members:
                traces.append(self._trace("line" if s.is_curve else "level", s, metric, s.x))
                traces.append(self._trace("published", s, metric, s.x))
            name = ", ".join(filter(None, [_heading(metric), plain(panel)]))
            values = [spot.y for trace in traces for spot in trace.spots if spot.y > 0]
            is_wide = metric.column.is_chief and max(values, default=0) > 8 * min(values, default=1)
            yield chart(plain(axis_label(self._keys[0], self._rows)), name, traces, log=is_wide)
        for recall, precision in pairs_of(self._rows, series):
            traces = [self._trace("path", s, precision, s.values(recall)) for s in series]
            yield chart(_heading(recall), _heading(precision), traces)
        for metric, (name, cost) in itertools.product(chief_metrics(metrics), _COSTS.items()):
            if len({cost(row) for row in self._rows if row.is_priced}) > 1:
                traces = [
                    self._trace(kind, s, metric, [cost(row) for row in s.rows])
                    for s in series
                    for kind in ("dots", "published")
                ]
                traces.insert(0, _front(metric, traces))
                yield chart(name, _heading(metric), traces)

    def maps(self) -> Iterator[Element]:
        """The chief metrics over two keys that form grids."""
        choice = maps_of(self._rows)
        if choice is None:
            return
        keys, maps = choice
        drawn = [row for points in maps.values() for row in points]
        labels = tuple(plain(axis_label(key, drawn)) for key in keys)
        values = [sorted(numbers(drawn, key)) for key in keys]
        metrics = [m for m in main_metrics(drawn) if len(finite_values(drawn, m)) > 0]
        for metric in chief_metrics(metrics):
            for name, points in maps.items():
                title = ", ".join([_heading(metric), *filter(None, [plain(name)])])
                yield heat_map(title, labels, values, squares(points, drawn, metric, keys))

    def _trace(self, kind: str, s: Series, metric: MetricColumn, x: Iterable[float]) -> Trace:
        """A metric of a series, or what was published of it, over the values x."""
        digits = metric.decimals(s.values(metric))
        spots = []
        for row, place in zip(s.rows, x, strict=True):
            y, ends = row.metrics.get(metric.name), spread(row, metric.name)
            if kind == "published":
                y, ends = published_value(row, metric.name), None
            is_known = y is not None and math.isfinite(y + place)
            text = f"{self.names[row.point]}: {_heading(metric)} {y or 0:.{digits}f}"
            text += " as published" if kind == "published" else ""
            band = (ends.low, ends.high) if ends and kind == "line" else (math.nan, math.nan)
            spots.append(Spot(place, y if is_known else math.nan, row, text, *band))
        return Trace(kind, self._styles[s], spots)


def _heading(metric: MetricColumn) -> str:
    return metric.headed(metric.title)


def _front(metric: MetricColumn, traces: Sequence[Trace]) -> Trace:
    """The points that no cheaper one, and none of the same cost, is better than."""
    spots = [s for t in traces if t.kind == "dots" for s in t.spots if math.isfinite(s.y)]
    sign = -1 if metric.column.better == "higher" else 1
    front: list[Spot] = []
    for spot in sorted(spots, key=lambda spot: (spot.x, sign * spot.y)):
        if not front or sign * spot.y < sign * front[-1].y:
            front.append(spot)
    return Trace("front", "", front)
