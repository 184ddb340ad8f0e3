"""The toy distributions, against the reference's numbers and the paper's claim."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from guidex.errors import UsageError
from guidex.models.toys import fractal2d, mixture1d

GOLDEN = Path(__file__).parent / "golden" / "toy2d.npz"


@pytest.fixture(scope="module")
def golden():
    if not GOLDEN.exists():
        pytest.skip(f"{GOLDEN} is absent")
    with np.load(GOLDEN, allow_pickle=False) as file:
        return dict(file)


def heun(denoise, x: Tensor, steps: int, sigma_max: float) -> Tensor:
    """Karras et al. 2022, algorithm 1, with sigma_min 0.002 and rho 7."""
    ends = torch.tensor([sigma_max, 0.002], dtype=torch.float64) ** (1 / 7)
    grid = (ends[0] + torch.arange(steps) / (steps - 1) * (ends[1] - ends[0])) ** 7
    grid = [*grid.tolist(), 0.0]
    for sigma, following in zip(grid, grid[1:], strict=False):
        slope = (x - denoise(x, sigma)) / sigma
        euler = x + (following - sigma) * slope
        if following > 0:
            slope = (slope + (euler - denoise(euler, following)) / following) / 2
        x = x + (following - sigma) * slope
    return x


def guided(main, ref, w: float, low: float = 0.0, high: float = math.inf):
    """Classifier-free guidance in the interval (low, high]."""

    def denoise(x: Tensor, sigma: float) -> Tensor:
        prediction, reference = main(x, sigma), ref(x, sigma)
        return prediction + ((w if low < sigma <= high else 1) - 1) * (prediction - reference)

    return denoise


@pytest.mark.parametrize("classes", ["A", "B", "AB"])
def test_fractal_components_are_the_reference(golden, classes):
    model = fractal2d(classes)
    for ours, name in (("weights", "phi"), ("means", "mu"), ("covariances", "Sigma")):
        # Equal in float32, but for the last bit of another machine's sine.
        np.testing.assert_allclose(
            getattr(model, ours).numpy().astype(np.float32),
            golden[f"{classes}_{name}"],
            rtol=1.2e-7,
            atol=1e-11,
        )


@pytest.mark.parametrize("classes", ["A", "B", "AB"])
def test_fractal_density_and_score_are_the_reference(golden, classes):
    model = fractal2d(classes)
    points = torch.from_numpy(golden["points"]).double()
    # The reference sums probabilities in float32: they fade out at log p = -87.
    resolved = golden[f"{classes}_logp"] > -85
    assert resolved.sum() > 300
    for sigma in np.unique(golden["sigma"]):
        rows = resolved & (golden["sigma"] == sigma)
        x = points[torch.from_numpy(rows)].requires_grad_()
        density = model.log_density(x, float(sigma))
        score = torch.autograd.grad(density.sum(), x)[0]
        expected = torch.from_numpy(golden[f"{classes}_logp"][rows]).double()
        torch.testing.assert_close(density.detach(), expected, rtol=1e-5, atol=1e-5)
        expected = torch.from_numpy(golden[f"{classes}_score"][rows]).double()
        error = (score - expected).norm(dim=1) / (1 + expected.norm(dim=1))
        assert float(error.max()) < 5e-5
        denoised = (model(x, float(sigma)) - x).detach() / float(sigma) ** 2
        torch.testing.assert_close(denoised, score, rtol=1e-8, atol=1e-8)


def test_fractal_resolves_what_the_reference_cannot(golden):
    model = fractal2d("B")
    faded = np.isneginf(golden["B_logp"]) & (golden["sigma"] == golden["sigma"].min())
    assert faded.sum() > 20
    x = torch.from_numpy(golden["points"][faded]).double()
    density = model.log_density(x, float(golden["sigma"].min()))
    assert density.isfinite().all() and float(density.max()) < -87


@torch.no_grad()
def test_fractal_trajectories_are_the_reference(golden):
    a, both = fractal2d("A"), fractal2d("AB", conditional=False)
    x = torch.from_numpy(golden["traj_init"]).double()
    for denoise, name in ((a, "A"), (guided(a, both, w=3), "A_cfg3_AB")):
        expected = torch.from_numpy(golden[f"traj_final_{name}"]).double()
        final = heun(denoise, x, steps=32, sigma_max=5.0)
        torch.testing.assert_close(final, expected, rtol=0, atol=1e-5)


def test_fractal_labels_choose_the_tree():
    both, trees = fractal2d(), [fractal2d("A"), fractal2d("B")]
    assert both.num_classes == 2 and trees[0].num_classes == trees[1].num_classes == 1
    x = both.sample(None, 40, torch.Generator().manual_seed(0))
    for label, tree in enumerate(trees):
        labels = torch.full((40,), label)
        torch.testing.assert_close(both(x, 0.1, labels), tree(x, 0.1, torch.zeros_like(labels)))
        own = both.sample(labels, 40, torch.Generator().manual_seed(1))
        other = torch.full((40,), 1 - label)
        closer = both.log_density(own, 0.01, labels) > both.log_density(own, 0.01, other)
        assert closer.double().mean() > 0.95


def test_fractal_facts():
    both = fractal2d()
    assert both.shape == (2,) and both.sigma_data == 0.5
    assert len(both.weights) == 2032
    assert both.modes.bincount().tolist() == [8] * 254
    assert both.classes.tolist() == [0] * 1016 + [1] * 1016
    assert fractal2d("B").modes.bincount().tolist() == [8] * 127
    assert float(both.weights[:1016].sum()) == pytest.approx(0.477, abs=5e-4)
    centred = both.means - both.weights @ both.means
    variance = both.weights @ (both.covariances.diagonal(dim1=1, dim2=2) + centred.square())
    np.testing.assert_allclose(both.weights @ both.means, 0, atol=1e-3)
    np.testing.assert_allclose(variance.sqrt(), 0.5, atol=1e-3)
    assert both.gflops == pytest.approx(1016 * 30e-9)


@pytest.mark.parametrize("classes", ["", "C", "BA", "ab"])
def test_fractal_of_unknown_classes(classes):
    with pytest.raises(UsageError, match="'A', 'B' and 'AB'"):
        fractal2d(classes)


@pytest.mark.parametrize(
    ("conditional", "means", "deviation"), [(True, [0.5, 1.5], 0.25), (False, [-1, 1], 0.5)]
)
def test_mixture1d_is_as_published(conditional, means, deviation):
    model = mixture1d(conditional)
    assert model.shape == (1,) and model.num_classes == (1 if conditional else 0)
    assert model.modes.tolist() == [0, 1]
    x = torch.linspace(-3, 3, 50, dtype=torch.float64)[:, None]
    density = sum(torch.distributions.Normal(mean, deviation).log_prob(x).exp() for mean in means)
    torch.testing.assert_close(model.log_density(x, 0.0).exp(), density[:, 0] / 2)
    spread = np.std(means) if conditional else 1.0
    assert model.sigma_data == pytest.approx(math.hypot(spread, deviation))


@torch.no_grad()
def test_guidance_loses_a_mode_where_the_interval_keeps_it():
    """The claim of the interval paper's figures 1 and 2, at its weight and intervals."""
    conditional, unconditional = mixture1d(), mixture1d(conditional=False)
    generator = torch.Generator().manual_seed(0)
    x = 80 * torch.randn(1000, 1, dtype=torch.float64, generator=generator)
    sampled = {
        interval: heun(guided(conditional, unconditional, w, *interval), x, 64, sigma_max=80.0)
        for interval, w in {
            (math.inf, math.inf): 1.0,
            (0.0, math.inf): 6.0,
            (0.0, 0.6): 6.0,
            (0.1, 0.6): 6.0,
        }.items()
    }
    right = {interval: float((x > 1).double().mean()) for interval, x in sampled.items()}
    assert right.pop((0.0, math.inf)) == 1
    for share in right.values():
        assert share == pytest.approx(0.5, abs=0.05)
    # What the interval is for: narrower than the data, on both sides.
    plain, interval = sampled[(math.inf, math.inf)], sampled[(0.1, 0.6)]
    for side in (0, 1):
        spread = [float(x[(x > 1) == side].std()) for x in (plain, interval)]
        assert spread[1] < 0.5 * spread[0]


@torch.no_grad()
def test_a_blurred_model_guides_without_changing_branches():
    """At w = 3 autoguidance removes the outliers of the fractal; CFG moves samples elsewhere."""
    a, weaker, both = fractal2d("A"), fractal2d("A", blur=0.03), fractal2d(conditional=False)
    generator = torch.Generator().manual_seed(0)
    x = a.sample(None, 300, generator)
    x = x + 5 * torch.randn(x.shape, dtype=torch.float64, generator=generator)
    plain, autoguided, cfg = (
        heun(denoise, x, steps=16, sigma_max=5.0)
        for denoise in (a, guided(a, weaker, w=3), guided(a, both, w=3))
    )
    low, guided_low = (
        float(a.log_density(samples, 0.0).quantile(0.02)) for samples in (plain, autoguided)
    )
    assert guided_low > low + 0.5
    # From the same noise, autoguidance leads to the same branch.
    kept, kept_by_cfg = (
        float((nearest_branches(a, samples) == nearest_branches(a, plain)).double().mean())
        for samples in (autoguided, cfg)
    )
    assert kept > 0.9
    assert kept_by_cfg < 0.2


def nearest_branches(model, x: Tensor) -> Tensor:
    return model.modes[torch.cdist(x, model.means).argmin(dim=1)]
