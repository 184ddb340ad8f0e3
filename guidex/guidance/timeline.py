"""What planning needs to know of a sampler: when it evaluates the network."""

import math
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Times:
    """The places at which weights are decided; arrays are float64 or int64 [steps, stages].

    Attributes:
        sigmas: noise levels of the step boundaries, float64 [steps + 1], decreasing.
        sigma: noise level that decides.
        step: the step an evaluation belongs to.
        position: the boundary nearest to where `sigma` lies, 0 ... steps.
    """

    sigmas: np.ndarray
    sigma: np.ndarray
    step: np.ndarray
    position: np.ndarray

    @property
    def count(self) -> int:
        """Number of sampler steps."""
        return len(self.sigmas) - 1

    def boundary(self, sigma: float) -> int:
        """The step boundary nearest to sigma in log sigma, 0 ... steps. A last boundary of 0 is
        taken to be where the grid would have gone on: the ratio of those before it, once more."""
        if sigma <= 0:
            return self.count
        if sigma == math.inf:
            return 0
        sigmas = self.sigmas.copy()
        if sigmas[-1] == 0:
            sigmas[-1] = sigmas[-2] ** 2 / sigmas[-3] if self.count > 1 else sigmas[-2] / 2
        return int(np.argmin(np.abs(np.log(sigmas) - math.log(sigma))))

    def time(self, axis: str) -> np.ndarray:
        """The time of schedules, in [0, 1]: 1 at pure noise, 0 at the image. For axes see Ramp."""
        if axis == "step":
            return 1 - np.minimum(self.position / max(self.count - 1, 1), 1.0)
        if axis == "sigma":
            return np.clip(self.sigma / self.sigmas[0], 0.0, 1.0)
        # sigma^2 = exp(beta_d t^2 / 2 + beta_min t) - 1 solved for t (Song et al. 2021, arXiv
        # 2011.13456).
        beta_min, beta_d = 0.1, 19.9
        log = np.log1p(self.sigma**2)
        return np.clip((np.sqrt(beta_min**2 + 2 * beta_d * log) - beta_min) / beta_d, 0.0, 1.0)


@dataclass(frozen=True)
class Timeline:
    """A sampler's evaluations.

    Attributes:
        sigmas: noise levels of the step boundaries, float64 [steps + 1], decreasing.
        evaluations: noise level of each network evaluation, float64 [steps, stages]; NaN where a
            step makes fewer (the last Heun step makes one).
    """

    sigmas: np.ndarray
    evaluations: np.ndarray

    def times(self, gate: str) -> Times:
        """Where each evaluation's weight is decided: at its step's start, or at its own noise
        level."""
        steps, stages = self.evaluations.shape
        step = np.repeat(np.arange(steps)[:, None], stages, axis=1)
        if gate == "step":
            sigma = np.repeat(self.sigmas[:-1, None], stages, axis=1)
            return Times(self.sigmas, sigma, step, step)
        sigma = np.nan_to_num(self.evaluations, nan=self.sigmas[-1])
        nearest = np.abs(self.sigmas[None, None, :] - sigma[..., None]).argmin(-1)
        return Times(self.sigmas, sigma, step, nearest)
