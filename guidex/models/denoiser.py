"""What every model is to the rest of guidex: a denoiser.

A denoiser estimates the clean image from a noisy one, D(x; sigma, c) ~ E[x0 | x = x0 + sigma * n,
c] (Karras et al. 2022, arXiv 2206.00364, section 2). The score follows from it:
grad log p(x; sigma) = (D(x; sigma) - x) / sigma^2.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal

import torch
from torch import Tensor, nn

from guidex.errors import UsageError
from guidex.models.attention import NO_LAYERS, Perturbation
from guidex.models.condition import Condition, Conditions
from guidex.models.native_time import NativeUnit

Space = Literal["pixels", "latents", "points"]
"""What a sample is: pixels in [-1, 1] of an image, latents of a decoder, coordinates of a toy."""


@dataclass(frozen=True)
class View:
    """How a denoiser is asked about x.

    Attributes:
        sigma: noise level.
        condition: of the batch, or None for the prediction without one.
        perturbation: of its self-attention, or None.
        extras: filled with what the network says beside x0, if it does: "variance" (see
            `learned_variance`).
    """

    sigma: float
    condition: Condition
    perturbation: Perturbation | None = None
    extras: dict[str, Tensor] | None = None


class Denoiser(nn.Module, ABC):
    """The interface: a map from noisy to denoised, with the facts that planning needs.

    Attributes:
        shape: shape of one sample, (C, H, W) for images, (d,) for points.
        conditions: what it can be conditioned on.
        sigma_data: standard deviation of the data, in the units of x.
        sigma_min, sigma_max: noise levels for which D is valid (inclusive).
        space: what a sample is.
        gflops: 10^9 floating-point operations of one evaluation (one image), 2 per multiply-add.
        attention_layers: names of the self-attention layers that can be perturbed.
        native_unit: of the time that its network is told, see guidex.models.native_time; None for
            sigma.
        learned_variance: whether it also predicts the variance of ancestral steps.
        origin: of the file that it was made from, "source" (its name, or that of what it was
            converted from), "path" (or URL, as given), "sha256", and "original", the SHA-256 of
            what it was converted from; empty where there is none.
        compiled: whether every new size of batch costs a compilation.
    """

    shape: tuple[int, ...]
    conditions: Conditions = Conditions()
    sigma_data: float
    sigma_min: float
    sigma_max: float
    gflops: float
    space: Space = "pixels"
    attention_layers: tuple[str, ...] = ()
    native_unit: NativeUnit | None = None
    learned_variance: bool = False
    origin: Mapping[str, str] = MappingProxyType({})
    compiled: bool = False

    @property
    def num_classes(self) -> int:
        """Labels are 0 ... num_classes - 1; 0 for a model without classes."""
        return self.conditions.count

    @abstractmethod
    def forward(self, x: Tensor, sigma: float, condition: Condition = None) -> Tensor:
        """Denoise.

        Arguments:
            x: noisy samples [B, *shape], float32 or float64.
            sigma: noise level, a Python float (so that no device is ever waited for).
            condition: of the batch, or None for the prediction without one.

        Returns:
            The denoised prediction x0 [B, *shape], in the dtype of x.
        """

    def joint(self, x: Tensor, views: Sequence[View]) -> list[Tensor]:
        """Denoise the same x [B, *shape] several times, an evaluation each: one after the other,
        unless a network can do it in one call.

        Returns:
            A prediction [B, *shape] for each view. That of a lone view without perturbation is
            `forward`'s, bit for bit.

        Raises:
            UsageError: a perturbation of what the model does not have.
        """
        if any(view.perturbation is not None for view in views):
            raise UsageError(NO_LAYERS)
        return [self(x, view.sigma, view.condition) for view in views]


class ExactDenoiser(Denoiser):
    """A denoiser whose distribution is known in closed form, so that results can be checked
    against it."""

    @abstractmethod
    def log_density(self, x: Tensor, sigma: float, labels: Tensor | None = None) -> Tensor:
        """log p(x; sigma | labels) of the data blurred with noise of level sigma, [B],
        differentiable in x."""

    @abstractmethod
    def sample(self, labels: Tensor | None, count: int, generator: torch.Generator) -> Tensor:
        """Draw `count` clean samples [count, *shape], of the given classes [count] where not
        None."""

    @abstractmethod
    def reference(self, count: int, seed: int) -> tuple[Tensor, Tensor | None]:
        """What the samples should look like: true samples and their labels, int64 [N] or None.

        Finite data are given whole, as uint8 images [N, C, H, W]; of a density, `count` draws
        from `seed`, float64 [count, *shape].
        """
