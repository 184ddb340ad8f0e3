"""Power-function EMA of network weights, and its reconstruction after training ("post-hoc EMA").

Karras et al. 2024 (arXiv 2312.02696), section 3 and appendix C. The average of length gamma at
training time t is theta_gamma(t) = (gamma + 1) / t^(gamma + 1) * integral_0^t tau^gamma theta(tau)
dtau; its length is told by sigma_rel, the width of this profile as a fraction of t. Training times
are in any one unit.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

from guidex.errors import UsageError


def sigma_rel_of_gamma(gamma: ArrayLike) -> NDArray[np.float64]:
    """Exponent gamma >= 0 -> relative width of the profile."""
    gamma = np.asarray(gamma, dtype=np.float64)
    return np.sqrt(gamma + 1) / ((gamma + 2) * np.sqrt(gamma + 3))


MAX_SIGMA_REL = float(sigma_rel_of_gamma(0.0))
"""12^-1/2, of the plain mean of all weights so far; anything longer would favour the oldest."""


def gamma_of_sigma_rel(sigma_rel: ArrayLike) -> NDArray[np.float64]:
    """Relative width -> exponent gamma >= 0: the largest root of the cubic
    (gamma + 2)^2 (gamma + 3) - (gamma + 1) / sigma_rel^2 (appendix C); a UsageError where sigma_rel
    is not in (0, 12^-1/2]."""
    sigma_rel = np.asarray(sigma_rel, dtype=np.float64)
    if not np.all((sigma_rel > 0) & (sigma_rel <= MAX_SIGMA_REL)):
        raise UsageError(
            f"EMA length (sigma_rel) is {sigma_rel.tolist()}; "
            f"it must be above 0 and at most {MAX_SIGMA_REL:.4f}"
        )
    cubics = [(1.0, 7.0, 16.0 - p, 12.0 - p) for p in sigma_rel.ravel() ** -2]
    largest = [max(0.0, np.roots(cubic).real.max()) for cubic in cubics]
    return np.array(largest).reshape(sigma_rel.shape)


def images_of(kimg: int) -> int:
    """Training time in images, of a snapshot that is named by its thousands, rounded down: EDM2
    stores its snapshots at multiples of 1024, of which the name can mean one or none."""
    images = (kimg * 1000 + 999) // 1024 * 1024
    return images if images // 1000 == kimg else kimg * 1000


def profile_product(
    t_a: ArrayLike, gamma_a: ArrayLike, t_b: ArrayLike, gamma_b: ArrayLike
) -> NDArray[np.float64]:
    """Integral over training time of the product of two averages' profiles, in 1 / (unit of t)."""
    t_a, t_b = np.asarray(t_a, np.float64), np.asarray(t_b, np.float64)
    gamma_a, gamma_b = np.asarray(gamma_a, np.float64), np.asarray(gamma_b, np.float64)
    early, late = np.minimum(t_a, t_b), np.maximum(t_a, t_b)
    gamma_late = np.where(t_a < t_b, gamma_b, gamma_a)
    scale = (gamma_a + 1) * (gamma_b + 1) / (gamma_a + gamma_b + 1)
    # One power of the ratio cannot overflow, as the powers of both times could.
    return scale * (early / late) ** gamma_late / late


def reconstruction(
    times: Sequence[float], lengths: Sequence[float], time: float, length: float
) -> tuple[NDArray[np.float64], float]:
    """Weights of stored averages whose sum is nearest (least squares) to one never stored.

    The sum's profile is fitted to the target's by its normal equations (appendix C); the weights
    are divided by their sum, so that a network that no longer changes is reproduced.

    Arguments:
        times, lengths: training time and sigma_rel of each stored average, [N].
        time, length: those wanted, at most the last snapshot's time.

    Returns:
        Weights [N] of sum 1, and how far the sum's profile is from the one wanted, as a share of
        the latter (L2 norms).
    """
    t, gamma = np.array([*times, time]), gamma_of_sigma_rel([*lengths, length])
    if len(set(zip(times, lengths, strict=True))) < len(times) or not np.all(t > 0):
        raise UsageError("EMA snapshots must differ in time or length, and be of times above 0")
    products = profile_product(t[:, None], gamma[:, None], t, gamma)
    weights = np.linalg.solve(products[:-1, :-1], products[:-1, -1])
    weights /= weights.sum()
    difference = np.append(weights, -1.0)
    squared = difference @ products @ difference / products[-1, -1]
    return weights, float(np.sqrt(max(squared, 0.0)))
