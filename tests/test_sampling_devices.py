"""Sampling on a GPU that is not there: nothing mixes devices, and nothing waits for one.

Tensors without content, which say that they are on a GPU, take the way of the real ones. Where an
operation meets a tensor of another device, or a number is asked for that only the GPU knows, torch
raises an exception. What numbers come out is for tests/test_gpu.py.
"""

import pytest
import torch
from edm2_networks import TINY, tiny_model
from torch import nn
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode

from guidex.guidance.guidance import Guidance, Guided
from guidex.guidance.methods import difference, perturbed_attention
from guidex.guidance.rules import APG, Extrapolate, Rescale
from guidex.guidance.schedules import Constant, Interval
from guidex.models.edm2.folded import fold
from guidex.models.edm2.network import EDM2
from guidex.sampling import trajectories as walk
from guidex.sampling.grids import Karras
from guidex.sampling.seeds import Start
from guidex.sampling.solver import Solver
from guidex.sampling.solvers import DDIM, DPMpp2M, Euler, Heun

SHAPE = (TINY.img_channels, TINY.img_resolution, TINY.img_resolution)
GRID = Karras(steps=3)
W = Constant(w=2.0)


class Noise:
    """Draws of a solver that adds noise."""

    def draw(self, like: torch.Tensor) -> tuple[torch.Tensor, "Noise"]:
        return torch.empty_like(like), self


def moved(model: EDM2, mode: FakeTensorMode) -> EDM2:
    """A network as if it were on a GPU."""

    def away(value: torch.Tensor) -> torch.Tensor:
        size, stride, dtype = value.size(), value.stride(), value.dtype
        with mode:
            return torch.empty_strided(size, stride, dtype=dtype, device="cuda")

    for module in model.modules():
        for name, value in list(module.named_parameters(recurse=False)):
            setattr(module, name, nn.Parameter(away(value), requires_grad=False))
        for name, value in list(module.named_buffers(recurse=False)):
            setattr(module, name, away(value))
    return model


@pytest.fixture(scope="module")
def mode() -> FakeTensorMode:
    return FakeTensorMode()


@pytest.fixture(scope="module")
def networks(mode: FakeTensorMode) -> tuple[EDM2, EDM2]:
    """A network and its guide, in the form that is loaded."""
    main, guide = (moved(fold(tiny_model(dtype=torch.float16)), mode) for _ in range(2))
    return main, guide


def sampled(main: EDM2, guidance: Guidance, solver: Solver, mode: FakeTensorMode) -> None:
    run = walk.Run(Guided(main, guidance, guidance.plan(solver.timeline())), key=None)
    with mode:
        noise = torch.empty(3, *SHAPE, device="cuda")
        labels = torch.empty(3, dtype=torch.int64, device="cuda")
        walk.trajectories(
            [run], solver, Start(noise, labels, labels, Noise()), seeds=[0, 1, 2], record=2
        )


METHODS = ["cfg", "interval, rescale", "apg", "pag"]
SOLVERS = {
    "heun": Heun(grid=GRID),
    "churn": Heun(grid=GRID, s_churn=20),
    "euler": Euler(grid=GRID),
    "dpmpp_2m": DPMpp2M(grid=GRID),
    "ddim": DDIM(grid=GRID),
}


@pytest.mark.parametrize(
    ("solver", "method"),
    [("heun", method) for method in METHODS]
    + [(solver, "cfg") for solver in SOLVERS if solver != "heun"],
)
def test_a_batch_is_waited_for_once(networks, solver, method, mode, monkeypatch):
    main, guide = networks
    guidance = {
        "cfg": difference(guide, W, Extrapolate()),
        "interval, rescale": difference(guide, Interval(w=2.0, lo=0.1, hi=10), Rescale(phi=0.7)),
        "apg": difference(guide, W, APG(eta=0.5, norm_threshold=2.0, momentum=-0.5)),
        "pag": perturbed_attention(main, W, Extrapolate(), "*"),
    }[method]
    checked = []
    check = walk._Tree.check

    def watched(tree, seeds):
        checked.append(seeds)
        check(tree, seeds)

    monkeypatch.setattr(walk._Tree, "check", watched)
    # Whether all samples are finite is asked at the end, and is the first question of all.
    with pytest.raises(DataDependentOutputException):
        sampled(main, guidance, SOLVERS[solver], mode)
    assert checked == [[0, 1, 2]]


def test_a_tensor_left_on_the_cpu_is_found(networks, mode):
    main, _ = networks
    with mode, pytest.raises(RuntimeError, match="device"):
        main(torch.empty(3, *SHAPE, device="cuda"), 1.0, torch.empty(3, dtype=torch.int64))
