"""What models are conditioned on: written by people, drawn from seeds, handed to networks."""

import math
from typing import NamedTuple

import pytest
import torch
from torch import Tensor

from guidex.errors import UsageError
from guidex.guidance.methods import difference
from guidex.guidance.rules import Extrapolate
from guidex.guidance.schedules import Constant
from guidex.models.condition import Conditions, parse_labels
from guidex.models.denoiser import Denoiser
from guidex.sampling.grids import Karras
from guidex.sampling.solvers import Heun
from guidex.sampling.trajectories import sample


@pytest.mark.parametrize("text", [-1, 1.5, True, [], ["random", 1], None, {}])
def test_labels_of_another_form_are_refused(text):
    with pytest.raises(UsageError, match="labels must be random, balanced, a class such as 3"):
        parse_labels(text, range(2))


def test_labels_are_repeated_as_needed():
    assert parse_labels("random", range(3)) is None
    assert parse_labels(0, range(3)) == [0, 0, 0]
    assert parse_labels([0, "circle"], range(3)) == [0, "circle", 0]


def test_numbers_and_names_are_the_models():
    conditions = Conditions(2, ("circle", "square"))
    assert conditions.numbers([1, "circle", "square"]) == [1, 0, 1]
    assert [conditions.name(1), Conditions(2).name(1)] == ["square", "1"]
    for given, said in [(2, "0 … 1"), ("squares", "0 … 1.*square")]:
        with pytest.raises(UsageError, match=f"labels={given}: .* are {said}"):
            conditions.numbers([given])
    with pytest.raises(UsageError, match="none: use labels=random"):
        Conditions().numbers([0])


class Embedded(NamedTuple):
    """Two tensors with a row per image, as networks take prompts."""

    tokens: Tensor
    pooled: Tensor


class Prompts(Conditions):
    def batch(self, numbers: Tensor | None) -> Embedded:
        lengths = torch.tensor([float(len(name)) for name in self.names])[numbers]
        return Embedded(lengths[:, None, None], lengths[:, None])


class Writer(Denoiser):
    """Predicts the length of the prompt everywhere, 0 without one."""

    shape, conditions = (2,), Prompts(2, ("a cat", "two dogs"))
    sigma_data, sigma_min, sigma_max, gflops = 1.0, 0.0, math.inf, 0.0

    def forward(self, x, sigma, condition=None):
        return torch.zeros_like(x) if condition is None else condition.pooled.to(x).expand_as(x)


def test_a_model_of_prompts_needs_nothing_but_conditions_of_its_own():
    model, solver = Writer(), Heun(grid=Karras(steps=4))
    guidance = difference(model, Constant(w=2.0), Extrapolate(), drop_labels=True)
    wanted = model.conditions.numbers(["two dogs", "a cat"])
    x, labels = sample(model, guidance, solver, [5, 6], wanted)
    assert labels.tolist() == [1, 0]
    torch.testing.assert_close(x, 2.0 * torch.tensor([[8.0, 8.0], [5.0, 5.0]]).double())
    drawn = sample(model, guidance, solver, range(20))[1]
    assert sorted(set(drawn.tolist())) == [0, 1]
