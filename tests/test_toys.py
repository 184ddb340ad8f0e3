"""The toy distributions, against the reference's numbers and the paper's claim."""

import math

import numpy as np
import pytest
import torch
from helpers import golden
from torch import Tensor

from guidex.errors import UsageError
from guidex.guidance.guidance import Guidance
from guidex.guidance.methods import difference, none
from guidex.guidance.rules import Extrapolate
from guidex.guidance.schedules import Interval
from guidex.models.toys import fractal2d, mixture1d
from guidex.sampling.grids import Karras
from guidex.sampling.solvers import Heun
from guidex.sampling.trajectories import sample


@pytest.fixture(scope="module")
def toy() -> dict[str, np.ndarray]:
    return golden("toy2d.npz")


@pytest.mark.parametrize("classes", ["A", "B", "AB"])
def test_fractal_components_are_the_reference(toy, classes):
    model = fractal2d(classes)
    for ours, name in (("weights", "phi"), ("means", "mu"), ("covariances", "Sigma")):
        # Equal in float32, but for the last bit of another machine's sine.
        np.testing.assert_allclose(
            getattr(model, ours).numpy().astype(np.float32),
            toy[f"{classes}_{name}"],
            rtol=1.2e-7,
            atol=1e-11,
        )


@pytest.mark.parametrize("classes", ["A", "B", "AB"])
def test_fractal_density_and_score_are_the_reference(toy, classes):
    model = fractal2d(classes)
    points = torch.from_numpy(toy["points"]).double()
    log_density, scores = (
        torch.from_numpy(toy[f"{classes}_{n}"]).double() for n in ("logp", "score")
    )
    # The reference sums probabilities in float32: they fade out at log p = -87.
    resolved = log_density > -85
    assert resolved.sum() > 300
    for sigma in np.unique(toy["sigma"]):
        rows = resolved & torch.from_numpy(toy["sigma"] == sigma)
        x = points[rows].requires_grad_()
        density = model.log_density(x, float(sigma))
        score = torch.autograd.grad(density.sum(), x)[0]
        torch.testing.assert_close(density.detach(), log_density[rows], rtol=1e-5, atol=1e-5)
        error = (score - scores[rows]).norm(dim=1) / (1 + scores[rows].norm(dim=1))
        assert float(error.max()) < 5e-5


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
    with pytest.raises(UsageError, match="'A', 'B' and 'AB'"):
        fractal2d("BA")


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


def test_guidance_loses_a_mode_where_the_interval_keeps_it():
    """The claim of the interval paper's figures 1 and 2, at its weight and intervals."""
    conditional, unconditional = mixture1d(), mixture1d(conditional=False)
    solver = Heun(grid=Karras(steps=64))

    def sampled(guidance: Guidance) -> Tensor:
        return sample(conditional, guidance, solver, range(1000), batch=1000)[0]

    def cfg(lo: float, hi: float) -> Guidance:
        return difference(unconditional, Interval(w=6.0, lo=lo, hi=hi), Extrapolate())

    plain, below, interval = map(sampled, (none(), cfg(0.0, 0.6), cfg(0.1, 0.6)))
    assert (sampled(cfg(0.0, math.inf)) > 1).all()
    for x in (plain, below, interval):
        assert float((x > 1).double().mean()) == pytest.approx(0.5, abs=0.05)
    # What the interval is for: narrower than the data, on both sides.
    for side in (0, 1):
        spread = [float(x[(x > 1) == side].std()) for x in (plain, interval)]
        assert spread[1] < 0.5 * spread[0]
