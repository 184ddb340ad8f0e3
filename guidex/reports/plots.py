"""The figures of a sweep for papers, and what all figures share: settings that are not the user's,
and files that are whole. Equal rows give equal figures.

Figures are matplotlib's objects alone, without pyplot, so that nothing is left behind.
"""

import itertools
import math
import re
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
from matplotlib.patches import Rectangle
from matplotlib.ticker import LogLocator

from guidex.files.atomic import atomic_write
from guidex.reports.charts import Chart, Map, Trace, curves, precision_recall
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
# How the traces of each label are drawn.
Styles = dict[str, dict[str, Any]]
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
            "heatmap": figure_of(heat_maps(rows), rows),
            "precision_recall": figure_of(precision_recall(rows), rows),
        }
        for name, figure in figures.items():
            for suffix in (".png", ".pdf") if figure is not None else ():
                paths.append(folder / f"{name}{suffix}")
                save(figure, paths[-1])
    return paths


def figure_of(charts: Sequence[Chart | Map], rows: Sequence[Row]) -> Figure | None:
    """Charts in one figure, the panels of a metric side by side, with one legend to their right;
    None without any."""
    if len(charts) == 0:
        return None
    drawn = charts[:MOST_PANELS]
    groups = [[*group] for _, group in itertools.groupby(drawn, lambda chart: chart.subject)]
    count, panels, is_map = len(groups), len(groups[0]), isinstance(drawn[0], Map)
    columns = {1: 1, 2: 2, 4: 2}.get(count, 3)
    across, down = _size(drawn[0], is_small=panels > 1)
    places = 1  # of the grid, for each metric
    if is_map or panels > 1:
        columns = min(4 if is_map else 5, panels)
        places = math.ceil(panels / columns) * columns
    lines = math.ceil(count * places / columns)
    figure = Figure((columns * across + is_map, lines * down + 0.5), layout="constrained")
    styles = styles_of(drawn)
    for number, group in enumerate(groups):
        first = figure.add_subplot(lines, columns, number * places + 1)
        others = range(number * places + 2, number * places + len(group) + 1)
        share = {"sharex": first, "sharey": first}
        axes = [first, *(figure.add_subplot(lines, columns, place, **share) for place in others)]
        _draw(axes, group, styles)
        for panel, chart in zip(axes, group, strict=True):
            panel.set_title(chart.panel, fontsize=9)
            if panels > 1:
                panel.label_outer()
        if is_map:
            figure.colorbar(group[0].colours, ax=axes, label=group[0].metric)
    handles = [Line2D([], [], **style) for style in styles.values()]
    # Outside of the figure, which grows by it when it is saved.
    beside = {"loc": "upper left", "bbox_to_anchor": (1, 1)}
    figure.legend(handles, styles, **beside, ncols=math.ceil(len(styles) / (5 * lines * down)))
    names = dict.fromkeys(re.sub(" [↓↑]$", "", chart.subject[0]) for chart in drawn)
    subject = f"{[*names][0] if len(names) == 1 else 'Metrics'} {drawn[0].subject[1]}"
    remarks = dict.fromkeys(remark for chart in drawn for remark in chart.remarks)
    remarks |= {"others in table.csv": None} if len(drawn) < len(charts) else {}
    figure.suptitle(title(subject.rstrip(" ↓↑"), rows, [*remarks], figure.get_figwidth()))
    return figure


def panel_of(chart: Chart | Map, styles: Styles) -> Figure:
    """A chart alone, without title and legend. The artists of its nth trace are called trace<n>."""
    figure = Figure(_size(chart, is_small=False), layout="constrained")
    _draw([figure.add_subplot()], [chart], styles)
    return figure


def styles_of(charts: Sequence[Chart | Map]) -> Styles:
    """A style for each label."""
    traces = [trace for chart in charts for trace in chart.traces]
    styles: Styles = {}
    for k, name in enumerate(dict.fromkeys(t.label for t in traces if t.kind in ("line", "path"))):
        turn, colour = divmod(k, len(_COLOURS))
        line, marker = _LINES[turn % len(_LINES)]
        styles[name] = {"color": _COLOURS[colour], "linestyle": line, "marker": marker}
        styles[name] |= {"linewidth": 1.4, "markersize": 4}
    others = dict.fromkeys(t.label for t in traces if t.label not in {"", *styles})
    for k, name in enumerate(others):
        kinds = {trace.kind for trace in traces if trace.label == name}
        line = _LEVEL_LINES[k % len(_LEVEL_LINES)] if "level" in kinds else "none"
        styles[name] = {"color": "black", "linestyle": line, "linewidth": 1.2}
        styles[name] |= {"marker": "*" if "dots" in kinds else "", "markersize": 8}
    return styles


def _size(chart: Chart | Map, is_small: bool) -> tuple[float, float]:
    """Width and height of a panel in inches."""
    if isinstance(chart, Chart):
        return (2.6, 2.0) if is_small else (3.7, 2.8)
    x, y = (max(3, len(names)) for names in chart.ticks)
    return 0.9 + 0.52 * x, 0.95 + 0.4 * y


def _draw(panels: Sequence[Axes], charts: Sequence[Chart | Map], styles: Styles) -> None:
    """Charts of one metric, whose axes may be shared."""
    for panel, chart in zip(panels, charts, strict=True):
        panel.set(xlabel=chart.x, ylabel=chart.y)
        if isinstance(chart, Map):
            _draw_map(panel, chart)
            continue
        panel.grid(alpha=0.25)
        for number, trace in enumerate(chart.traces):
            _draw_trace(panel, trace, {**styles.get(trace.label, {}), "gid": f"trace{number}"})
        if chart.is_log:
            panel.set_yscale("log")
            panel.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
            panel.yaxis.set(major_formatter="{x:g}", minor_formatter="")
        panel.autoscale_view()  # axhline alone may leave a line on the very edge
        if chart.is_share:
            low, high = panel.get_ylim()
            panel.set_ylim(low, min(high, 1 + 0.05 * (1 - low)), auto=True)


def _draw_trace(panel: Axes, trace: Trace, style: Mapping[str, Any]) -> None:
    x, y, _, _, low, high = zip(*trace.spots, strict=True)
    if trace.kind == "level":
        for value in filter(math.isfinite, y):
            panel.axhline(value, **{**style, "marker": "", "zorder": 1.5})
    elif trace.kind == "front":
        panel.step(x, y, where="post", color="0.6", alpha=0.35, linewidth=5)
    elif trace.kind == "published":
        marks = {"linestyle": "none", "marker": "D", "fillstyle": "none"}
        panel.plot(x, y, color=style["color"], gid=style["gid"], **marks)
    else:
        is_joined = trace.kind in ("line", "path")
        panel.plot(x, y, **style if is_joined else {**style, "linestyle": "none"})
        if np.isfinite(low).any():
            panel.fill_between(x, low, high, color=style["color"], alpha=0.12, linewidth=0)


def _draw_map(panel: Axes, chart: Map) -> None:
    for square in chart.squares:
        place = Rectangle((square.x - 0.5, square.y - 0.5), 1, 1, gid="trace0", linewidth=0)
        panel.add_patch(place)
        if square.words == "":
            place.set(facecolor="none", edgecolor="0.6", hatch="////")
            continue
        rgba = chart.colours.to_rgba(square.value)
        place.set(facecolor=rgba)
        if square.is_best:
            place.set(edgecolor="red", linewidth=2)
        is_dark = np.dot(rgba[:3], (0.299, 0.587, 0.114)) < 0.42
        style = {"ha": "center", "va": "center", "size": 8, "color": "w" if is_dark else "k"}
        panel.text(square.x, square.y, square.words, **style)
    for axis, names in zip((panel.xaxis, panel.yaxis), chart.ticks, strict=True):
        axis.set_ticks(range(len(names)), names)
        axis.set_view_interval(-0.5, len(names) - 0.5, ignore=True)
    panel.spines[:].set_visible(False)


@contextmanager
def default_settings(changes: Mapping[str, Any]) -> Iterator[None]:
    """matplotlib's default settings with some changes, whatever the user's are."""
    with matplotlib.rc_context(), warnings.catch_warnings():
        matplotlib.rcdefaults()
        # TrueType, which publishers take; matplotlib's own Type 3 they often refuse.
        matplotlib.rcParams.update({"font.size": 9, "pdf.fonttype": 42, **changes})
        # A name in a script that the font lacks is drawn as boxes, and what lies beyond the axes is
        # not drawn, which is enough said.
        warnings.filterwarnings("ignore", message="Glyph|No contour levels")
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
    figure.set_layout_engine("none")  # to lay it out again would take most of the time
