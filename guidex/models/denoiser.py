"""What every model is to the rest of guidex: a denoiser.

A denoiser estimates the clean image from a noisy one, D(x; sigma, c) ~ E[x0 | x = x0 + sigma * n,
c] (Karras et al. 2022, arXiv 2206.00364, section 2). The score follows from it:
grad log p(x; sigma) = (D(x; sigma) - x) / sigma^2.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal

import torch
from torch import Tensor, nn

from guidex.errors import UsageError
from guidex.models.attention import NO_LAYERS, Parts, Perturbation
from guidex.models.condition import Condition, Conditions
from guidex.models.native_time import NativeUnit

Space = Literal["pixels", "latents", "points"]
"""What a sample is: pixels in [-1, 1] of an image, latents of a decoder, coordinates of a toy."""


@dataclass(frozen=True)
class View:
    """How a denoiser is asked about x: at which noise level, for which condition of the batch, with
    which perturbation of its self-attention. `extras`, if any, is filled with what the network says
    beside x0: "variance" (see `Denoiser.learned_variance`)."""

    sigma: float
    condition: Condition
    perturbation: Perturbation | None = None
    extras: dict[str, Tensor] | None = None


def by_layer(views: Sequence[View], layers: Collection[str]) -> dict[str, list[View | None]]:
    """The perturbed ones of a network's layers, with the parts of a batch that perturb them; None
    for the other parts. A UsageError where a layer is none of the network's."""
    asked: dict[str, list[View | None]] = {}
    for i, view in enumerate(views):
        for layer in view.perturbation.chosen(layers) if view.perturbation is not None else ():
            asked.setdefault(layer, [None] * len(views))[i] = view
    return asked


def changed_parts(
    views: Sequence[View], shapes: Mapping[str, tuple[int, int]], device: torch.device
) -> dict[str, Parts]:
    """How the parts of a batch attend, by layer, where a part is perturbed; `shapes`: heads and
    tokens of all layers."""
    parts: dict[str, Parts] = {}
    for layer, asked in by_layer(views, shapes).items():
        parts[layer] = [
            view and view.perturbation.change(layer, *shapes[layer], view.sigma, device)
            for view in asked
        ]
    return parts


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
        native_unit: of the time that its network is told (guidex.models.native_time); None: sigma.
        learned_variance: whether it also predicts the variance of ancestral steps.
        origin: of the file that it was made from, if any, "source" (its name, or that of what it
            was converted from), "path" (as given), "sha256", and "original", that before.
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
        """Denoise x [B, *shape], float32 or float64, to the prediction x0, of the same shape and
        dtype; sigma is a Python float, so that no device is ever waited for."""

    def joint(self, x: Tensor, views: Sequence[View]) -> list[Tensor]:
        """Denoise the same x [B, *shape] several times, an evaluation each: one after the other,
        unless a network can do it in one call. The prediction of a lone view without perturbation
        is `forward`'s, bit for bit.

        Raises:
            UsageError: a perturbation of what the model does not have.
        """
        if any(view.perturbation is not None for view in views):
            raise UsageError(NO_LAYERS)
        return [self(x, view.sigma, view.condition) for view in views]


class ExactDenoiser(Denoiser):
    """A denoiser whose distribution is known in closed form, so that results can be checked against
    it; labels are ignored unless it is `conditional`."""

    conditional: bool

    @abstractmethod
    def log_density(self, x: Tensor, sigma: float, labels: Tensor | None = None) -> Tensor:
        """log p(x; sigma | labels) of the data blurred with noise of level sigma, [B],
        differentiable in x [B, *shape]; sigma may be 0 where there is a density of clean data."""

    @abstractmethod
    def sample(self, labels: Tensor | None, count: int, generator: torch.Generator) -> Tensor:
        """Draw `count` clean samples [count, *shape], of the classes [count] if not None."""

    @abstractmethod
    def reference(self, count: int, seed: int) -> tuple[Tensor, Tensor | None]:
        """True samples and their labels, int64 [N] or None: finite data whole, as uint8 images
        [N, C, H, W]; of a density, `count` draws from `seed`, float64 [count, *shape]."""

    def by_class(
        self, function: Callable[[Tensor, int | None], Tensor], rows: Tensor, labels: Tensor | None
    ) -> Tensor:
        """function(rows of a class, the class) for each class that occurs, put back into the order
        of the rows [B, ...]; function(rows, None) where no labels count."""
        if labels is not None and self.conditional:
            self.conditions.check(labels, len(rows))
        if labels is None or not self.conditional or len(rows) == 0:
            return function(rows, None)
        order = labels.to(rows.device).argsort(stable=True)
        sizes = labels.bincount(minlength=self.num_classes).tolist()
        parts = enumerate(rows[order].split(sizes))
        results = [function(part, label) for label, part in parts if len(part) > 0]
        return torch.cat(results)[order.argsort()]
