"""Samplers of SiT, REPA and DiT against numbers of their code, given its noises."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from guidex.errors import UsageError
from guidex.guidance.directions import Difference
from guidex.guidance.guidance import Guided
from guidex.guidance.methods import none, single
from guidex.guidance.rules import Extrapolate
from guidex.guidance.schedules import Constant, EmptyInterval, Interval
from guidex.models.dit.checkpoints import read_network
from guidex.models.dit.denoiser import Noise, Velocity
from guidex.models.native_time import NATIVE
from guidex.sampling.flow import Ancestral, EulerMaruyama, Flow, FlowHeun
from guidex.sampling.grids import DDPM
from guidex.sampling.seeds import Start
from guidex.sampling.solvers import DDIM, Euler
from guidex.sampling.trajectories import Run, trajectories

FOLDER = Path(__file__).parent / "golden" / "dit"
GOLDEN = dict(np.load(FOLDER / "dit-samplers.npz"))


@dataclass(frozen=True)
class Given:
    """Noises that were drawn elsewhere."""

    noises: Tensor
    drawn: int = 0

    def draw(self, like: Tensor) -> tuple[Tensor, "Given"]:
        return self.noises[self.drawn].to(like), Given(self.noises, self.drawn + 1)


def model_of(name: str):
    network = read_network(FOLDER / f"{name}.pt", heads=4)
    made = Noise(network) if name == "dit" else Velocity(network, data_time=name == "sit")
    return made.eval().requires_grad_(False)


MODELS = {name: model_of(name) for name in ("sit", "dit", "repa")}
INTERVALS = {
    "w1.8_t0_0.7": Interval(w=1.8, lo=0, hi=0.7, unit="time"),
    "w2.5_t0.2_0.6": Interval(w=2.5, lo=0.2, hi=0.6, unit="time"),
    "w1.5_3channels": Constant(w=1.5),
    "unguided": None,
}
EVEN, LAST = Flow(steps=12), Flow(steps=12, last=0.04)
DIT = DDPM(steps=12)
CASES = {
    "repa_sde_12_w1.8_t0_0.7": EulerMaruyama(grid=LAST),
    "repa_sde_12_w2.5_t0.2_0.6": EulerMaruyama(grid=LAST),
    "repa_ode_12_w1.8_t0_0.7": Euler(grid=EVEN),
    "repa_ode_12_unguided": Euler(grid=EVEN),
    "repa_ode_heun_12_w1.8_t0_0.7": FlowHeun(grid=EVEN),
    "sit_sde_12_w1.5_3channels": EulerMaruyama(grid=LAST, dtype="float32"),
    "sit_ode_12points_w1.5_3channels": Euler(grid=Flow(steps=11)),
    "dit_ddpm_12_w1.5_3channels": Ancestral(grid=DIT),
    "dit_ddim_12_w1.5_3channels": DDIM(grid=DIT),
}


def test_all_golden_numbers_are_used():
    numbers = {"noise", "y", "repa_sde_noises", "sit_sde_noises", "dit_noises", "dit_timesteps"}
    assert set(CASES) == set(GOLDEN) - numbers


@pytest.mark.parametrize("name", CASES)
def test_samplers_agree_with_the_reference_code(name):
    family, solver = name.partition("_")[0], CASES[name]
    model = MODELS[family]
    schedule = next(one for end, one in INTERVALS.items() if name.endswith(end))
    channels = 3 if name.endswith("3channels") else None
    direction = Difference(model, drop_labels=True, channels=channels)
    guidance = single(direction, schedule, Extrapolate()) if schedule else none()
    plan = guidance.plan(solver.timeline())
    noises = GOLDEN["dit_noises" if family == "dit" else f"{family}_sde_noises"]
    y = torch.tensor(GOLDEN["y"])
    begin = Start(torch.tensor(GOLDEN["noise"]), y, y, Given(torch.tensor(noises)))
    [outcome] = trajectories([Run(Guided(model, guidance, plan), None)], solver, begin, [0, 1])
    wanted = torch.tensor(GOLDEN[name])
    assert (outcome.x - wanted).abs().max() < 1e-4 * wanted.abs().max()


def test_timesteps_are_those_of_dit():
    found = NATIVE["timestep"](DIT.sigmas()[:-1])
    assert np.allclose(found, np.sort(GOLDEN["dit_timesteps"])[::-1], atol=1e-9)


def test_grids_in_time():
    sigmas = Flow(steps=250, last=0.04).sigmas()
    assert len(sigmas) == 251 and sigmas[0] == 1e6 and sigmas[-1] == 0
    t = NATIVE["time"](sigmas[:-1])
    assert t[-1] == pytest.approx(0.04) and np.allclose(np.diff(t)[1:], -0.96 / 249)
    assert np.allclose(NATIVE["time"](Flow(steps=4).sigmas()), [1, 0.75, 0.5, 0.25, 0], atol=2e-6)
    t = NATIVE["time"](Flow(steps=4, shift=1 / 0.3).sigmas())
    data = 1 - np.array([1, 0.75, 0.5, 0.25, 0])
    assert np.allclose(1 - t, 0.3 * data / (1 - 0.7 * data), atol=2e-6)  # as LightningDiT writes it
    for wrong in ({"last": 1.0}, {"shift": 0.0}):
        with pytest.raises(UsageError):
            Flow(steps=4, **wrong)
    with pytest.raises(UsageError, match="do not decrease"):
        Flow(steps=4, sigma_max=0.5).sigmas()


def guided_steps(grid, **bounds) -> list[int]:
    return np.flatnonzero(Interval(w=2, **bounds).plan(Euler(grid=grid).timeline()) != 1).tolist()


def test_bounds_in_native_units_are_closed_and_count_as_published():
    """The counts are those of the reference code (arXiv 2410.06940, 2501.01423, 2404.07724)."""
    for hi, count in {0.7: 172, 0.65: 159, 0.75: 185, 0.825: 204}.items():
        assert len(guided_steps(Flow(steps=250, last=0.04), hi=hi, unit="time")) == count
    lightning = Flow(steps=249, shift=1 / 0.3)
    assert len(guided_steps(lightning, hi=0.875, unit="time", gate="evaluation")) == 168
    dit = DDPM(steps=250)
    timesteps = NATIVE["timestep"](dit.sigmas()[:-1])[
        guided_steps(dit, lo=205, hi=502, unit="timestep")
    ]
    assert len(timesteps) == 75 and np.allclose(timesteps[[0, -1]], [502, 205], atol=0.5)
    assert len(guided_steps(Flow(steps=4), lo=0.5, hi=0.5, unit="time")) == 1
    with pytest.raises(EmptyInterval):
        Interval(w=2, lo=0.6, hi=0.5, unit="time")


def test_a_variance_must_have_been_learned():
    model = MODELS["repa"]
    guided = Guided(model, none(), none().plan(Ancestral(grid=DIT).timeline()))
    y = torch.tensor(GOLDEN["y"])
    begin = Start(torch.tensor(GOLDEN["noise"]), y, y, Given(torch.zeros(12, 2, 4, 8, 8)))
    with pytest.raises(UsageError, match="has not learned a variance"):
        trajectories([Run(guided, None)], Ancestral(grid=DIT), begin, [0, 1])
    with pytest.raises(UsageError, match="channels is 0"):
        Difference(model, channels=0)
