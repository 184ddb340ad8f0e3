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
from torch.distributions import Normal

from guidex.models.denoiser import ExactDenoiser
from guidex.models.mixture import GaussianMixture
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

HEADROOM = 2.0  # height of the axes of a histogram, in true peaks
BINS = 72
NOTE_SIZE = 8
NAMED_MODES = 3  # so many shares fit into a line

# The colours of Okabe and Ito, which colour-blind readers can tell apart.
GREEN, ORANGE, BLUE, PURPLE = "#009E73", "#E69F00", "#0072B2", "#CC79A7"
VERMILION, SKY, BLACK = "#D55E00", "#56B4E9", "#000000"
MODE_COLOURS = (BLUE, VERMILION, PURPLE, SKY, BLACK)
CLASS_COLOURS = (VERMILION, BLUE, GREEN, PURPLE, ORANGE, SKY)

PIXELS = 256  # of a density, along each axis: nearly those of a panel
DRAWS = 10_000  # true draws, which default limits and the levels of grey are taken from
TRUE_TAIL = 0.001  # share of true draws, on either side, that default limits may leave outside
TAIL = 0.01  # the same for samples, and the share of true draws beyond the lowest level of grey

# The share of each class asked for; None for the mixture of all classes.
Classes = dict[int, float] | None
Limits = tuple[float, float]


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
        values: the swept values of the point, for the report; None for no table of points.
    """

    title: str
    samples: np.ndarray
    labels: np.ndarray | None
    path: np.ndarray
    sigmas: np.ndarray
    guided: np.ndarray
    values: Mapping[str, Value] | None = None

    def guided_ranges(self) -> list[Limits]:
        """The noise levels (lo, hi] of each run of guided steps."""
        edges = np.flatnonzero(np.diff(self.guided.astype(int), prepend=0, append=0))
        return [(lo, hi) for hi, lo in self.sigmas[edges.reshape(-1, 2)].tolist()]


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
    Modes of the truth (GaussianMixture) have colours, and a line tells their shares, left to right.

    Arguments:
        panels: one point or more, with samples [N, 1]; of the truth, their classes are shown.
        truth: the distribution that was to be sampled, of shape (1,).
        path: the PNG; GuidexError where it cannot be written.
        reference: what guidance moves away from; drawn in panel (a) only.
        x_range, sigma_range: by default, of truth, reference and nearly all samples, and from 0 to
            where the modes have merged.
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
        save(figure, path, _parts(figure, grid[1:], panels))


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
        path: the PNG; GuidexError where it cannot be written.
        half_extent, center: of the square shown, in the units of x; by default, such that the
            truth and nearly all samples are inside. Samples outside are counted in the panel.
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
        save(figure, path, _parts(figure, grid, panels))


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
    if len(known) < len(panels):
        return {}
    figure.draw_without_rendering()  # only now are places known
    scale, boxes = DPI / figure.dpi, []
    for axes in grid:
        left, low, right, high = Bbox.union([one.get_tightbbox() for one in axes]).extents * scale
        down = figure.bbox.height * scale
        boxes.append([(int(left), int(down - high), math.ceil(right), math.ceil(down - low))])
    return parts_text(known, boxes)


def shade(axes: Axes, image: np.ndarray, colour: str, opacity: float) -> None:
    """A density over the whole axes, in a colour that fades with it."""
    rgb = to_rgb(colour)
    fading = LinearSegmentedColormap.from_list("", [(*rgb, 0.0), (*rgb, opacity)])
    extent = (*axes.get_xlim(), *axes.get_ylim())
    axes.imshow(image, fading, extent=extent, origin="lower", aspect="auto")


def draw_density(
    upper: Axes, lower: Axes, clean: np.ndarray, image: np.ndarray, colour: str
) -> None:
    """All noise levels above, with contours at even parts of the maximum; sigma = 0 below."""
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
    noise levels."""
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
        for bound in (lo, hi):
            if bottom < bound < top:
                axes.axhline(bound, color=BLACK, lw=0.6, ls=(0, (4, 3)))
        if end - start > 0.3 * (top - bottom):
            place = {"rotation": 90, "va": "center", "size": NOTE_SIZE}
            axes.text(1.07, (start + end) / 2, "guided", **place, **beside)


def draw_histogram(axes: Axes, samples: np.ndarray, modes: np.ndarray, count: int) -> None:
    """The samples [N, 1] of each of `count` modes, stacked to a density; their modes, int64, are
    those of the finite ones."""
    low, high = axes.get_xlim()
    edges = np.linspace(low, high, BINS + 1)
    x = samples[np.isfinite(samples)]
    floor = np.zeros(BINS)
    for mode in range(count):
        colour = _mode_colour(mode)
        counts, _ = np.histogram(x[modes == mode], edges)
        height = floor + counts / (len(samples) * (edges[1] - edges[0]))
        axes.stairs(height, edges, baseline=floor, fill=True, color=colour, alpha=0.6)
        floor = height
    shares = 100 * np.bincount(modes, minlength=count) / max(len(modes), 1)
    pieces = [(f"  {share:.0f} %", _mode_colour(k)) for k, share in enumerate(shares.tolist())]
    if count > NAMED_MODES:
        pieces = [(f": {np.count_nonzero(shares)} of {count}", BLACK)]
    outside = len(samples) - int(((low <= x) & (x <= high)).sum())
    remark = (f"  {outside} outside" if outside > 0 else "", BLACK)
    note(axes, [("modes", BLACK), *pieces, remark] if count > 1 else [remark])


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


def true_draws(model: ExactDenoiser, classes: Classes) -> np.ndarray:
    """DRAWS clean samples [DRAWS, d], float64, always the same."""
    generator = torch.Generator().manual_seed(0)
    labels = None
    if classes is not None and model.num_classes > 0:
        shares = torch.tensor(list(classes.values()))
        drawn = shares.multinomial(DRAWS, replacement=True, generator=generator)
        labels = torch.tensor(list(classes))[drawn].to(_device(model))
    return model.sample(labels, DRAWS, generator).double().cpu().numpy()


def limits_around(draws: np.ndarray, samples: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Limits, [d] each, around true draws and nearly all samples, [N, d] each, with a margin.

    Samples may double the true width, but no more: however far they run away, the density that
    they should be in stays to be seen.
    """
    true_low, true_high = np.quantile(draws, (TRUE_TAIL, 1 - TRUE_TAIL), axis=0)
    low, high, allowed = true_low, true_high, (true_high - true_low) / 2
    samples = samples[np.isfinite(samples).all(axis=1)]
    if len(samples) > 0:
        # Rounded inwards, so that the point farthest out never counts, however few there are.
        low = np.quantile(samples, TAIL, axis=0, method="higher").clip(low - allowed, low)
        high = np.quantile(samples, 1 - TAIL, axis=0, method="lower").clip(high, high + allowed)
    margin = 0.05 * (high - low)
    return low - margin, high + margin


def density_1d(
    model: ExactDenoiser, classes: Classes, x_range: Limits, sigma_range: Limits
) -> tuple[np.ndarray, np.ndarray]:
    """p(x; sigma | classes): at sigma = 0 [PIXELS], and at all noise levels [PIXELS, PIXELS], each
    by itself divided by its maximum: the peaks at low noise would hide all the others."""
    points = centres(x_range)[:, None]
    clean = np.exp(_log_density(model, points, 0.0, classes))
    levels = centres(sigma_range).tolist()
    image = np.stack([_log_density(model, points, sigma, classes) for sigma in levels])
    return clean, np.exp(image - image.max(axis=1, keepdims=True))


def density_2d(
    model: ExactDenoiser, classes: Classes, draws: np.ndarray, x_range: Limits, y_range: Limits
) -> tuple[np.ndarray, np.ndarray]:
    """log p(x | classes) in a square [PIXELS, PIXELS], and levels that are even in it, the lowest
    of which holds all but the TAIL of true draws."""
    # Blurred by a pixel, so that what is thinner does not break into pieces.
    sigma = (x_range[1] - x_range[0]) / PIXELS
    grid = np.stack(np.meshgrid(centres(x_range), centres(y_range)), axis=-1).reshape(-1, 2)
    image = _log_density(model, grid, sigma, classes).reshape(PIXELS, PIXELS)
    blurred = draws + sigma * np.random.default_rng(0).standard_normal(draws.shape)
    of_draws = _log_density(model, blurred, sigma, classes)
    return image, np.linspace(np.quantile(of_draws, TAIL), of_draws.max(), 6)


def centres(limits: Limits) -> np.ndarray:
    """The centres of the pixels between two limits, [PIXELS]."""
    low, high = limits
    return low + (np.arange(PIXELS) + 0.5) / PIXELS * (high - low)


def _log_density(
    model: ExactDenoiser, points: np.ndarray, sigma: float, classes: Classes
) -> np.ndarray:
    """log p(x; sigma) of a mixture of classes, from [N, d] to [N], float64."""
    x = torch.from_numpy(points).to(_device(model))
    with torch.no_grad():
        if classes is None or model.num_classes == 0:
            return model.log_density(x, sigma).cpu().numpy()
        log_joint = [
            math.log(share)
            + model.log_density(x, sigma, torch.full((len(x),), label, device=x.device))
            for label, share in classes.items()
        ]
        return torch.stack(log_joint).logsumexp(dim=0).cpu().numpy()


def _device(model: ExactDenoiser) -> torch.device:
    return next(model.buffers(), torch.empty(0)).device


def modes_of(x: np.ndarray, truth: ExactDenoiser, classes: Classes) -> tuple[np.ndarray, int]:
    """The most responsible mode of each point, from finite [N, 1] to int64 [N], and how many there
    are: those of a 1D truth within the given classes, left to right; one where it has none."""
    if not isinstance(truth, GaussianMixture):
        return np.zeros(len(x), dtype=np.int64), 1
    members = torch.ones_like(truth.classes, dtype=torch.bool)
    if classes is not None:
        members = torch.isin(truth.classes, torch.tensor(list(classes)).to(truth.classes))
    # A mode's number may occur again in another class, and is another mode there.
    pairs = torch.stack([truth.classes, truth.modes], dim=1)[members]
    _, mode_of = pairs.unique(dim=0, return_inverse=True)
    weights, means = truth.weights[members], truth.means[members, 0]
    parts = [mode_of == mode for mode in range(int(mode_of.max()) + 1)]
    parts.sort(key=lambda part: float((weights * means)[part].sum() / weights[part].sum()))
    normals = Normal(means, truth.covariances[members, 0, 0].sqrt())
    log_joint = weights.log() + normals.log_prob(torch.from_numpy(x).to(weights))
    by_mode = torch.stack([log_joint[:, part].logsumexp(dim=1) for part in parts])
    return by_mode.argmax(dim=0).cpu().numpy(), len(parts)
