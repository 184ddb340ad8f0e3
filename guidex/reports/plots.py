"""The figures of a sweep for papers, and what all figures share: settings that are not the user's,
and files that are whole. Equal rows give equal figures.

Figures are matplotlib's objects alone, without pyplot, so that nothing is left behind.
"""

import itertools
import math
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import LogLocator

from guidex.files.atomic import atomic_write
from guidex.reports.charts import Chart, Trace, curves, precision_recall
from guidex.reports.heat_maps import heat_maps
from guidex.reports.labels import title
from guidex.reports.rows import Row, ordered

DPI = 150

STYLE = {
    "axes.formatter.useoffset": False,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "figure.titlesize": 11,
    "legend.fontsize": 9,
    "legend.frameon": False,
    "savefig.bbox": "tight",
}
MOST_PANELS = 60  # in a figure
# Colours of matplotlib's tab10 without its grey, and what tells curves of one colour apart.
_COLOURS = [f"C{number}" for number in (0, 1, 2, 3, 4, 5, 6, 8, 9)]
_LINES = [("-", "o"), ("-.", "s"), (":", "^"), ((0, (5, 1, 1, 1, 1, 1)), "D")]
_LEVEL_LINES = ["--", (0, (1, 1)), (0, (6, 2, 1, 2))]


def write_plots(rows: Sequence[Row], folder: Path) -> list[Path]:
    """Draw what can be drawn, each as .png and .pdf; returns the files, in an existing folder.

    curves: each metric against w (without a swept w, against the numeric key with the most values),
        a curve per combination of other values, more than MOST_CURVES in small panels. Bands are
        min and max over repeats, or the confidence interval. Points without w are lines across.
    heatmap: FD (without one, the first metric) over two numeric keys that form a grid, lo and hi
        first. Missing points are hatched, combinations that are not in the table blank.
    precision_recall: precision against recall, points joined along w.

    Raises:
        GuidexError: the files cannot be written.
    """
    rows, paths = ordered(rows), []
    with default_settings(STYLE):
        figures = {
            "curves": figure_of(curves(rows), rows),
            "heatmap": heat_maps(rows),
            "precision_recall": figure_of(precision_recall(rows), rows),
        }
        for name, figure in figures.items():
            for suffix in (".png", ".pdf") if figure is not None else ():
                paths.append(folder / f"{name}{suffix}")
                save(figure, paths[-1])
    return paths


def figure_of(charts: Sequence[Chart], rows: Sequence[Row]) -> Figure | None:
    """Charts in one figure, the panels of a metric side by side, with one legend to their right;
    None without any."""
    if len(charts) == 0:
        return None
    drawn = charts[:MOST_PANELS]
    groups = [[*group] for _, group in itertools.groupby(drawn, lambda chart: (chart.x, chart.y))]
    small, count = len(groups[0]) > 1, len(groups)
    columns = min(5, len(groups[0])) if small else {1: 1, 2: 2, 4: 2}.get(count, 3)
    lines = count * math.ceil(len(groups[0]) / columns) if small else math.ceil(count / columns)
    across, down = (2.6, 2.0) if small else (4.8, 4.0) if count == 1 else (3.7, 2.8)
    figure = Figure((columns * across, lines * down + 0.5), layout="constrained")
    styles, place = _styles(drawn), 0
    for group in groups:
        panels: list[Axes] = []
        for k, chart in enumerate(group):
            shared = dict.fromkeys(("sharex", "sharey"), panels[0] if panels else None)
            panels.append(panel := figure.add_subplot(lines, columns, place + k + 1, **shared))
            panel.set(xlabel=chart.x, ylabel=chart.y)
            panel.set_title(chart.panel, fontsize=9)
            panel.grid(alpha=0.25)
            panel.label_outer() if small else None
            for trace in chart.traces:
                _draw(panel, trace, styles[trace.label])
        place += math.ceil(len(group) / columns) * columns if small else 1
        for panel in panels:  # shared axes do not tell each other
            _scale(panel, group[0])
    handles = [Line2D([], [], **style) for style in styles.values()]
    # Outside of the figure, which grows by it when it is saved.
    beside = {"loc": "upper left", "bbox_to_anchor": (1, 1)}
    figure.legend(handles, styles, **beside, ncols=math.ceil(len(styles) / (5 * lines * down)))
    y = {chart.y.rstrip(" ↓↑") for chart in charts}
    remarks = _bands(drawn, rows) + (["others in table.csv"] if len(drawn) < len(charts) else [])
    if any(trace.kind == "published" for chart in drawn for trace in chart.traces):
        remarks.append("open marks: published")
    subject = f"{min(y) if len(y) == 1 else 'Metrics'} against {charts[0].x.rstrip(' ↓↑')}"
    figure.suptitle(title(subject, rows, remarks, figure.get_figwidth()))
    return figure


def _styles(charts: Sequence[Chart]) -> dict[str, dict[str, Any]]:
    """A style for each label."""
    traces = [trace for chart in charts for trace in chart.traces]
    styles: dict[str, dict[str, Any]] = {}
    for k, name in enumerate(dict.fromkeys(t.label for t in traces if t.kind in ("line", "path"))):
        turn, colour = divmod(k, len(_COLOURS))
        line, marker = _LINES[turn % len(_LINES)]
        styles[name] = {"color": _COLOURS[colour], "linestyle": line, "marker": marker}
        styles[name] |= {"linewidth": 1.4, "markersize": 4}
    others = {t.label: t.kind for t in traces if t.label not in styles}
    for k, (name, kind) in enumerate(others.items()):
        level = {"linestyle": _LEVEL_LINES[k % len(_LEVEL_LINES)], "marker": "", "linewidth": 1.2}
        dots = {"linestyle": "none", "marker": "*", "markersize": 8}
        styles[name] = {"color": "black"} | (level if kind == "level" else dots)
    return styles


def _draw(panel: Axes, trace: Trace, style: Mapping[str, Any]) -> None:
    x, y, _, _, low, high = zip(*trace.spots, strict=True)
    if trace.kind == "level":
        for value in {value for value in y if math.isfinite(value)}:
            panel.axhline(value, **style, zorder=1.5)
    elif trace.kind == "published":
        panel.plot(x, y, color=style["color"], linestyle="none", marker="D", fillstyle="none")
    else:
        panel.plot(x, y, **style)
        if np.isfinite(low).any():
            panel.fill_between(x, low, high, color=style["color"], alpha=0.12, linewidth=0)
    panel.autoscale_view()  # axhline alone may leave a line on the very edge


def _scale(panel: Axes, chart: Chart) -> None:
    """Logarithmic where asked for; shares between 0 and 1, but for room for the markers there."""
    if chart.is_log:
        panel.set_yscale("log")
        panel.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        panel.yaxis.set(major_formatter="{x:g}", minor_formatter="")
    for axis, is_share in zip((panel.xaxis, panel.yaxis), chart.are_shares, strict=True):
        low, high = axis.get_view_interval()
        if is_share:
            room = 0.05 * (min(high, 1) - max(low, 0))
            axis.set_view_interval(max(low, -room), min(high, 1 + room), ignore=True)


def _bands(charts: Sequence[Chart], rows: Sequence[Row]) -> list[str]:
    """What bands show."""
    lows = [spot.low for chart in charts for trace in chart.traces for spot in trace.spots]
    if not np.isfinite(lows).any():
        return []
    is_spread = any(
        row.repeats > 1 and f"{name}_min" in row.metrics for row in rows for name in row.metrics
    )
    return ["median, band: min–max" if is_spread else "band: confidence interval"]


@contextmanager
def default_settings(changes: Mapping[str, Any]) -> Iterator[None]:
    """matplotlib's default settings with some changes, whatever the user's are."""
    with matplotlib.rc_context(), warnings.catch_warnings():
        matplotlib.rcdefaults()
        # TrueType, which publishers take; matplotlib's own Type 3 they often refuse.
        matplotlib.rcParams.update({"font.size": 9, "pdf.fonttype": 42, **changes})
        # A name in a script that the font lacks is drawn as boxes, which is enough said.
        warnings.filterwarnings("ignore", message="Glyph")
        yield


def save(figure: Figure, path: Path, text: Mapping[str, str] | None = None) -> None:
    """Write a figure at DPI, in the format that the suffix of the path names, in one step, a PNG
    with some text in it. Equal figures are equal files; an existing file is replaced.

    Raises:
        GuidexError: the file cannot be written.
    """
    kind = path.suffix.removeprefix(".")
    options = {"dpi": DPI, "metadata": {"CreationDate": None} if kind == "pdf" else text}
    atomic_write(path, lambda file: figure.savefig(file, format=kind, **options))
