"""How networks were trained to see noise: what x is scaled by, which timestep a noise level is, and
what an answer says about x0, for x = x0 + sigma n."""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
from torch import Tensor

from guidex.errors import UsageError

Prediction = Literal["epsilon", "v_prediction", "sample"]
_ROUNDING = 1e-4  # of the noise levels at both ends, which diffusers knows in float32


class Process(ABC):
    """The interface, with the noise levels that networks were trained for."""

    sigma_min: float
    sigma_max: float

    @abstractmethod
    def scale(self, sigma: float) -> float:
        """Factor from x to what the network sees."""

    @abstractmethod
    def timestep(self, sigma: float) -> float:
        """The timestep that the network is told, whole or between two."""

    @abstractmethod
    def sigma(self, timestep: float) -> float:
        """The noise level of a timestep."""

    @abstractmethod
    def x0(self, x: Tensor, sigma: float, answer: Tensor) -> Tensor:
        """The denoised prediction, from what the network answers."""


class Discrete(Process):
    """The variance-preserving process of DDPM (Ho et al. 2020, arXiv 2006.11239).

    sigma = sqrt((1 - abar) / abar). Between timesteps, log sigma is linear in them, as in
    diffusers' and k-diffusion's samplers on other grids.

    Arguments:
        betas: of the timesteps, increasing noise; float64 [T].
        prediction: epsilon, v = signal n - noise x0 ("v_prediction") or x0 ("sample").
        reach: how many times the last timestep's sigma the network may be asked at; it is then told
            the last timestep, as diffusers does.
    """

    def __init__(self, betas: np.ndarray, prediction: Prediction, reach: float = 1.0) -> None:
        if prediction not in get_args(Prediction):
            raise UsageError(f"networks that predict {prediction} are not known")
        log_abar = np.cumsum(np.log1p(-np.minimum(betas, 1 - 1e-15)))
        # A process rescaled to end without any signal has no sigma at its last timestep.
        self.log_sigmas = np.log(np.expm1(-log_abar[betas < 1])) / 2
        self.prediction = prediction
        low, high = np.exp(self.log_sigmas[[0, -1]])
        self.sigma_min = float(low) * (1 - _ROUNDING)
        self.sigma_max = float(high) * (1 + _ROUNDING) * reach

    def scale(self, sigma: float) -> float:
        return 1 / float(np.hypot(1, sigma))

    def timestep(self, sigma: float) -> float:
        steps = np.arange(len(self.log_sigmas))
        return float(np.interp(np.log(sigma), self.log_sigmas, steps))

    def sigma(self, timestep: float) -> float:
        steps = np.arange(len(self.log_sigmas))
        return float(np.exp(np.interp(timestep, steps, self.log_sigmas)))

    def x0(self, x: Tensor, sigma: float, answer: Tensor) -> Tensor:
        if self.prediction == "sample":
            return answer
        if self.prediction == "epsilon":
            return x - sigma * answer
        signal = self.scale(sigma)
        return signal**2 * x - sigma * signal * answer


@dataclass(frozen=True)
class Flow(Process):
    """The linear path (1 - t) x0 + t n of rectified flows, sigma = t / (1 - t); the network answers
    n - x0 (Esser et al. 2024, arXiv 2403.03206).

    Attributes:
        timesteps: what t = 1 is called; the shift of training does not matter here.
    """

    timesteps: int = 1000
    sigma_min: float = 0.0
    sigma_max: float = 1.01e6

    def scale(self, sigma: float) -> float:
        return 1 / (1 + sigma)

    def timestep(self, sigma: float) -> float:
        return self.timesteps * sigma / (1 + sigma)

    def sigma(self, timestep: float) -> float:
        return timestep / (self.timesteps - timestep)

    def x0(self, x: Tensor, sigma: float, answer: Tensor) -> Tensor:
        return self.scale(sigma) * (x - sigma * answer)
