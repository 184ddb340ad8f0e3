"""Rows and their tables: every digit in CSV, rounded and ranked for people, nothing made up."""

import csv
import io
import itertools
import json
import math
import re
from dataclasses import replace

import numpy as np
import pytest
from report_rows import HI, LO, W, row

from guidex.errors import GuidexError
from guidex.reports.labels import short_names
from guidex.reports.rows import (
    MetricColumn,
    Row,
    decimals,
    exact,
    main_metrics,
    metric_columns,
    shown,
)
from guidex.reports.tables import (
    csv_table,
    json_lines,
    latex_table,
    markdown_table,
    terminal_table,
    write_tables,
)


@pytest.fixture
def rows() -> list[Row]:
    """Three measured points of three repeats, and one that is missing."""

    def measured(fd: float, precision: float) -> dict:
        metrics = {"fd_pixels": fd, "precision_pixels": precision}
        metrics |= {"fd_pixels_min": fd - 0.003, "fd_pixels_max": fd + 0.005}
        return {"metrics": metrics, "repeats": 3}

    error = "out of memory | 24 GiB & 100 % of #1_gpu"
    ends = [
        {"guidance": "interval", W: w, LO: 0.1, HI: hi} for w, hi in ((3.0, 1.0), (4.0, math.inf))
    ]
    return [
        row(0, {"guidance": "none"}, "none", evals_ref=0, **measured(0.82, 0.5)),
        row(1, {"guidance": "cfg", W: 2.0}, **measured(1 / 3, 0.70001)),
        row(2, ends[0], "interval", evals_ref=12, **measured(0.1461, 0.7)),
        row(3, ends[1], "interval", repeats=3, missing=error),
    ]


def cells(text: str) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(text)))


def markdown_cells(text: str) -> list[list[str]]:
    lines = [line for line in text.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in lines]


def test_csv_columns_are_stable(rows):
    assert csv_table(rows).splitlines()[0].split(",") == [
        "guidance", W, LO, HI, "images", "repeats",
        "fd_pixels", "fd_pixels_min", "fd_pixels_max", "precision_pixels",
        "evals_main", "evals_ref", "gflops", "seconds", "missing",
    ]  # fmt: skip
    plain = row(1, {"repeats": 2, W: 2.0}, metrics={"fd_a": 1.0}, repeats=2)
    assert csv_table([plain]).splitlines()[0].split(",") == [
        "repeats", W, "guidance", "images", "fd_a", "evals_main", "evals_ref", "gflops", "seconds",
    ]  # fmt: skip  # none of them twice


def test_csv_holds_every_digit_and_nothing_that_is_not_there(rows):
    table = cells(csv_table(rows))
    assert (table[1]["fd_pixels"], table[1][W]) == ("0.3333333333333333", "2.0")
    assert [float(line["fd_pixels"]) for line in table[:3]] == [0.82, 1 / 3, 0.1461]
    none, cfg, _, missing = table
    assert (none[W], cfg[LO], cfg["missing"]) == ("", "", "")
    assert (missing[HI], missing["missing"]) == ("inf", rows[3].missing)
    others = ("images", "repeats", "evals_main", "evals_ref", "gflops", "seconds")
    assert {missing[name] for name in ("fd_pixels", "fd_pixels_min", *others)} == {""}
    numbers = {W: np.float64(0.1), HI: None, "x.flag": False, "seed": 0}
    (line,) = cells(csv_table([row(0, numbers, metrics={"fd_a": np.float64(1 / 3)})]))
    assert [line[key] for key in numbers] == ["0.1", "null", "false", "0"]
    assert line["fd_a"] == "0.3333333333333333"


def test_rows_are_ordered_by_point_and_equal_rows_give_equal_bytes(rows, tmp_path):
    paths = write_tables(rows, tmp_path)
    first = [path.read_bytes() for path in paths]
    assert [path.name for path in paths] == ["table.csv", "table.md", "table.tex", "rows.jsonl"]
    assert [path.read_bytes() for path in write_tables(rows[::-1], tmp_path)] == first
    with pytest.raises(GuidexError, match="cannot write"):
        write_tables(rows, tmp_path / "none")


def test_metric_columns_keep_their_companions_beside_them():
    one = row(0, {}, metrics={"fd_a": 1, "recall_a": 1, "fd_a_hi": 1, "fd_a_lo": 1, "fd_a_min": 1,
                              "fd_a_max": 1, "fd_a_lo_min": 1, "x_lo": 1})  # fmt: skip
    assert metric_columns([one]) == [
        "fd_a", "fd_a_min", "fd_a_max", "fd_a_lo", "fd_a_lo_min", "fd_a_hi", "recall_a", "x_lo",
    ]  # fmt: skip
    assert [metric.name for metric in main_metrics([one])] == ["fd_a", "recall_a", "x_lo"]


@pytest.mark.parametrize(
    "name, heading",
    [
        ("fd_pixels", "FD (pixels) ↓"),
        ("fd_infinity_pixels", "FD∞ (pixels) ↓"),
        ("mode_coverage_coordinates", "Mode coverage (coordinates) ↑"),
        ("fdx", "fdx"),
    ],
)
def test_metrics_are_known_by_their_names(name, heading):
    metric = MetricColumn.of(name)
    assert metric.headed(metric.title) == heading


def test_short_names_are_the_shortest_that_tell_keys_apart():
    assert short_names([W, HI, "sampler.steps", "guidance"]) == {
        W: "w", HI: "hi", "sampler.steps": "steps", "guidance": "guidance",
    }  # fmt: skip
    assert short_names(["a.b.w", "a.c.w", "w"]) == {"a.b.w": "b.w", "a.c.w": "c.w", "w": "w"}
    assert short_names(["model.seconds", "guidance/rule"]) == {
        "model.seconds": "model.seconds", "guidance/rule": "rule",
    }  # fmt: skip


def test_decimals_suit_the_column():
    columns = [[0.82, 0.146], [0.82, 0.08], [2.56, 1.34], [68.64, 24.18], [312.7, 146.3],
               [4096.0, 1024.0], [0.0034], [0.0, math.nan, math.inf, -0.5], []]  # fmt: skip
    assert [decimals(column) for column in columns] == [3, 3, 2, 2, 1, 0, 5, 3, 2]


def test_values_are_exact_for_files_and_short_for_people():
    values = [3.0, 0.1, 1e-5, -math.inf, True, None, 7, "a\nb"]
    assert [exact(value) for value in values] == [
        "3.0", "0.1", "1e-05", "-inf", "true", "null", "7", "a\nb",
    ]  # fmt: skip
    assert [shown(value) for value in values] == [
        "3", "0.1", "1e-05", "-∞", "true", "null", "7", "a b",
    ]  # fmt: skip


def test_markdown_is_rounded_with_the_best_in_bold(rows):
    header, rule, none, cfg, interval, missing = markdown_cells(markdown_table(rows))
    assert header == [
        "guidance", "w", "lo", "hi", "FD (pixels) ↓", "Precision ↑", "NFE", "GFLOPs", "seconds",
    ]  # fmt: skip
    assert rule == [":---"] + ["---:"] * 8
    assert interval[4] == "**0.146** (0.143–0.151)"
    assert none[4] == "0.820 (0.817–0.825)"
    # 0.70001 and 0.7 print alike, so both are the best.
    assert [one[5] for one in (none, cfg, interval)] == ["0.500", "**0.700**", "**0.700**"]
    assert [one[6] for one in (none, cfg, interval)] == ["63", "63 + 63", "63 + 12"]
    assert missing == ["interval", "4", "0.1", "∞", "–", "–", "–", "–", "–"]
    notes = markdown_table(rows).replace("\\", "")
    for part in (
        "detector pixels; k 3; rule <; 64 images × 3 repeats",
        "medians of the repeats (min–max in parentheses)",
        "Missing: point 3 (guidance interval, w 4, lo 0.1, hi ∞): out of memory | 24 GiB",
    ):
        assert part in notes


@pytest.mark.parametrize(
    "name, best",
    [("fd_a", 0), ("outliers_a", 0), ("precision_a", 2), ("log_density_a", 2), ("vendi_a", None)],
)
def test_the_best_is_the_lowest_or_the_highest(name, best):
    rows = [row(n, {W: n}, metrics={name: value}) for n, value in enumerate((0.2, 0.25, 0.3))]
    lines = markdown_cells(markdown_table(rows))[2:]
    assert ["**" in line[2] for line in lines] == [n == best for n in range(3)]
    assert "**" not in markdown_table(rows[:1])


@pytest.mark.parametrize("change", [{"images": 128}, {"settings": {"detector": "pixels", "k": 5}}])
def test_no_best_among_what_does_not_compare(rows, change):
    text = markdown_table([rows[0], replace(rows[1], **change), rows[2]])
    assert "**" not in text
    assert f"points differ in {'images' if 'images' in change else 'k, rule'}" in text


def test_a_confidence_interval_is_in_brackets():
    metrics = {"log_density_a": -1.5, "log_density_a_lo": -1.75, "log_density_a_hi": -1.25}
    metrics |= {"fd_b": 1.5, "fd_b_unbiased": 1.25, "fd_b_lo": 1, "fd_b_hi": 1.75}
    text = markdown_table([row(0, {}, metrics=metrics)])
    heading, _, line = markdown_cells(text)
    # Several detectors are told apart.
    assert heading[1:3] == ["Log density (a) ↑", "FD (b) ↓"]
    assert line[1:3] == [r"-1.500 \[-1.750 to -1.250\]", r"1.50 \[1.25 in 1.00–1.75\]"]
    assert "confidence interval, with its centre, in brackets" in text


def check_latex(text: str) -> list[list[str]]:
    """Check what TeX would stumble over; the cells of the tabular."""
    code = "\n".join(line for line in text.splitlines() if not line.startswith("%"))
    assert len(re.findall(r"(?<!\\)\$", code)) % 2 == 0
    depth = 0
    for token in re.findall(r"\\.|[{}%#_^~]", code):
        depth += {"{": 1, "}": -1}.get(token, 0)
        assert depth >= 0 and (token in "{}" or token.startswith("\\")), f"unescaped {token}"
    assert depth == 0
    body = code[code.index("\\toprule") : code.index("\\bottomrule")]
    lines = [line for line in body.splitlines() if line.endswith("\\\\")]
    table = [re.split(r"(?<!\\)&", line.removesuffix("\\\\")) for line in lines]
    columns = len(re.search(r"\\begin\{tabular\}\{([lr]+)\}", code)[1])
    assert {len(line) for line in table} == {columns}
    return [[cell.strip() for cell in line] for line in table]


def test_latex_is_well_formed_whatever_is_typed(rows):
    header, _, _, interval, missing = check_latex(latex_table(rows))
    assert header[4:6] == [r"FD\textsubscript{pixels} $\downarrow$", r"Precision $\uparrow$"]
    assert interval[4] == r"\textbf{0.146} (0.143--0.151)"
    assert missing[3:5] == [r"$\infty$", "--"]
    nasty = r"[a]_b%c&d#e{f}$g$~h^i\j<k>|l*" + "\n\x07"
    bad = row(0, {"x_y.%z": nasty, "-1": -1.5}, nasty, missing=nasty, settings={"a_b": nasty})
    table = latex_table([bad, row(1, {}, metrics={"fd_a_b": 1.0, "k_#": 2.0})])
    assert check_latex(table)[1][2] == "$-$1.5"


def test_markdown_escapes_whatever_is_typed():
    nasty = "a|b*c`d<e>[f]_g_ h_i"
    cell = markdown_cells(markdown_table([row(0, {"x": nasty})]))[2][1]
    assert cell == r"a\|b\*c\`d\<e\>\[f\]\_g\_ h_i"


def test_json_lines_are_strict_and_complete(rows):
    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is no JSON")

    rows[0] = replace(rows[0], plan={"weights": [[1.0, math.nan]], "steps": 32})
    objects = [json.loads(line, parse_constant=refuse) for line in json_lines(rows).splitlines()]
    assert [one["point"] for one in objects] == [0, 1, 2, 3]
    assert objects[0]["plan"] == {"weights": [[1.0, "nan"]], "steps": 32}
    assert objects[1]["metrics"] == rows[1].metrics
    assert objects[3]["values"][HI] == "inf" and objects[3]["missing"] == rows[3].missing
    with pytest.raises(TypeError):
        json_lines([replace(rows[0], plan={"x": object()})])


@pytest.mark.parametrize("width", [20, 40, 80, 100])
def test_the_terminal_table_fits(rows, width):
    text = terminal_table(rows, width)
    assert max(map(len, text.splitlines())) <= width
    assert "Missing: point 3" in text and "out of memory" in " ".join(text.split())
    assert "0.146" in text or width == 20
    assert ("table.csv" in " ".join(text.split())) == (width < 100)


def test_the_terminal_table_drops_the_least_important_first(rows):
    width = len(terminal_table(rows, 200).splitlines()[1])
    names = ("seconds", "GFLOPs", "NFE", "Precision", "hi")
    heads = [terminal_table(rows, width - n).splitlines()[0].split() for n in range(width - 30)]
    seen = [tuple(name for name in names if name in head) for head in heads]
    assert list(dict.fromkeys(seen)) == [names, names[2:], names[3:], names[4:], ()]


def test_the_terminal_table_is_aligned_and_marks_the_best(rows):
    lines = terminal_table(rows, 100).splitlines()
    at = lines[4].index("0.146*")
    assert lines[2][at : at + 6] == "0.820 " and lines[3][at : at + 6] == "0.333 "
    assert lines[4].startswith("interval") and "(0.143–0.151)" in lines[4]
    # Long values are cut before columns go.
    rows[0] = replace(rows[0], values={"guidance": "none", "model.path": "/a" * 40})
    text = " ".join(terminal_table(rows, 140).split())
    assert "…" in text and "parts of path" in text and "NFE" in text.split("─")[0]


def test_a_point_that_was_never_composed_counts_nowhere():
    nothing = {"images": 0, "repeats": 0, "settings": {}, "evals_main": 0, "seconds": 0.0}
    lost = row(1, {LO: 2.0, HI: 1.0}, "", missing="lo must be below hi", **nothing)
    kept = [row(n, {LO: 0.1, HI: n}, "interval", metrics={"fd_a": n}) for n in (2, 3)]
    table = cells(csv_table([*kept, lost]))
    assert [one["guidance"] for one in table] == ["interval"] * 3
    text = markdown_table([*kept, lost])
    assert markdown_cells(text)[0][:4] == ["guidance", "lo", "hi", "FD (a) ↓"]
    assert "; 64 images;" in text and "**2.00**" in text
    assert "Missing: point 1 (guidance interval, lo 2, hi 1): lo must be below hi" in text


def test_the_cost_of_foreign_images_is_not_known():
    foreign = row(0, {}, "", metrics={"fd_a": 0.5}, evals_main=0, evals_ref=0, gflops=0.0)
    (one,) = cells(csv_table([foreign]))
    assert [one[name] for name in ("evals_main", "evals_ref", "gflops", "seconds")] == [
        "", "", "", "3.25",
    ]  # fmt: skip
    assert markdown_cells(markdown_table([foreign]))[0] == ["FD (a) ↓", "seconds"]


def test_text_that_is_no_text_is_written(tmp_path):
    write_tables([row(0, {}, missing="no such file: \udcff"), row(1, {})], tmp_path)
    assert "\\udcff" in (tmp_path / "table.csv").read_text()


def edges(rows: list[Row]) -> str:
    """What the notes say of edges."""
    notes = " ".join(terminal_table(rows, 10_000).splitlines())
    return notes.partition("better ones may lie: ")[2].partition(".  ")[0].rstrip(".")


def line(key: str, values: list, **changes) -> list[Row]:
    """Points along a key, the last one the best."""
    return [
        row(n, {key: value}, metrics={"fd_a": 1 - 0.1 * n}, **changes)
        for n, value in enumerate(values)
    ]


def test_a_best_value_on_the_edge_of_its_axis_is_doubted():
    assert edges(line(W, [1.5, 2.0, 3.0])) == "FD (a) at w = 3"
    assert edges(line(W, [3.0, 2.0, 1.5])) == "FD (a) at w = 1.5"
    assert edges(line(W, [1.5, 3.0, 2.0])) == ""
    assert edges(line("labels", [1, 2, 3])) == ""  # classes are no axis
    grid = [
        row(n, {LO: lo, HI: hi}, metrics={"fd_a": lo + hi, "recall_a": lo})
        for n, (lo, hi) in enumerate(itertools.product((0.1, 0.2, 0.3), (1.0, 2.0)))
    ]
    assert edges(grid) == "FD (a) at lo = 0.1, hi = 1; Recall at lo = 0.3"
    assert "edge" in markdown_table(grid) and "edge" in latex_table(grid)


def test_each_method_is_compared_at_its_own_best():
    points = [("cfg", 1.5, 0.4), ("cfg", 2.0, 0.3), ("cfg", 3.0, 0.4), ("auto", 2.0, 0.2),
              ("auto", 3.0, 0.1), ("none", None, 0.9)]  # fmt: skip
    rows = [
        row(n, {"guidance": name} | ({W: w} if w else {}), name, metrics={"fd_a": fd})
        for n, (name, w, fd) in enumerate(points)
    ]
    assert edges(rows) == "FD (a) at w = 3 of auto"


def test_an_axis_does_not_end_where_nothing_lies_beyond():
    assert edges(line(W, [3.0, 2.0, 1.0])) == ""  # no guidance
    assert edges(line(LO, [0.2, 0.1, 0.0])) == ""
    assert edges(line(HI, [1.0, 2.0, math.inf])) == ""
    # The next point is no interval any more.
    rows = line(LO, [0.1, 0.3])
    assert edges([*rows, row(2, {LO: 2.0}, missing="lo must be below hi")]) == ""


def test_equally_good_values_and_pairs_of_values():
    flat = [row(n, {W: w}, metrics={"recall_a": 1.0}) for n, w in enumerate((1.5, 2.0, 3.0))]
    assert edges(flat) == ""
    pairs = [row(n, {W: 1.5 + n, LO: 0.1 + n}, metrics={"fd_a": 1 - 0.1 * n}) for n in range(3)]
    assert edges(pairs) == ""
    zipped = [replace(one, config={"sweep": {"mode": "zip"}}) for one in pairs]
    assert edges(zipped) == "FD (a) at w = 3.5, lo = 2.1"


def test_tables_stand_alone():
    made = {"guidex": "0.1.0", "date": "2026-01-31", "command": "guidex sweep w=1,2 metrics=[a]"}
    shared = {
        "config": {
            "seeds": "0-99",
            "guidance": {"schedule": {"w": 3.0, "lo": 0.1, "hi": math.inf, "unit": "sigma"}},
        },
        "plan": {"steps": 32},
        "provenance": {"presets": {"model": "digits", "sampler": "heun"}} | made,
    }
    rows = [row(n, {HI: hi}, "interval", **shared) for n, hi in enumerate((1.0, math.inf))]
    for text in (markdown_table(rows).replace("\\", ""), latex_table(rows)):
        assert "model digits; sampler heun; seeds 0-99; steps 32; w 3; lo 0.1; detector pix" in text
        assert "guidex 0.1.0, 2026-01-31: guidex sweep w=1,2 metrics=" in text
    rows[1] = replace(rows[1], note="no step lies within (0.1, 0.11]")
    for text in (terminal_table(rows, 200), markdown_table(rows), latex_table(rows)):
        assert "Point 1 (guidance interval, hi" in text and "no step lies within (0.1, 0.11" in text
    # What differs, or is a column, is not said.
    rows[1] = replace(rows[1], values={"model": "other"}, plan={"steps": 16})
    rows[0] = replace(rows[0], values={"model": "digits"})
    notes = terminal_table(rows, 1000)
    assert "model digits;" not in notes and "steps" not in notes and "w 3; lo 0.1;" in notes
    # Several methods have a weight each.
    rows[0] = replace(rows[0], guidance="cfg", config={"guidance": {"schedule": {"w": 2.0}}})
    assert "; cfg w 2; " in terminal_table(rows, 1000)
    assert "; interval w 3; interval lo 0.1; " in terminal_table(rows, 1000)
