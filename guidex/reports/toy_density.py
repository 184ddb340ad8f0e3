"""What figures of toys know of the truth: where it is, its density and its modes."""

import math
from collections.abc import Sequence

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap, to_rgb
from torch.distributions import Normal

from guidex.models.denoiser import ExactDenoiser
from guidex.models.mixture import GaussianMixture

PIXELS = 256  # of a density, along each axis: nearly those of a panel
DRAWS = 10_000  # true draws, which default limits and the levels of grey are taken from
TRUE_TAIL = 0.001  # share of true draws, on either side, that default limits may leave outside
TAIL = 0.01  # the same for samples, and the share of true draws beyond the lowest level of grey

# The share of each class asked for; None for the mixture of all classes.
Classes = dict[int, float] | None
Limits = tuple[float, float]


def true_draws(model: ExactDenoiser, classes: Classes) -> np.ndarray:
    """DRAWS clean samples [DRAWS, d], float64, always the same."""
    generator = torch.Generator().manual_seed(0)
    labels = None
    if classes is not None and model.num_classes > 0:
        shares = torch.tensor(list(classes.values()))
        drawn = shares.multinomial(DRAWS, replacement=True, generator=generator)
        labels = torch.tensor(list(classes))[drawn].to(_device(model))
    return model.sample(labels, DRAWS, generator).double().cpu().numpy()


def limits_around(
    draws: Sequence[np.ndarray], samples: Sequence[np.ndarray]
) -> tuple[np.ndarray, np.ndarray]:
    """Limits, [d] each, around true draws and nearly all samples, [N, d] each, with a margin.

    Samples may double the true width, but no more: however far they run away, the density that
    they should be in stays to be seen.
    """
    true_low, true_high = _bulk(draws, TRUE_TAIL)
    low, high = _bulk(samples, TAIL)
    allowed = (true_high - true_low) / 2
    low = np.clip(low, true_low - allowed, true_low)
    high = np.clip(high, true_high, true_high + allowed)
    margin = 0.05 * (high - low)
    return low - margin, high + margin


def _bulk(clouds: Sequence[np.ndarray], tail: float) -> tuple[np.ndarray, np.ndarray]:
    """Limits, [d] each, around finite points [N, d] without the share `tail` of each cloud on
    either side.

    Rounded inwards, so that the point farthest out never counts, however few there are.
    """
    finite = [cloud[np.isfinite(cloud).all(axis=1)] for cloud in clouds]
    finite = [cloud for cloud in finite if len(cloud) > 0]
    low = [np.quantile(cloud, tail, axis=0, method="higher") for cloud in finite]
    high = [np.quantile(cloud, 1 - tail, axis=0, method="lower") for cloud in finite]
    return np.min(low, axis=0, initial=np.inf), np.max(high, axis=0, initial=-np.inf)


def square_around(
    low: np.ndarray,
    high: np.ndarray,
    half_extent: float | None,
    center: tuple[float, float] | None,
) -> tuple[Limits, Limits]:
    """The limits of x and y: a square around limits, [2] each, where it is not given itself."""
    middle = (low + high) / 2 if center is None else np.asarray(center, dtype=np.float64)
    if half_extent is None:
        half_extent = float(np.maximum(high - middle, middle - low).max())
    x, y = middle.tolist()
    return (x - half_extent, x + half_extent), (y - half_extent, y + half_extent)


class Density1D:
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
        if len(levels) > 0:
            style = {"colors": colour, "linewidths": 0.7, "origin": "lower"}
            axes.contour(self._image, levels, extent=self._extent, **style)


class Density2D:
    """p(x | classes) in a square, as levels of grey that are even in log density."""

    def __init__(
        self,
        truth: ExactDenoiser,
        classes: Classes,
        draws: np.ndarray,
        x_range: Limits,
        y_range: Limits,
    ) -> None:
        # Blurred by a pixel, so that what is thinner does not break into pieces.
        sigma = (x_range[1] - x_range[0]) / PIXELS
        self._x, self._y = _centres(x_range), _centres(y_range)
        grid = np.stack(np.meshgrid(self._x, self._y), axis=-1).reshape(-1, 2)
        self._image = _log_density(truth, grid, sigma, classes).reshape(PIXELS, PIXELS)
        blurred = draws + sigma * np.random.default_rng(0).standard_normal(draws.shape)
        of_draws = _log_density(truth, blurred, sigma, classes)
        self._levels = np.linspace(np.quantile(of_draws, TAIL), of_draws.max(), 6)

    def draw(self, axes: Axes) -> None:
        """Draw the levels, the lowest of which holds all but the TAIL of true samples."""
        if self._image.max() <= self._levels[0]:
            return
        greys = LinearSegmentedColormap.from_list("", ["0.9", "0.55"])
        axes.contourf(self._x, self._y, self._image, self._levels, cmap=greys, extend="max")


def _centres(limits: Limits) -> np.ndarray:
    """The centres of the pixels between two limits, [PIXELS]."""
    low, high = limits
    return low + (np.arange(PIXELS) + 0.5) / PIXELS * (high - low)


def _log_density(
    model: ExactDenoiser, points: np.ndarray, sigma: float, classes: Classes
) -> np.ndarray:
    """log p(x; sigma) of a mixture of classes, from [N, d] to [N], float64."""
    x = torch.from_numpy(np.ascontiguousarray(points, dtype=np.float64)).to(_device(model))
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


class Modes:
    """The modes of a 1D truth within the given classes, left to right; one where it has none.

    Attributes:
        count: how many there are.
    """

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
        weights, means = truth.weights[members], truth.means[members, 0]
        self.count = int(modes.max()) + 1
        sums = weights.new_zeros(self.count)
        centres = sums.index_add(0, modes, weights * means) / sums.index_add(0, modes, weights)
        self._parts = modes == centres.argsort()[:, None]  # of each mode, bool [count, K]
        self._log_weights = weights.log()
        self._normals = Normal(means, truth.covariances[members, 0, 0].sqrt())

    def of(self, x: np.ndarray) -> np.ndarray:
        """The most responsible mode of each point, from finite [N, 1] to int64 [N]."""
        if self.count == 1:
            return np.zeros(len(x), dtype=np.int64)
        points = torch.from_numpy(x).to(self._log_weights)
        log_joint = self._log_weights + self._normals.log_prob(points)
        by_mode = torch.stack([log_joint[:, part].logsumexp(dim=1) for part in self._parts])
        return np.argmax(by_mode.cpu().numpy(), axis=0)
