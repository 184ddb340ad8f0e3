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
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure

from guidex.models.denoiser import ExactDenoiser
from guidex.reports.figures import default_settings, save
from guidex.reports.toy_density import (
    Classes,
    Limits,
    centres,
    density_1d,
    density_2d,
    limits_around,
    modes_of,
    true_draws,
)
from guidex.reports.toy_panels import (
    GREEN,
    ORANGE,
    ToyPanel,
    draw_density,
    draw_histogram,
    draw_points,
    draw_trajectories,
    note,
    shade,
)

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
    models = {"conditional" if truth.num_classes > 0 else "truth": truth}
    if reference is not None:
        unconditional = truth.num_classes > reference.num_classes
        models["unconditional" if unconditional else "reference"] = reference
    if x_range is None:
        draws = np.concatenate([true_draws(model, classes) for model in models.values()])
        low, high = limits_around(draws, np.concatenate([panel.samples for panel in panels]))
        x_range = (low.item(), high.item())
    if sigma_range is None:
        sigma_range = (0.0, _highest_sigma(panels, truth))
    clean, image = density_1d(truth, classes, x_range, sigma_range)
    with default_settings(STYLE):
        titles = ["densities", *(panel.title for panel in panels)]
        figure, grid = _page(titles, [UPPER_HEIGHT, LOWER_HEIGHT])
        for upper, lower in grid:
            upper.set(xlim=x_range, ylim=sigma_range, ylabel="σ")
            upper.tick_params(labelbottom=False)
            lower.set(xlim=x_range, ylim=(0, HEADROOM * clean.max() or 1), ylabel="density")
            lower.set_xlabel("x", labelpad=1)
        # The truth is drawn over the reference.
        for model, colour in reversed([*zip(models.values(), (GREEN, ORANGE), strict=False)]):
            draw_density(*grid[0], *density_1d(model, classes, x_range, sigma_range), colour)
        note(grid[0, 1], [*zip([f"{name}  " for name in models], (GREEN, ORANGE), strict=False)])
        for (upper, lower), panel in zip(grid[1:], panels, strict=True):
            shade(upper, image, GREEN, opacity=0.4)
            ends, _ = modes_of(panel.path[-1], truth, classes)
            draw_trajectories(upper, panel, ends)
            finite = panel.samples[np.isfinite(panel.samples[:, 0])]
            draw_histogram(lower, panel.samples, *modes_of(finite, truth, classes))
            lower.plot(centres(x_range), clean, color=GREEN, lw=1.2)
        save(figure, path)


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
    low, high = limits_around(draws, np.concatenate([panel.samples for panel in panels]))
    middle = (low + high) / 2 if center is None else np.array(center)
    half = half_extent or np.maximum(high - middle, middle - low).max()
    x_range, y_range = np.stack([middle - half, middle + half], axis=1).tolist()
    image, levels = density_2d(truth, classes, draws, x_range, y_range)
    greys = LinearSegmentedColormap.from_list("", ["0.9", "0.55"])
    with default_settings(STYLE):
        figure, grid = _page([panel.title for panel in panels], [PANEL_WIDTH])
        for (axes,), panel in zip(grid, panels, strict=True):
            axes.set(xlim=x_range, ylim=y_range, box_aspect=1)
            axes.locator_params(nbins=5)
            if image.max() > levels[0]:
                place = (centres(x_range), centres(y_range))
                axes.contourf(*place, image, levels, cmap=greys, extend="max")
            draw_points(axes, panel)
        save(figure, path)


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


def _page(titles: Sequence[str], heights: Sequence[float]) -> tuple[Figure, np.ndarray]:
    """A figure of titled panels in rows of up to four, and its axes [len(titles), len(heights)]:
    those of a panel stand below each other, with heights in inches."""
    count, parts = len(titles), len(heights)
    columns = count if count <= 4 else 3 if count in (5, 6, 9) else 4
    rows = math.ceil(count / columns)
    if count > 1:
        titles = [f"({ascii_lowercase[k]}) {title}" for k, title in enumerate(titles)]
    titles = [textwrap.fill(title, 24, max_lines=3, placeholder=" …") for title in titles]
    lines = 1 + max(title.count("\n") for title in titles)
    size = (
        0.55 + columns * (PANEL_WIDTH + 0.13 * parts),
        rows * (sum(heights) + 0.36 * parts + 0.19 * lines),
    )
    figure = Figure(size)
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
