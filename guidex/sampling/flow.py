"""Samplers of DiT and its kin: steps in the time of the linear path x_t = (1 - t) x0 + t n, where
sigma = t / (1 - t), and ancestral steps with a variance that the network has learned."""

import math
from dataclasses import dataclass

import numpy as np

from guidex.errors import UsageError
from guidex.sampling.grids import Grid
from guidex.sampling.solver import Denoise, Solver, State


@dataclass(frozen=True, kw_only=True)
class Flow(Grid):
    """Even in the time t of the linear path, from 1, the noise, to 0.

    `steps` counts steps, as in REPA. SiT, LightningDiT and RAE count the points between: their
    250 and 50 are 249 and 49 steps.

    Attributes:
        last: t at which the last step starts; None: 1 / steps, so that all are equal.
        shift: s of t' = s t / (1 + (s - 1) t) for the t above; more than 1 makes steps near the
            noise finer (Esser et al. 2024, arXiv 2403.03206, equation 23).
        sigma_max: noise level that stands for t = 1, which has none.
    """

    steps: int = 250
    last: float | None = None
    shift: float = 1.0
    sigma_max: float = 1e6

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.last is not None and not 0 < self.last < 1:
            raise UsageError(f"last is a time between 0 and 1, not {self.last}")
        if not 0 < self.shift < math.inf:
            raise UsageError(f"shift must be positive and finite, not {self.shift}")

    def levels(self, progress: np.ndarray) -> np.ndarray:
        last = 1 / self.steps if self.last is None else self.last
        t = 1 + progress * (last - 1)
        t = self.shift * t / (1 + (self.shift - 1) * t)
        return np.minimum(t / (1 - t), self.sigma_max)


@dataclass(frozen=True, kw_only=True)
class FlowHeun(Solver):
    """Heun's method in the time t of the linear path, where it is not Heun's method in sigma; one
    evaluation in a last step to 0 (REPA's ODE of order 2, JiT)."""

    def stages(self, sigmas: np.ndarray, i: int) -> list[float]:
        return [float(sigma) for sigma in sigmas[i : i + 2] if sigma > 0]

    def step(self, state: State, sigmas: np.ndarray, i: int, denoise: Denoise) -> State:
        sigma, sigma_next = float(sigmas[i]), float(sigmas[i + 1])
        t, t_next = _time(sigma), _time(sigma_next)
        x_t = state.x / (1 + sigma)
        v = (x_t - denoise(state.x, sigma, 0)) / t
        x_next = x_t + (t_next - t) * v
        if t_next > 0:
            x0 = denoise(x_next * (1 + sigma_next), sigma_next, 1)
            x_next = x_t + (t_next - t) * (v + (x_next - x0) / t_next) / 2
        return State(x_next * (1 + sigma_next), state.draws)


@dataclass(frozen=True, kw_only=True)
class EulerMaruyama(Solver):
    """Euler-Maruyama for the SDE of SiT with diffusion coefficient t (Ma et al. 2024, arXiv
    2401.08740, equation 5), as REPA has it; one evaluation per step, no noise in a last step to 0.

    With h = t - t', x_t' = (1 - t') D + (t' - h) eps + sqrt(2 t h) n.
    """

    @property
    def stochastic(self) -> bool:
        return True

    def step(self, state: State, sigmas: np.ndarray, i: int, denoise: Denoise) -> State:
        sigma, sigma_next = float(sigmas[i]), float(sigmas[i + 1])
        t, t_next = _time(sigma), _time(sigma_next)
        x0 = denoise(state.x, sigma, 0)
        eps = (state.x - x0) / sigma
        x = x0 + (2 * t_next - t) * (1 + sigma_next) * eps
        if sigma_next == 0:
            return State(x, state.draws)
        noise, draws = state.draws.draw(x)
        return State(x + math.sqrt(2 * t * (t - t_next)) * (1 + sigma_next) * noise, draws)


@dataclass(frozen=True, kw_only=True)
class Ancestral(Solver):
    """DDPM's ancestral sampling with learned variance (Nichol & Dhariwal 2021, arXiv 2102.09672,
    equation 15); one evaluation per step, no noise in a last step to 0. DiT, ADM.

    The mean is that of DDIM with eta = 1. The log variance lies between that of DDIM with eta = 1
    and that of beta, where the network's main prediction says.
    """

    learned_variance = True

    @property
    def stochastic(self) -> bool:
        return True

    def step(self, state: State, sigmas: np.ndarray, i: int, denoise: Denoise) -> State:
        sigma, sigma_next = float(sigmas[i]), float(sigmas[i + 1])
        said: dict = {}
        x0 = denoise(state.x, sigma, 0, said)
        x = x0 + (sigma_next / sigma) ** 2 * (state.x - x0)
        if sigma_next == 0:
            return State(x, state.draws)
        if "variance" not in said:
            raise UsageError("this model has not learned a variance; use sampler=ddim")
        share = (said["variance"] + 1) / 2
        removed = sigma**2 - sigma_next**2
        least = math.log(removed * (sigma_next / sigma) ** 2)
        most = math.log(removed * (1 + sigma_next**2) / (1 + sigma**2))
        noise, draws = state.draws.draw(x)
        return State(x + ((least + share * (most - least)) / 2).exp() * noise, draws)


def _time(sigma: float) -> float:
    return sigma / (1 + sigma)
