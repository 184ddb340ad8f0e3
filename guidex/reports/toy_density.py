"""What figures of toys know of the truth: where it is, its density and its modes."""

import math

import numpy as np
import torch
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
