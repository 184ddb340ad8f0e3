"""The table of a sweep: CSV and JSON lines with everything; Markdown, LaTeX, terminal for people.

CSV and JSON lines hold all digits, and equal rows give equal bytes. The others are rounded, with
the best value of each metric marked, and those that cannot be told from it; values that print
alike are marked alike.
"""

import csv
import io
import json
import math
import re
import textwrap
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from guidex.files.atomic import atomic_write
from guidex.metrics.differences import LEVEL
from guidex.reports.best_points import answers
from guidex.reports.columns import Column, loss, narrower, parted, rounded
from guidex.reports.notes import notes, origin
from guidex.reports.published import published_columns
from guidex.reports.rows import (
    MetricColumn,
    Row,
    Value,
    exact,
    metric_columns,
    one_line,
    ordered,
    swept_keys,
)


def write_tables(rows: Sequence[Row], folder: Path) -> list[Path]:
    """Write table.csv, table.md, table.tex and rows.jsonl, each in one step; returns their paths.

    Arguments:
        rows: at least one, not all of them missing; missing ones become rows with empty cells.
        folder: an existing folder; GuidexError where the files cannot be written.
    """
    tables = {
        "table.csv": csv_table,
        "table.md": markdown_table,
        "table.tex": latex_table,
        "rows.jsonl": json_lines,
    }
    for name, table in tables.items():
        # File names in messages may hold bytes that are no text.
        content = table(rows).encode(errors="backslashreplace")
        atomic_write(folder / name, lambda file, content=content: file.write(content))
    return [folder / name for name in tables]


def arranged(rows: Sequence[Row]) -> list[Row]:
    """By position, or with the best of the metric first that `sort=` names; what has none last."""
    name = next((row.config["sort"] for row in rows if row.config.get("sort") is not None), "")
    sign = -1 if MetricColumn.of(name).column.better == "higher" else 1

    def place(row: Row) -> tuple[bool, float]:
        value = row.metrics.get(name, math.nan)
        return (False, sign * value) if math.isfinite(value) else (True, 0)

    return sorted(ordered(rows), key=place)


def csv_table(rows: Sequence[Row]) -> str:
    """All columns with all digits; what is missing, not known or of no concern is an empty cell."""
    rows = arranged(rows)
    keys, published = swept_keys(rows), published_columns(rows)
    names = [*keys, "guidance", "images"]
    names += ["repeats"] if any(row.repeats > 1 for row in rows) else []
    names += [*metric_columns(rows), *published, "evals_main", "evals_ref", "gflops", "seconds"]
    names += ["missing"] if not all(row.is_measured for row in rows) else []
    names = list(dict.fromkeys(names))  # a swept key such as `repeats` has one column
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(names)
    for index, row in enumerate(rows):
        known: dict[str, Value] = {"guidance": row.guidance, "missing": row.missing or ""}
        known |= row.metrics
        if row.is_measured:
            known |= {"images": row.images, "repeats": row.repeats, "seconds": row.seconds}
        if row.is_priced:
            known |= {name: getattr(row, name) for name in ("evals_main", "evals_ref", "gflops")}
        known |= {k: v[index] for k, v in published.items() if v[index] is not None}
        # A swept key is empty where the point does not have it, whatever else is called so.
        known |= {key: row.swept.get(key, "") for key in keys}
        writer.writerow([exact(known.get(name, "")) for name in names])
    return text.getvalue()


def json_lines(rows: Sequence[Row]) -> str:
    """One strict JSON object per row, with its plan, configuration and provenance. An infinity or
    NaN is the string "inf", "-inf" or "nan"; TypeError where something is not plain data."""
    return "".join(
        json.dumps(_plain(vars(row)), ensure_ascii=False, allow_nan=False) + "\n"
        for row in ordered(rows)
    )


def markdown_table(rows: Sequence[Row]) -> str:
    """A pipe table, the best values in bold, with notes below."""
    rows = arranged(rows)
    columns = rounded(rows)
    lines = [
        [_escape_markdown(column.heading) for column in columns],
        ["---:" if column.numeric else ":---" for column in columns],
        *_cells(columns, _escape_markdown, "**{}**", "*{}*"),
    ]
    body = "".join(f"| {' | '.join(line)} |\n" for line in lines)
    ending = [*below(rows, columns, "bold", "italic"), *origin(rows)]
    best = [(a.text, a.command and f"`` {a.command} ``") for a in answers(rows)]
    lines = [": ".join([_escape_markdown(text), *filter(None, [line])]) for text, line in best]
    lines += [_escape_markdown(note) for note in ending]
    return body + "".join(f"\n{line}\n" for line in lines)


def latex_table(rows: Sequence[Row]) -> str:
    r"""A booktabs tabular, the best values in bold, with notes below; to be \input in a table."""
    rows = arranged(rows)
    columns = rounded(rows)
    alignment = "".join("r" if column.numeric else "l" for column in columns)
    body = _cells(columns, _escape_latex, r"\textbf{{{}}}", r"\textit{{{}}}")
    lines = [map(_latex_heading, columns), *body]
    heading, *body = [f"  {' & '.join(line)} \\\\\n" for line in lines]
    ending = [*below(rows, columns, "bold", "italic"), *origin(rows)]
    return (
        "% Needs \\usepackage{booktabs}. In a document:\n"
        "% \\begin{table}\\centering\\input{table}\\caption{...}\\end{table}\n"
        f"\\begin{{tabular}}{{{alignment}}}\n  \\toprule\n{heading}  \\midrule\n"
        f"{''.join(body)}  \\bottomrule\n\\end{{tabular}}\n"
        "\\par\\smallskip\n\\begin{minipage}{\\linewidth}\n  \\footnotesize\n"
        + "".join(f"  {_escape_latex(note)}\\par\n" for note in ending)
        + "\\end{minipage}\n"
    )


def terminal_table(rows: Sequence[Row], width: int = 100) -> str:
    """The table for a terminal, the best values marked with "*", those that cannot be told from
    them with "~"; no line break at its end.

    Columns that do not fit into `width` characters are left out, the least important first, and
    named below; so are metrics that do not tell points apart. Commands are not broken into lines.
    """
    rows = arranged(rows)
    whole, flat = parted(rounded(rows), rows)
    for columns in narrower(whole):
        texts = zip(*(column.aligned() for column in columns), strict=True)
        heading, *body = ["  ".join(line).rstrip() for line in texts]
        longest = max(map(len, [heading, *body]))
        if longest <= width:
            break
    lines = [heading, "─" * longest, *body]
    lines = [line if len(line) <= width else line[: width - 1] + "…" for line in lines]
    lost = loss(whole, columns)
    lack = [f"Left out for want of room, see table.csv: {lost}."] if lost != "" else []
    lack += [f"Left out, for all points agree to two digits: {', '.join(flat)}."] if flat else []
    best = [note for answer in answers(rows) for note in answer[:2] if note is not None]
    for note in [*best, *lack, *below(rows, columns, "*", "~")]:
        is_command = note.startswith("guidex sample ")
        wrapped = textwrap.wrap(note, width, subsequent_indent="  ", break_on_hyphens=False)
        lines += [f"  {note}"] if is_command else wrapped
    return "\n".join(lines)


def below(rows: Sequence[Row], columns: Sequence[Column], mark: str, tied: str) -> list[str]:
    """The notes below a table, which marks the best values in some way."""
    nfe = "NFE: network evaluations per image, main + references"
    remarks = [nfe] if any(column.heading == "NFE" for column in columns) else []
    cells = [cell for column in columns for cell in column.cells]
    remarks += [f"{mark} = best"] if any(cell.best for cell in cells) else []
    if any(cell.tied for cell in cells):
        remarks.append(f"{tied} = not distinguishable from the best ({LEVEL:.0%} confidence)")
    return notes(rows, remarks)


def _cells(
    columns: Sequence[Column], escape: Callable[[str], str], bold: str, italic: str
) -> Iterator[list[str]]:
    """The cells row by row, escaped, the best in bold, what may be the best in italic."""
    for line in zip(*(column.cells for column in columns), strict=True):
        forms = [bold if cell.best else italic if cell.tied else "{}" for cell in line]
        texts = [form.format(escape(cell.text)) for form, cell in zip(forms, line, strict=True)]
        spreads = [escape(cell.spread) for cell in line]
        yield [f"{text} {spread}".strip() for text, spread in zip(texts, spreads, strict=True)]


def _escape_markdown(text: str) -> str:
    # An underscore inside a word means nothing to Markdown, and names are full of them.
    return re.sub(r"[\\|*`<>\[\]~#]|(?<!\w)_|_(?!\w)", r"\\\g<0>", one_line(text))


_LATEX = str.maketrans({
    "\\": r"\textbackslash{}", "{": r"\{", "}": r"\}", "$": r"\$", "&": r"\&", "#": r"\#",
    "_": r"\_", "%": r"\%", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}",
    "<": r"\textless{}", ">": r"\textgreater{}", "|": r"\textbar{}",
    "–": "--", "—": "---", "…": r"\ldots{}", "×": r"$\times$", "∞": r"$\infty$",
    "σ": r"$\sigma$", "≤": r"$\leq$", "≥": r"$\geq$", "→": r"$\rightarrow$",
    # At the start of a line, these would be read as arguments of the line break before it.
    "[": "{[}", "]": "{]}", "*": "{*}",
    "↓": r"$\downarrow$", "↑": r"$\uparrow$",
})  # fmt: skip


def _escape_latex(text: str) -> str:
    return re.sub(r"(?<![\w-])-(?=[\d.])", r"$-$", one_line(text).translate(_LATEX))


def _latex_heading(column: Column) -> str:
    """With the detector as a subscript: FD_pixels."""
    heading, detector = column.heading, column.metric and column.metric.detector
    if not detector:
        return _escape_latex(heading)
    subscript = rf"\textsubscript{{{_escape_latex(detector)}}}"
    return _escape_latex(heading).replace(" " + _escape_latex(f"({detector})"), subscript)


def _plain(value: Any) -> Any:
    """Plain data for strict JSON."""
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_plain(item) for item in value]
    return exact(value) if isinstance(value, float) and not math.isfinite(value) else value
