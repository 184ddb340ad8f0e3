"""Rows: one per point of a sweep, and how their columns are named, ranked and printed.

A metric column is called <name>_<detector>, such as fd_pixels. With repeats it holds the median,
and the columns <name>_min, _max, _mean and _std (of a sample) go with it; with a confidence
interval, <name>_lo, <name>_hi and its centre <name>_unbiased; with a baseline, the difference to
it <name>_difference and its interval, <name>_difference_lo and _hi.
"""

import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

from guidex.errors import GuidexError, UsageError
from guidex.metrics.metric import COMPANIONS, Column, column_of

Value = str | int | float | bool | None


@dataclass(frozen=True)
class Row:
    """One point of a sweep.

    Attributes:
        point: position in the table of points, from 0.
        values: swept keys that concern this point, in order; None is the value `null`.
        guidance: name of the guidance preset; "none" for no guidance, "" where not known.
        images, repeats: fakes per repeat; measurements with fresh seeds, 1 or more.
        metrics: numbers by column name; empty with a reason in `missing`.
        settings: what the metrics depend on beside the images: detector, reference, …
        evals_main, evals_ref: network evaluations per image, of the main model (0 where the images
            came from elsewhere, so that their cost is not known) and of all references together.
        gflops: 10^9 floating-point operations per image.
        missing: why there are no numbers, or None.
        note: what must be said of this point below a table, or None.
        unit: what is counted: images, or samples of a toy.
        plan, config, provenance: the record of the point as plain data.
        pseudovalues: of blocks of seeds (see `guidex.metrics.differences`), by metric column.
        among_best: metric columns that the point may be the best in.
    """

    point: int
    values: dict[str, Value] = field(default_factory=dict)
    guidance: str = ""
    images: int = 0
    repeats: int = 0
    metrics: dict[str, float] = field(default_factory=dict)
    settings: dict[str, Value] = field(default_factory=dict)
    evals_main: int = 0
    evals_ref: int = 0
    gflops: float = 0.0
    seconds: float = 0.0
    missing: str | None = None
    note: str | None = None
    unit: str = "images"
    plan: dict[str, Any] = field(default_factory=dict)
    config: dict[str, Any] = field(default_factory=dict)
    provenance: dict[str, Any] = field(default_factory=dict)
    pseudovalues: dict[str, list[float]] = field(default_factory=dict)
    among_best: list[str] = field(default_factory=list)

    @property
    def is_measured(self) -> bool:
        return self.missing is None

    @property
    def is_priced(self) -> bool:
        """Whether the cost of its images is known."""
        return self.is_measured and self.evals_main > 0

    @property
    def swept(self) -> dict[str, Value]:
        """The swept values, and the guidance, which is always known."""
        return {**self.values, "guidance": self.guidance}


@dataclass(frozen=True)
class MetricColumn:
    """A main metric column: how it is named, ranked and printed, and the detector, if any. One that
    no metric declares is shown under its own name, and no value of it is the best."""

    name: str
    column: Column
    detector: str

    @classmethod
    def of(cls, name: str) -> "MetricColumn":
        return cls(name, *(column_of(name) or (Column("", name), "")))

    @property
    def title(self) -> str:
        """The name for people, such as "FD (pixels)"."""
        detector = f" ({self.detector})" if self.detector != "" else ""
        return f"{self.column.label}{detector}"

    def headed(self, name: str) -> str:
        """A name with the direction of better values."""
        arrow = {"lower": " ↓", "higher": " ↑", None: ""}[self.column.better]
        return f"{name}{arrow}"

    def finite(self, rows: Iterable[Row]) -> list[float]:
        """All finite values that rows have of this metric."""
        values = (row.metrics.get(self.name, math.nan) for row in rows)
        return [value for value in values if math.isfinite(value)]

    def decimals(self, values: Iterable[float]) -> int:
        """Decimals with which to print a column of this metric."""
        return decimals(values) if self.column.digits is None else self.column.digits


class Spread(NamedTuple):
    """The interval that goes with a value; its source is repeats or confidence."""

    low: float
    high: float
    source: str


_COMPANIONS = ("_min", "_max", "_mean", "_std", *COMPANIONS, "_difference")


def read_rows(folder: Path) -> list[Row]:
    """The rows in the folder of a finished run, as the table has them.

    Raises:
        UsageError: there are none.
        GuidexError: they are damaged, or no point is measured.
    """
    path = folder / "rows.jsonl"
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
        rows = [Row(**_unplain(json.loads(line))) for line in lines if line != ""]
    except OSError as error:
        raise UsageError(f"{folder} holds no table (rows.jsonl); give a sweep's folder") from error
    except (ValueError, TypeError, AttributeError) as error:
        raise GuidexError(f"{path} is damaged; the command that made it makes it anew") from error
    if not any(row.is_measured for row in rows):
        raise GuidexError(f"{path} holds no measured point")
    return rows


def _unplain(data: Any) -> Any:
    """Infinities and NaN as numbers again, which strict JSON has no words for."""
    if isinstance(data, dict):
        return {key: _unplain(item) for key, item in data.items()}
    if isinstance(data, list):
        return [_unplain(item) for item in data]
    return float(data) if data in ("inf", "-inf", "nan") else data


def metric_columns(rows: Iterable[Row]) -> list[str]:
    """All metric columns: main ones in order of first appearance, each followed by its own."""
    names = dict.fromkeys(name for row in rows for name in row.metrics)

    def family(name: str) -> list[str]:
        companions = [name + end for end in _COMPANIONS if name + end in names]
        return [name] + [column for each in companions for column in family(each)]

    return [column for name in names if _is_main(name, names) for column in family(name)]


def main_metrics(rows: Iterable[Row]) -> list[MetricColumn]:
    """The metrics without what goes with them, in order of first appearance."""
    columns = metric_columns(rows)
    return [MetricColumn.of(name) for name in columns if _is_main(name, columns)]


def _is_main(name: str, names: Iterable[str]) -> bool:
    """Whether a column goes with no other; one that merely ends in _lo does not."""
    return not any(name.endswith(s) and name.removesuffix(s) in names for s in _COMPANIONS)


def chief_metrics(metrics: Sequence[MetricColumn]) -> list[MetricColumn]:
    """Those by which points are compared first; without such a one the first of all."""
    return [metric for metric in metrics if metric.column.is_chief] or list(metrics[:1])


def metric_name(metric: MetricColumn, metrics: Sequence[MetricColumn]) -> str:
    """A chief metric is nothing without its detector; of others it is named where there are
    several."""
    several = len({other.detector for other in metrics}) > 1
    return metric.title if several or metric.column.is_chief else metric.column.label


def best_text(values: Iterable[float], metric: MetricColumn) -> str | None:
    """The best of at least two values, as printed; None without them or a direction."""
    finite = [value for value in values if math.isfinite(value)]
    if metric.column.better is None or len(finite) < 2:
        return None
    best = min(finite) if metric.column.better == "lower" else max(finite)
    return f"{best:.{metric.decimals(finite)}f}"


def best_rows(rows: Sequence[Row], metric: MetricColumn) -> list[Row]:
    """Those whose value prints as the best."""
    values = metric.finite(rows)
    best, digits = best_text(values, metric), metric.decimals(values)
    return [row for row in rows if f"{row.metrics.get(metric.name, math.nan):.{digits}f}" == best]


def spread(row: Row, name: str) -> Spread | None:
    """Min and max over the repeats, else the confidence interval, else None."""
    for low, high, source in (("_min", "_max", "repeats"), ("_lo", "_hi", "confidence")):
        if name + low in row.metrics and name + high in row.metrics:
            return Spread(row.metrics[name + low], row.metrics[name + high], source)
    return None


def ordered(rows: Iterable[Row]) -> list[Row]:
    """By position in the table of points, whatever the order in which they were finished.

    A point that could not even be composed does not know its guidance; where guidance is not swept
    and all others have the same, it gets theirs.
    """
    rows = sorted(rows, key=lambda row: row.point)
    known = {row.guidance for row in rows if row.guidance != ""}
    if len(known) != 1 or any("guidance" in row.values for row in rows):
        return rows
    (guidance,) = known
    return [replace(row, guidance=guidance) for row in rows]


def swept_keys(rows: Iterable[Row]) -> list[str]:
    """All swept keys, in order of first appearance in the table of points."""
    rows = sorted(rows, key=lambda row: row.point)
    return list(dict.fromkeys(key for row in rows for key in row.values))


def is_number(value: Value) -> bool:
    """Whether a value has a place on an axis."""
    return isinstance(value, int | float) and not isinstance(value, bool)


def exact(value: Value) -> str:
    """A value with all its digits, spelled as in an override: 0.1, inf, true, null."""
    if value is None or isinstance(value, bool):
        return json.dumps(value)
    # float() because the repr of NumPy's own floats is not a number's.
    return repr(float(value)) if isinstance(value, float) else str(value)


def shown(value: Value) -> str:
    """A swept value for people: 3.0 -> 3, inf -> ∞; one line."""
    if isinstance(value, float):
        return exact(value).removesuffix(".0").replace("inf", "∞")
    return one_line(exact(value))


def one_line(text: str) -> str:
    """Text without line breaks and other control characters."""
    printable = "".join(c if c.isprintable() else " " for c in text)
    return " ".join(printable.split())


def decimals(values: Iterable[float]) -> int:
    """Decimals for a column: three significant digits for the largest value (two decimals from 1
    to 100, as papers print distances) and two for the smallest, but not over five in all. What is
    below 1e-9 is the rounding of 0."""
    sizes = [abs(value) for value in values if math.isfinite(value) and abs(value) >= 1e-9]
    if len(sizes) == 0:
        return 2
    largest, smallest = (math.floor(math.log10(size)) for size in (max(sizes), min(sizes)))
    enough = 2 - largest if largest < 0 else min(2, 3 - largest)
    return max(0, min(max(enough, 1 - smallest), 4 - largest))


def counted(number: int, noun: str) -> str:
    """Such as "1 point", "2 points"."""
    return f"{number:d} {noun}" + "s" * (number != 1)


def runs(rows: Sequence[Row]) -> str:
    """How much was measured per point, such as "64 images × 3 repeats"."""
    measured = [row for row in rows if row.is_measured]
    images = _range([row.images for row in measured], measured[0].unit.removesuffix("s"))
    repeats = [row.repeats for row in measured]
    return images if set(repeats) == {1} else f"{images} × {_range(repeats, 'repeat')}"


def _range(counts: Sequence[int], noun: str) -> str:
    least = "" if min(counts) == max(counts) else f"{min(counts)}–"
    return least + counted(max(counts), noun)
