"""The figures of a sweep, chosen from what its rows hold. Equal rows give equal figures."""

from collections.abc import Sequence
from pathlib import Path

from guidex.reports.curves import curves, precision_recall
from guidex.reports.figures import default_settings, save
from guidex.reports.heat_maps import heat_maps
from guidex.reports.rows import Row, ordered

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
    """Draw what can be drawn, each as .png (150 dpi) and .pdf, written in one step.

    curves: each metric against the guidance weight w (without a swept w, against the numeric key
        with the most values), one curve per combination of the other swept values. Bands are min
        and max over repeats, or the confidence interval. Points without that value, such as those
        without guidance, are lines across. A missing point interrupts its curve.
    heatmap: FD (without one, the first metric) over two numeric keys that form a grid: lo and hi,
        or the first two that do; one map per combination of the other values. Missing points are
        hatched, combinations that are not in the table blank.
    precision_recall: precision against recall, points joined along w.

    More than MOST_CURVES curves are parted into small panels side by side, by another key.

    Arguments:
        rows: the points so far.
        folder: an existing folder; files of these names in it are replaced.

    Returns:
        The files written; what the rows have no data for is not among them.

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
