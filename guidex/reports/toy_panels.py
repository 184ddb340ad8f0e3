"""One panel of a figure of toys: a point of a sweep, and how its samples are drawn."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection

from guidex.reports.toy_density import Density1D, Limits, Modes

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
        ranges = self.sigmas[edges.reshape(-1, 2)].tolist()
        return [(lo, hi) for hi, lo in ranges]


def draw_densities(
    upper: Axes, lower: Axes, densities: Sequence[Density1D], names: Sequence[str]
) -> None:
    """The true density, over that of the reference if there is one: all noise levels above, sigma
    = 0 below."""
    named = list(zip(densities, names, (GREEN, ORANGE), strict=False))
    for density, _, colour in reversed(named):
        density.shade(upper, colour, opacity=0.5)
        density.outline(upper, colour)
        lower.fill_between(density.x, density.clean, color=colour, alpha=0.25, lw=0)
        lower.plot(density.x, density.clean, color=colour, lw=1.2)
    _note(lower, [(f"{name}  ", colour) for _, name, colour in named])


def draw_trajectories(axes: Axes, panel: ToyPanel, truth: Density1D, modes: Modes) -> None:
    """Trajectories over the true density in the colours of the modes that they end in, and bars
    beside the guided noise levels."""
    truth.shade(axes, GREEN, opacity=0.4)
    lines = [np.stack([x, panel.sigmas], axis=1) for x in panel.path[:, :, 0].T]
    colours = [_mode_colour(mode) for mode in modes.of(panel.path[-1]).tolist()]
    axes.add_collection(LineCollection(lines, colors=colours, lw=0.5, alpha=0.8), autolim=False)
    for lo, hi in panel.guided_ranges():
        _bracket(axes, lo, hi)


def draw_histogram(axes: Axes, panel: ToyPanel, truth: Density1D, modes: Modes) -> None:
    """The samples of each mode, stacked to a density, and the true density."""
    low, high = truth.x_range
    edges = np.linspace(low, high, BINS + 1)
    x = panel.samples[np.isfinite(panel.samples[:, 0])]
    mode_of = modes.of(x)
    floor = np.zeros(BINS)
    for mode in range(modes.count):
        colour = _mode_colour(mode)
        counts, _ = np.histogram(x[mode_of == mode, 0], edges)
        height = floor + counts / (len(panel.samples) * (edges[1] - edges[0]))
        axes.stairs(height, edges, baseline=floor, fill=True, color=colour, alpha=0.6)
        _name_peak(axes, edges, np.where(counts > 0, height, 0.0), mode == 0, colour)
        floor = height
    axes.plot(truth.x, truth.clean, color=GREEN, lw=1.2)
    outside = len(panel.samples) - int(((low <= x) & (x <= high)).sum())
    remark = [(f"  {outside} outside", BLACK)] if outside > 0 else []
    _note(axes, [*mode_shares(np.bincount(mode_of, minlength=modes.count)), *remark])


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


def _note(axes: Axes, pieces: Sequence[tuple[str, str]]) -> None:
    """A line right above the axes, of pieces of text and their colours."""
    place, corner = "axes fraction", (0.01, 1.03)
    for text, colour in pieces:
        style = {"color": colour, "size": NOTE_SIZE, "va": "bottom"}
        place = axes.annotate(text, corner, xycoords=place, **style)
        corner = (1, 0)  # of the piece before


def _bracket(axes: Axes, lo: float, hi: float) -> None:
    """Mark guided noise levels (lo, hi] by a bar beside the axes, with an arrow if it goes on."""
    bottom, top = axes.get_ylim()
    start, end = max(lo, bottom), min(hi, top)
    if start >= end:
        return
    beside = {"transform": axes.get_yaxis_transform(), "color": BLACK, "clip_on": False}
    axes.plot((1.04, 1.04), (start, end), lw=2.5, solid_capstyle="butt", **beside)
    if hi > top:
        axes.plot(1.04, top, marker="^", ms=6, mew=0, **beside)
    for bound in (lo, hi):
        if bottom < bound < top:
            axes.axhline(bound, color=BLACK, lw=0.6, ls=(0, (4, 3)))
    if end - start > 0.3 * (top - bottom):
        middle = (start + end) / 2
        axes.text(1.07, middle, "guided", rotation=90, va="center", size=NOTE_SIZE, **beside)


def _name_peak(
    axes: Axes, edges: np.ndarray, height: np.ndarray, is_leftmost: bool, colour: str
) -> None:
    """Write how high a histogram rises where it leaves its axes, on the side with room."""
    top, peak = axes.get_ylim()[1], int(height.argmax())
    if height[peak] <= top:
        return
    on_left = peak > BINS * (0.2 if is_leftmost else 0.8)
    text = f"↑{height[peak]:.{1 if height[peak] < 10 else 0}f}"
    place, away = (edges[peak if on_left else peak + 1], top), (-3 if on_left else 3, -3)
    style = {"ha": "right" if on_left else "left", "va": "top", "color": colour, "size": NOTE_SIZE}
    axes.annotate(text, place, away, textcoords="offset points", **style)


def draw_paths(axes: Axes, panel: ToyPanel) -> None:
    """Trajectories, grey where they are not guided and black where they are."""
    segments = np.stack([panel.path[:-1], panel.path[1:]], axis=2)
    for guided, colour in ((False, "0.6"), (True, BLACK)):
        lines = segments[panel.guided == guided].reshape(-1, 2, 2)
        axes.add_collection(LineCollection(lines, colors=colour, lw=0.4, alpha=0.7), autolim=False)


def draw_samples(axes: Axes, panel: ToyPanel) -> None:
    """The samples in the colours of their classes, and the number of those outside the axes."""
    labels = np.zeros(len(panel.samples), int) if panel.labels is None else panel.labels
    area = float(np.clip(4000 / len(panel.samples), 0.8, 6))
    for label in np.unique(labels).tolist():
        x, y = panel.samples[labels == label].T
        colour = CLASS_COLOURS[label % len(CLASS_COLOURS)]
        axes.scatter(x, y, area, color=colour, alpha=0.7, lw=0, zorder=2.5, rasterized=True)
    (left, right), (bottom, top) = axes.get_xlim(), axes.get_ylim()
    x, y = panel.samples.T
    outside = np.count_nonzero(~((left <= x) & (x <= right) & (bottom <= y) & (y <= top)))
    if outside > 0:
        paper = {"facecolor": "white", "alpha": 0.8, "lw": 0, "pad": 1}
        style = {"ha": "right", "color": BLACK, "size": NOTE_SIZE, "bbox": paper}
        axes.text(0.98, 0.03, f"{outside} outside", transform=axes.transAxes, **style)
