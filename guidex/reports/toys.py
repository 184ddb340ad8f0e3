"""Figures of toys: where guidance takes samples, over the density where they should end.

In 1D as in figures 1 and 2 of the interval paper (Kynkäänniemi et al. 2024, arXiv 2404.07724), in
2D as in figure 1 of autoguidance (Karras et al. 2024, arXiv 2406.02507).
"""

import math
import textwrap
import warnings
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from string import ascii_lowercase
from typing import BinaryIO

import matplotlib
import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.colors import LinearSegmentedColormap, to_rgb
from matplotlib.figure import Figure
from matplotlib.offsetbox import AnchoredOffsetbox, HPacker, TextArea

from guidex.assets.atomic import atomic_write
from guidex.errors import UsageError
from guidex.models.denoiser import ExactDenoiser
from guidex.models.mixture import GaussianMixture

MAX_PANELS = 12

# By suffix, the metadata to leave out, so that the same figure is the same file.
FORMATS = {"png": {"Software": None}, "pdf": {"CreationDate": None}, "svg": {"Date": None}}

DPI = 150
PIXELS = 256  # of a density, along each axis: nearly those of a panel
BINS = 72
STYLE = {
    "font.size": 9,
    "axes.labelsize": 9,
    "axes.linewidth": 0.6,
    "xtick.labelsize": 8.5,
    "ytick.labelsize": 8.5,
    # TrueType, which publishers take; matplotlib's own Type 3 they often refuse.
    "pdf.fonttype": 42,
    # Without it, names inside the file are random.
    "svg.hashsalt": "guidex",
}
NOTE_SIZE = 8

# The colours of Okabe and Ito, which colour-blind readers can tell apart.
GREEN, ORANGE, BLUE, PURPLE = "#009E73", "#E69F00", "#0072B2", "#CC79A7"
VERMILION, SKY, BLACK = "#D55E00", "#56B4E9", "#000000"
MODE_COLOURS = (BLUE, VERMILION, PURPLE, SKY, BLACK)
CLASS_COLOURS = (VERMILION, BLUE, GREEN, PURPLE, ORANGE, SKY)

DRAWS = 10_000  # true draws, which default limits and the levels of grey are taken from
TRUE_TAIL = 0.001  # share of true draws, on either side, that default limits may leave outside
TAIL = 0.01  # the same for samples, and the share of true draws beyond the lowest level of grey
POINTS_AT_ONCE = 2**15  # of a grid, per evaluation of a density
HEADROOM = 2.0  # height of the axes of a histogram, in true peaks
NAMED_MODES = 3  # so many shares fit into a line

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

    Raises:
        UsageError: arrays that do not fit together.
    """

    title: str
    samples: np.ndarray
    labels: np.ndarray | None
    path: np.ndarray
    sigmas: np.ndarray
    guided: np.ndarray

    def __post_init__(self) -> None:
        if self.samples.ndim != 2 or self.samples.size == 0:
            raise UsageError(
                f"{self.title!r}: samples must be [N, d] with N and d at least 1, not "
                f"{list(self.samples.shape)}"
            )
        count, dimension = self.samples.shape
        steps = len(self.sigmas) - 1
        recorded = min(self.path.shape[1], count) if self.path.ndim == 3 else 0
        expected = {
            "path": (self.path, (steps + 1, recorded, dimension)),
            "guided": (self.guided, (steps,)),
        }
        if self.labels is not None:
            expected["labels"] = (self.labels, (count,))
        for name, (given, shape) in expected.items():
            if given.shape != shape:
                raise UsageError(
                    f"{self.title!r}: {name} must be {list(shape)} to go with {count} samples and "
                    f"{steps} steps, not {list(given.shape)}"
                )

    def guided_ranges(self) -> list[Limits]:
        """The noise levels (lo, hi] of each run of guided steps."""
        edges = np.flatnonzero(np.diff(self.guided.astype(int), prepend=0, append=0))
        return [
            (float(self.sigmas[stop]), float(self.sigmas[first]))
            for first, stop in edges.reshape(-1, 2)
        ]

    def finite_path(self) -> np.ndarray:
        """The trajectories [steps + 1, R, d] that stay finite."""
        return self.path[:, np.isfinite(self.path).all(axis=(0, 2))]


def figure_1d(
    panels: Sequence[ToyPanel],
    truth: ExactDenoiser,
    path: str | Path,
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
        panels: 1 ... MAX_PANELS - 1 points, with samples [N, 1].
        truth: the distribution that was to be sampled, of shape (1,). Where it has classes, those
            of the panels' labels are shown, in their proportions.
        path: the file to write, with the suffix .png (150 dpi), .pdf or .svg.
        reference: what guidance moves away from; drawn in panel (a) only.
        x_range: limits of the x axis; by default, where truth, reference and nearly all samples
            are. Samples outside are counted in the panel.
        sigma_range: limits of the sigma axis; by default, from 0 to where the modes have merged.

    Raises:
        UsageError: nothing or too much to draw, wrong dimensions or ranges, an unknown suffix, no
            such folder.
        GuidexError: the file cannot be written.
    """
    _check(panels, truth, path, dimension=1, most=MAX_PANELS - 1)
    classes = _class_shares(panels, truth)
    models = [truth] if reference is None else [truth, reference]
    draws = [_draw(model, classes) for model in models]
    if x_range is None:
        low, high = _limits(draws, panels)
        x_range = (float(low[0]), float(high[0]))
    if sigma_range is None:
        sigma_range = (0.0, _highest_sigma(panels, truth))
    _check_range("x_range", x_range, least=-math.inf)
    _check_range("sigma_range", sigma_range, least=0.0)

    densities = [
        _Density1D(model, classes, cloud, x_range, sigma_range)
        for model, cloud in zip(models, draws, strict=True)
    ]
    modes = _Modes(truth, classes)
    with _style():
        page = _Page(["densities", *(panel.title for panel in panels)], SPACE_1D)
        columns = [_Column(page, index, densities[0]) for index in range(len(panels) + 1)]
        _draw_densities(columns[0], densities, _names(models))
        for panel, column in zip(panels, columns[1:], strict=True):
            _draw_trajectories(column.upper, panel, densities[0], modes)
            _draw_histogram(column.lower, panel, densities[0], modes)
        page.save(path)


def figure_2d(
    panels: Sequence[ToyPanel],
    truth: ExactDenoiser,
    path: str | Path,
    *,
    half_extent: float | None = None,
    center: tuple[float, float] | None = None,
    label: int | None = None,
) -> None:
    """Draw trajectories and samples of a 2D toy over its density (cf. arXiv 2406.02507, fig. 1).

    The levels of grey are even in log density. The outermost one holds all but the TAIL of true
    samples: what lies outside of it is an outlier. Trajectories are black where they are guided.

    Arguments:
        panels: 1 ... MAX_PANELS points, with samples [N, 2].
        truth: the distribution that was to be sampled, of shape (2,).
        path: the file to write, with the suffix .png (150 dpi), .pdf or .svg.
        half_extent: half the side of the square shown, in the units of x; by default, such that
            the truth and nearly all samples are inside. Samples outside are counted in the panel.
        center: of the square; by default, of the truth and the samples.
        label: show the density and the samples of this class only; None for all classes. Samples
            are coloured by class.

    Raises:
        UsageError: nothing or too much to draw, wrong dimensions or ranges, an unknown suffix, no
            such folder, no such class.
        GuidexError: the file cannot be written.
    """
    _check(panels, truth, path, dimension=2, most=MAX_PANELS)
    if label is not None:
        panels = [_only(panel, truth, label) for panel in panels]
    classes = _class_shares(panels, truth)
    draws = _draw(truth, classes)
    square = _square(*_limits([draws], panels), half_extent, center)
    density = _Density2D(truth, classes, draws, square)
    with _style():
        page = _Page([panel.title for panel in panels], SPACE_2D)
        for index, panel in enumerate(panels):
            axes = page.add_axes(index, 0.0, SPACE_2D.height)
            axes.set(xlim=square[0], ylim=square[1])
            axes.locator_params(nbins=5)
            axes.tick_params(labelbottom=page.is_lowest(index), labelleft=page.is_first(index))
            density.draw(axes)
            _draw_paths(axes, panel)
            _draw_samples(axes, panel)
        page.save(path)


# What is to be seen


def _check(
    panels: Sequence[ToyPanel], truth: ExactDenoiser, path: str | Path, dimension: int, most: int
) -> None:
    """Refuse what cannot be drawn, before densities are evaluated."""
    if not 1 <= len(panels) <= most:
        raise UsageError(
            f"a {dimension}D toy figure shows 1 to {most} points, not {len(panels)}; "
            "draw several figures"
        )
    if truth.shape != (dimension,):
        raise UsageError(f"this figure is for toys of shape ({dimension},), not {truth.shape}")
    for panel in panels:
        if panel.samples.shape[1] != dimension:
            raise UsageError(
                f"{panel.title!r}: samples must be [N, {dimension}], not "
                f"{list(panel.samples.shape)}"
            )
    path = Path(path)
    if path.suffix.removeprefix(".") not in FORMATS:
        raise UsageError(f"{path}: figures are written as .{', .'.join(FORMATS)} files")
    if not path.parent.is_dir():
        raise UsageError(f"{path}: there is no folder {path.parent}; make it first")


def _check_range(name: str, limits: Limits, least: float) -> None:
    low, high = limits
    if not (least <= low < high and math.isfinite(high - low)):
        bound = "" if least == -math.inf else f" of {least:g} or more"
        raise UsageError(f"{name} must be two finite, increasing numbers{bound}, not {limits}")


def _class_shares(panels: Sequence[ToyPanel], truth: ExactDenoiser) -> Classes:
    """How often the panels ask for each class."""
    labels = [panel.labels for panel in panels if panel.labels is not None]
    if truth.num_classes == 0 or len(labels) < len(panels):
        return None
    values, counts = np.unique(np.concatenate(labels), return_counts=True)
    return dict(zip(values.tolist(), (counts / counts.sum()).tolist(), strict=True))


def _only(panel: ToyPanel, truth: ExactDenoiser, label: int) -> ToyPanel:
    """The samples and trajectories of one class."""
    if not 0 <= label < truth.num_classes:
        known = f"0 to {truth.num_classes - 1}" if truth.num_classes > 0 else "none"
        raise UsageError(f"class {label} does not exist; the classes of this toy: {known}")
    if panel.labels is None or label not in panel.labels:
        raise UsageError(f"{panel.title!r}: none of its samples has the label {label}")
    chosen = panel.labels == label
    path = panel.path[:, chosen[: panel.path.shape[1]]]
    return replace(panel, samples=panel.samples[chosen], labels=panel.labels[chosen], path=path)


def _limits(
    draws: Sequence[np.ndarray], panels: Sequence[ToyPanel]
) -> tuple[np.ndarray, np.ndarray]:
    """Limits, [d] each, around true draws and nearly all samples, with a margin.

    Samples may double the true width, but no more: however far they run away, the density that
    they should be in stays to be seen.
    """
    true_low, true_high = _hull(_bulk(cloud, TRUE_TAIL) for cloud in draws)
    low, high = _hull(_bulk(panel.samples, TAIL) for panel in panels)
    allowed = (true_high - true_low) / 2
    low = np.clip(low, true_low - allowed, true_low)
    high = np.clip(high, true_high, true_high + allowed)
    margin = 0.05 * (high - low)
    return low - margin, high + margin


def _hull(limits: Iterable[tuple[np.ndarray, np.ndarray]]) -> tuple[np.ndarray, np.ndarray]:
    """The limits around several limits."""
    lows, highs = zip(*limits, strict=True)
    return np.min(lows, axis=0), np.max(highs, axis=0)


def _bulk(points: np.ndarray, tail: float) -> tuple[np.ndarray, np.ndarray]:
    """Limits, [d] each, of points [N, d] without the share `tail` on either side.

    Rounded inwards, so that the point farthest out never counts, however few there are.
    """
    finite = points[np.isfinite(points).all(axis=1)]
    if len(finite) == 0:
        return np.full(points.shape[1], np.inf), np.full(points.shape[1], -np.inf)
    low = np.quantile(finite, tail, axis=0, method="higher")
    return low, np.quantile(finite, 1 - tail, axis=0, method="lower")


def _highest_sigma(panels: Sequence[ToyPanel], truth: ExactDenoiser) -> float:
    """Where one bump is left of the density, or where guidance begins, if that is close by."""
    merged = 1.6 * truth.sigma_data
    begins = [hi for panel in panels for _, hi in panel.guided_ranges() if hi < 2 * merged]
    start = max(float(panel.sigmas[0]) for panel in panels)
    return min(max([merged, *(1.2 * hi for hi in begins)]), start)


def _square(
    low: np.ndarray,
    high: np.ndarray,
    half_extent: float | None,
    center: tuple[float, float] | None,
) -> tuple[Limits, Limits]:
    """The limits of x and y: a square around the given limits, where it is not given itself."""
    middle = (low + high) / 2 if center is None else np.asarray(center, dtype=np.float64)
    if middle.shape != (2,) or not np.isfinite(middle).all():
        raise UsageError(f"center must be two finite numbers, not {center}")
    if half_extent is None:
        half_extent = float(np.maximum(high - middle, middle - low).max())
    if not 0 < half_extent < math.inf:
        raise UsageError(f"half_extent must be a positive number, not {half_extent}")
    x, y = middle.tolist()
    return (x - half_extent, x + half_extent), (y - half_extent, y + half_extent)


# Densities and modes


def _device(model: ExactDenoiser) -> torch.device:
    return next(model.buffers(), torch.empty(0)).device


def _draw(model: ExactDenoiser, classes: Classes) -> np.ndarray:
    """DRAWS clean samples [DRAWS, d], always the same."""
    generator = torch.Generator().manual_seed(0)
    labels = None
    if classes is not None and model.num_classes > 0:
        shares = torch.tensor(list(classes.values()))
        drawn = shares.multinomial(DRAWS, replacement=True, generator=generator)
        labels = torch.tensor(list(classes))[drawn].to(_device(model))
    return model.sample(labels, DRAWS, generator).double().cpu().numpy()


def _log_density(
    model: ExactDenoiser, points: np.ndarray, sigma: float, classes: Classes
) -> np.ndarray:
    """log p(x; sigma) of a mixture of classes, from [N, d] to [N], float64."""

    def evaluate(x: torch.Tensor) -> torch.Tensor:
        if classes is None or model.num_classes == 0:
            return model.log_density(x, sigma)
        log_joint = [
            math.log(share)
            + model.log_density(x, sigma, torch.full((len(x),), label, device=x.device))
            for label, share in classes.items()
        ]
        return torch.stack(log_joint).logsumexp(dim=0)

    x = torch.from_numpy(np.ascontiguousarray(points, dtype=np.float64)).to(_device(model))
    with torch.no_grad():
        return torch.cat([evaluate(part) for part in x.split(POINTS_AT_ONCE)]).cpu().numpy()


def _centres(limits: Limits) -> np.ndarray:
    """The centres of the pixels between two limits, [PIXELS]."""
    low, high = limits
    return low + (np.arange(PIXELS) + 0.5) / PIXELS * (high - low)


class _Density1D:
    """p(x; sigma | classes).

    Attributes:
        x_range, sigma_range: the limits within which it is known.
        x: centres of the pixels [PIXELS].
        clean: the density at sigma = 0 [PIXELS].
        peak: its maximum, whether it is within x_range or not.
    """

    def __init__(
        self,
        model: ExactDenoiser,
        classes: Classes,
        draws: np.ndarray,
        x_range: Limits,
        sigma_range: Limits,
    ) -> None:
        self.x_range, self.sigma_range = x_range, sigma_range
        self.x = _centres(x_range)
        # Draws are where the density is high, which need not be where one looks.
        points = np.concatenate([self.x[:, None], draws[:PIXELS]])
        levels = [0.0, *_centres(sigma_range).tolist()]
        rows = np.stack([_log_density(model, points, sigma, classes) for sigma in levels])
        largest = rows.max(axis=1, keepdims=True)
        self.clean = np.exp(rows[0, :PIXELS])
        self.peak = math.exp(largest[0, 0])
        # Each noise level by itself: the peaks at low noise would hide all the others.
        self._image = np.exp(rows - largest)[1:, :PIXELS]
        self._extent = (*x_range, *sigma_range)

    def shade(self, axes: Axes, colour: str, opacity: float) -> None:
        """Draw the density over x and sigma in a colour that fades with it."""
        rgb = to_rgb(colour)
        fading = LinearSegmentedColormap.from_list("", [(*rgb, 0.0), (*rgb, opacity)])
        axes.imshow(self._image, fading, extent=self._extent, origin="lower", aspect="auto")

    def outline(self, axes: Axes, colour: str) -> None:
        """Draw the contours at even parts of the maximum of each noise level."""
        low, high = self._image.min(), self._image.max()
        levels = [level for level in (0.25, 0.5, 0.75) if low < level < high]
        if levels:
            place = {"extent": self._extent, "origin": "lower"}
            axes.contour(self._image, levels, colors=colour, linewidths=0.7, **place)


class _Density2D:
    """The density of a 2D toy in a square, as levels of grey."""

    def __init__(
        self,
        truth: ExactDenoiser,
        classes: Classes,
        draws: np.ndarray,
        square: tuple[Limits, Limits],
    ) -> None:
        # Blurred by a pixel, so that what is thinner does not break into pieces.
        sigma = (square[0][1] - square[0][0]) / PIXELS
        self._x, self._y = _centres(square[0]), _centres(square[1])
        grid = np.stack(np.meshgrid(self._x, self._y), axis=-1).reshape(-1, 2)
        self._image = _log_density(truth, grid, sigma, classes).reshape(PIXELS, PIXELS)
        blurred = draws + sigma * np.random.default_rng(0).standard_normal(draws.shape)
        of_draws = _log_density(truth, blurred, sigma, classes)
        self._levels = np.linspace(np.quantile(of_draws, TAIL), of_draws.max(), 6)

    def draw(self, axes: Axes) -> None:
        if self._image.max() <= self._levels[0]:
            return
        greys = LinearSegmentedColormap.from_list("", ["0.9", "0.55"])
        axes.contourf(self._x, self._y, self._image, self._levels, cmap=greys, extend="max")


class _Modes:
    """The modes of a 1D truth within the given classes, left to right; one where it has none."""

    def __init__(self, truth: ExactDenoiser, classes: Classes) -> None:
        self.count = 1
        if not isinstance(truth, GaussianMixture):
            return
        members = torch.ones_like(truth.classes, dtype=torch.bool)
        if classes is not None:
            members = torch.isin(truth.classes, torch.tensor(list(classes)).to(truth.classes))
        # A mode's number may occur again in another class, and is another mode there.
        pairs = torch.stack([truth.classes, truth.modes], dim=1)[members]
        _, modes = pairs.unique(dim=0, return_inverse=True)
        weights, means = truth.weights[members], truth.means[members]
        self.count = int(modes.max()) + 1
        sums = torch.zeros(self.count).to(weights)
        self._weights = sums.index_add(0, modes, weights)
        centres = sums.index_add(0, modes, weights * means[:, 0]) / self._weights
        self._left_to_right = centres.argsort().tolist()
        # The same mixture with its modes as classes.
        self._by_mode = GaussianMixture(
            weights, means, truth.covariances[members], modes, modes, conditional=True
        ).to(weights.device)

    def of(self, x: np.ndarray) -> np.ndarray:
        """The most responsible mode of each point, from [N, 1] to int64 [N]."""
        if self.count == 1:
            return np.zeros(len(x), dtype=np.int64)
        log_joint = [
            math.log(self._weights[mode]) + _log_density(self._by_mode, x, 0.0, {mode: 1.0})
            for mode in self._left_to_right
        ]
        return np.argmax(log_joint, axis=0)

    def colour(self, mode: int) -> str:
        return MODE_COLOURS[mode % len(MODE_COLOURS)]

    def shares(self, mode_of: np.ndarray) -> list[tuple[str, str]]:
        """The share of each mode, as pieces of text and their colours."""
        counts = np.bincount(mode_of, minlength=self.count)
        if self.count == 1:
            return []
        if self.count > NAMED_MODES:
            return [(f"{np.count_nonzero(counts)} of {self.count} modes", BLACK)]
        pieces = [("modes ", BLACK)]
        for mode, count in enumerate(counts.tolist()):
            pieces += [(" / ", BLACK)] if mode > 0 else []
            pieces += [(_percent(count, len(mode_of)), self.colour(mode))]
        return pieces


def _percent(count: int, total: int) -> str:
    """A share of which only none is 0 %, and only all is 100 %."""
    rounded = round(100 * count / max(total, 1))
    if rounded == 0 and count > 0:
        return "<1 %"
    return ">99 %" if rounded == 100 and count < total else f"{rounded} %"


def _names(models: Sequence[ExactDenoiser]) -> list[str]:
    """What to call the truth and, if it is there, the reference."""
    if models[0].num_classes == 0:
        return ["truth", "reference"][: len(models)]
    return [
        "conditional",
        *(("reference" if m.num_classes > 0 else "unconditional") for m in models[1:]),
    ]


# Pages


@contextmanager
def _style() -> Iterator[None]:
    """The look of the figures, whatever the user's settings are."""
    with matplotlib.rc_context(), warnings.catch_warnings():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(STYLE)
        # A title in a script that the font lacks is drawn as boxes, which is enough said.
        warnings.filterwarnings("ignore", message="Glyph")
        yield


@dataclass(frozen=True)
class _Space:
    """What a panel takes, in inches, besides its width and its title."""

    height: float
    right: float
    below: float


# Four panels make a page of 8 inches: shrunk to a paper's 5.5, its letters still have 5.5 points.
PANEL_WIDTH = 1.6
UPPER_HEIGHT, LOWER_HEIGHT = 1.6, 0.65
SPACE_1D = _Space(height=UPPER_HEIGHT + 0.25 + LOWER_HEIGHT, right=0.28, below=0.44)
SPACE_2D = _Space(height=PANEL_WIDTH, right=0.15, below=0.28)
LEFT_MARGIN = 0.55
TITLE_LINE = 0.19


class _Page:
    """A figure of titled panels in rows of up to four.

    Places are reckoned in inches, not fitted to what is drawn: panels are of the same size and in
    line, whatever stands beside them.
    """

    def __init__(self, titles: Sequence[str], space: _Space) -> None:
        count = len(titles)
        self._count = count
        self._columns = count if count <= 4 else 3 if count in (5, 6, 9) else 4
        if count > 1:
            titles = [f"({ascii_lowercase[k]}) {title}" for k, title in enumerate(titles)]
        titles = [textwrap.fill(title, 24, max_lines=3, placeholder=" …") for title in titles]
        head = 0.12 + TITLE_LINE * (1 + max(title.count("\n") for title in titles))
        self._space = space
        self._across = PANEL_WIDTH + space.right
        self._down = head + space.height + space.below
        rows = math.ceil(count / self._columns)
        self._size = np.array([LEFT_MARGIN + self._columns * self._across, rows * self._down])
        self._figure = Figure(self._size)
        for index, title in enumerate(titles):
            x, y = (self._corner(index) + (0, space.height + 0.06)) / self._size
            # Titles come from people: a dollar sign is a dollar sign.
            self._figure.text(x, y, title, va="bottom", size=9.5, parse_math=False)

    def _corner(self, index: int) -> np.ndarray:
        """The lower left corner of a panel, in inches."""
        row, column = divmod(index, self._columns)
        top = self._size[1] - row * self._down
        return np.array([LEFT_MARGIN + column * self._across, top - self._down + self._space.below])

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

    def save(self, path: str | Path) -> None:
        """Write the figure in the format that the suffix of the path names."""
        suffix = Path(path).suffix.removeprefix(".")

        def write(file: BinaryIO) -> None:
            self._figure.savefig(file, format=suffix, dpi=DPI, metadata=FORMATS[suffix])

        atomic_write(path, write)


class _Column:
    """A panel of a 1D figure: axes for all noise levels, and below them for sigma = 0."""

    def __init__(self, page: _Page, index: int, truth: _Density1D) -> None:
        self.upper = page.add_axes(index, SPACE_1D.height - UPPER_HEIGHT, UPPER_HEIGHT)
        self.lower = page.add_axes(index, 0.0, LOWER_HEIGHT)
        self.upper.set(xlim=truth.x_range, ylim=truth.sigma_range)
        self.lower.set(xlim=truth.x_range, ylim=(0, HEADROOM * truth.peak))
        self.lower.set_xlabel("x", labelpad=1)
        first = page.is_first(index)
        self.upper.set_ylabel("σ" if first else "")
        self.lower.set_ylabel("density" if first else "")
        self.upper.tick_params(left=first, labelleft=first, labelbottom=False)
        self.lower.tick_params(left=first, labelleft=first)


# Contents of panels


def _note(axes: Axes, pieces: Sequence[tuple[str, str]]) -> None:
    """A line right above the axes, of pieces of text and their colours."""
    areas = [
        TextArea(text, textprops={"color": colour, "size": NOTE_SIZE}) for text, colour in pieces
    ]
    line = AnchoredOffsetbox(
        "lower left",
        child=HPacker(children=areas, pad=0, sep=0),
        pad=0.1,
        borderpad=0.1,
        frameon=False,
        bbox_to_anchor=(0, 1),
        bbox_transform=axes.transAxes,
    )
    axes.add_artist(line)


def _draw_densities(column: _Column, densities: Sequence[_Density1D], names: Sequence[str]) -> None:
    """The true density, over that of the reference if there is one."""
    named = list(zip(densities, names, (GREEN, ORANGE)[: len(names)], strict=True))
    for density, _, colour in reversed(named):
        density.shade(column.upper, colour, opacity=0.5)
        density.outline(column.upper, colour)
        column.lower.fill_between(density.x, density.clean, color=colour, alpha=0.25, lw=0)
        column.lower.plot(density.x, density.clean, color=colour, lw=1.2)
    _note(column.lower, [(f"{name}  ", colour) for _, name, colour in named])


def _draw_trajectories(axes: Axes, panel: ToyPanel, truth: _Density1D, modes: _Modes) -> None:
    truth.shade(axes, GREEN, opacity=0.4)
    path = panel.finite_path()
    lines = [np.stack([x, panel.sigmas], axis=1) for x in path[:, :, 0].T]
    colours = [modes.colour(mode) for mode in modes.of(path[-1]).tolist()]
    axes.add_collection(LineCollection(lines, colors=colours, lw=0.5, alpha=0.8), autolim=False)
    for lo, hi in panel.guided_ranges():
        _bracket(axes, lo, hi)


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


def _draw_histogram(axes: Axes, panel: ToyPanel, truth: _Density1D, modes: _Modes) -> None:
    """The samples of each mode, stacked to a density, and the true density."""
    low, high = truth.x_range
    edges = np.linspace(low, high, BINS + 1)
    x = panel.samples[np.isfinite(panel.samples[:, 0])]
    mode_of = modes.of(x)
    floor = np.zeros(BINS)
    for mode in range(modes.count):
        counts, _ = np.histogram(x[mode_of == mode, 0], edges)
        height = floor + counts / (len(panel.samples) * (edges[1] - edges[0]))
        axes.stairs(height, edges, baseline=floor, fill=True, color=modes.colour(mode), alpha=0.6)
        _name_peak(axes, edges, np.where(counts > 0, height, 0.0), mode == 0, modes.colour(mode))
        floor = height
    axes.plot(truth.x, truth.clean, color=GREEN, lw=1.2)
    inside = int(((low <= x) & (x <= high)).sum())
    _note(axes, [*modes.shares(mode_of), *_outside(len(panel.samples) - inside)])


def _name_peak(
    axes: Axes, edges: np.ndarray, height: np.ndarray, is_leftmost: bool, colour: str
) -> None:
    """Write down how high a histogram rises where it leaves its axes, on the side with room."""
    top, peak = axes.get_ylim()[1], int(height.argmax())
    if height[peak] <= top:
        return
    on_left = peak > BINS * (0.2 if is_leftmost else 0.8)
    axes.annotate(
        f"↑{height[peak]:.{1 if height[peak] < 10 else 0}f}",
        (edges[peak] if on_left else edges[peak + 1], top),
        (-3 if on_left else 3, -3),
        textcoords="offset points",
        ha="right" if on_left else "left",
        va="top",
        color=colour,
        size=NOTE_SIZE,
    )


def _outside(count: int) -> list[tuple[str, str]]:
    return [(f"  {count} outside", BLACK)] if count > 0 else []


def _draw_paths(axes: Axes, panel: ToyPanel) -> None:
    path = panel.finite_path()
    segments = np.stack([path[:-1], path[1:]], axis=2)
    for guided, colour in ((False, "0.6"), (True, BLACK)):
        lines = segments[panel.guided == guided].reshape(-1, 2, 2)
        axes.add_collection(LineCollection(lines, colors=colour, lw=0.4, alpha=0.7), autolim=False)


def _draw_samples(axes: Axes, panel: ToyPanel) -> None:
    labels = np.zeros(len(panel.samples), int) if panel.labels is None else panel.labels
    area = float(np.clip(4000 / len(panel.samples), 0.8, 6))
    for label in np.unique(labels).tolist():
        x, y = panel.samples[labels == label].T
        colour = CLASS_COLOURS[label % len(CLASS_COLOURS)]
        axes.scatter(x, y, area, color=colour, alpha=0.7, lw=0, zorder=2.5, rasterized=True)
    (left, right), (bottom, top) = axes.get_xlim(), axes.get_ylim()
    x, y = panel.samples.T
    inside = (left <= x) & (x <= right) & (bottom <= y) & (y <= top)
    backed = {"facecolor": "white", "alpha": 0.8, "lw": 0, "pad": 1}
    place = {"transform": axes.transAxes, "ha": "right", "bbox": backed, "size": NOTE_SIZE}
    for text, colour in _outside(len(inside) - int(inside.sum())):
        axes.text(0.98, 0.03, text.strip(), color=colour, **place)
