"""Directions: what guidance moves along, as a difference of denoised predictions.

Every direction is in units of x0 (the denoised prediction), so that a rule can add it to one:
D_w = D_main + (w - 1) * direction.
"""

from abc import ABC, abstractmethod
from copy import copy
from dataclasses import replace
from typing import Self

import torch
from torch import Tensor

from guidex.errors import UsageError
from guidex.guidance.queries import Query
from guidex.models.attention import Mode, Perturbation
from guidex.models.classifier import BayesClassifier
from guidex.models.condition import Condition
from guidex.models.spec import Model, load


class Direction(ABC):
    """The interface.

    Attributes:
        queries: predictions that it needs beside the main one, made before it is asked for.
        evaluations: evaluations of a reference network that one call takes, queries included.
        gflops: cost of one call for one image, 10^9 floating-point operations.
        zero: whether it is 0 everywhere, so that no weight makes it guidance.
    """

    queries: tuple[Query, ...] = ()
    evaluations: int = 1
    gflops: float
    zero: bool = False

    def on(self, device: str | torch.device) -> Self:
        """The same with its networks on a device, ready to be called."""
        made = copy(self)
        made.queries = tuple(
            replace(query, network=load(query.network, device)) for query in self.queries
        )
        made.gflops = sum(query.network.gflops for query in made.queries)  # recipes may not know it
        return made

    @abstractmethod
    def __call__(
        self, x: Tensor, sigma: float, condition: Condition, main: Tensor, *predictions: Tensor
    ) -> Tensor:
        """The direction at x [B, *shape], given the main prediction there, main = D(x; sigma,
        condition), and those it asked for, one per query."""


class Difference(Direction):
    """From a reference's prediction to the main one.

    With k = 1 this is D_main - D_ref: classifier-free guidance for an unconditional reference (Ho
    & Salimans 2022, arXiv 2207.12598), autoguidance for a weaker version of the main model (Karras
    et al. 2024, arXiv 2406.02507). With k > 1 the reference looks at noise level k * sigma (sigma
    scaling), and what is subtracted are *scores*, sigma^2 (s(x; sigma) - s_ref(x; k sigma)), since
    denoised predictions of different noise levels have no common scale.

    Arguments:
        reference: denoiser of the same shape as the main one; or that, if k > 1 or drop_labels.
        k: factor on the reference's noise level; positive.
        drop_labels: ask the reference without a condition, which it was trained for, too.
        channels: how many are guided, from the first (DiT, SiT, LightningDiT: 3); None: all.
    """

    def __init__(
        self,
        reference: Model,
        k: float = 1.0,
        drop_labels: bool = False,
        channels: int | None = None,
    ) -> None:
        if channels is not None and channels < 1:
            raise UsageError(f"channels is {channels}; at least 1 must be guided, null: all")
        if not k > 0:
            raise UsageError(f"k scales the reference's noise level and must be positive, not {k}")
        self.k = k
        self.channels = channels
        self.gflops = reference.gflops
        self.queries = (Query(reference, k, drop_labels),)

    def __call__(
        self, x: Tensor, sigma: float, condition: Condition, main: Tensor, reference: Tensor
    ) -> Tensor:
        if self.k == 1:
            direction = main - reference
        else:
            direction = (main - x) - (reference - x) / self.k**2
        if self.channels is not None:
            direction[:, self.channels :] = 0
        return direction


class PerturbedAttention(Direction):
    """D_main - D_ref, the reference being the same network with the attention maps of some layers
    perturbed: perturbed-attention guidance (Ahn et al. 2024, arXiv 2403.17377).

    w - 1 is the paper's scale s. Both predictions come from one call of the network.

    Arguments:
        reference: the main model; it must have self-attention layers.
        layers: name of the layer to perturb, or a pattern with * and ?, or a list of them; [] is no
            guidance. UsageError where the model does not have it.
        mode, ratio, std, seed: how, see guidex.models.attention.Perturbation.
    """

    def __init__(
        self,
        reference: Model,
        layers: str | list[str],
        mode: Mode = "identity",
        ratio: float = 0.25,
        std: float = 1.0,
        seed: int = 0,
    ) -> None:
        names = (layers,) if isinstance(layers, str) else tuple(layers)
        perturbation = Perturbation(names, mode, ratio, std, seed)
        if reference.attention_layers is not None:
            perturbation.chosen(reference.attention_layers)
        self.zero = len(perturbation.layers) == 0
        self.evaluations = 0 if self.zero else 1
        self.gflops = 0.0 if self.zero else reference.gflops
        self.queries = () if self.zero else (Query(reference, perturbation=perturbation),)

    def __call__(
        self, x: Tensor, sigma: float, condition: Condition, main: Tensor, *predictions: Tensor
    ) -> Tensor:
        if self.zero:
            return torch.zeros_like(main)
        (perturbed,) = predictions
        return main - perturbed


class ClassifierGradient(Direction):
    """sigma^2 * grad_x log p(labels | x; sigma) (Dhariwal & Nichol 2021, arXiv 2105.05233, in x0
    units), of a classifier that is known up to a constant and differentiable in x.

    w - 1 is their scale s; with an exact classifier the result equals classifier-free guidance.
    """

    def __init__(self, classifier: BayesClassifier) -> None:
        self.classifier = classifier
        self.gflops = 2 * classifier.gflops  # the backward pass costs about as much

    def on(self, device: str | torch.device) -> Self:
        return type(self)(self.classifier.to(device))

    def __call__(self, x: Tensor, sigma: float, condition: Condition, main: Tensor) -> Tensor:
        if condition is None:
            raise UsageError("classifier guidance needs class labels; this model has no classes")
        with torch.enable_grad():
            leaf = x.detach().requires_grad_()
            log_prob = self.classifier(leaf, sigma, condition).sum()
            (gradient,) = torch.autograd.grad(log_prob, leaf)
        return sigma**2 * gradient
