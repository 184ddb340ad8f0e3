"""Sampler grids: the noise levels at which steps begin and end."""

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Literal

import numpy as np

from guidex.errors import UsageError

MOST_STEPS = 10_000


@dataclass(frozen=True, kw_only=True)
class Grid(ABC):
    """The interface. A grid of N steps, 1 … MOST_STEPS, has N decreasing noise levels and a final
    0."""

    steps: int = 32

    def __post_init__(self) -> None:
        if not 1 <= self.steps <= MOST_STEPS:
            raise UsageError(
                f"a sampler needs at least one step and at most {MOST_STEPS}, not "
                f"steps={self.steps}"
            )

    def sigmas(self) -> np.ndarray:
        """Noise levels of the step boundaries, float64 [steps + 1], decreasing to 0; UsageError
        where the parameters make levels that do not."""
        with np.errstate(all="ignore"):
            levels = self.levels(np.arange(self.steps) / max(self.steps - 1, 1))
        if not (np.isfinite(levels).all() and levels[-1] > 0 and (np.diff(levels) < 0).all()):
            raise UsageError(
                f"the noise levels of {self} do not decrease from step to step, above 0"
            )
        return np.append(levels, 0.0)

    @abstractmethod
    def levels(self, progress: np.ndarray) -> np.ndarray:
        """Noise levels at the progress 0 (the noisiest) ... 1 (the last step's start), float64."""


@dataclass(frozen=True, kw_only=True)
class Bounded(Grid):
    """Grids between the noise levels at which the last and the first step start."""

    sigma_min: float = 0.002
    sigma_max: float = 80.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.sigma_min < self.sigma_max < math.inf:
            raise UsageError(
                "sigma_min and sigma_max must satisfy 0 < sigma_min < sigma_max, "
                f"not sigma_min={self.sigma_min:g}, sigma_max={self.sigma_max:g}"
            )


@dataclass(frozen=True, kw_only=True)
class Karras(Bounded):
    """Even in sigma^(1/rho) (Karras et al. 2022, arXiv 2206.00364, equation 5); a larger rho makes
    steps near the image finer."""

    rho: float = 7.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.rho < math.inf:
            raise UsageError(f"rho must be positive and finite, not {self.rho}")

    def levels(self, progress: np.ndarray) -> np.ndarray:
        high, low = self.sigma_max ** (1 / self.rho), self.sigma_min ** (1 / self.rho)
        return (high + progress * (low - high)) ** self.rho


@dataclass(frozen=True, kw_only=True)
class Linear(Bounded):
    """Even in sigma."""

    def levels(self, progress: np.ndarray) -> np.ndarray:
        return self.sigma_max + progress * (self.sigma_min - self.sigma_max)


@dataclass(frozen=True, kw_only=True)
class Log(Bounded):
    """Even in log sigma."""

    def levels(self, progress: np.ndarray) -> np.ndarray:
        return self.sigma_max * (self.sigma_min / self.sigma_max) ** progress


@dataclass(frozen=True, kw_only=True)
class VP(Grid):
    """Even in the time t of the variance-preserving SDE with noise rate beta_min + beta_d t, down
    to epsilon (Song et al. 2021; table 1 of arXiv 2206.00364)."""

    beta_min: float = 0.1
    beta_d: float = 19.9
    epsilon: float = 1e-3

    def levels(self, progress: np.ndarray) -> np.ndarray:
        t = 1 + progress * (self.epsilon - 1)
        return np.sqrt(np.expm1(self.beta_d * t**2 / 2 + self.beta_min * t))


@dataclass(frozen=True, kw_only=True)
class DDPM(Grid):
    """Evenly spaced timesteps of a discrete DDPM with linear beta (Ho et al. 2020, arXiv
    2006.11239).

    sigma = sqrt((1 - abar) / abar). The grid of DiT, ADM and, with beta 0.00085 ... 0.012 even in
    sqrt(beta), that of Stable Diffusion.

    Attributes:
        timesteps: length of the training process, T.
        beta_first, beta_last: beta of the first and the last timestep.
        first: timestep of the last (least noisy) step; the first step is at T - 1. 0 is the spacing
            of ADM and DiT (diffusers: "linspace"), T / steps - 1 is "trailing".
        even_in: whether beta or its square root is even.
        leading: steps are T // steps apart, so that the first one is below T - 1 (diffusers:
            "leading"; with first 1 the spacing of Stable Diffusion).
    """

    steps: int = 50
    timesteps: int = 1000
    beta_first: float = 1e-4
    beta_last: float = 0.02
    first: int = 0
    even_in: Literal["beta", "sqrt_beta"] = "beta"
    leading: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.first < self.timesteps or self.steps > self.timesteps - self.first:
            raise UsageError(
                f"{self.steps} steps from timestep {self.first} do not fit "
                f"in {self.timesteps} timesteps"
            )

    def levels(self, progress: np.ndarray) -> np.ndarray:
        power = 1 if self.even_in == "beta" else 2
        ends = self.beta_first ** (1 / power), self.beta_last ** (1 / power)
        betas = np.linspace(*ends, self.timesteps) ** power
        log_abar = np.cumsum(np.log1p(-betas))
        last = self.timesteps - 1
        if self.leading:
            last = self.first + self.timesteps // self.steps * (self.steps - 1)
        index = np.round(last + progress * (self.first - last)).astype(int)
        return np.sqrt(np.expm1(-log_abar[index]))


@dataclass(frozen=True, kw_only=True)
class IDDPM(Grid):
    """The cosine process of improved DDPM in noise levels (table 1 and algorithm 1 of arXiv
    2206.00364).

    u_{j-1} = sqrt((u_j^2 + 1) / max(abar_{j-1} / abar_j, c1) - 1), abar_j = sin^2(pi/2 j / (M (c2
    + 1))), M = levels_count, and j0 the first index used. The interval paper's labels for DiT are
    noise levels of this grid with 250 steps.
    """

    steps: int = 250
    levels_count: int = 1000
    j0: int = 0
    c1: float = 0.001
    c2: float = 0.008

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.j0 < self.levels_count or self.steps > self.levels_count - self.j0:
            raise UsageError(
                f"{self.steps} steps from level {self.j0} do not fit in {self.levels_count} levels"
            )

    def levels(self, progress: np.ndarray) -> np.ndarray:
        j = np.arange(self.levels_count + 1)
        abar = np.sin(np.pi / 2 * j / (self.levels_count * (self.c2 + 1))) ** 2
        u = np.zeros(self.levels_count + 1)
        for k in range(self.levels_count, 0, -1):
            u[k - 1] = np.sqrt((u[k] ** 2 + 1) / max(abar[k - 1] / abar[k], self.c1) - 1)
        last = self.levels_count - 1
        index = np.floor(self.j0 + (last - self.j0) * progress + 0.5).astype(int)
        return u[index]
