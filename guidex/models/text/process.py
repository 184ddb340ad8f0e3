"""How networks were trained to see x = x0 + sigma n: what it is scaled by, which timestep a noise
level is, whole or between two, and what an answer says about x0."""

from typing import Literal, get_args

import numpy as np
from torch import Tensor

from guidex.errors import UsageError

Prediction = Literal["epsilon", "v_prediction", "sample"]
_ROUNDING = 1e-4  # of the noise levels at both ends, which diffusers knows in float32


class Discrete:
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
        # A process rescaled to end without any signal has no sigma at its last timestep.
        self.log_sigmas = np.log(np.expm1(-np.cumsum(np.log1p(-betas[betas < 1])))) / 2
        self.steps = np.arange(len(self.log_sigmas))
        self.prediction = prediction
        self.sigma_min = self.sigma(0) * (1 - _ROUNDING)
        self.sigma_max = self.sigma(len(betas)) * (1 + _ROUNDING) * reach

    def scale(self, sigma: float) -> float:
        """Factor from x to what the network sees."""
        return 1 / float(np.hypot(1, sigma))

    def timestep(self, sigma: float) -> float:
        """The timestep that the network is told."""
        return float(np.interp(np.log(sigma), self.log_sigmas, self.steps))

    def sigma(self, timestep: float) -> float:
        """The noise level of a timestep."""
        return float(np.exp(np.interp(timestep, self.steps, self.log_sigmas)))

    def x0(self, x: Tensor, sigma: float, answer: Tensor) -> Tensor:
        """The denoised prediction, from what the network answers."""
        if self.prediction == "sample":
            return answer
        if self.prediction == "epsilon":
            return x - sigma * answer
        signal = self.scale(sigma)
        return signal**2 * x - sigma * signal * answer


class Flow:
    """The linear path (1 - t) x0 + t n of rectified flows, sigma = t / (1 - t), with the same
    methods; the network answers n - x0 (Esser et al. 2024, arXiv 2403.03206). The shift of training
    does not matter here."""

    sigma_min, sigma_max = 0.0, 1.01e6

    def __init__(self, timesteps: int = 1000) -> None:
        self.timesteps = timesteps  # what t = 1 is called

    def scale(self, sigma: float) -> float:
        return 1 / (1 + sigma)

    def timestep(self, sigma: float) -> float:
        return self.timesteps * sigma / (1 + sigma)

    def x0(self, x: Tensor, sigma: float, answer: Tensor) -> Tensor:
        return self.scale(sigma) * (x - sigma * answer)


Process = Discrete | Flow
