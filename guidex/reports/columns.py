"""The columns of a sweep's table for people: rounded, ranked, with what must be said below them.

Plain text; `tables` escapes it for each format.
"""

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

from guidex.reports.rows import (
    Metric,
    Row,
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
                columns.append(Column(name, _texts(texts), numeric=True))
        metrics = main_metrics(rows)
        for metric in metrics:
            columns.append(_metric_column(rows, metric, metrics, rank=len(differing) == 0))
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
        """What the numbers are, in one line, and what hinders their comparison in another."""
        parts = [*_settings(self.rows), runs(self.rows)]
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
        return notes

    @property
    def missing(self) -> list[str]:
        """Rows without numbers, and those that are not guided though they were to be."""
        short = short_names(swept_keys(self.rows))
        idle = [row for row in self.rows if row.plan.get("idle")]
        return [
            *(
                _about("Missing", row, short, row.missing or "")
                for row in self.rows
                if not row.is_measured
            ),
            *(
                _about("Not guided", row, short, "no step of the sampler is in its interval")
                for row in idle
            ),
        ]

    def narrower(self) -> Iterator["Table"]:
        """Ever narrower tables, this one first, the least loss before others. The first column,
        which tells points apart, and the first metric stay."""
        metrics = [column.heading for column in self.columns if column.metric is not None]
        keys = [c.heading for c in self.columns if c.heading not in [*metrics, *_COSTS]]
        yield self
        table = self._with(column.shortened() for column in self.columns)
        yield table
        for reduce, headings in (
            (Table._without, ("seconds", "GFLOPs")),
            (Table._flat, metrics[:0:-1]),
            (Table._without, ("NFE", *metrics[:0:-1])),
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


def _about(what: str, row: Row, short: dict[str, str], why: str) -> str:
    unnamed = row.guidance == "" or "guidance" in row.values
    values = [] if unnamed else [f"guidance {shown(row.guidance)}"]
    values += [f"{short[key]} {shown(value)}" for key, value in row.values.items()]
    return f"{what}: point {row.point} ({', '.join(values)}): {one_line(why)}"
