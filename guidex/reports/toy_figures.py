"""Figures of toys: where guidance takes samples, over the density where they should end.

In 1D as in figures 1 and 2 of the interval paper (Kynkäänniemi et al. 2024, arXiv 2404.07724), in
2D as in figure 1 of autoguidance (Karras et al. 2024, arXiv 2406.02507).
"""

import math
import textwrap
from collections.abc import Sequence
from pathlib import Path
from string import ascii_lowercase

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from guidex.models.denoiser import ExactDenoiser
from guidex.reports.figures import default_settings, save
from guidex.reports.toy_density import (
    Classes,
    Density1D,
    Density2D,
    Limits,
    Modes,
    limits_around,
    square_around,
    true_draws,
)
from guidex.reports.toy_panels import (
    ToyPanel,
    draw_densities,
    draw_histogram,
    draw_paths,
    draw_samples,
    draw_trajectories,
)

STYLE = {
    "axes.labelsize": 9,
    "axes.linewidth": 0.6,
    "xtick.labelsize": 8.5,
    "ytick.labelsize": 8.5,
}

# In inches. Four panels make a page of 8: shrunk to a paper's 5.5, its letters still have 5.5
# points.
PANEL_WIDTH = 1.6
UPPER_HEIGHT, LOWER_HEIGHT = 1.6, 0.65
HEIGHT_1D = UPPER_HEIGHT + 0.25 + LOWER_HEIGHT
LEFT_MARGIN = 0.55
TITLE_LINE = 0.19

HEADROOM = 2.0  # height of the axes of a histogram, in true peaks


def figure_1d(
    panels: Sequence[ToyPanel],
    truth: ExactDenoiser,
    path: Path,
    *,
    reference: ExactDenoiser | None = None,
    x_range: Limits | None = None,
    sigma_range: Limits | None = None,
) -> None:
    """Draw trajectories and samples of a 1D toy over its density (cf. arXiv 2404.07724, fig. 2).

    Panel (a) shows the densities over x and sigma, each noise level divided by its maximum, and
    below that at sigma = 0. Then comes one panel per point: trajectories run down over the true
    density to the histogram of the samples, and a bar at the right marks the guided noise levels.
    Where the truth has several modes (GaussianMixture), trajectories and histogram have the colour
    of the mode that they end in, and a line tells the share of the samples in each, left to right.

    Arguments:
        panels: one point or more, with samples [N, 1].
        truth: the distribution that was to be sampled, of shape (1,). Where it has classes, those
            of the panels' labels are shown, in their proportions.
        path: the PNG (150 dpi); its folder must exist, an existing file is replaced.
        reference: what guidance moves away from; drawn in panel (a) only.
        x_range: limits of the x axis; by default, where truth, reference and nearly all samples
            are. Samples outside are counted in the panel.
        sigma_range: limits of the sigma axis; by default, from 0 to where the modes have merged.

    Raises:
        GuidexError: the file cannot be written.
    """
    classes = _class_shares(panels, truth)
    models = [truth] if reference is None else [truth, reference]
    draws = [true_draws(model, classes) for model in models]
    if x_range is None:
        low, high = limits_around(draws, [panel.samples for panel in panels])
        x_range = (float(low[0]), float(high[0]))
    if sigma_range is None:
        sigma_range = (0.0, _highest_sigma(panels, truth))

    densities = [
        Density1D(model, classes, cloud, x_range, sigma_range)
        for model, cloud in zip(models, draws, strict=True)
    ]
    modes = Modes(truth, classes)
    with default_settings(STYLE):
        titles = ["densities", *(panel.title for panel in panels)]
        page = _Page(titles, height=HEIGHT_1D, right=0.28, below=0.44)
        draw_densities(*_add_column(page, 0, densities[0]), densities, _names(truth, reference))
        for index, panel in enumerate(panels, start=1):
            upper, lower = _add_column(page, index, densities[0])
            draw_trajectories(upper, panel, densities[0], modes)
            draw_histogram(lower, panel, densities[0], modes)
        page.save(path)


def figure_2d(
    panels: Sequence[ToyPanel],
    truth: ExactDenoiser,
    path: Path,
    *,
    half_extent: float | None = None,
    center: tuple[float, float] | None = None,
) -> None:
    """Draw trajectories and samples of a 2D toy over its density (cf. arXiv 2406.02507, fig. 1).

    The levels of grey are even in log density. The outermost one holds 99 % of true samples: what
    lies outside of it is an outlier. Trajectories are black where they are guided.

    Arguments:
        panels: one point or more, with samples [N, 2], which are coloured by class.
        truth: the distribution that was to be sampled, of shape (2,).
        path: the PNG (150 dpi); its folder must exist, an existing file is replaced.
        half_extent: half the side of the square shown, in the units of x; by default, such that
            the truth and nearly all samples are inside. Samples outside are counted in the panel.
        center: of the square; by default, of the truth and the samples.

    Raises:
        GuidexError: the file cannot be written.
    """
    classes = _class_shares(panels, truth)
    draws = true_draws(truth, classes)
    low, high = limits_around([draws], [panel.samples for panel in panels])
    x_range, y_range = square_around(low, high, half_extent, center)
    density = Density2D(truth, classes, draws, x_range, y_range)
    with default_settings(STYLE):
        titles = [panel.title for panel in panels]
        page = _Page(titles, height=PANEL_WIDTH, right=0.15, below=0.28)
        for index, panel in enumerate(panels):
            axes = page.add_axes(index, 0.0, PANEL_WIDTH)
            axes.set(xlim=x_range, ylim=y_range)
            axes.locator_params(nbins=5)
            axes.tick_params(labelbottom=page.is_lowest(index), labelleft=page.is_first(index))
            density.draw(axes)
            draw_paths(axes, panel)
            draw_samples(axes, panel)
        page.save(path)


# What is to be seen


def _class_shares(panels: Sequence[ToyPanel], truth: ExactDenoiser) -> Classes:
    """How often the panels ask for each class."""
    if truth.num_classes == 0:
        return None
    labels = np.concatenate([panel.labels for panel in panels])
    values, counts = np.unique(labels, return_counts=True)
    return dict(zip(values.tolist(), (counts / counts.sum()).tolist(), strict=True))


def _highest_sigma(panels: Sequence[ToyPanel], truth: ExactDenoiser) -> float:
    """Where one bump is left of the density, or where guidance begins, if that is close by."""
    merged = 1.6 * truth.sigma_data
    begins = [hi for panel in panels for _, hi in panel.guided_ranges() if hi < 2 * merged]
    start = max(float(panel.sigmas[0]) for panel in panels)
    return min(max([merged, *(1.2 * hi for hi in begins)]), start)


def _names(truth: ExactDenoiser, reference: ExactDenoiser | None) -> tuple[str, str]:
    """What to call the truth and the reference."""
    if truth.num_classes == 0:
        return "truth", "reference"
    is_unconditional = reference is not None and reference.num_classes == 0
    return "conditional", "unconditional" if is_unconditional else "reference"


# Pages


class _Page:
    """A figure of titled panels in rows of up to four.

    Places are reckoned in inches, not fitted to what is drawn: panels are of the same size and in
    line, whatever stands beside them.

    Arguments:
        titles: one per panel.
        height: of a panel, without the title above it.
        right, below: room for what stands there.
    """

    def __init__(self, titles: Sequence[str], *, height: float, right: float, below: float) -> None:
        count = len(titles)
        self._count = count
        self._columns = count if count <= 4 else 3 if count in (5, 6, 9) else 4
        if count > 1:
            titles = [f"({ascii_lowercase[k]}) {title}" for k, title in enumerate(titles)]
        titles = [textwrap.fill(title, 24, max_lines=3, placeholder=" …") for title in titles]
        head = 0.12 + TITLE_LINE * (1 + max(title.count("\n") for title in titles))
        self._below = below
        self._across = PANEL_WIDTH + right
        self._down = head + height + below
        rows = math.ceil(count / self._columns)
        self._size = np.array([LEFT_MARGIN + self._columns * self._across, rows * self._down])
        self._figure = Figure(self._size)
        for index, title in enumerate(titles):
            x, y = (self._corner(index) + (0, height + 0.06)) / self._size
            # Titles come from people: a dollar sign is a dollar sign.
            self._figure.text(x, y, title, va="bottom", size=9.5, parse_math=False)

    def _corner(self, index: int) -> np.ndarray:
        """The lower left corner of a panel, in inches."""
        row, column = divmod(index, self._columns)
        top = self._size[1] - row * self._down
        return np.array([LEFT_MARGIN + column * self._across, top - self._down + self._below])

    def add_axes(self, index: int, rise: float, height: float) -> Axes:
        """Axes as wide as the panel, `rise` inches above its lower edge."""
        start = (self._corner(index) + (0, rise)) / self._size
        return self._figure.add_axes((*start, *(np.array([PANEL_WIDTH, height]) / self._size)))

    def is_first(self, index: int) -> bool:
        """Whether the panel is the first of its row."""
        return index % self._columns == 0

    def is_lowest(self, index: int) -> bool:
        """Whether there is no panel below."""
        return index + self._columns >= self._count

    def save(self, path: Path) -> None:
        """Write the figure."""
        save(self._figure, path, metadata={"Software": None})


def _add_column(page: _Page, index: int, truth: Density1D) -> tuple[Axes, Axes]:
    """A panel of a 1D figure: axes for all noise levels, and below them for sigma = 0."""
    upper = page.add_axes(index, HEIGHT_1D - UPPER_HEIGHT, UPPER_HEIGHT)
    lower = page.add_axes(index, 0.0, LOWER_HEIGHT)
    upper.set(xlim=truth.x_range, ylim=truth.sigma_range)
    lower.set(xlim=truth.x_range, ylim=(0, HEADROOM * truth.peak))
    lower.set_xlabel("x", labelpad=1)
    first = page.is_first(index)
    upper.set_ylabel("σ" if first else "")
    lower.set_ylabel("density" if first else "")
    upper.tick_params(left=first, labelleft=first, labelbottom=False)
    lower.tick_params(left=first, labelleft=first)
    return upper, lower
