"""Directions: differences, sigma scaling in closed form, and classifiers that equal CFG."""

import math

import pytest
import torch
from helpers import gaussian
from torch import Tensor

from guidex.errors import UsageError
from guidex.guidance.directions import ClassifierGradient, Difference, Direction
from guidex.guidance.queries import answer
from guidex.models.classifier import BayesClassifier
from guidex.models.denoiser import ExactDenoiser
from guidex.models.kernel import kernel
from guidex.models.toys import fractal2d, mixture1d

SIGMAS = pytest.mark.parametrize("sigma", (0.02, 0.3, 1.0, 5.0, 80.0))
PAIRS = {
    "kernel": lambda: (kernel("digits", 0.4), kernel("digits", 0.4, conditional=False)),
    "kernels": lambda: (kernel("digits", 0.3), kernel("digits", 0.5, conditional=False)),
    "fractal": lambda: (fractal2d(), fractal2d(conditional=False)),
    "mixtures": lambda: (mixture1d(), mixture1d(conditional=False)),
}


def noisy(model: ExactDenoiser, sigma: float, count: int = 12) -> tuple[Tensor, Tensor]:
    """Samples blurred with noise, and classes in turn."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(count) % model.num_classes
    clean = model.sample(labels, count, generator)
    noise = torch.randn(clean.shape, dtype=torch.float64, generator=generator)
    return clean + sigma * noise, labels


def at(
    direction: Direction, x: Tensor, sigma: float, labels: Tensor | None, main: Tensor
) -> Tensor:
    """The direction, with the predictions that it asks for."""
    return direction(x, sigma, labels, main, *answer(direction.queries, x, sigma, labels))


@pytest.mark.parametrize("reference", [fractal2d(conditional=False), fractal2d(blur=0.1)])
def test_a_difference_leads_away_from_the_reference_for_the_same_class(reference):
    main = fractal2d()
    x, labels = noisy(main, 0.3)
    prediction = main(x, 0.3, labels)
    direction = at(Difference(reference), x, 0.3, labels, prediction)
    assert torch.equal(direction, prediction - reference(x, 0.3, labels))
    assert direction.abs().max() > 0.01
    other = torch.equal(reference(x, 0.3, labels), reference(x, 0.3, 1 - labels))
    assert other == (reference.num_classes == 0)


@pytest.mark.parametrize("pair", ["kernel", "fractal"])
def test_one_network_without_labels_is_its_own_reference(pair):
    conditional, unconditional = PAIRS[pair]()
    x, labels = noisy(conditional, 0.5)
    main = conditional(x, 0.5, labels)
    direction = at(Difference(conditional, drop_labels=True), x, 0.5, labels, main)
    assert torch.equal(direction, main - conditional(x, 0.5, None))
    two_networks = at(Difference(unconditional), x, 0.5, labels, main)
    torch.testing.assert_close(direction, two_networks, rtol=1e-9, atol=1e-11)
    assert direction.abs().max() > 0.01


@SIGMAS
@pytest.mark.parametrize("k", [1.02, 3.0])
def test_sigma_scaling_always_pulls_inward(sigma, k):
    """-x (1 / (s^2 + sigma^2) - 1 / (s^2 + k^2 sigma^2)) sigma^2, at any noise level."""
    model = gaussian(std=0.5)
    x = torch.tensor([[1.5]], dtype=torch.float64)
    direction = at(Difference(model, k=k), x, sigma, None, model(x, sigma))
    coefficient = 1 / (0.25 + sigma**2) - 1 / (0.25 + (k * sigma) ** 2)
    assert coefficient > 0
    torch.testing.assert_close(direction, -(sigma**2) * coefficient * x, rtol=1e-8, atol=1e-13)


@SIGMAS
@pytest.mark.parametrize("pair", PAIRS)
def test_an_exact_classifier_is_classifier_free_guidance(pair, sigma):
    """sigma^2 grad log p(c | x) = sigma^2 (s(x | c) - s(x)) = D(x | c) - D(x)."""
    conditional, unconditional = PAIRS[pair]()
    x, labels = noisy(conditional, sigma)
    labels = labels.roll(1)  # of their own class, samples at low noise need no guidance
    main = conditional(x, sigma, labels)
    free = at(Difference(unconditional), x, sigma, labels, main)
    classifier = ClassifierGradient(BayesClassifier(conditional, unconditional))
    with torch.no_grad():  # as in sampling
        found = classifier(x, sigma, labels, main)
    assert free.abs().max() > 1e-4
    torch.testing.assert_close(found, free, rtol=1e-9, atol=1e-11)
    assert not found.requires_grad and not x.requires_grad and x.grad is None


@pytest.mark.parametrize("sigma", [0.05, 5.0])
def test_probabilities_of_the_classes_add_up_to_one(sigma):
    model = fractal2d()
    classifier = BayesClassifier(model, fractal2d(conditional=False))
    x = torch.randn(50, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    total = torch.zeros(50, dtype=torch.float64)
    for label in range(2):
        prior = model.weights[model.classes == label].sum()
        total += prior * classifier(x, sigma, torch.full((50,), label)).exp()
    torch.testing.assert_close(total, torch.ones_like(total))


def test_impossible_directions_are_refused():
    model = gaussian()
    for k in (0.0, -1.0, math.nan):
        with pytest.raises(UsageError, match="k scales the reference's noise level"):
            Difference(model, k=k)
    with pytest.raises(UsageError, match="needs class labels"):
        classifier = ClassifierGradient(BayesClassifier(model, model))
        classifier(torch.zeros(1, 1), 0.3, None, torch.zeros(1, 1))


def test_costs():
    conditional, unconditional = fractal2d(), fractal2d(conditional=False)
    assert Difference(unconditional).gflops == unconditional.gflops
    classifier = ClassifierGradient(BayesClassifier(conditional, unconditional))
    assert classifier.gflops == 2 * (conditional.gflops + unconditional.gflops)  # and backward
