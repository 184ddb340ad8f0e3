"""Solvers of the probability flow ODE, dx/dsigma = (x - D(x; sigma)) / sigma, and their stochastic
kin."""

import math
from dataclasses import dataclass

import numpy as np

from guidex.errors import UsageError
from guidex.sampling.solver import Denoise, Solver, State


@dataclass(frozen=True, kw_only=True)
class Euler(Solver):
    """Euler's method, order 1; one evaluation per step. The same as DDIM with eta = 0."""

    def step(self, state: State, sigmas: np.ndarray, i: int, denoise: Denoise) -> State:
        t_cur, t_next = float(sigmas[i]), float(sigmas[i + 1])
        d_cur = (state.x - denoise(state.x, t_cur, 0)) / t_cur
        return State(state.x + (t_next - t_cur) * d_cur, state.draws)


@dataclass(frozen=True, kw_only=True)
class Heun(Solver):
    """Heun's method, order 2, with optional churn (Karras et al. 2022, arXiv 2206.00364, algorithm
    2).

    Two evaluations per step, one in a last step to sigma = 0: 2 N - 1 for N steps.

    Attributes:
        s_churn: total amount of added noise; 0 = deterministic.
        s_min, s_max: noise levels between which noise is added.
        s_noise: standard deviation of the added noise, slightly above 1 against lost detail.
    """

    s_churn: float = 0.0
    s_min: float = 0.0
    s_max: float = math.inf
    s_noise: float = 1.0

    def __post_init__(self) -> None:
        if not self.s_churn >= 0:
            raise UsageError(f"s_churn must be >= 0, not {self.s_churn}")

    @property
    def stochastic(self) -> bool:
        return self.s_churn > 0

    def stages(self, sigmas: np.ndarray, i: int) -> list[float]:
        t_hat = self._churned(sigmas, i)
        return [t_hat, float(sigmas[i + 1])] if sigmas[i + 1] > 0 else [t_hat]

    def step(self, state: State, sigmas: np.ndarray, i: int, denoise: Denoise) -> State:
        t_cur, t_next = float(sigmas[i]), float(sigmas[i + 1])
        t_hat, x_hat, draws = self._churned(sigmas, i), state.x, state.draws
        if t_hat > t_cur:
            noise, draws = draws.draw(x_hat)
            x_hat = x_hat + math.sqrt(t_hat**2 - t_cur**2) * self.s_noise * noise
        d_cur = (x_hat - denoise(x_hat, t_hat, 0)) / t_hat
        x_next = x_hat + (t_next - t_hat) * d_cur
        if t_next > 0:
            d_prime = (x_next - denoise(x_next, t_next, 1)) / t_next
            x_next = x_hat + (t_next - t_hat) * (d_cur + d_prime) / 2
        return State(x_next, draws)

    def _churned(self, sigmas: np.ndarray, i: int) -> float:
        t_cur = float(sigmas[i])
        if not self.s_min <= t_cur <= self.s_max:
            return t_cur
        return t_cur * (1 + min(self.s_churn / (len(sigmas) - 1), math.sqrt(2) - 1))


@dataclass(frozen=True, kw_only=True)
class DPMpp2M(Solver):
    """DPM-Solver++(2M), order 2, multistep; one evaluation per step (Lu et al. 2022, arXiv
    2211.01095, alg. 2).

    In terms of lambda = -log sigma. The first step, and a last step to sigma = 0, are of order 1.
    """

    def step(self, state: State, sigmas: np.ndarray, i: int, denoise: Denoise) -> State:
        t_cur, t_next = float(sigmas[i]), float(sigmas[i + 1])
        x0 = denoise(state.x, t_cur, 0)
        if t_next == 0:
            return State(x0, state.draws, x0)
        h = math.log(t_cur / t_next)
        slope_corrected = x0
        if state.previous is not None:
            r = math.log(float(sigmas[i - 1]) / t_cur) / h
            slope_corrected = x0 + (x0 - state.previous) / (2 * r)
        x = t_next / t_cur * state.x - math.expm1(-h) * slope_corrected
        return State(x, state.draws, x0)


@dataclass(frozen=True, kw_only=True)
class DDIM(Solver):
    """DDIM in noise levels (Song et al. 2021, arXiv 2010.02502, equations 12 and 16); one
    evaluation per step.

    For x scaled to unit signal, equation 16 becomes sigma_up^2 = eta^2 s^2 (t^2 - s^2) / t^2 for a
    step from noise level t to s. eta = 0 is deterministic (Euler's method), eta = 1 is DDPM's
    ancestral sampling.
    """

    eta: float = 0.0

    def __post_init__(self) -> None:
        if not 0 <= self.eta <= 1:
            raise UsageError(f"eta lies in 0 ... 1, not {self.eta}")

    @property
    def stochastic(self) -> bool:
        return self.eta > 0

    def step(self, state: State, sigmas: np.ndarray, i: int, denoise: Denoise) -> State:
        t_cur, t_next = float(sigmas[i]), float(sigmas[i + 1])
        x0 = denoise(state.x, t_cur, 0)
        variance = t_next**2 * (1 - (t_next / t_cur) ** 2) * self.eta**2
        x = x0 + math.sqrt(t_next**2 - variance) / t_cur * (state.x - x0)
        if variance == 0:
            return State(x, state.draws)
        noise, draws = state.draws.draw(x)
        return State(x + math.sqrt(variance) * noise, draws)
