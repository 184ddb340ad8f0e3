"""The columns of a sweep's table for people, rounded and ranked, as plain text."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

from guidex.reports.labels import cut, short_names
from guidex.reports.notes import differing
from guidex.reports.published import difference, published_value
from guidex.reports.rows import (
    MetricColumn,
    Row,
    best_text,
    decimals,
    is_number,
    main_metrics,
    metric_name,
    one_line,
    shown,
    spread,
    swept_keys,
)

_ABSENT = "–"


class Cell(NamedTuple):
    """A value as printed, whether it is the best of its column, its spread in brackets, and whether
    it cannot be told from the best."""

    text: str
    best: bool = False
    spread: str = ""
    tied: bool = False


@dataclass(frozen=True)
class Column:
    """A column for people, with a cell per row; numeric ones are aligned to the right."""

    heading: str
    cells: Sequence[Cell]
    numeric: bool = True
    metric: MetricColumn | None = None

    def aligned(self) -> list[str]:
        """The heading and the cells for the terminal, of one length, with room for the mark and
        the spread where any cell has one."""
        marks = any(cell.best or cell.tied for cell in self.cells)
        size = max(len(cell.spread) for cell in self.cells)
        texts = [self.heading]
        for cell in self.cells:
            mark = "*" if cell.best else "~" if cell.tied else " " if marks else ""
            texts.append(f"{cell.text}{mark}" + (f" {cell.spread:<{size}}" if size > 0 else ""))
        return [f"{t:{'>' if self.numeric else '<'}{max(map(len, texts))}}" for t in texts]


def rounded(rows: Sequence[Row]) -> list[Column]:
    """Guidance and swept keys, metrics, costs."""
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
        columns += _metric_columns(rows, metric, metric_name(metric, metrics))
    return columns + _cost_columns(rows)


def parted(columns: Sequence[Column], rows: Sequence[Row]) -> tuple[list[Column], list[str]]:
    """The columns without metrics in which all points agree, shares to two digits and others as
    printed; and what these are, with their value. The first metric, and what is sorted by, stay."""
    first = next((column for column in columns if column.metric is not None), None)
    kept, flat = [], []
    for column in columns:
        name = column.metric and column.metric.name
        values = [row.metrics[name] for row in rows if name in row.metrics]
        is_share = column.metric is not None and column.metric.column.is_share
        texts = {f"{v:.2f}" for v in values} if is_share else {cell.text for cell in column.cells}
        asked = column is first or any(row.config.get("sort") == name for row in rows)
        if len(values) > 1 and len(texts - {_ABSENT}) == 1 and not asked:
            flat.append(f"{column.heading.rstrip(' ↓↑')} {min(texts - {_ABSENT})}")
        else:
            kept.append(column)
    return kept, flat


def narrower(columns: Sequence[Column]) -> Iterator[list[Column]]:
    """Ever narrower tables, the whole first. The first column, which tells points apart, and the
    first metric stay whole."""
    yield list(columns)
    first = next((c for c in columns if c.metric is not None), columns[0])
    columns = [c for c in columns if c.heading not in ("seconds", "GFLOPs")]
    columns = [column if column is first else _shortened(column) for column in columns]
    yield list(columns)
    for column in columns[:0:-1]:
        if column is not first:
            columns.remove(column)
            yield list(columns)


def loss(columns: Sequence[Column], narrowed: Sequence[Column]) -> str:
    """What a narrowed table lacks: columns, spreads, ends of texts."""
    left = {column.heading: column for column in narrowed}
    names = [c.heading.rstrip(" ↓↑") for c in columns if c.heading not in left]
    cut_off = [c.heading.rstrip(" ↓↑") for c in columns if left.get(c.heading, c) != c]
    return ", ".join([*names, f"parts of {', '.join(cut_off)}"] if cut_off else names)


def _shortened(column: Column) -> Column:
    """Without spreads and the ends of long texts."""
    return replace(column, cells=[c._replace(text=cut(c.text), spread="") for c in column.cells])


def _cells(texts: Iterable[str]) -> list[Cell]:
    return [Cell(one_line(text)) for text in texts]


def _metric_columns(rows: Sequence[Row], metric: MetricColumn, name: str) -> list[Column]:
    """A metric, and beside it what was published of it with the difference."""
    values = metric.finite(rows)
    digits = metric.decimals(values)
    best = None if differing(rows) else best_text(values, metric)
    cells, published, less = [], [], []
    for row in rows:
        value, apart = row.metrics.get(metric.name), difference(row, metric.name)
        text = _ABSENT if value is None else f"{value:.{digits}f}"
        tied = best not in (None, text) and metric.name in row.among_best
        cells.append(Cell(text, text == best, _spread_text(row, metric, digits), tied))
        less.append(_less(row, metric, digits))
        known = apart is not None and f"{published_value(row, metric.name):.{digits}f}"
        published.append(f"{known} ({apart:+.{digits}f})" if known else _ABSENT)
    columns = [Column(metric.headed(name), cells, metric=metric)]
    if set(published) != {_ABSENT}:
        columns.append(Column(f"published {name}", _cells(published)))
    if metric.column.is_chief and set(less) != {Cell(_ABSENT)}:
        columns.append(Column(f"{name} less baseline", less))
    return columns


def _less(row: Row, metric: MetricColumn, digits: int) -> Cell:
    """The difference to a chosen baseline, such as -0.512 [-0.534 to -0.490]."""
    name = f"{metric.name}_difference"
    if name not in row.metrics or row.config.get("baseline", "best") == "best":
        return Cell(_ABSENT)
    centre, low, high = (f"{row.metrics[name + end]:+.{digits}f}" for end in ("", "_lo", "_hi"))
    return Cell(centre, spread=f"[{low} to {high}]")


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
