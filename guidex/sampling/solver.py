"""What every solver is: explicit state, one step at a time. Solvers know nothing of guidance."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np
import torch
from torch import Tensor

from guidex.guidance.timeline import Timeline
from guidex.sampling.grids import Grid
from guidex.sampling.seeds import Draws

# denoise(x, sigma, stage) -> x0; stage counts the evaluations within a step. A dict as fourth
# argument is filled with what the main model says beside x0, see `guidex.models.denoiser.View`.
Denoise = Callable[..., Tensor]


@dataclass(frozen=True)
class State:
    """What a solver hands from step to step.

    Attributes:
        x: noisy samples at the current step boundary [B, *shape].
        draws: source of fresh noise, for stochastic solvers.
        previous: the last denoised prediction, for multistep solvers; None at first.
    """

    x: Tensor
    draws: Draws
    previous: Tensor | None = None


@dataclass(frozen=True, kw_only=True)
class Solver(ABC):
    """The interface of all solvers, with the dtype of the state x (EDM2's numbers are of
    float32)."""

    grid: Grid
    dtype: Literal["float64", "float32"] = "float64"

    learned_variance: ClassVar[bool] = False
    """Whether steps ask the model for a variance."""

    @property
    def stochastic(self) -> bool:
        """Whether steps draw fresh noise."""
        return False

    def sigmas(self) -> np.ndarray:
        """Noise levels of the step boundaries, float64 [steps + 1]."""
        return self.grid.sigmas()

    def timeline(self) -> Timeline:
        """When the network is evaluated, for planning."""
        sigmas = self.sigmas()
        levels = [self.stages(sigmas, i) for i in range(len(sigmas) - 1)]
        width = max(len(step) for step in levels)
        padded = [step + [np.nan] * (width - len(step)) for step in levels]
        return Timeline(sigmas, np.array(padded))

    def init(self, noise: Tensor, draws: Draws) -> State:
        """The state before step 0 from unit noise [B, *shape]."""
        return State(noise.to(getattr(torch, self.dtype)) * float(self.sigmas()[0]), draws)

    def stages(self, sigmas: np.ndarray, i: int) -> list[float]:
        """Noise levels of the network evaluations of step i, in order."""
        return [float(sigmas[i])]

    @abstractmethod
    def step(self, state: State, sigmas: np.ndarray, i: int, denoise: Denoise) -> State:
        """Take step i, from noise level sigmas[i] to sigmas[i + 1]."""
