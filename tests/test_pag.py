"""Perturbed-attention guidance: by hand, in one call with the main prediction, without traces."""

from dataclasses import replace

import pytest
import torch
from edm2_networks import TINY, captured_graphs, relative, tiny_model
from helpers import two_classes
from torch import Tensor

from guidex.commands import layers as runs_layers
from guidex.errors import UsageError
from guidex.guidance.directions import Difference, PerturbedAttention
from guidex.guidance.guidance import Guidance, Guided, Term
from guidex.guidance.methods import none, perturbed_attention
from guidex.guidance.rules import APG, Extrapolate, Rescale
from guidex.guidance.schedules import Constant, Interval
from guidex.models.attention import Perturbation, attention
from guidex.models.denoiser import View
from guidex.models.edm2 import network as edm2_network
from guidex.models.edm2.folded import fold
from guidex.models.edm2.network import EDM2
from guidex.models.spec import ModelSpec
from guidex.sampling.grids import Karras
from guidex.sampling.solvers import Euler, Heun
from guidex.sampling.trajectories import sample

LAYERS = ("enc.8x8_block0", "dec.8x8_in0", "dec.8x8_block0", "dec.8x8_block1")
MODES = ("identity", "mask", "off_diagonal", "noise")
SIGMA = 0.7
LABELS = torch.tensor([4, 0, 2])
SEEDS = [3, 0, 8]
SOLVER = Heun(grid=Karras(steps=4, sigma_max=5.0))


@pytest.fixture(scope="module", params=["plain", "folded"])
def model(request: pytest.FixtureRequest) -> EDM2:
    plain = tiny_model()
    return fold(plain) if request.param == "folded" else plain


def noisy(batch: int, sigma: float, dtype: torch.dtype = torch.float32) -> Tensor:
    generator = torch.Generator().manual_seed(2)
    shape = (batch, TINY.img_channels, TINY.img_resolution, TINY.img_resolution)
    return (0.5 + sigma) * torch.randn(shape, generator=generator, dtype=dtype)


def alone(model: EDM2, x: Tensor, view: View) -> Tensor:
    [x0] = model.joint(x, [view])
    return x0


# The attention map


def maps(perturbation: Perturbation, tokens: int = 40) -> tuple[Tensor, Tensor]:
    """Attention maps [3, 2, N, N], plain and perturbed, in the middle of a larger batch.

    Of values that are the unit vectors, attention returns its map.
    """
    batch, heads = 3, 2
    generator = torch.Generator().manual_seed(0)
    q, k = torch.randn(2, 3 * batch, heads, tokens, tokens, generator=generator)
    v = torch.eye(tokens).expand(3 * batch, heads, -1, -1)
    change = perturbation.change("layer", heads, tokens, SIGMA, torch.device("cpu"))
    found = attention(q, k, v, [None, change, None])
    plain = (q @ k.mT / tokens**0.5).softmax(-1)
    torch.testing.assert_close(found[:batch], plain[:batch])
    torch.testing.assert_close(found[-batch:], plain[-batch:])
    return plain[batch : 2 * batch], found[batch : 2 * batch]


@pytest.mark.parametrize("mode", ["mask", "off_diagonal"])
@pytest.mark.parametrize("ratio", [0.25, 0.8])
def test_masked_rows_are_renormalised(mode, ratio):
    plain, found = maps(Perturbation(("*",), mode, ratio), tokens=64)
    kept = found > 0
    expected = plain * kept / (plain * kept).sum(-1, keepdim=True)
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(found.sum(-1), torch.ones(found.shape[:-1]))
    off_diagonal = ~torch.eye(64, dtype=torch.bool)
    entries = kept[0][:, off_diagonal]  # 2 heads: 8064 entries
    assert 1 - entries.float().mean().item() == pytest.approx(ratio, abs=4 * 0.5 / 8064**0.5)
    diagonal = kept[0].diagonal(dim1=-2, dim2=-1)
    assert diagonal.all() == (mode == "off_diagonal")
    assert torch.equal(kept, kept[:1].expand_as(kept))  # the same for all images
    assert not torch.equal(kept[:, 0], kept[:, 1])  # but not for all heads


@pytest.mark.parametrize("mode", ["mask", "off_diagonal"])
def test_the_ends_of_the_ratio(mode):
    plain, found = maps(Perturbation(("*",), mode, ratio=0.0))
    torch.testing.assert_close(found, plain)
    for identity in (Perturbation(("*",), mode, ratio=1.0), Perturbation(("*",))):
        _, found = maps(identity)
        assert torch.equal(found, torch.eye(40).expand_as(found))


def test_noise_is_added_to_the_map():
    plain, found = maps(Perturbation(("*",), "noise", std=0.3), tokens=64)
    noise = found - plain
    assert noise[0].std().item() == pytest.approx(0.3, rel=0.03)
    assert noise[0].mean().item() == pytest.approx(0, abs=4 * 0.3 / 8192**0.5)
    torch.testing.assert_close(noise, noise[:1].expand_as(noise))


@pytest.mark.parametrize("mode", ["mask", "off_diagonal", "noise"])
def test_random_numbers_follow_from_seed_layer_and_noise_level(mode):
    def matrix(seed: int = 0, layer: str = "a", sigma: float = SIGMA) -> Tensor:
        perturbation = Perturbation((layer,), mode, seed=seed)
        return perturbation.change(layer, 2, 16, sigma, torch.device("cpu")).matrix

    before = torch.get_rng_state()
    first = matrix()
    assert torch.equal(torch.get_rng_state(), before)
    torch.rand(3)
    assert torch.equal(matrix(), first)
    for other in (matrix(seed=1), matrix(layer="b"), matrix(sigma=0.71)):
        assert not torch.equal(other, first)


# The network


@pytest.mark.parametrize("layer", range(4), ids=LAYERS)
def test_identity_is_the_network_with_that_map_replaced(model, layer, monkeypatch):
    """softmax(q k^T / sqrt(d)) of one layer is replaced by the identity, by hand."""
    x = noisy(3, SIGMA)
    view = View(SIGMA, LABELS, Perturbation((LAYERS[layer],)))
    perturbed, plain = alone(model, x, view), model(x, SIGMA, LABELS)
    calls = []

    def by_hand(q: Tensor, k: Tensor, v: Tensor, rows: None) -> Tensor:
        weights = (q @ k.mT / q.shape[-1] ** 0.5).softmax(-1)
        if len(calls) == layer:
            weights = torch.eye(q.shape[-2]).expand_as(weights)
        calls.append(rows)
        return weights @ v

    monkeypatch.setattr(edm2_network, "attention", by_hand)
    assert relative(perturbed, model(x, SIGMA, LABELS)) < 1e-5
    assert len(calls) == len(LAYERS)
    assert relative(perturbed, plain) > 1e-3


def views(sigma: float = SIGMA) -> list[View]:
    layers = ("dec.*", "enc.8x8_block0")
    return [
        View(sigma, LABELS),
        View(sigma, None),
        *(View(sigma, LABELS, Perturbation(layers, mode)) for mode in MODES),
        View(1.2 * sigma, LABELS),
        View(sigma, None, Perturbation(("dec.8x8_in0",))),
    ]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_one_call_equals_separate_ones(model, dtype):
    x = noisy(3, SIGMA, dtype)
    found = model.joint(x, views())
    for view, x0 in zip(views(), found, strict=True):
        assert (x0.shape, x0.dtype) == (x.shape, dtype)
        assert relative(x0, alone(model, x, view)) < 1e-5
    for i, x0 in enumerate(found):
        for other in found[:i]:
            assert relative(x0, other) > 1e-3


def test_a_lone_view_is_the_network_itself(model):
    x, changes = noisy(3, SIGMA), []
    hook = model.unet.register_forward_pre_hook(lambda _, arguments: changes.append(arguments[3]))
    assert torch.equal(alone(model, x, View(SIGMA, LABELS)), model(x, SIGMA, LABELS))
    assert torch.equal(alone(model, x, View(SIGMA, None)), model(x, SIGMA))
    hook.remove()
    assert changes == [None] * 4  # one graph for a compiled network


@pytest.mark.parametrize("mode", MODES)
def test_an_image_does_not_depend_on_its_batch(model, mode):
    x, perturbation = noisy(3, SIGMA), Perturbation(("*",), mode)
    whole = alone(model, x, View(SIGMA, LABELS, perturbation))
    part = alone(model, x[1:2], View(SIGMA, LABELS[1:2], perturbation))
    assert relative(part, whole[1:2]) < 1e-5


def test_the_folded_network_with_perturbed_rows_is_one_graph(monkeypatch):
    graphs = captured_graphs(monkeypatch)
    folded, x, levels = fold(tiny_model()), noisy(3, SIGMA), (0.3, 0.4, 0.5)
    expected = [folded.joint(x, views(sigma)) for sigma in levels]
    folded.unet.compile(dynamic=False)
    for sigma, x0s in zip(levels, expected, strict=True):
        torch.testing.assert_close(folded.joint(x, views(sigma)), x0s)
    assert len(graphs) == 1
    torch._dynamo.reset()


# Guidance


@pytest.mark.parametrize("same_network", [True, False])
def test_cfg_and_pag_add_up(model, same_network):
    """D + (w_cfg - 1) (D - D_uncond) + (w_pag - 1) (D - D_perturbed), the paper's equation 14."""
    reference = model if same_network else tiny_model(replace(TINY, model_channels=8))
    terms = {
        "cfg": Term(Difference(reference, drop_labels=True), Constant(w=1.5)),
        "pag": Term(PerturbedAttention(model, ["dec.*", "enc.*"], "mask"), Constant(w=4.0)),
    }
    x = noisy(3, SIGMA)
    main = model(x, SIGMA, LABELS)
    perturbed = alone(model, x, View(SIGMA, LABELS, Perturbation(("*",), "mask")))
    expected = main + 0.5 * (main - reference(x, SIGMA)) + 3 * (main - perturbed)
    for order in (terms, dict(reversed(terms.items()))):
        guidance = Guidance(order, Extrapolate())
        guided = Guided(model, guidance, guidance.plan(SOLVER.timeline()))
        x0, _ = guided(x, SIGMA, LABELS, 0, 0)
        assert relative(x0, expected) < 1e-5


def test_one_call_of_the_network_serves_all_that_is_asked_of_it(model):
    guidance = Guidance(
        {
            "cfg": Term(Difference(model, drop_labels=True), Constant(w=2.0)),
            "pag": Term(PerturbedAttention(model, "*"), Interval(w=2.0, lo=1, hi=2, unit="step")),
            "sigma_scaling": Term(Difference(model, k=1.2), Constant(w=1.0)),
        },
        Extrapolate(),
    )
    rows = []
    hook = model.unet.register_forward_pre_hook(lambda _, arguments: rows.append(len(arguments[0])))
    sample(model, guidance, Euler(grid=SOLVER.grid), SEEDS, [4, 0, 2])
    hook.remove()
    # Weight 1 is not asked for, and the perturbed prediction within its interval alone.
    assert rows == [2 * 3, 3 * 3, 3 * 3, 2 * 3]


@pytest.mark.parametrize("rule", [Extrapolate(), APG(momentum=-0.5), Rescale(phi=0.3)])
def test_no_layer_is_no_guidance(model, rule):
    guidance = perturbed_attention(model, Constant(w=5.0), rule, [])
    plan = guidance.plan(SOLVER.timeline())
    assert plan.describe() == "no guided step of 4; 7 evaluations per image"
    assert guidance.gflops(plan) == 0
    found, unguided = (sample(model, one, SOLVER, SEEDS)[0] for one in (guidance, none()))
    assert torch.equal(found, unguided)


# What cannot be


@pytest.mark.parametrize(
    ("layers", "message"),
    [
        (["8x8_in0"], "no self-attention layer is called 8x8_in0; did you mean dec.8x8_in0"),
        (["dec.*", "enc.9*"], r"called enc.9\*"),
        ("dec.8x8_up", "called dec.8x8_up; did you mean"),
    ],
)
def test_unknown_layers_are_refused(model, layers, message):
    with pytest.raises(UsageError, match=message):
        PerturbedAttention(model, layers)


def test_a_model_without_attention_is_refused():
    view = View(SIGMA, None, Perturbation(("a",)))
    for ask in (
        lambda: PerturbedAttention(two_classes(), []),
        lambda: two_classes().joint(torch.zeros(1, 2), [view]),
        lambda: runs_layers.layers(["model=mixture1d"]),
    ):
        with pytest.raises(UsageError, match="no self-attention layers"):
            ask()


@pytest.mark.parametrize("option", [{"mode": "blur"}, {"ratio": 1.5}, {"std": -1.0}])
def test_bad_options_are_refused(model, option):
    with pytest.raises(UsageError, match="a mode of identity, .* a ratio of 0 ... 1 and a std of"):
        PerturbedAttention(model, "*", **option)


def test_a_plan_needs_no_network():
    recipe = ModelSpec(build=lambda: pytest.fail("not asked for"), sources=())
    guidance = perturbed_attention(recipe, Constant(w=2.0), Extrapolate(), ["any"])
    assert guidance.plan(SOLVER.timeline()).evaluations_ref == [7]


# guidex list layers


def test_layers_of_published_networks_are_listed_without_them(monkeypatch):
    monkeypatch.setattr(ModelSpec, "load", None)
    names = runs_layers.layers(["model=edm2-img64-s"])
    coarse, fine = [f"8x8_block{i}" for i in range(4)], [f"16x16_block{i}" for i in range(4)]
    decoder = ["8x8_in0", *coarse, *fine]
    encoder = [*fine[:3], *coarse[:3]]
    assert names == [f"enc.{name}" for name in encoder] + [f"dec.{name}" for name in decoder]
