"""The report of a table as one HTML file that needs nothing else: what can be sorted, picked and
laid beside each other. Its look and behaviour are report.html."""

import html
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from xml.etree.ElementTree import Element, tostring

from matplotlib.colors import to_hex

from guidex.files.atomic import atomic_write
from guidex.reports.best_points import answers
from guidex.reports.charts import Chart, Map, costs, curves, names_of, precision_recall
from guidex.reports.columns import Column, rounded
from guidex.reports.heat_maps import heat_maps
from guidex.reports.labels import plain
from guidex.reports.notes import origin
from guidex.reports.pictures import Picture, pictures_of
from guidex.reports.plots import STYLE, Styles, default_settings, styles_of
from guidex.reports.rows import Row, ordered, read_rows
from guidex.reports.svg import drawing, plan_drawing, tag
from guidex.reports.tables import arranged, below


def write_report(folders: Sequence[Path], path: Path) -> Path:
    """Write one HTML file of the rows and pictures in the folders of some runs; returns its path.

    Points of several runs become one table, whose first column names the run.

    Raises:
        GuidexError: a folder has no rows, or the file cannot be written.
    """
    rows: list[Row] = []
    pictures: dict[int, Picture] = {}
    short = [folder.resolve().name for folder in folders]
    runs = short if len(set(short)) == len(short) else [str(folder) for folder in folders]
    for folder, run in zip(folders, runs, strict=True):
        own = read_rows(folder)
        found = pictures_of(own, folder)
        for row in ordered(own):
            if row.point in found:
                pictures[len(rows)] = found[row.point]
            values = {"run": run, **row.values} if len(folders) > 1 else row.values
            rows.append(replace(row, point=len(rows), values=values))
    content = _page(f"guidex: {' and '.join(runs)}", rows, pictures).encode(
        errors="backslashreplace"
    )
    atomic_write(path, lambda file: file.write(content))
    return path


def _page(title: str, rows: Sequence[Row], pictures: dict[int, Picture]) -> str:
    template = Path(__file__).with_name("report.html").read_text(encoding="utf-8")
    before, _, after = template.partition("<!--body-->")
    charts = [*curves(rows), *precision_recall(rows), *costs(rows), *heat_maps(rows)]
    best, table, styles = answers(rows), arranged(rows), styles_of(charts)
    columns, names = rounded(table), names_of(rows)
    most = max((_most(row) for row in rows), default=1.0)
    main = tag("main", tag("h1", title), *_paragraphs(origin(rows)))
    for answer in best:
        link = tag("button", answer.text, data_pick=answer.row.point)
        code = [] if answer.command is None else [" ", tag("code", answer.command)]
        main.append(tag("p", link, *code))
    hint = "filter: words, or conditions such as w>2"
    main.append(tag("input", id="filter", type="search", placeholder=hint, aria_label=hint))
    main.append(_table(table, columns, most))
    main.extend(_paragraphs(below(table, columns, "bold", "italic")))
    if len(charts) > 0:
        with default_settings(STYLE):
            drawn = [drawing(chart, styles) for chart in charts]
            main.extend([_legend(charts, styles), tag("div", *drawn, class_="charts")])
    chosen = [answer.row.point for answer in best] or [table[0].point]
    first = next((row.point for row in rows if row.point != chosen[0]), chosen[0])
    panes = [_pane(names, *one) for one in (("left", chosen[0]), ("right", first))]
    keep = tag("label", tag("input", type="checkbox", id="keep"), " keep the right one")
    inside = [tag("summary", "Explorer"), keep, tag("div", *panes, class_="panes")]
    cards = [
        _card(row, names[row.point], k, columns, pictures.get(row.point), most)
        for k, row in enumerate(table)
    ]
    aside = tag("aside", tag("details", *inside, open=""))
    body = [main, aside, tag("div", *cards, hidden="")]
    text = "\n".join(tostring(part, encoding="unicode", method="html") for part in body)
    return before.replace("guidex report", html.escape(title)) + text + after


def _most(row: Row) -> float:
    """The largest weight of a plan."""
    return max(
        (w for term in row.plan.get("weights", []) for step in term for w in step), default=1
    )


def _paragraphs(lines: Iterable[str]) -> Iterator[Element]:
    return (tag("p", line, class_="notes") for line in lines)


def _kind(column: Column) -> str:
    return "number" if column.numeric else "word"


def _table(rows: Sequence[Row], columns: Sequence[Column], most: float) -> Element:
    headings = [tag("th", tag("button", c.heading), class_=_kind(c)) for c in columns]
    lines = []
    for k, row in enumerate(rows):
        line = tag("tr", tag("td", plan_drawing(row, most)), data_pick=row.point, tabindex=-1)
        for column in columns:
            cell = column.cells[k]
            mark = "b" if cell.best else "i" if cell.tied else None
            small = [tag("small", cell.spread)] if cell.spread else []
            text = cell.text if mark is None else tag(mark, cell.text)
            line.append(tag("td", text, *small, class_=_kind(column)))
        lines.append(line)
    head = tag("thead", tag("tr", tag("th", tag("button", "plan")), *headings))
    return tag("div", tag("table", head, tag("tbody", *lines)), class_="scroll")


def _pane(names: dict[int, str], side: str, first: int) -> Element:
    options = [tag("option", name, value=point) for point, name in names.items()]
    chosen = tag("select", *options, aria_label=f"point at the {side}")
    return tag("section", chosen, tag("div"), class_="pane", data_first=first)


def _card(
    row: Row, name: str, k: int, columns: Sequence[Column], picture: Picture | None, most: float
) -> Element:
    """All of a point: what it made, its plan and its numbers, those of line k."""
    card = tag("article", tag("h3", name), id=f"point{row.point}", class_="card")
    if picture is not None:
        look = "coarse" if picture.is_coarse else "fine"
        (width, height), alt = picture.size, f"{name}: {picture.caption}"
        size = {"width": width, "height": height}
        card.append(
            tag("img", src=picture.uri, alt=alt, title=picture.caption, **size, class_=look)
        )
    card.append(plan_drawing(row, most))
    card.extend(_paragraphs(filter(None, [row.plan.get("summary"), row.missing, row.note])))
    numbers = tag("dl")
    for column in columns:
        if column.numeric and (text := column.cells[k].text):
            numbers.extend([tag("dt", column.heading), tag("dd", text)])
    card.append(numbers)
    return card


def _legend(charts: Sequence[Chart | Map], styles: Styles) -> Element:
    """A button for each label, which picks all of its points."""
    legend = tag("div", class_="legend")
    traces = [trace for chart in charts for trace in chart.traces]
    for label, style in styles.items():
        points = {spot.row.point: None for t in traces if t.label == label for spot in t.spots}
        button = tag("button", plain(label), data_pick=" ".join(map(str, points)))
        button.set("style", f"border-left-color:{to_hex(style['color'])}")
        legend.append(button)
    return legend
