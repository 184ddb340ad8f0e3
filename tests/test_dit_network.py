"""The transformers against numbers of the reference code (tests/golden/dit)."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from guidex.files.pickles import read_weights
from guidex.models.attention import Perturbation
from guidex.models.denoiser import View
from guidex.models.dit.checkpoints import read_network
from guidex.models.dit.denoiser import Noise, Velocity
from guidex.models.dit.network import Network, Shape, positions
from guidex.models.native_time import timestep_sigmas

GOLDEN = Path(__file__).parent / "golden" / "dit"
NAMES = ["sit", "dit", "repa", "repae", "lightning"]


def network(name: str) -> Network:
    return read_network(GOLDEN / f"{name}.pt", heads=4).eval().requires_grad_(False)


def error(found, wanted) -> float:
    wanted = torch.as_tensor(wanted)
    return float((found - wanted).abs().max() / wanted.abs().max())


@pytest.mark.parametrize("name", NAMES)
def test_the_network_agrees_with_the_reference_code(name):
    io = np.load(GOLDEN / f"{name}.io.npz")
    made = network(name)
    x, t, y = (torch.tensor(io[key]) for key in "xty")
    wanted = io["eps_and_v" if name == "dit" else "v"]
    found = made(x, t.float(), y)
    assert error(found[:, : wanted.shape[1]], wanted) < 1e-5


@pytest.mark.parametrize("name", NAMES)
def test_half_precision_is_close(name):
    io = np.load(GOLDEN / f"{name}.io.npz")
    made = network(name).cast(torch.bfloat16)
    x, t, y = (torch.tensor(io[key]) for key in "xty")
    wanted = io["eps_and_v" if name == "dit" else "v"]
    assert error(made(x.bfloat16(), t.float(), y)[:, : wanted.shape[1]].float(), wanted) < 0.05


@pytest.mark.parametrize("name", NAMES)
def test_the_table_of_positions_can_be_computed(name):
    stored = read_weights(GOLDEN / f"{name}.pt")["pos_embed"]
    assert torch.equal(positions(*stored.shape[1:]), stored)


@pytest.mark.parametrize("name", NAMES)
def test_the_cost_is_what_is_counted(name):
    shape = network(name).shape
    with torch.device("meta"), FlopCounterMode(display=False) as counter:
        x = torch.empty(1, shape.channels, shape.side, shape.side)
        Network(replace(shape, rotary=False))(x, torch.empty(1), torch.empty(1, dtype=torch.int64))
    assert shape.gflops == pytest.approx(counter.get_total_flops() / 1e9, rel=1e-9)


def test_published_sizes_cost_what_papers_say():
    xl = Shape(32, 2, 4, 8, 1152, 28, 16, 4608)
    assert xl.gflops / 2 == pytest.approx(118.64, abs=0.05)  # arXiv 2212.09748, table 1
    assert replace(xl, side=64).gflops / 2 == pytest.approx(524.6, abs=0.5)


@pytest.mark.parametrize("name", ["sit", "repa", "lightning", "repae"])
def test_a_velocity_is_a_denoiser(name):
    io = np.load(GOLDEN / f"{name}.io.npz")
    data_time = name in ("sit", "lightning")
    model = Velocity(network(name), data_time)
    for row, time in enumerate(io["t"].tolist()):
        t = 1 - time if data_time else time
        v = torch.tensor(io["v"][row : row + 1]).double() * (-1 if data_time else 1)
        x_t = torch.tensor(io["x"][row : row + 1]).double()
        condition = torch.tensor(io["y"][row : row + 1])
        condition = None if condition.item() == 1000 else condition
        found = model(x_t / (1 - t), t / (1 - t), condition)
        assert error(found, x_t - t * v) < 1e-5


def test_noise_is_a_denoiser_with_a_variance():
    io = np.load(GOLDEN / "dit.io.npz")
    model = Noise(network("dit"))
    assert model.learned_variance and model.native_unit == "timestep"
    for row, t in enumerate(io["t"].tolist()):
        sigma = float(timestep_sigmas()[t])
        assert model.native(sigma)[1] == pytest.approx(t, abs=1e-9)
        x_vp = torch.tensor(io["x"][row : row + 1]).double()
        answer = torch.tensor(io["eps_and_v"][row : row + 1]).double()
        x, extras = x_vp * (1 + sigma**2) ** 0.5, {}
        [found] = model.joint(x, [View(sigma, torch.tensor(io["y"][row : row + 1]), None, extras)])
        assert error(found, x - sigma * answer[:, :4]) < 1e-5
        assert error(extras["variance"], answer[:, 4:]) < 1e-5


def test_several_questions_are_one_call_and_have_the_answers_of_several():
    model = Velocity(network("lightning"), data_time=True)
    x, labels = torch.randn(2, 32, 4, 4).double(), torch.tensor([3, 7])
    pag = Perturbation(("blocks.1.attn",))
    views = [View(0.7, labels), View(0.7, None), View(2.1, labels), View(0.7, labels, pag)]
    calls = []
    handle = model.network.register_forward_hook(lambda *_: calls.append(1))
    together = model.joint(x, views)
    assert len(calls) == 1
    for view, found in zip(views, together, strict=True):
        assert error(found, model.joint(x, [view])[0]) < 1e-5
    handle.remove()
    assert error(together[3], together[0]) > 1e-4
    assert torch.equal(model(x, 0.7, labels), model.joint(x, views[:1])[0])
