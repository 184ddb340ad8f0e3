"""Transformers as denoisers D(x; sigma, c): those that predict a velocity, and those that predict
noise."""

from abc import abstractmethod
from collections.abc import Sequence
from math import inf, sqrt

import numpy as np
import torch
from torch import Tensor

from guidex.models.condition import Condition, Conditions
from guidex.models.denoiser import Denoiser, View, changed_parts
from guidex.models.dit.network import Network
from guidex.models.native_time import timestep, timestep_sigmas


class Transformer(Denoiser):
    """What both kinds have in common.

    Arguments:
        network: with its weights.
    """

    sigma_data = 1.0  # nearly: latents are scaled to it

    def __init__(self, network: Network) -> None:
        super().__init__()
        shape = network.shape
        self.network = network
        self.shape = (shape.channels, shape.side, shape.side)
        self.space = "pixels" if shape.channels in (1, 3) else "latents"
        self.conditions = Conditions(shape.classes)
        self.gflops = shape.gflops
        self.attention_layers = tuple(f"blocks.{i}.attn" for i in range(shape.depth))
        self._attention_shapes = dict.fromkeys(self.attention_layers, (shape.heads, shape.tokens))

    @abstractmethod
    def native(self, sigma: float) -> tuple[float, float]:
        """The factor that takes x to what the network was trained on, and the time it is told."""

    @abstractmethod
    def denoised(self, x: Tensor, sigma: float, answer: Tensor) -> Tensor:
        """x0 from x and the network's answer [B, channels, H, W], in the dtype of x."""

    def forward(self, x: Tensor, sigma: float, condition: Condition = None) -> Tensor:
        """Denoise; see Denoiser."""
        return self.joint(x, [View(sigma, condition)])[0]

    def joint(self, x: Tensor, views: Sequence[View]) -> list[Tensor]:
        """Denoise the same x several times in one call of the network; see Denoiser."""
        asked = [self.native(view.sigma) for view in views]
        latents = torch.cat([signal * x for signal, _ in asked])
        time = torch.cat([x.new_full((len(x),), t, dtype=torch.float32) for _, t in asked])
        labels = torch.cat([self._labels(view.condition, x) for view in views])
        weight = self.network.final_layer["linear"].weight
        parts = changed_parts(views, self._attention_shapes, x.device)
        answer = self.network(latents.to(weight.dtype), time, labels, parts)
        result = []
        for view, own in zip(views, answer.to(x.dtype).split(len(x)), strict=True):
            if view.extras is not None and self.learned_variance:
                view.extras["variance"] = own[:, self.shape[0] :]
            result.append(self.denoised(x, view.sigma, own[:, : self.shape[0]]))
        return result

    def _labels(self, condition: Condition, x: Tensor) -> Tensor:
        if condition is not None:
            return condition
        return torch.full((len(x),), self.num_classes, device=x.device)


class Velocity(Transformer):
    """Of networks that predict the velocity of the linear path x_t = (1 - t) x0 + t n.

    D(x; sigma) = x_t - t v(x_t, t) with t = sigma / (1 + sigma), x_t = x / (1 + sigma) and
    v = n - x0 (Ma et al. 2024, arXiv 2401.08740).

    Arguments:
        network: with its weights; what it answers beyond the velocity's channels is not used.
        data_time: whether its time is 1 - t, and its velocity x0 - n (SiT, LightningDiT), or as
            here (REPA, REPA-E).
    """

    sigma_min, sigma_max = 0.0, inf
    native_unit = "time"

    def __init__(self, network: Network, data_time: bool) -> None:
        super().__init__(network)
        self.data_time = data_time

    def native(self, sigma: float) -> tuple[float, float]:
        signal = 1 / (1 + sigma)
        return signal, signal if self.data_time else sigma * signal

    def denoised(self, x: Tensor, sigma: float, answer: Tensor) -> Tensor:
        velocity = -answer if self.data_time else answer
        return (x - sigma * velocity) / (1 + sigma)


class Noise(Transformer):
    """Of networks that predict the noise of DDPM's process with linear beta, at timesteps 0 ...
    999, between which the network is asked at fractions; DiT.

    D(x; sigma) = x - sigma n(x / sqrt(1 + sigma^2), timestep).

    Arguments:
        network: with its weights. If it answers with twice the channels, the rest is where the
            log variance of a step lies between its bounds, -1 ... 1 (Nichol & Dhariwal 2021, arXiv
            2102.09672, equation 15): "variance" of `View.extras`.
    """

    sigma_min, sigma_max = (float(end) for end in timestep_sigmas()[[0, -1]] * [1 - 1e-9, 1 + 1e-9])
    native_unit = "timestep"

    def __init__(self, network: Network) -> None:
        super().__init__(network)
        self.learned_variance = network.shape.outputs == 2 * network.shape.channels

    def native(self, sigma: float) -> tuple[float, float]:
        return 1 / sqrt(1 + sigma**2), float(timestep(np.float64(sigma)))

    def denoised(self, x: Tensor, sigma: float, answer: Tensor) -> Tensor:
        return x - sigma * answer
