"""The exact Gaussian mixture, against closed forms."""

import math

import pytest
import torch
from torch import Tensor

from guidex.errors import UsageError
from guidex.models.mixture import PAIRS_AT_ONCE, GaussianMixture

SIGMAS = (0.002, 0.03, 0.5, 3.0, 80.0)


def make_mixture(dimension: int = 2, conditional: bool = True, blur: float = 0.0):
    """Seven correlated components; classes 0, 1, 3 in mixed order, none of class 2."""
    generator = torch.Generator().manual_seed(dimension)
    roots = torch.randn(
        7, dimension, dimension, dtype=torch.float64, generator=generator
    ) / math.sqrt(dimension)
    return GaussianMixture(
        weights=torch.arange(1, 8),
        means=2 * torch.randn(7, dimension, dtype=torch.float64, generator=generator),
        covariances=0.1 * (roots @ roots.mT + 0.05 * torch.eye(dimension)),
        classes=[0, 3, 1, 1, 0, 3, 3],
        modes=[0, 1, 2, 3, 0, 5, 6],
        conditional=conditional,
        blur=blur,
    )


def noisy(model: GaussianMixture, sigma: float, count: int = 60, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    clean = model.sample(None, count, generator)
    return clean + sigma * torch.randn(clean.shape, dtype=torch.float64, generator=generator)


def cycle(count: int) -> Tensor:
    return torch.tensor([0, 1, 3]).repeat(count)[:count]


def gradient(model: GaussianMixture, x: Tensor, sigma: float, labels: Tensor | None) -> Tensor:
    x = x.clone().requires_grad_()
    return torch.autograd.grad(model.log_density(x, sigma, labels).sum(), x)[0]


@pytest.mark.parametrize("dimension", [1, 2, 5])
@pytest.mark.parametrize("sigma", [0.0, 0.03, 1.0, 80.0])
def test_log_density_is_the_weighted_sum_over_the_class(dimension, sigma):
    model = make_mixture(dimension)
    x = noisy(model, sigma)
    noise = sigma**2 * torch.eye(dimension, dtype=torch.float64)
    joint = torch.stack(
        [
            torch.distributions.MultivariateNormal(mean, covariance + noise).log_prob(x)
            + math.log(weight)
            for weight, mean, covariance in zip(
                model.weights, model.means, model.covariances, strict=True
            )
        ],
        dim=1,
    )
    torch.testing.assert_close(model.log_density(x, sigma), joint.logsumexp(1))
    ones = model.classes == 1
    expected = joint[:, ones].logsumexp(1) - model.weights[ones].sum().log()
    labels = torch.ones(len(x), dtype=torch.int64)
    torch.testing.assert_close(model.log_density(x, sigma, labels), expected)


@pytest.mark.parametrize("dimension", [1, 2, 5])
@pytest.mark.parametrize("sigma", SIGMAS)
@pytest.mark.parametrize("with_labels", [False, True])
def test_tweedie(dimension, sigma, with_labels):
    """D = x + sigma^2 grad log p (Karras et al. 2022, eq. 3)."""
    model = make_mixture(dimension)
    x = noisy(model, sigma)
    labels = cycle(len(x)) if with_labels else None
    expected = x + sigma**2 * gradient(model, x, sigma, labels)
    torch.testing.assert_close(model(x, sigma, labels), expected, rtol=1e-9, atol=1e-11)


def test_a_mixed_batch_equals_one_call_per_class():
    model = make_mixture()
    x, labels = noisy(model, 0.5), cycle(60)
    for function in (model.forward, model.log_density):
        mixed = function(x, 0.5, labels)
        for label in (0, 1, 3):
            rows = labels == label
            torch.testing.assert_close(mixed[rows], function(x[rows], 0.5, labels[rows]))
        assert not torch.allclose(mixed, function(x, 0.5), atol=1e-2)


def test_an_unconditional_mixture_ignores_labels():
    conditional, unconditional = make_mixture(), make_mixture(conditional=False)
    x = noisy(conditional, 0.5)
    assert (conditional.num_classes, unconditional.num_classes) == (4, 0)
    assert torch.equal(unconditional(x, 0.5, cycle(60)), conditional(x, 0.5))


def test_blur_is_noise_that_does_not_count_as_noise():
    """A blurred density is that of the data at sqrt(sigma^2 + blur^2)."""
    sharp, blurred = make_mixture(), make_mixture(blur=0.4)
    x = noisy(sharp, 0.5)
    of_blurred, of_sharp = (
        blurred.log_density(x, 0.3, cycle(60)),
        sharp.log_density(x, 0.5, cycle(60)),
    )
    torch.testing.assert_close(of_blurred, of_sharp)
    assert blurred.sigma_data == sharp.sigma_data


def test_sample_moments():
    model, count = make_mixture(3), 90_000
    labels = cycle(count)
    x = model.sample(labels, count, torch.Generator().manual_seed(0))
    for label in (0, 1, 3):
        rows, members = labels == label, model.classes == label
        weights = model.weights[members] / model.weights[members].sum()
        mean = weights @ model.means[members]
        centred = model.means[members] - mean
        outer = model.covariances[members] + centred[:, :, None] * centred[:, None, :]
        covariance = (weights[:, None, None] * outer).sum(0)
        # Five standard errors of 30,000 samples; those of the covariance allow a kurtosis of 4.
        scale = covariance.diagonal().sqrt()
        assert ((x[rows].mean(0) - mean) / scale).abs().max() < 5 / math.sqrt(30_000)
        ratio = (x[rows].T.cov() - covariance) / (scale[:, None] * scale)
        assert ratio.abs().max() < 10 / math.sqrt(30_000)
    assert torch.equal(x, model.sample(labels, count, torch.Generator().manual_seed(0)))
    assert not torch.equal(x, model.sample(labels, count, torch.Generator().manual_seed(1)))


@pytest.mark.parametrize("sigma", [0.0, 0.03, 80.0])
@pytest.mark.parametrize("distance", [1e2, 1e6])
def test_far_points_are_pulled_to_the_data(sigma, distance):
    model = make_mixture()
    angles = torch.linspace(0, 2 * math.pi, 40, dtype=torch.float64)
    x = distance * torch.stack([angles.cos(), angles.sin()], dim=1)
    denoised = model(x, sigma)
    assert denoised.isfinite().all()
    assert model.log_density(x, sigma).isfinite().all()
    score = gradient(model, x, sigma, None)
    assert ((score * x).sum(1) < 0).all()
    torch.testing.assert_close(denoised, x + sigma**2 * score, rtol=1e-8, atol=1e-8)


def test_translation_far_from_the_origin_costs_no_precision():
    model, offset = make_mixture(), 1e4
    parts = (model.weights, model.means + offset, model.covariances, model.classes, model.modes)
    moved, x = GaussianMixture(*parts, conditional=True), noisy(model, 0.03)
    back = moved(x + offset, 0.03) - offset
    torch.testing.assert_close(back, model(x, 0.03), rtol=0.0, atol=1e-8)


@pytest.mark.parametrize("with_labels", [False, True])
def test_a_row_does_not_depend_on_its_batch(with_labels, monkeypatch):
    model = make_mixture()
    x, labels = noisy(model, 0.5), cycle(60) if with_labels else None
    whole = model(x, 0.5, labels)
    monkeypatch.setitem(PAIRS_AT_ONCE, "cpu", 1)  # chunks of one tile, so that rows are cut up too
    for size in (1, 7, 60):
        labels_of = [None] * 60 if labels is None else labels.split(size)
        parts = [model(part, 0.5, y) for part, y in zip(x.split(size), labels_of, strict=False)]
        torch.testing.assert_close(torch.cat(parts), whole, rtol=1e-13, atol=1e-13)


def test_dtype_and_empty_batch():
    model = make_mixture()
    x = noisy(model, 0.5)
    single = model(x.float(), 0.5, cycle(60))
    assert torch.equal(single, model(x.float().double(), 0.5, cycle(60)).float())
    assert single.dtype == model.log_density(x.float(), 0.5).dtype == torch.float32
    for labels in (None, torch.zeros(0, dtype=torch.int64)):
        assert model(x[:0], 0.5, labels).shape == (0, 2)
        assert model.sample(labels, 0, torch.Generator()).shape == (0, 2)


def test_facts():
    model = make_mixture(3)
    assert model.shape == (3,) and float(model.weights.sum()) == pytest.approx(1)
    # 55 operations per component in three dimensions; a class has 7 / 3 components on average.
    assert make_mixture(3, conditional=False).gflops == pytest.approx(7 * 55e-9)
    assert model.gflops == pytest.approx(7 / 3 * 55e-9)
    two = GaussianMixture([1, 1], [[-1.0], [1.0]], [[[0.25]]] * 2, [0, 0], [0, 1], False)
    assert two.sigma_data == pytest.approx(math.sqrt(1.25))


@pytest.mark.parametrize(
    ("labels", "says"),
    [
        (torch.tensor([0, 1, 2]), "class 2 of this mixture has no components"),
        (torch.tensor([0, 4, 1]), "labels go from 0 to 3, not 0 … 4"),
        (torch.tensor([0, -1, 1]), "labels go from 0 to 3, not -1 … 1"),
        (torch.eye(3, 4), r"labels must be integers \[3\], one per sample, not \[3, 4\]"),
    ],
)
def test_wrong_labels(labels, says):
    model, x = make_mixture(), torch.zeros(3, 2)
    for call in (
        lambda: model(x, 0.5, labels),
        lambda: model.log_density(x, 0.5, labels),
        lambda: model.sample(labels, 3, torch.Generator()),
    ):
        with pytest.raises(UsageError, match=says):
            call()
    with pytest.raises(UsageError, match=r"x must be \[B, 2\], not \[3, 1\]"):
        model(x[:, :1], 0.5)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        *(({name: [0]}, "equally many") for name in ("weights", "covariances", "classes", "modes")),
        ({"weights": [0.5, -0.1]}, "above 0, not"),
        ({"covariances": [[[1.0]], [[0.0]]]}, "the smallest eigenvalue is 0"),
        ({"means": [[0.0] * 2] * 2, "covariances": [[[1, 0.5], [0.2, 1]]] * 2}, "symmetric"),
    ],
)
def test_wrong_components(change, says):
    good = {"means": [[0.0], [1.0]], "covariances": [[[1.0]]] * 2, "conditional": True}
    good |= {"weights": [1.0, 1.0], "classes": [0, 0], "modes": [0, 1]}
    with pytest.raises(UsageError, match=says):
        GaussianMixture(**(good | change))
