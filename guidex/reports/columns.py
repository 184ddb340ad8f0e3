"""The columns of a sweep's table for people: rounded, ranked, with what must be said below them.

Plain text; `tables` escapes it for each format.
"""

import math
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np

from guidex.reports.figure_text import last, relevant, unit
from guidex.reports.published import difference, published_notes, published_value
from guidex.reports.rows import (
    Metric,
    Row,
    Value,
    chief_metrics,
    decimals,
    is_number,
    main_metrics,
    one_line,
    ordered,
    runs,
    short_names,
    shown,
    spread,
    swept_keys,
)

_ABSENT = "–"

_COSTS = ("NFE", "GFLOPs", "seconds")

# Longer texts are cut where the terminal is too narrow.
_LONGEST_TEXT = 32


class Cell(NamedTuple):
    """A value as printed, whether it is the best of its column, and its spread in brackets."""

    text: str
    best: bool = False
    spread: str = ""


@dataclass(frozen=True)
class Column:
    """A column for people, as plain text.

    Attributes:
        heading: the whole heading.
        cells: one per row.
        numeric: whether it is aligned to the right.
        metric: the metric shown, or None.
    """

    heading: str
    cells: tuple[Cell, ...]
    numeric: bool
    metric: Metric | None = None

    def plain(self) -> list[str]:
        """Cells for the terminal, with room for the mark and the spread where any cell has one."""
        marks = any(cell.best for cell in self.cells)
        texts = [cell.text + ("*" if cell.best else " " if marks else "") for cell in self.cells]
        if not self.has_spread:
            return texts
        size = max(len(cell.spread) for cell in self.cells)
        return [f"{t} {cell.spread:<{size}}" for t, cell in zip(texts, self.cells, strict=True)]

    @property
    def plain_heading(self) -> str:
        """The heading without the arrow."""
        return self.heading.rstrip(" ↓↑")

    @property
    def has_spread(self) -> bool:
        return any(cell.spread != "" for cell in self.cells)

    def shortened(self) -> "Column":
        """With the ends of long texts cut off."""
        if self.metric is not None:
            return self
        return replace(self, cells=tuple(c._replace(text=_cut(c.text)) for c in self.cells))

    def without_spread(self) -> "Column":
        return replace(self, cells=tuple(cell._replace(spread="") for cell in self.cells))


@dataclass(frozen=True)
class Table:
    """The columns for people, and what must be said below them.

    Attributes:
        columns: guidance and swept keys, metrics, costs.
        rows: ordered by point.
        differing: settings that are not the same for all rows; with any, no value is the best.
    """

    columns: tuple[Column, ...]
    rows: tuple[Row, ...]
    differing: tuple[str, ...]

    @classmethod
    def of(cls, rows: Sequence[Row]) -> "Table":
        rows = ordered(rows)
        differing = _differing(rows)
        keys = swept_keys(rows)
        short = short_names(keys)
        columns = [_swept_column(rows, key, short[key]) for key in keys]
        for name in ("images", "repeats"):
            counts = {getattr(row, name) for row in rows if row.is_measured}
            if name not in keys and len(counts) > 1:
                texts = (str(getattr(row, name)) if row.is_measured else _ABSENT for row in rows)
                heading = rows[0].unit if name == "images" else name
                columns.append(Column(heading, _texts(texts), numeric=True))
        metrics = main_metrics(rows)
        for metric in metrics:
            columns.append(_metric_column(rows, metric, metrics, rank=len(differing) == 0))
            columns += _published_column(rows, metric, metrics)
        columns += _cost_columns(rows)
        if "guidance" not in keys and any(row.guidance != "" for row in rows):
            guidance = _texts(row.guidance for row in rows)
            columns.insert(0, Column("guidance", guidance, numeric=False))
        return cls(tuple(columns), tuple(rows), tuple(differing))

    def lines(self) -> Iterable[tuple[Cell, ...]]:
        """The cells row by row."""
        return zip(*(column.cells for column in self.columns), strict=True)

    def text(self) -> list[str]:
        """Headings, a rule, and one line per row."""
        blocks = []
        for column in self.columns:
            cells = column.plain()
            size = max(len(text) for text in [column.heading, *cells])
            side = ">" if column.numeric else "<"
            blocks.append([f"{text:{side}{size}}" for text in [column.heading, *cells]])
        lines = ["  ".join(parts).rstrip() for parts in zip(*blocks, strict=True)]
        return [lines[0], "─" * max(map(len, lines)), *lines[1:]]

    def width(self) -> int:
        return max(map(len, self.text()))

    def notes(self, mark: str) -> list[str]:
        """What the numbers are, in one line, and what hinders their comparison in others."""
        parts = [*_common(self.rows), *_settings(self.rows), runs(self.rows)]
        cells = [cell for column in self.columns for cell in column.cells]
        if any(row.repeats > 1 for row in self.rows):
            around = any(cell.spread.startswith("(") for cell in cells)
            spreads = " (min–max in parentheses)" if around else ""
            parts.append(f"values are medians of the repeats{spreads}")
        if any(cell.spread.startswith("[") for cell in cells):
            parts.append("confidence interval, with its centre, in brackets")
        if any(column.heading == "NFE" for column in self.columns):
            parts.append("NFE: network evaluations per image, main + references")
        if any(cell.best for cell in cells):
            parts.append(mark)
        notes = ["; ".join(parts) + "."]
        if len(self.differing) > 0:
            notes.append(
                f"No best values are marked, since points differ in {', '.join(self.differing)}, "
                "which metrics depend on."
            )
        elif len(edges := _edges(self.rows)) > 0:
            notes.append(
                "Best values on the edge of an axis, beyond which better ones may lie: "
                f"{'; '.join(edges)}."
            )
        notes += published_notes(self.rows)
        short = short_names(swept_keys(self.rows))
        for row in self.rows:
            if not row.is_measured:
                notes.append(f"Missing: point {_point(row, short)}: {one_line(row.missing)}")
            elif row.note is not None:
                notes.append(f"Point {_point(row, short)}: {one_line(row.note)}")
        return notes

    @property
    def origin(self) -> list[str]:
        """The version, the date and the command that made the rows, for tables that travel."""
        made = dict.fromkeys(
            f"guidex {row.provenance['guidex']}, {row.provenance['date']}: "
            f"{row.provenance['command']}"
            for row in self.rows
            if {"guidex", "date", "command"} <= row.provenance.keys()
        )
        return list(made)

    def narrower(self) -> Iterator["Table"]:
        """Ever narrower tables, this one first, the least loss before others. The first column,
        which tells points apart, and the first metric stay."""
        metrics = [column.heading for column in self.columns if column.metric is not None]
        published = [c.heading for c in self.columns if c.heading.startswith("published ")]
        others = [*metrics, *published, *_COSTS]
        keys = [c.heading for c in self.columns if c.heading not in others]
        yield self
        table = self._with(column.shortened() for column in self.columns)
        yield table
        for reduce, headings in (
            (Table._without, ("seconds", "GFLOPs")),
            (Table._flat, metrics[:0:-1]),
            (Table._without, ("NFE", *metrics[:0:-1], *published[::-1])),
            (Table._flat, metrics[:1]),
            (Table._without, keys[:0:-1]),
        ):
            for heading in headings:
                table = reduce(table, heading)
                yield table

    def _with(self, columns: Iterable[Column]) -> "Table":
        return replace(self, columns=tuple(columns))

    def _without(self, heading: str) -> "Table":
        return self._with(column for column in self.columns if column.heading != heading)

    def _flat(self, heading: str) -> "Table":
        """Without the spread of a column."""
        return self._with(c.without_spread() if c.heading == heading else c for c in self.columns)


def loss(whole: Table, table: Table) -> str:
    """What a narrowed table lacks: columns, spreads, ends of texts."""
    left = {column.heading: column for column in table.columns}
    kept = [column for column in whole.columns if column.heading in left]
    parts = [c.plain_heading for c in whole.columns if c.heading not in left]
    flat = [c.plain_heading for c in kept if c.has_spread and not left[c.heading].has_spread]
    if len(flat) > 0:
        parts.append(f"the spread of {', '.join(flat)}")
    if any(c.metric is None and c != left[c.heading] for c in kept):
        parts.append("the ends of long values")
    return ", ".join(parts)


def _swept_column(rows: Sequence[Row], key: str, heading: str) -> Column:
    values = [row.value(key) for row in rows if row.holds(key)]
    cells = _texts(shown(row.value(key)) if row.holds(key) else "" for row in rows)
    return Column(heading, cells, all(is_number(value) for value in values))


def _metric_column(
    rows: Sequence[Row], metric: Metric, metrics: Sequence[Metric], rank: bool
) -> Column:
    values = [row.metrics.get(metric.name) for row in rows]
    digits = metric.decimals(value for value in values if value is not None)
    best = _best(values, metric, digits) if rank else None
    cells = []
    for row, value in zip(rows, values, strict=True):
        if value is None:
            cells.append(Cell(_ABSENT))
            continue
        text = f"{value:.{digits}f}"
        cells.append(Cell(text, text == best, _spread_text(row, metric, digits)))
    heading = f"{_metric_name(metric, metrics)} {metric.arrow}".strip()
    return Column(heading, tuple(cells), numeric=True, metric=metric)


def _published_column(
    rows: Sequence[Row], metric: Metric, metrics: Sequence[Metric]
) -> list[Column]:
    """Published values with the difference of those measured, if there are any."""
    differences = [difference(row, metric.name) for row in rows]
    if not any(value is not None for value in differences):
        return []
    digits = metric.decimals(v for row in rows if (v := row.metrics.get(metric.name)) is not None)
    cells = [
        f"{published_value(row, metric.name):.{digits}f} ({value:+.{digits}f})"
        if value is not None
        else _ABSENT
        for row, value in zip(rows, differences, strict=True)
    ]
    return [Column(f"published {_metric_name(metric, metrics)}", _texts(cells), numeric=True)]


def _metric_name(metric: Metric, metrics: Sequence[Metric]) -> str:
    """A distance is nothing without its detector; of others it is named where there are several."""
    several = len({other.detector for other in metrics}) > 1
    return metric.title if several or metric.kind == "fd" else metric.label


def _best(values: Sequence[float | None], metric: Metric, digits: int) -> str | None:
    """The best of at least two values, as printed."""
    finite = [value for value in values if value is not None and math.isfinite(value)]
    if metric.better is None or len(finite) < 2:
        return None
    return f"{(min if metric.better == 'lower' else max)(finite):.{digits}f}"


def _spread_text(row: Row, metric: Metric, digits: int) -> str:
    """Such as (0.143–0.151) over repeats, [0.147 in 0.143–0.151] for a confidence interval with
    its centre."""
    found = spread(row, metric.name)
    if found is None:
        return ""
    dash = "–" if found.low >= 0 else " to "
    text = f"{found.low:.{digits}f}{dash}{found.high:.{digits}f}"
    if found.source == "repeats":
        return f"({text})"
    centre = row.metrics.get(f"{metric.name}_unbiased")
    return f"[{text}]" if centre is None else f"[{centre:.{digits}f} in {text}]"


def _cost_columns(rows: Sequence[Row]) -> list[Column]:
    flops = decimals(row.gflops for row in rows if row.is_priced)
    seconds = 1 if all(row.seconds < 100 for row in rows) else 0
    texts = {
        "NFE": [_evaluations(row) if row.is_priced else _ABSENT for row in rows],
        "GFLOPs": [f"{row.gflops:.{flops}f}" if row.is_priced else _ABSENT for row in rows],
        "seconds": [f"{row.seconds:.{seconds}f}" if row.is_measured else _ABSENT for row in rows],
    }
    return [
        Column(name, _texts(texts[name]), numeric=True)
        for name in _COSTS
        if any(text != _ABSENT for text in texts[name])
    ]


def _evaluations(row: Row) -> str:
    return f"{row.evals_main} + {row.evals_ref}" if row.evals_ref > 0 else f"{row.evals_main}"


def _texts(texts: Iterable[str]) -> tuple[Cell, ...]:
    return tuple(Cell(one_line(text)) for text in texts)


def _cut(text: str) -> str:
    return text if len(text) <= _LONGEST_TEXT else text[: _LONGEST_TEXT - 1] + "…"


def _common(rows: Sequence[Row]) -> list[str]:
    """What all points have in common, as no column says it: weights and bounds, model, sampler,
    steps, seeds, images."""
    known: dict[str, dict[str, None]] = {}
    methods = {row.guidance for row in rows if row.guidance != "none"}
    for row in rows:
        presets = row.provenance.get("presets", {})
        found = {name: presets.get(name) for name in ("model", "sampler")}
        found |= {name: row.config.get(name) for name in ("seeds", "images")}
        found |= {"steps": row.plan.get("steps")} | _schedules(row, f"{row.guidance} ", methods)
        for name, value in found.items():
            if value is not None and name not in row.values:
                known.setdefault(name, {})[shown(value)] = None
    return [f"{name} {value}" for name, (value, *others) in known.items() if len(others) == 0]


def _schedules(row: Row, prefix: str, methods: Collection[str]) -> dict[str, Value]:
    """The weight and the bounds of each schedule, where they are not swept, by short names."""
    found = {}
    waiting = [("guidance", row.config.get("guidance"))]
    for place, node in waiting:
        for name, value in node.items() if isinstance(node, dict) else ():
            key = f"{place}.{name}"
            known = name in ("w", "lo", "hi") or (name == "unit" and value != "sigma")
            if known and key not in row.values:
                found[key] = value
            waiting.append((key, value))
    short = short_names(list(found))
    return {f"{prefix if len(methods) > 1 else ''}{short[key]}": found[key] for key in found}


def _settings(rows: Sequence[Row]) -> list[str]:
    """Each setting with its values over all rows."""
    values: dict[str, dict[str, None]] = {}
    for row in rows:
        for name, value in row.settings.items():
            values.setdefault(name, {})[shown(value)] = None
    return [f"{name} {' / '.join(own)}" for name, own in values.items()]


def _differing(rows: Sequence[Row]) -> list[str]:
    """What metrics depend on, beside the point itself, and is not the same for all rows."""
    measured = [row for row in rows if len(row.metrics) > 0]
    conditions = [{"images": row.images, **row.settings} for row in measured]
    names = dict.fromkeys(name for one in conditions for name in one)
    return [name for name in names if len({one.get(name) for one in conditions}) > 1]


def _edges(rows: Sequence[Row]) -> list[str]:
    """Which metrics are best on an edge, and where: of all rows, and the chief ones, by which one
    compares, also of each method."""
    short, metrics = short_names(swept_keys(rows)), main_metrics(rows)
    places: dict[str, list[str]] = {}
    for metric in metrics:
        groups: dict[str, list[Row]] = {}
        for row in rows:
            own = _method(row) if metric in chief_metrics(metrics) else ""
            groups.setdefault(own, []).append(row)
        for row, keys in filter(None, (edge_of_best(own, metric) for own in groups.values())):
            place = ", ".join(f"{short[key]} = {shown(row.values[key])}" for key in keys)
            place += f" of {_method(row)}" if len(set(map(_method, rows)) - {""}) > 1 else ""
            places.setdefault(place, []).append(_metric_name(metric, metrics))
    return [f"{', '.join(names)} at {place}" for place, names in places.items()]


def edge_of_best(rows: Sequence[Row], metric: Metric) -> tuple[Row, list[str]] | None:
    """The best row, and the swept keys at whose first or last value it lies.

    An axis of a row is a numeric key of guidance, sampler or model, over the rows that agree with
    it in all other keys (in zip mode, in all that are no numbers). It does not end where there is
    nothing beyond: at w = 1, which is no guidance, at 0, at infinity, and where an interval
    reaches the sampler's first or last step.

    Arguments:
        rows: in which to look; missing ones are part of their axes.
        metric: with a direction; values that print alike are equally good.

    Returns:
        None without two values, or where equally good ones lie on no common edge.
    """
    known = {row.point: row.metrics.get(metric.name, math.nan) for row in rows}
    finite = [value for value in known.values() if math.isfinite(value)]
    if metric.better is None or len(finite) < 2:
        return None
    digits = metric.decimals(finite)
    best = (min if metric.better == "lower" else max)(finite)
    alike = [row for row in rows if f"{known[row.point]:.{digits}f}" == f"{best:.{digits}f}"]
    first, *others = (_ends(row, rows) for row in alike)
    keys = [key for key, end in first.items() if all(one.get(key) == end for one in others)]
    return (alike[0], keys) if len(keys) > 0 else None


def _ends(row: Row, rows: Sequence[Row]) -> dict[str, Value]:
    found = {}
    for key, value in relevant(row).items():
        if "." not in key or not is_number(value):
            continue
        apart = _apart(row, key)
        axis = [other.values.get(key) for other in rows if _apart(other, key) == apart]
        axis = sorted({one for one in axis if is_number(one)})
        for end in (axis[0], axis[-1]) if len(axis) > 1 else ():
            if value == end and not _is_natural(row, key, low=end == axis[0]):
                found[key] = value
    return found


def _apart(row: Row, key: str) -> dict[str, Value]:
    """What a row has in common with the others of an axis."""
    paired = row.config.get("sweep", {}).get("mode") == "zip"
    return {k: v for k, v in row.values.items() if k != key and not (paired and is_number(v))}


def _is_natural(row: Row, key: str, low: bool) -> bool:
    """Whether there is nothing beyond the lowest or highest value of an axis, which the row has."""
    name = last(key)
    if math.isinf(row.values[key]) or (low and row.values[key] == (1 if name == "w" else 0)):
        return True
    if name != ("lo" if low else "hi") or "weights" not in row.plan:
        return False
    guided = (np.array(row.plan["weights"]) != 1).any(axis=(0, 2))
    # A bound in sigma counts down to 0, steps count up to the last.
    return bool(guided[0 if (name == "hi") == (unit(row, key) == "sigma") else -1])


def _method(row: Row) -> str:
    """The swept values of a row that are no numbers."""
    return " ".join(_cut(shown(value)) for value in row.values.values() if not is_number(value))


def _point(row: Row, short: dict[str, str]) -> str:
    unnamed = row.guidance == "" or "guidance" in row.values
    values = [] if unnamed else [f"guidance {shown(row.guidance)}"]
    values += [f"{short[key]} {shown(value)}" for key, value in row.values.items()]
    return f"{row.point} ({', '.join(values)})"
