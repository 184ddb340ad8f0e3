"""One panel of a figure of toys: a point of a sweep, and how its samples are drawn."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.colors import LinearSegmentedColormap, to_rgb

from guidex.reports.toy_density import Limits, centres

BINS = 72
NOTE_SIZE = 8
NAMED_MODES = 3  # so many shares fit into a line

# The colours of Okabe and Ito, which colour-blind readers can tell apart.
GREEN, ORANGE, BLUE, PURPLE = "#009E73", "#E69F00", "#0072B2", "#CC79A7"
VERMILION, SKY, BLACK = "#D55E00", "#56B4E9", "#000000"
MODE_COLOURS = (BLUE, VERMILION, PURPLE, SKY, BLACK)
CLASS_COLOURS = (VERMILION, BLUE, GREEN, PURPLE, ORANGE, SKY)


@dataclass(frozen=True, eq=False)
class ToyPanel:
    """One point of a sweep on a toy of d dimensions.

    Attributes:
        title: what is special about this point, such as "w 6, (0.1, 0.6]".
        samples: final samples [N, d], floating point.
        labels: the class that each sample was asked for [N], int64, or None without classes.
        path: states of the first R samples at every step boundary [steps + 1, R, d]; R may be 0.
        sigmas: noise levels of the step boundaries [steps + 1], float64, decreasing to 0.
        guided: which steps are guided, bool [steps].
    """

    title: str
    samples: np.ndarray
    labels: np.ndarray | None
    path: np.ndarray
    sigmas: np.ndarray
    guided: np.ndarray

    def guided_ranges(self) -> list[Limits]:
        """The noise levels (lo, hi] of each run of guided steps."""
        edges = np.flatnonzero(np.diff(self.guided.astype(int), prepend=0, append=0))
        return [(lo, hi) for hi, lo in self.sigmas[edges.reshape(-1, 2)].tolist()]


def shade(axes: Axes, image: np.ndarray, colour: str, opacity: float) -> None:
    """A density over the whole axes, in a colour that fades with it."""
    rgb = to_rgb(colour)
    fading = LinearSegmentedColormap.from_list("", [(*rgb, 0.0), (*rgb, opacity)])
    extent = (*axes.get_xlim(), *axes.get_ylim())
    axes.imshow(image, fading, extent=extent, origin="lower", aspect="auto")


def draw_density(
    upper: Axes, lower: Axes, clean: np.ndarray, image: np.ndarray, colour: str
) -> None:
    """A density: all noise levels above, with contours at even parts of the maximum, sigma = 0
    below."""
    shade(upper, image, colour, opacity=0.5)
    levels = [level for level in (0.25, 0.5, 0.75) if image.min() < level]
    style = {"colors": colour, "linewidths": 0.7, "origin": "lower"}
    if len(levels) > 0:
        upper.contour(image, levels, extent=(*upper.get_xlim(), *upper.get_ylim()), **style)
    x = centres(lower.get_xlim())
    lower.fill_between(x, clean, color=colour, alpha=0.25, lw=0)
    lower.plot(x, clean, color=colour, lw=1.2)


def draw_trajectories(axes: Axes, panel: ToyPanel, modes: np.ndarray) -> None:
    """Trajectories in the colours of the modes [R] that they end in, and bars beside the guided
    noise levels, with an arrow where they go on."""
    lines = [np.stack([x, panel.sigmas], axis=1) for x in panel.path[:, :, 0].T]
    colours = [_mode_colour(mode) for mode in modes.tolist()]
    axes.add_collection(LineCollection(lines, colors=colours, lw=0.5, alpha=0.8), autolim=False)
    bottom, top = axes.get_ylim()
    beside = {"transform": axes.get_yaxis_transform(), "color": BLACK, "clip_on": False}
    for lo, hi in panel.guided_ranges():
        start, end = max(lo, bottom), min(hi, top)
        if start >= end:
            continue
        axes.plot((1.04, 1.04), (start, end), lw=2.5, solid_capstyle="butt", **beside)
        axes.plot(1.04, top, marker="^" if hi > top else "", ms=6, mew=0, **beside)
        for bound in (lo, hi):
            if bottom < bound < top:
                axes.axhline(bound, color=BLACK, lw=0.6, ls=(0, (4, 3)))
        if end - start > 0.3 * (top - bottom):
            place = {"rotation": 90, "va": "center", "size": NOTE_SIZE}
            axes.text(1.07, (start + end) / 2, "guided", **place, **beside)


def draw_histogram(axes: Axes, samples: np.ndarray, modes: np.ndarray, count: int) -> None:
    """The samples [N, 1] of each of `count` modes, stacked to a density.

    Arguments:
        modes: of the finite samples, int64.
    """
    (low, high), top = axes.get_xlim(), axes.get_ylim()[1]
    edges = np.linspace(low, high, BINS + 1)
    x = samples[np.isfinite(samples)]
    floor = np.zeros(BINS)
    for mode in range(count):
        colour = _mode_colour(mode)
        counts, _ = np.histogram(x[modes == mode], edges)
        height = floor + counts / (len(samples) * (edges[1] - edges[0]))
        axes.stairs(height, edges, baseline=floor, fill=True, color=colour, alpha=0.6)
        peak = np.where(counts > 0, height, 0.0).argmax()
        if counts[peak] > 0 and height[peak] > top:
            # How high it rises where it leaves the axes, on the outer side of the bump.
            left = peak > BINS * (0.2 if mode == 0 else 0.8)
            style = {"ha": "right" if left else "left", "va": "top", "color": colour}
            text = f"↑{height[peak]:.{1 if height[peak] < 10 else 0}f}"
            away = {"xytext": (-3 if left else 3, -3), "textcoords": "offset points"}
            axes.annotate(text, (edges[peak + 1 - left], top), size=NOTE_SIZE, **away, **style)
        floor = height
    outside = len(samples) - int(((low <= x) & (x <= high)).sum())
    remark = [(f"  {outside} outside", BLACK)] if outside > 0 else []
    note(axes, [*mode_shares(np.bincount(modes, minlength=count)), *remark])


def mode_shares(counts: np.ndarray) -> list[tuple[str, str]]:
    """The share of each mode in samples by mode [modes], int64: pieces of text and their colours;
    none of a single mode."""
    if len(counts) == 1:
        return []
    if len(counts) > NAMED_MODES:
        return [(f"{np.count_nonzero(counts)} of {len(counts)} modes", BLACK)]
    pieces = []
    for mode, count in enumerate(counts.tolist()):
        share = percent(count, int(counts.sum())), _mode_colour(mode)
        pieces += [(" / " if mode > 0 else "modes ", BLACK), share]
    return pieces


def percent(count: int, total: int) -> str:
    """A share of which only none is 0 %, and only all is 100 %."""
    rounded = round(100 * count / max(total, 1))
    if rounded == 0 and count > 0:
        return "<1 %"
    return ">99 %" if rounded == 100 and count < total else f"{rounded} %"


def _mode_colour(mode: int) -> str:
    return MODE_COLOURS[mode % len(MODE_COLOURS)]


def note(axes: Axes, pieces: Sequence[tuple[str, str]]) -> None:
    """A line right above the axes, of pieces of text and their colours."""
    place, corner = "axes fraction", (0.01, 1.03)
    for text, colour in pieces:
        style = {"color": colour, "size": NOTE_SIZE, "va": "bottom"}
        place = axes.annotate(text, corner, xycoords=place, **style)
        corner = (1, 0)  # of the piece before


def draw_points(axes: Axes, panel: ToyPanel) -> None:
    """2D trajectories, black where they are guided and grey elsewhere; the samples in the colours
    of their classes; the number of those outside the axes."""
    segments = np.stack([panel.path[:-1], panel.path[1:]], axis=2)
    for guided, colour in ((False, "0.6"), (True, BLACK)):
        lines = segments[panel.guided == guided].reshape(-1, 2, 2)
        axes.add_collection(LineCollection(lines, colors=colour, lw=0.4, alpha=0.7), autolim=False)
    labels = np.zeros(len(panel.samples), int) if panel.labels is None else panel.labels
    area = float(np.clip(4000 / len(panel.samples), 0.8, 6))
    for label in np.unique(labels).tolist():
        x, y = panel.samples[labels == label].T
        colour = CLASS_COLOURS[label % len(CLASS_COLOURS)]
        axes.scatter(x, y, area, color=colour, alpha=0.7, lw=0, zorder=2.5, rasterized=True)
    low, high = np.transpose([axes.get_xlim(), axes.get_ylim()])
    inside = ((low <= panel.samples) & (panel.samples <= high)).all(axis=1)
    if not inside.all():
        paper = {"facecolor": "white", "alpha": 0.8, "lw": 0, "pad": 1}
        style = {"ha": "right", "color": BLACK, "size": NOTE_SIZE, "bbox": paper}
        axes.text(0.98, 0.03, f"{(~inside).sum()} outside", transform=axes.transAxes, **style)
