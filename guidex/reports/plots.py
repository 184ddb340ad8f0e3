"""The figures of a sweep, chosen from what its rows hold.

They are drawn with matplotlib's objects alone, under its default settings whatever the user's are,
so that equal rows give equal figures and nothing is left behind.
"""

import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import matplotlib
from matplotlib.figure import Figure

from guidex.assets.atomic import atomic_write
from guidex.reports.curves import curves, precision_recall
from guidex.reports.heat_maps import heat_maps
from guidex.reports.rows import Row, ordered

_DPI = 150


def write_plots(rows: Sequence[Row], folder: Path) -> list[Path]:
    """Draw what can be drawn, each as .png (150 dpi) and .pdf, written in one step.

    curves: each metric against the guidance weight w (without a swept w, against the numeric key
        with the most values), one curve per combination of the other swept values. Bands are min
        and max over repeats, or the confidence interval. Points without that value, such as those
        without guidance, are lines across. A missing point interrupts its curve.
    heatmap: FD (without one, the first metric) over two numeric keys that form a grid: lo and hi,
        first and last, or the first two that do; one map per combination of the other values.
        Missing points are hatched, combinations that are not in the table blank.
    precision_recall: precision against recall, points joined along w.

    Arguments:
        rows: the points so far.
        folder: an existing folder; files of these names in it are replaced.

    Returns:
        The files written; what the rows have no data for is not among them.

    Raises:
        GuidexError: the files cannot be written.
    """
    figures: dict[str, Callable[[Sequence[Row]], Figure | None]] = {
        "curves": curves,
        "heatmap": heat_maps,
        "precision_recall": precision_recall,
    }
    paths = []
    with _default_settings():
        for name, draw in figures.items():
            figure = draw(ordered(rows))
            if figure is not None:
                paths += [_save(figure, folder / f"{name}{suffix}") for suffix in (".png", ".pdf")]
    return paths


def _save(figure: Figure, path: Path) -> Path:
    kind = path.suffix.removeprefix(".")
    # No date, so that equal figures are equal files.
    metadata = {"CreationDate": None} if kind == "pdf" else None
    atomic_write(path, lambda file: figure.savefig(file, format=kind, dpi=_DPI, metadata=metadata))
    return path


@contextmanager
def _default_settings() -> Iterator[None]:
    with matplotlib.rc_context(), warnings.catch_warnings():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(
            {
                "axes.spines.right": False,
                "axes.spines.top": False,
                "figure.titlesize": 11,
                "font.size": 9,
                "legend.fontsize": 9,
                "legend.frameon": False,
                # TrueType, which publishers take; matplotlib's own Type 3 they often refuse.
                "pdf.fonttype": 42,
            }
        )
        # A name in a script that the font lacks is drawn as boxes, which is enough said.
        warnings.filterwarnings("ignore", message="Glyph")
        yield
