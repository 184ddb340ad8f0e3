"""Figures of toys: where guidance takes samples, over the density where they should end.

In 1D as in figures 1 and 2 of the interval paper (Kynkäänniemi et al. 2024, arXiv 2404.07724), in
2D as in figure 1 of autoguidance (Karras et al. 2024, arXiv 2406.02507).
"""

import math
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from string import ascii_lowercase

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.colors import LinearSegmentedColormap, to_rgb
from matplotlib.figure import Figure
from matplotlib.transforms import Bbox
from torch import Tensor

from guidex.guidance.plan import Plan
from guidex.models.denoiser import ExactDenoiser
from guidex.reports.pictures import parts_text
from guidex.reports.plots import DPI, default_settings, save
from guidex.reports.rows import Value

STYLE = {
    "axes.labelsize": 9,
    "axes.linewidth": 0.6,
    "axes.titlesize": 9.5,
    "xtick.labelsize": 8.5,
    "ytick.labelsize": 8.5,
}
# In inches. Four panels make a page of 8: shrunk to a paper's 5.5, its letters still have 5.5
# points.
PANEL_WIDTH = 1.6
UPPER_HEIGHT, LOWER_HEIGHT = 1.6, 0.65
NOTE_SIZE = 8

# The colours of Okabe and Ito, which colour-blind readers can tell apart.
GREEN, ORANGE, BLUE, PURPLE = "#009E73", "#E69F00", "#0072B2", "#CC79A7"
VERMILION, SKY, BLACK = "#D55E00", "#56B4E9", "#000000"
END_COLOURS = (BLUE, SKY, PURPLE, VERMILION)
CLASS_COLOURS = (VERMILION, BLUE, GREEN, PURPLE, ORANGE, SKY)

BINS = 72
PIXELS = 256  # of a density, along each axis: nearly those of a panel
DRAWS = 10_000  # true draws, which default limits and the levels of grey are taken from
TAIL = 0.01  # share of them that is outside of the levels of grey

Limits = tuple[float, float]


@dataclass(frozen=True, eq=False)
class ToyPanel:
    """One point of a sweep on a toy of d dimensions.

    Attributes:
        title: what is special about this point, such as "w = 6 (0.1, 0.6]".
        samples: final samples [N, d], floating point.
        labels: the class that each sample was asked for [N], int64, or None without classes.
        path: states of the first R samples at every step boundary [R, steps + 1, d].
        plan: what says the noise levels, and which steps are guided.
        values: the swept values of the point, for the report; None for no table of points.
    """

    title: str
    samples: np.ndarray
    labels: np.ndarray | None
    path: np.ndarray
    plan: Plan
    values: Mapping[str, Value] | None = None

    @property
    def guided(self) -> np.ndarray:
        """Which steps are guided, bool [steps]."""
        return self.plan.guided.any(axis=(0, 2))

    def guided_ranges(self) -> list[Limits]:
        """The noise levels (lo, hi] of each run of guided steps."""
        edges = np.flatnonzero(np.diff(self.guided.astype(int), prepend=0, append=0))
        levels = self.plan.timeline.sigmas[edges.reshape(-1, 2)]
        return [(lo, hi) for hi, lo in levels.tolist()]


class Density:
    """The distribution of a toy within the classes that panels ask for, in their shares."""

    def __init__(self, model: ExactDenoiser, panels: Sequence[ToyPanel]) -> None:
        self.model = model
        self.classes: dict[int | None, float] = {None: 1.0}
        if model.num_classes > 0:
            labels = np.concatenate([panel.labels for panel in panels])
            values, counts = np.unique(labels, return_counts=True)
            shares = (counts / len(labels)).tolist()
            self.classes = dict(zip(values.tolist(), shares, strict=True))

    def draws(self) -> np.ndarray:
        """About DRAWS clean samples [N, d], float64, always the same."""
        generator, drawn = torch.Generator().manual_seed(0), []
        for label, share in self.classes.items():
            count = math.ceil(share * DRAWS)
            drawn.append(self.model.sample(self._labels(label, count), count, generator))
        return torch.cat(drawn).double().cpu().numpy()

    def limits(self) -> np.ndarray:
        """Ends of what is shown, [2, d]: nearly all true draws, and a tenth more on either side.
        Samples do not count: however far they run away, the density stays to be seen."""
        low, high = np.quantile(self.draws(), (TAIL / 10, 1 - TAIL / 10), axis=0)
        margin = (high - low) / 10
        return np.stack([low - margin, high + margin])

    @torch.no_grad()
    def log(self, points: np.ndarray, sigma: float) -> np.ndarray:
        """log p(x; sigma), from [N, d] to [N], float64."""
        x = torch.from_numpy(points).to(self._device)
        log_joint = [
            math.log(share) + self.model.log_density(x, sigma, self._labels(label, len(x)))
            for label, share in self.classes.items()
        ]
        return torch.stack(log_joint).logsumexp(dim=0).cpu().numpy()

    def over_noise(self, x_range: Limits, sigma_range: Limits) -> tuple[np.ndarray, np.ndarray]:
        """p(x; sigma) in 1D: at sigma = 0 [PIXELS], and at all noise levels [PIXELS, PIXELS], each
        by itself divided by its maximum: the peaks at low noise would hide all the others."""
        x = centres(x_range)[:, None]
        image = np.stack([self.log(x, sigma) for sigma in centres(sigma_range).tolist()])
        return np.exp(self.log(x, 0.0)), np.exp(image - image.max(axis=1, keepdims=True))

    def over_square(self, x_range: Limits, y_range: Limits) -> tuple[np.ndarray, np.ndarray]:
        """log p(x) in 2D [PIXELS, PIXELS], and levels that are even in it, the lowest of which
        holds all but the TAIL of true draws."""
        # Blurred by a pixel, so that what is thinner does not break into pieces.
        sigma, draws = (x_range[1] - x_range[0]) / PIXELS, self.draws()
        grid = np.stack(np.meshgrid(centres(x_range), centres(y_range)), axis=-1)
        image = self.log(grid.reshape(-1, 2), sigma).reshape(PIXELS, PIXELS)
        blurred = draws + sigma * np.random.default_rng(0).standard_normal(draws.shape)
        of_draws = self.log(blurred, sigma)
        return image, np.linspace(np.quantile(of_draws, TAIL), of_draws.max(), 6)

    def _labels(self, label: int | None, count: int) -> Tensor | None:
        return None if label is None else torch.full((count,), label, device=self._device)

    @property
    def _device(self) -> torch.device:
        return next(self.model.buffers(), torch.empty(0)).device


def toy_figure(
    panels: Sequence[ToyPanel],
    model: ExactDenoiser,
    path: Path,
    reference: ExactDenoiser | None = None,
    x_range: Limits | None = None,
    sigma_range: Limits | None = None,
) -> bool:
    """Draw trajectories and samples of a 1D or 2D toy over its density, a panel per point; False
    for other toys.

    1D (cf. arXiv 2404.07724, fig. 2): panel (a) shows the densities over x and sigma, each noise
    level divided by its maximum, and below that at sigma = 0. In the others, trajectories run down
    over the true density to the histogram of the samples, and a bar at the right marks the guided
    noise levels. Colours go from left to right along the true density.

    2D (cf. arXiv 2406.02507, fig. 1): the levels of grey are even in log density. The outermost one
    holds 99 % of true samples: what lies outside of it is an outlier. Trajectories are black where
    they are guided, samples have the colours of their classes.

    Arguments:
        panels: one point or more; of the truth, their classes are shown.
        model: whose distribution was to be sampled.
        path: the PNG; GuidexError where it cannot be written.
        reference: what guidance moves away from; drawn in panel (a) only.
        x_range, sigma_range: of 1D; by default, of truth and reference, and from 0 to where the
            modes have merged.
    """
    (dimensions,) = model.shape
    if dimensions > 2:
        return False
    truth = Density(model, panels)
    with default_settings(STYLE):
        if dimensions == 1:
            others = {} if reference is None else {"reference": Density(reference, panels)}
            figure, grid = figure_1d(panels, {"truth": truth, **others}, x_range, sigma_range)
        else:
            figure, grid = figure_2d(panels, truth)
        save(figure, path, _parts(figure, grid, panels))
    return True


def figure_1d(
    panels: Sequence[ToyPanel],
    densities: Mapping[str, Density],
    x_range: Limits | None,
    sigma_range: Limits | None,
) -> tuple[Figure, np.ndarray]:
    """The figure, and the axes of each panel; densities are "truth" and maybe "reference"."""
    if x_range is None:
        limits = np.concatenate([density.limits() for density in densities.values()])
        x_range = (limits.min(), limits.max())
    if sigma_range is None:
        start = max(panel.plan.timeline.sigmas[0] for panel in panels)
        sigma_range = (0.0, min(1.6 * densities["truth"].model.sigma_data, start))
    titles = ["densities", *(panel.title for panel in panels)]
    figure, grid = _page(titles, [UPPER_HEIGHT, LOWER_HEIGHT])
    drawn = {name: each.over_noise(x_range, sigma_range) for name, each in densities.items()}
    clean, image = drawn["truth"]
    for upper, lower in grid:
        upper.set(xlim=x_range, ylim=sigma_range, ylabel="σ")
        upper.tick_params(labelbottom=False)
        # Twice as high as the true peak, for samples that crowd.
        lower.set(xlim=x_range, ylim=(0, 2 * clean.max() or 1), ylabel="density")
        lower.set_xlabel("x", labelpad=1)
    (above, below), x = grid[0], centres(x_range)
    colours = {"truth": GREEN, "reference": ORANGE}
    for name in reversed(drawn):  # the truth over the reference
        curve, levels = drawn[name]
        _shade(above, levels, colours[name], opacity=0.5)
        style = {"colors": colours[name], "linewidths": 0.7}
        above.contour(x, centres(sigma_range), levels, (0.25, 0.5, 0.75), **style)
        below.fill_between(x, curve, color=colours[name], alpha=0.25, lw=0)
        below.plot(x, curve, color=colours[name], lw=1.2)
    _note(below, [(f"{name}  ", colours[name]) for name in drawn])
    # From left to right of the truth, so that its modes differ.
    places = clean.cumsum() / (clean.sum() or 1)
    ends = LinearSegmentedColormap.from_list("", END_COLOURS)
    for (upper, lower), panel in zip(grid[1:], panels, strict=True):
        _shade(upper, image, GREEN, opacity=0.4)
        paths, sigmas = panel.path[..., 0], panel.plan.timeline.sigmas
        lines = [np.stack([path, sigmas], axis=1) for path in paths]
        style = {"colors": ends(np.interp(paths[:, -1], x, places)), "lw": 0.5, "alpha": 0.8}
        upper.add_collection(LineCollection(lines, **style), autolim=False)
        _mark_guided(upper, panel.guided_ranges())
        counts, edges = np.histogram(panel.samples, BINS, x_range)
        width = edges[1] - edges[0]
        middles = edges[:-1] + width / 2
        style = {"color": ends(np.interp(middles, x, places)), "alpha": 0.6}
        lower.bar(middles, counts / (len(panel.samples) * width), width, **style)
        lower.plot(x, clean, color=GREEN, lw=1.2)
        if (outside := len(panel.samples) - counts.sum()) > 0:
            _note(lower, [(f"{outside} outside", BLACK)])
    return figure, grid[1:]


def figure_2d(panels: Sequence[ToyPanel], truth: Density) -> tuple[Figure, np.ndarray]:
    """The figure, and the axes of each panel. Samples outside of the square are counted."""
    limits = truth.limits()
    half = np.ptp(limits, axis=0).max() / 2
    x_range, y_range = ((middle - half, middle + half) for middle in limits.mean(axis=0))
    image, levels = truth.over_square(x_range, y_range)
    greys = LinearSegmentedColormap.from_list("", ["0.9", "0.55"])
    figure, grid = _page([panel.title for panel in panels], [PANEL_WIDTH])
    for (axes,), panel in zip(grid, panels, strict=True):
        axes.set(xlim=x_range, ylim=y_range, box_aspect=1)
        axes.locator_params(nbins=5)
        places = (centres(x_range), centres(y_range))
        axes.contourf(*places, image, levels, cmap=greys, extend="max")
        for guided, colour in ((False, "0.6"), (True, BLACK)):
            ends = np.stack([panel.path[:, :-1], panel.path[:, 1:]], axis=2)
            lines = ends[:, panel.guided == guided].reshape(-1, 2, 2)
            style = {"colors": colour, "lw": 0.4, "alpha": 0.7}
            axes.add_collection(LineCollection(lines, **style), autolim=False)
        labels = np.zeros(len(panel.samples), int) if panel.labels is None else panel.labels
        colours = np.array(CLASS_COLOURS)[labels % len(CLASS_COLOURS)]
        area = float(np.clip(4000 / len(panel.samples), 0.8, 6))
        style = {"alpha": 0.7, "lw": 0, "zorder": 2.5, "rasterized": True}
        axes.scatter(*panel.samples.T, area, colours, **style)
        inside = (np.abs(panel.samples - limits.mean(axis=0)) <= half).all(axis=1)
        if not inside.all():
            paper = {"facecolor": "white", "alpha": 0.8, "lw": 0, "pad": 1}
            style = {"ha": "right", "size": NOTE_SIZE, "bbox": paper}
            axes.text(0.98, 0.03, f"{(~inside).sum()} outside", transform=axes.transAxes, **style)
    return figure, grid


def centres(limits: Limits) -> np.ndarray:
    """The centres of the pixels between two limits, [PIXELS]."""
    low, high = limits
    return low + (np.arange(PIXELS) + 0.5) / PIXELS * (high - low)


def _page(titles: Sequence[str], heights: Sequence[float]) -> tuple[Figure, np.ndarray]:
    """A figure of titled panels in rows of up to four, and its axes [len(titles), len(heights)]:
    those of a panel stand below each other, with heights in inches."""
    count, parts = len(titles), len(heights)
    rows = math.ceil(count / 4)
    columns = math.ceil(count / rows)
    if count > 1:
        titles = [f"({ascii_lowercase[k]}) {title}" for k, title in enumerate(titles)]
    titles = [title.replace(" = ", "\u00a0=\u00a0") for title in titles]
    titles = [textwrap.fill(title, 23, max_lines=3, placeholder=" …") for title in titles]
    lines = 1 + max(title.count("\n") for title in titles)
    height = rows * (sum(heights) + 0.36 * parts + 0.19 * lines)
    figure = Figure((0.55 + columns * (PANEL_WIDTH + 0.13 * parts), height))
    figure.set_layout_engine("compressed", h_pad=0.06)
    grid = figure.subplots(rows * parts, columns, squeeze=False, height_ratios=[*heights] * rows)
    panels = grid.reshape(rows, parts, columns).swapaxes(1, 2).reshape(-1, parts)
    for axes in panels[count:].flat:
        axes.remove()
    for axes in panels[:count].flat:
        axes.yaxis.set_visible(axes.get_subplotspec().is_first_col())
    for title, (first, *_) in zip(titles, panels, strict=False):
        # Titles come from people: a dollar sign is a dollar sign.
        first.set_title(title, loc="left", parse_math=False)
    return figure, panels[:count]


def _parts(figure: Figure, grid: np.ndarray, panels: Sequence[ToyPanel]) -> dict[str, str]:
    """Which part of the figure shows which point of a table."""
    known = [panel.values for panel in panels if panel.values is not None]
    figure.draw_without_rendering()  # only now are places known
    scale, boxes = DPI / figure.dpi, []
    for axes in grid[: len(known)]:
        left, low, right, high = Bbox.union([one.get_tightbbox() for one in axes]).extents * scale
        down = figure.bbox.height * scale
        boxes.append([(int(left), int(down - high), math.ceil(right), math.ceil(down - low))])
    return parts_text(known, boxes)


def _shade(axes: Axes, image: np.ndarray, colour: str, opacity: float) -> None:
    """A density over the whole axes, in a colour that fades with it."""
    rgb = to_rgb(colour)
    fading = LinearSegmentedColormap.from_list("", [(*rgb, 0.0), (*rgb, opacity)])
    extent = (*axes.get_xlim(), *axes.get_ylim())
    axes.imshow(image, fading, extent=extent, origin="lower", aspect="auto")


def _mark_guided(axes: Axes, ranges: Sequence[Limits]) -> None:
    """Bars beside the guided noise levels."""
    beside = {"transform": axes.get_yaxis_transform(), "color": BLACK, "clip_on": False}
    for bounds in ranges:
        start, end = np.clip(bounds, *axes.get_ylim()).tolist()
        if start < end:
            axes.plot((1.04, 1.04), (start, end), lw=2.5, solid_capstyle="butt", **beside)
            place = {"rotation": 90, "va": "center", "size": NOTE_SIZE}
            axes.text(1.07, (start + end) / 2, "guided", **place, **beside)
        for bound in bounds:
            axes.axhline(bound, color=BLACK, lw=0.6, ls=(0, (4, 3)))


def _note(axes: Axes, pieces: Sequence[tuple[str, str]]) -> None:
    """A line right above the axes, of pieces of text and their colours."""
    place, corner = "axes fraction", (0.01, 1.03)
    for text, colour in pieces:
        style = {"color": colour, "size": NOTE_SIZE, "va": "bottom"}
        place = axes.annotate(text, corner, xycoords=place, **style)
        corner = (1, 0)  # of the piece before
