"""The columns of a sweep's table for people: rounded, ranked, with what must be said below them.

Plain text; `tables` escapes it for each format.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
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
    numeric: bool = True
    metric: MetricColumn | None = None

    def aligned(self) -> list[str]:
        """The heading and the cells for the terminal, of one length, with room for the mark and
        the spread where any cell has one."""
        marks = any(cell.best for cell in self.cells)
        size = max(len(cell.spread) for cell in self.cells)
        texts = [self.heading]
        for cell in self.cells:
            mark = "*" if cell.best else " " if marks else ""
            texts.append(f"{cell.text}{mark}" + (f" {cell.spread:<{size}}" if size > 0 else ""))
        return [f"{t:{'>' if self.numeric else '<'}{max(map(len, texts))}}" for t in texts]


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
        columns = []
        if "guidance" not in keys and any(row.guidance != "" for row in rows):
            columns.append(Column("guidance", _cells(row.guidance for row in rows), False))
        for key, short in short_names(keys).items():
            texts = [shown(row.swept[key]) if key in row.swept else "" for row in rows]
            numeric = all(is_number(row.swept[key]) for row in rows if key in row.swept)
            columns.append(Column(short, _cells(texts), numeric))
        for name, heading in (("images", rows[0].unit), ("repeats", "repeats")):
            texts = [str(getattr(row, name)) if row.is_measured else _ABSENT for row in rows]
            if name not in keys and len({*texts} - {_ABSENT}) > 1:
                columns.append(Column(heading, _cells(texts)))
        metrics = main_metrics(rows)
        for metric in metrics:
            columns += _metric_columns(rows, metric, metric_name(metric, metrics), not differing)
        columns += _cost_columns(rows)
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
        made = [row.provenance for row in self.rows if "command" in row.provenance]
        return list(dict.fromkeys("guidex {guidex}, {date}: {command}".format(**m) for m in made))

    def narrower(self) -> Iterator["RoundedTable"]:
        """Ever narrower tables, this one first. The first column, which tells points apart, and
        the first metric stay whole."""
        yield self
        first = next((c for c in self.columns if c.metric is not None), self.columns[0])
        columns = [c for c in self.columns if c.heading not in ("seconds", "GFLOPs")]
        columns = [column if column is first else _shortened(column) for column in columns]
        yield replace(self, columns=tuple(columns))
        for column in columns[:0:-1]:
            if column is not first:
                columns.remove(column)
                yield replace(self, columns=tuple(columns))

    def loss(self, narrowed: "RoundedTable") -> str:
        """What a narrowed table lacks: columns, spreads, ends of texts."""
        left = {column.heading: column for column in narrowed.columns}
        names = [c.heading.rstrip(" ↓↑") for c in self.columns if c.heading not in left]
        cut_off = [c.heading.rstrip(" ↓↑") for c in self.columns if left.get(c.heading, c) != c]
        return ", ".join([*names, f"parts of {', '.join(cut_off)}"] if cut_off else names)


def _cells(texts: Iterable[str]) -> tuple[Cell, ...]:
    return tuple(Cell(one_line(text)) for text in texts)


def _shortened(column: Column) -> Column:
    """Without spreads and the ends of long texts."""
    return replace(column, cells=tuple(Cell(cut(c.text), c.best) for c in column.cells))


def _metric_columns(
    rows: Sequence[Row], metric: MetricColumn, name: str, rank: bool
) -> list[Column]:
    """A metric, and beside it what was published of it with the difference."""
    values = [row.metrics[metric.name] for row in rows if metric.name in row.metrics]
    digits, best = metric.decimals(values), best_text(values, metric) if rank else None
    cells, published = [], []
    for row in rows:
        value, apart = row.metrics.get(metric.name), difference(row, metric.name)
        text = _ABSENT if value is None else f"{value:.{digits}f}"
        cells.append(Cell(text, text == best, _spread_text(row, metric, digits)))
        known = apart is not None and f"{published_value(row, metric.name):.{digits}f}"
        published.append(f"{known} ({apart:+.{digits}f})" if known else _ABSENT)
    columns = [Column(metric.headed(name), tuple(cells), metric=metric)]
    if set(published) != {_ABSENT}:
        columns.append(Column(f"published {name}", _cells(published)))
    return columns


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
    texts: dict[str, list[str]] = {"NFE": [], "GFLOPs": [], "seconds": []}
    for row in rows:
        references = f" + {row.evals_ref}" if row.evals_ref > 0 else ""
        texts["NFE"].append(f"{row.evals_main}{references}" if row.is_priced else _ABSENT)
        texts["GFLOPs"].append(f"{row.gflops:.{flops}f}" if row.is_priced else _ABSENT)
        texts["seconds"].append(f"{row.seconds:.{seconds}f}" if row.is_measured else _ABSENT)
    return [Column(name, _cells(some)) for name, some in texts.items() if set(some) != {_ABSENT}]


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
    several = len({row.guidance for row in rows} - {"none"}) > 1
    records = []
    for row in rows:
        presets = row.provenance.get("presets", {})
        record = {name: presets.get(name) for name in ("model", "sampler")}
        record |= {name: row.config.get(name) for name in ("seeds", "images")}
        record |= {"steps": row.plan.get("steps")}
        schedules = _schedules(row)
        prefix = f"{row.guidance} " if several else ""
        for key, short in short_names(list(schedules)).items():
            record[f"{prefix}{short}"] = schedules[key]
        records.append({k: v for k, v in record.items() if v is not None and k not in row.values})
    return [f"{name} {values[0]}" for name, values in _by_name(records).items() if len(values) == 1]


def _schedules(row: Row) -> dict[str, Value]:
    """The weight and the bounds of each schedule, where they are not swept, by their keys."""
    return {
        key: value
        for key, value in _leaves("guidance", row.config.get("guidance"))
        if last(key) in ("w", "lo", "hi") or (last(key) == "unit" and value != "sigma")
        if key not in row.values
    }


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
