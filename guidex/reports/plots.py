"""The figures of a sweep, chosen from what its rows hold, and what all figures share: settings that
are not the user's, and files that are whole. Equal rows give equal figures.

Figures are matplotlib's objects alone, without pyplot, so that nothing is left behind.
"""

import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.figure import Figure

from guidex.files.atomic import atomic_write
from guidex.reports.curves import curves, precision_recall
from guidex.reports.heat_maps import heat_maps
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
    rows = ordered(rows)
    draws = {"curves": curves, "heatmap": heat_maps, "precision_recall": precision_recall}
    paths = []
    with default_settings(STYLE):
        for name, draw in draws.items():
            figure = draw(rows)
            for suffix in (".png", ".pdf") if figure is not None else ():
                paths.append(folder / f"{name}{suffix}")
                save(figure, paths[-1])
    return paths


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
