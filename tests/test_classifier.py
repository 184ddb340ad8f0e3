"""The exact classifier against Bayes' rule."""

import pytest
import torch

from guidex.models.classifier import BayesClassifier
from guidex.models.kernel import kernel
from guidex.models.toys import fractal2d


@pytest.mark.parametrize("sigma", [0.05, 0.5, 5.0])
def test_probabilities_of_the_trees_add_up_to_one(sigma):
    model = fractal2d()
    classifier = BayesClassifier(model, fractal2d(conditional=False))
    x = torch.randn(50, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    total = torch.zeros(50, dtype=torch.float64)
    for label in range(2):
        prior = model.weights[model.classes == label].sum()
        total += prior * classifier(x, sigma, torch.full((50,), label)).exp()
    torch.testing.assert_close(total, torch.ones_like(total))


@pytest.mark.parametrize("sigma", [0.1, 100.0])
def test_digits_are_recognised_until_noise_hides_them(sigma):
    model, whole = kernel("digits", 0.3), kernel("digits", 0.3, conditional=False)
    classifier = BayesClassifier(model, whole)
    images, labels = (part[::40] for part in model.reference(0, 0))
    x = images.double() / 127.5 - 1
    scores = torch.stack([classifier(x, sigma, torch.full((len(x),), y)) for y in range(10)])
    if sigma < 1:
        assert torch.equal(scores.argmax(0), labels)
    else:
        assert scores.abs().max() < 0.01  # p(c | x) is the prior, whatever x


def test_the_classifier_is_differentiable():
    classifier = BayesClassifier(fractal2d(), fractal2d(conditional=False))
    x = torch.randn(4, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    labels = torch.tensor([0, 1, 0, 1])
    assert torch.autograd.gradcheck(
        lambda x: classifier(x, 0.5, labels), x.requires_grad_(), fast_mode=True
    )
