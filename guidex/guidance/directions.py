"""Directions: what guidance moves along, as a difference of denoised predictions.

Every direction is in units of x0 (the denoised prediction), so that a rule can add it to one:
D_w = D_main + (w - 1) * direction.
"""

from abc import ABC, abstractmethod

import torch
from torch import Tensor

from guidex.errors import UsageError
from guidex.models.classifier import BayesClassifier
from guidex.models.denoiser import Denoiser


class Direction(ABC):
    """The interface.

    Attributes:
        evaluations: evaluations of a reference network that one call makes.
        gflops: cost of one call for one image, 10^9 floating-point operations.
    """

    evaluations: int = 1
    gflops: float

    @abstractmethod
    def __call__(self, x: Tensor, sigma: float, labels: Tensor | None, main: Tensor) -> Tensor:
        """The direction at x [B, *shape], given the main prediction there, main = D(x; sigma,
        labels)."""


class Difference(Direction):
    """From a reference's prediction to the main one.

    With k = 1 this is D_main - D_ref: classifier-free guidance for an unconditional reference (Ho
    & Salimans 2022, arXiv 2207.12598), autoguidance for a weaker version of the main model (Karras
    et al. 2024, arXiv 2406.02507). With k > 1 the reference looks at noise level k * sigma (sigma
    scaling). What is subtracted are then *scores*, sigma^2 (s(x; sigma) - s_ref(x; k sigma)) with
    s(x; sigma) = (D(x; sigma) - x) / sigma^2; denoised predictions of different noise levels have
    no common scale, and their difference would push the other way.

    Arguments:
        reference: denoiser of the same shape as the main one; it may be the main one itself if k >
            1.
        k: factor on the reference's noise level; positive.
    """

    def __init__(self, reference: Denoiser, k: float = 1.0) -> None:
        if not k > 0:
            raise UsageError(f"k scales the reference's noise level and must be positive, not {k}")
        self.reference = reference
        self.k = k
        self.gflops = reference.gflops

    def __call__(self, x: Tensor, sigma: float, labels: Tensor | None, main: Tensor) -> Tensor:
        reference = self.reference(x, self.k * sigma, labels)
        if self.k == 1:
            return main - reference
        return (main - x) - (reference - x) / self.k**2


class ClassifierGradient(Direction):
    """sigma^2 * grad_x log p(labels | x; sigma) (Dhariwal & Nichol 2021, arXiv 2105.05233, in x0
    units).

    w - 1 is their scale s on top of a conditional main model; with an exact classifier the result
    equals classifier-free guidance.

    Arguments:
        classifier: log p(labels | x; sigma) up to a constant, differentiable in x.
    """

    def __init__(self, classifier: BayesClassifier) -> None:
        self.classifier = classifier
        self.gflops = (
            2 * classifier.gflops
        )  # a backward pass costs about what the forward pass does

    def __call__(self, x: Tensor, sigma: float, labels: Tensor | None, main: Tensor) -> Tensor:
        if labels is None:
            raise UsageError(
                "classifier guidance needs class labels, but this model has no classes"
            )
        with torch.enable_grad():
            leaf = x.detach().requires_grad_()
            log_prob = self.classifier(leaf, sigma, labels).sum()
            (gradient,) = torch.autograd.grad(log_prob, leaf)
        return sigma**2 * gradient
