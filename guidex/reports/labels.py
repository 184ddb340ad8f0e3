"""What keys, values and points are called.

Labels of figures are ready for matplotlib, which reads $...$ as formulas.
"""

import re
import textwrap
from collections.abc import Collection, Sequence
from typing import Any

from guidex.reports.rows import (
    MetricColumn,
    Row,
    Value,
    is_number,
    one_line,
    runs,
    shown,
    swept_keys,
)

# Headings of the columns that every table has.
_FIXED = {"guidance", "images", "repeats", "missing"}
_FIXED |= {"evals_main", "evals_ref", "gflops", "seconds"}


def last(key: str) -> str:
    """The last name of a dotted key."""
    return key.rpartition(".")[2]


def parent(key: str) -> str:
    """A dotted key without its last name, with the dot."""
    return "".join(key.rpartition(".")[:2])


def short_names(keys: Sequence[str]) -> dict[str, str]:
    """The shortest suffix of each key, cut at dots, that names no other: guidance.schedule.w -> w.

    A suffix that is the name of one of the fixed columns is not taken, unless it is the whole key.
    """
    suffixes = {}
    for key in keys:
        parts = re.split(r"[./@]", key)
        suffixes[key] = [".".join(parts[start:]) for start in reversed(range(len(parts)))]
    names = {}
    for key in keys:
        taken = {*_FIXED, *(s for other in keys if other != key for s in suffixes[other])}
        names[key] = next((suffix for suffix in suffixes[key][:-1] if suffix not in taken), key)
    return names


def unit(row: Row, key: str) -> str:
    """What a bound counts, as the configuration says beside it: sigma, step or fraction."""
    place: Any = row.config
    for name in [*parent(key).split(".")[:-1], "unit"]:
        place = place.get(name) if isinstance(place, dict) else None
    return place if isinstance(place, str) else "sigma"


def relevant(row: Row) -> dict[str, Value]:
    """The swept values that matter to a row, but for the guidance itself; without guidance, none
    of guidance's own does."""
    unguided = row.guidance == "none"
    return {
        key: value
        for key, value in row.values.items()
        if key != "guidance" and not (unguided and re.match(r"guidance[./@]", key))
    }


def cut(words: str) -> str:
    """With the end of long texts cut off, where room is scarce."""
    return words if len(words) <= 32 else f"{words[:31]}…"


def method_label(row: Row) -> str:
    """The swept values of a row that are no numbers."""
    return " ".join(cut(shown(value)) for value in row.values.values() if not is_number(value))


def text(words: str) -> str:
    """Words as matplotlib shows them unchanged: no formulas, no underscore that hides a label."""
    words = one_line(words).replace("$", r"\$")
    return f" {words}" if words.startswith("_") else words


def plain(label: str) -> str:
    """A label of figures as text without formulas."""
    for formula, words in ((r"$\sigma_\mathrm{", "σ "), ("}$", ""), ("$w$", "w"), (r"\$", "$")):
        label = label.replace(formula, words)
    return label.strip()


def title(subject: str, rows: Sequence[Row], remarks: Sequence[str], width: float) -> str:
    """What is plotted, from how many images, and how many points could not be, broken into lines
    of `width` inches."""
    missing = sum(not row.is_measured for row in rows)
    lacking = [f"{missing} of {len(rows)} points missing"] if missing > 0 else []
    words = "; ".join([f"{subject}, {runs(rows)}", *remarks, *lacking])
    return textwrap.fill(words, int(12 * width), break_long_words=False, break_on_hyphens=False)


def metric_label(metric: MetricColumn) -> str:
    """Such as "FD (pixels) ↓"."""
    return text(metric.headed(metric.title))


def point_label(row: Row, rows: Sequence[Row], without: Collection[str | None]) -> str:
    """What sets a row apart from others, the keys in `without` left out of account.

    The guidance where there are several, an interval as (lo, hi], and every other key that varies
    among the rows of the same guidance.
    """
    values = {key: value for key, value in relevant(row).items() if key not in without}
    several = len({other.guidance for other in rows}) > 1 and "guidance" not in without
    alike = [other for other in rows if other.guidance == row.guidance]
    parts = [text(row.guidance)] if several else []
    for key, value in values.items():
        lo, hi = f"{parent(key)}lo", f"{parent(key)}hi"
        varies = any(key not in other.values or other.values[key] != value for other in alike)
        if key == lo and hi in values:
            low, high, what = text(shown(value)), text(shown(values[hi])), unit(row, key)
            parts.append(f"({low}, {high}]" if what == "sigma" else f"{what}s {low}–{high}")
        elif (key != hi or lo not in values) and varies:
            parts.append(value_label(row, rows, key))
    return " ".join(parts) or text(row.guidance)


def value_label(row: Row, rows: Sequence[Row], key: str) -> str:
    """A swept value with its name, such as "steps = 32"; named choices speak for themselves."""
    value = row.swept[key]
    named = is_number(value) or "." in key
    return f"{_symbol(key, row, rows)} = {text(shown(value))}" if named else text(shown(value))


def axis_label(key: str, rows: Sequence[Row]) -> str:
    """A key at an axis: "guidance weight w", "σ_lo"; others by their short names."""
    row = next(row for row in rows if key in row.values)
    return "guidance weight $w$" if last(key) == "w" else _symbol(key, row, rows)


def _symbol(key: str, row: Row, rows: Sequence[Row]) -> str:
    short = short_names(swept_keys(rows))[key]
    if short in ("lo", "hi"):
        noise = unit(row, key) == "sigma"
        return rf"$\sigma_\mathrm{{{short}}}$" if noise else f"{short} ({unit(row, key)})"
    return "$w$" if short == "w" else text(short)
