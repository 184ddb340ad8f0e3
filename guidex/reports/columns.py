"""The columns of a sweep's table for people: rounded, ranked, with what must be said below them.

Plain text; `tables` escapes it for each format.
"""

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

from guidex.reports.edges import edges
from guidex.reports.labels import cut, last, short_names
from guidex.reports.published import difference, published_notes, published_value
from guidex.reports.rows import (
    MetricColumn,
    Row,
    Value,
    best_text,
    decimals,
    is_number,
    main_metrics,
    metric_name,
    one_line,
    ordered,
    runs,
    shown,
    spread,
    swept_keys,
)

_ABSENT = "–"

_COSTS = ("NFE", "GFLOPs", "seconds")


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
    metric: MetricColumn | None = None

    @property
    def has_spread(self) -> bool:
        return any(cell.spread != "" for cell in self.cells)

    def aligned(self) -> list[str]:
        """The heading and the cells for the terminal, of one length, with room for the mark and
        the spread where any cell has one."""
        marks = any(cell.best for cell in self.cells)
        texts = [cell.text + ("*" if cell.best else " " if marks else "") for cell in self.cells]
        if self.has_spread:
            size = max(len(cell.spread) for cell in self.cells)
            spreads = [cell.spread.ljust(size) for cell in self.cells]
            texts = [" ".join(parts) for parts in zip(texts, spreads, strict=True)]
        texts = [self.heading, *texts]
        return [f"{t:{'>' if self.numeric else '<'}{max(map(len, texts))}}" for t in texts]

    def shortened(self) -> "Column":
        """With the ends of long texts cut off."""
        if self.metric is not None:
            return self
        return replace(self, cells=tuple(cell._replace(text=cut(cell.text)) for cell in self.cells))

    def without_spread(self) -> "Column":
        return replace(self, cells=tuple(cell._replace(spread="") for cell in self.cells))


@dataclass(frozen=True)
class RoundedTable:
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
    def of(cls, rows: Sequence[Row]) -> "RoundedTable":
        rows = ordered(rows)
        differing = _differing(rows)
        keys = swept_keys(rows)
        columns = [_swept_column(rows, key, short) for key, short in short_names(keys).items()]
        for name, heading in (("images", rows[0].unit), ("repeats", "repeats")):
            texts = [str(getattr(row, name)) if row.is_measured else _ABSENT for row in rows]
            if name not in keys and len({*texts} - {_ABSENT}) > 1:
                columns.append(Column(heading, _cells(texts), numeric=True))
        metrics = main_metrics(rows)
        for metric in metrics:
            name = metric_name(metric, metrics)
            heading = f"{name} {metric.arrow}".strip()
            columns.append(_metric_column(rows, metric, heading, rank=len(differing) == 0))
            columns += _published_column(rows, metric, name)
        columns += _cost_columns(rows)
        if "guidance" not in keys and any(row.guidance != "" for row in rows):
            columns.insert(0, Column("guidance", _cells(row.guidance for row in rows), False))
        return cls(tuple(columns), tuple(rows), tuple(differing))

    def lines(self) -> Iterable[tuple[Cell, ...]]:
        """The cells row by row."""
        return zip(*(column.cells for column in self.columns), strict=True)

    def text(self) -> list[str]:
        """Headings, a rule, and one line per row."""
        parts = zip(*(column.aligned() for column in self.columns), strict=True)
        heading, *lines = ["  ".join(texts).rstrip() for texts in parts]
        return [heading, "─" * max(map(len, [heading, *lines])), *lines]

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
        elif places := edges(self.rows):
            notes.append(
                "Best values on the edge of an axis, beyond which better ones may lie: "
                f"{'; '.join(places)}."
            )
        notes += published_notes(self.rows)
        short = short_names(swept_keys(self.rows))
        for row in self.rows:
            unnamed = row.guidance == "" or "guidance" in row.values
            values = [] if unnamed else [f"guidance {shown(row.guidance)}"]
            values += [f"{short[key]} {shown(value)}" for key, value in row.values.items()]
            point = f"{row.point} ({', '.join(values)})"
            if not row.is_measured:
                notes.append(f"Missing: point {point}: {one_line(row.missing)}")
            elif row.note is not None:
                notes.append(f"Point {point}: {one_line(row.note)}")
        return notes

    @property
    def origin(self) -> list[str]:
        """The version, the date and the command that made the rows, for tables that travel."""
        return list(
            dict.fromkeys(
                f"guidex {row.provenance['guidex']}, {row.provenance['date']}: "
                f"{row.provenance['command']}"
                for row in self.rows
                if {"guidex", "date", "command"} <= row.provenance.keys()
            )
        )

    def narrower(self) -> Iterator["RoundedTable"]:
        """Ever narrower tables, this one first, the least loss before others. The first column,
        which tells points apart, and the first metric stay."""
        metrics = [column.heading for column in self.columns if column.metric is not None]
        published = [c.heading for c in self.columns if c.heading.startswith("published ")]
        others = [*metrics, *published, *_COSTS]
        keys = [c.heading for c in self.columns if c.heading not in others]
        yield self
        columns = [column.shortened() for column in self.columns]
        yield replace(self, columns=tuple(columns))
        for stays, headings in (
            (False, ("seconds", "GFLOPs")),
            (True, metrics[:0:-1]),
            (False, ("NFE", *metrics[:0:-1], *published[::-1])),
            (True, metrics[:1]),
            (False, keys[:0:-1]),
        ):
            for heading in headings:
                part = [c.without_spread() if c.heading == heading else c for c in columns]
                columns = [c for c in part if stays or c.heading != heading]
                yield replace(self, columns=tuple(columns))

    def loss(self, narrowed: "RoundedTable") -> str:
        """What a narrowed table lacks: columns, spreads, ends of texts."""
        left = {column.heading: column for column in narrowed.columns}
        names = [c.heading.rstrip(" ↓↑") for c in self.columns if c.heading not in left]
        pairs = [(c, left[c.heading]) for c in self.columns if c.heading in left]
        flat = [c.heading.rstrip(" ↓↑") for c, now in pairs if c.has_spread and not now.has_spread]
        names += [f"the spread of {', '.join(flat)}"] if len(flat) > 0 else []
        cut_off = any(column.metric is None and column != now for column, now in pairs)
        return ", ".join([*names, "the ends of long values"] if cut_off else names)


def _cells(texts: Iterable[str]) -> tuple[Cell, ...]:
    return tuple(Cell(one_line(text)) for text in texts)


def _swept_column(rows: Sequence[Row], key: str, heading: str) -> Column:
    values = [row.value(key) for row in rows if row.holds(key)]
    cells = _cells(shown(row.value(key)) if row.holds(key) else "" for row in rows)
    return Column(heading, cells, all(is_number(value) for value in values))


def _metric_column(rows: Sequence[Row], metric: MetricColumn, heading: str, rank: bool) -> Column:
    values = [row.metrics[metric.name] for row in rows if metric.name in row.metrics]
    digits, best = metric.decimals(values), best_text(values, metric) if rank else None

    def cell(row: Row) -> Cell:
        if metric.name not in row.metrics:
            return Cell(_ABSENT)
        text = f"{row.metrics[metric.name]:.{digits}f}"
        return Cell(text, text == best, _spread_text(row, metric, digits))

    return Column(heading, tuple(map(cell, rows)), numeric=True, metric=metric)


def _published_column(rows: Sequence[Row], metric: MetricColumn, name: str) -> list[Column]:
    """Published values with the difference of those measured, if there are any."""
    differences = [difference(row, metric.name) for row in rows]
    if not any(value is not None for value in differences):
        return []
    digits = metric.decimals(v for row in rows if (v := row.metrics.get(metric.name)) is not None)
    texts = [
        f"{published_value(row, metric.name):.{digits}f} ({value:+.{digits}f})"
        if value is not None
        else _ABSENT
        for row, value in zip(rows, differences, strict=True)
    ]
    return [Column(f"published {name}", _cells(texts), numeric=True)]


def _spread_text(row: Row, metric: MetricColumn, digits: int) -> str:
    """Such as (0.143–0.151) over repeats, [0.147 in 0.143–0.151] for a confidence interval with
    its centre."""
    ends = spread(row, metric.name)
    if ends is None:
        return ""
    dash = "–" if ends.low >= 0 else " to "
    text = f"{ends.low:.{digits}f}{dash}{ends.high:.{digits}f}"
    if ends.source == "repeats":
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
    known = [name for name in _COSTS if set(texts[name]) != {_ABSENT}]
    return [Column(name, _cells(texts[name]), numeric=True) for name in known]


def _evaluations(row: Row) -> str:
    return f"{row.evals_main} + {row.evals_ref}" if row.evals_ref > 0 else f"{row.evals_main}"


def _by_name(records: Iterable[Mapping[str, Value]]) -> dict[str, list[str]]:
    """All values under each name, as shown, in order of first appearance."""
    texts: dict[str, dict[str, None]] = {}
    for record in records:
        for name, value in record.items():
            texts.setdefault(name, {})[shown(value)] = None
    return {name: list(values) for name, values in texts.items()}


def _common(rows: Sequence[Row]) -> list[str]:
    """What all points have in common, as no column says it: weights and bounds, model, sampler,
    steps, seeds, images."""
    methods = {row.guidance for row in rows if row.guidance != "none"}
    records = []
    for row in rows:
        presets = row.provenance.get("presets", {})
        record = {name: presets.get(name) for name in ("model", "sampler")}
        record |= {name: row.config.get(name) for name in ("seeds", "images")}
        record |= {"steps": row.plan.get("steps")} | _schedules(row, methods)
        records.append({k: v for k, v in record.items() if v is not None and k not in row.values})
    return [f"{name} {values[0]}" for name, values in _by_name(records).items() if len(values) == 1]


def _schedules(row: Row, methods: Collection[str]) -> dict[str, Value]:
    """The weight and the bounds of each schedule, where they are not swept, by short names."""
    fixed = {
        key: value
        for key, value in _leaves("guidance", row.config.get("guidance"))
        if last(key) in ("w", "lo", "hi") or (last(key) == "unit" and value != "sigma")
        if key not in row.values
    }
    prefix = f"{row.guidance} " if len(methods) > 1 else ""
    return {f"{prefix}{short}": fixed[key] for key, short in short_names(list(fixed)).items()}


def _leaves(key: str, node: Any) -> Iterator[tuple[str, Any]]:
    """The values of nested dicts with their dotted keys."""
    if not isinstance(node, dict):
        yield key, node
        return
    for name, child in node.items():
        yield from _leaves(f"{key}.{name}", child)


def _settings(rows: Sequence[Row]) -> list[str]:
    """Each setting with its values over all rows."""
    return [f"{name} {' / '.join(v)}" for name, v in _by_name(row.settings for row in rows).items()]


def _differing(rows: Sequence[Row]) -> list[str]:
    """What metrics depend on, beside the point itself, and is not the same for all rows."""
    records = [{"images": row.images, **row.settings} for row in rows if len(row.metrics) > 0]
    names = dict.fromkeys(name for record in records for name in record)
    values = _by_name({name: record.get(name) for name in names} for record in records)
    return [name for name in names if len(values[name]) > 1]
