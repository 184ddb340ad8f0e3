"""Noise levels in the units of time that networks are trained with.

- "time": t of the linear path (1 - t) x0 + t n, 1 at the noise: sigma = t / (1 - t).
- "timestep": 0 ... 999 of DDPM's process with linear beta 1e-4 ... 0.02 (Ho et al. 2020, arXiv
  2006.11239): sigma^2 = (1 - abar) / abar. Between two of them, even in log sigma.
"""

from collections.abc import Callable
from functools import cache
from typing import Literal

import numpy as np

NativeUnit = Literal["time", "timestep"]


def flow_time(sigma: np.ndarray) -> np.ndarray:
    """t of the linear path, 1 at an infinite noise level."""
    return 1 - 1 / (1 + np.asarray(sigma))


@cache
def timestep_sigmas() -> np.ndarray:
    """Noise levels of the 1000 timesteps, float64, increasing."""
    return np.sqrt(np.expm1(-np.cumsum(np.log1p(-np.linspace(1e-4, 0.02, 1000)))))


def timestep(sigma: np.ndarray) -> np.ndarray:
    """Timesteps, whole or between two, of noise levels; those outside count as the nearest."""
    known = timestep_sigmas()
    return np.interp(np.log(np.maximum(sigma, known[0])), np.log(known), np.arange(len(known)))


NATIVE: dict[NativeUnit, Callable[[np.ndarray], np.ndarray]] = {
    "time": flow_time,
    "timestep": timestep,
}
"""From noise levels, float64, to each unit."""
