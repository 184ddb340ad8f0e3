"""Seeds decide images, and nothing else does."""

import pytest
import torch
from helpers import CPU, golden

from guidex.errors import UsageError
from guidex.guidance.methods import difference, none
from guidex.guidance.rules import Extrapolate
from guidex.guidance.schedules import Interval
from guidex.models.condition import Conditions
from guidex.models.kernel import kernel
from guidex.sampling.grids import Karras
from guidex.sampling.seeds import Draws, parse_seeds, start
from guidex.sampling.solver import Solver
from guidex.sampling.solvers import DDIM, Heun
from guidex.sampling.trajectories import sample

SEEDS = [3, 141, 0, 59, 2**32 - 1, 7, 26]


def begin(seeds, labels=None, num_classes=10, keep_drawing=True, shape=(1, 8, 8)):
    return start(seeds, shape, Conditions(num_classes), labels, CPU, CPU, keep_drawing)


def test_noise_and_then_class_are_those_of_the_reference_implementation():
    seeds = golden("seeds.npz")
    num_classes, shape = int(seeds["num_classes"]), seeds["noise"].shape[1:]
    found = begin(seeds["seeds"].tolist(), num_classes=num_classes, shape=shape)
    assert found.noise.dtype == torch.float32 and found.labels.dtype == torch.int64
    assert torch.equal(found.noise, torch.from_numpy(seeds["noise"]))
    assert found.labels.tolist() == seeds["classes"].tolist()


def test_seeds_beyond_the_limit_would_repeat_images():
    assert torch.equal(begin([2**32 + 5]).noise, begin([5]).noise)
    assert not torch.equal(begin([2**32 - 1]).noise, begin([2**31 - 1]).noise)


def test_labels_that_are_asked_for_change_no_noise():
    drawn, chosen = begin(SEEDS), begin(SEEDS, labels=[0, 1, 2, 3, 4, 5, 0])
    assert chosen.labels.tolist() == [0, 1, 2, 3, 4, 5, 0]
    assert drawn.labels.tolist() != chosen.labels.tolist()
    assert torch.equal(drawn.noise, chosen.noise)
    assert torch.equal(drawn.draws.draw(drawn.noise)[0], chosen.draws.draw(drawn.noise)[0])
    without = begin(SEEDS, num_classes=0)
    assert without.labels is None and torch.equal(without.noise, drawn.noise)


def test_later_noise_depends_on_the_seed_alone():
    together = begin(SEEDS)
    first, after = together.draws.draw(together.noise)
    second, _ = after.draw(together.noise)
    noises = torch.cat([together.noise, first, second]).flatten(1)
    assert len({tuple(noise.tolist()) for noise in noises}) == 3 * len(SEEDS)
    for k in reversed(range(len(SEEDS))):
        alone = begin(SEEDS[k : k + 1])
        one, rest = alone.draws.draw(alone.noise)
        assert torch.equal(one[0], first[k])
        assert torch.equal(rest.draw(alone.noise)[0][0], second[k])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_later_noise_is_drawn_in_the_dtype_of_the_state(dtype):
    """As the reference does, whose randn_like passes on the dtype: its first noise is float32."""
    draws = begin(SEEDS, num_classes=0).draws
    generator = torch.Generator().manual_seed(SEEDS[0])
    torch.randn(1, 8, 8, generator=generator)
    expected = torch.randn(1, 8, 8, generator=generator, dtype=dtype)
    assert torch.equal(draws.draw(torch.empty(7, 1, 8, 8, dtype=dtype))[0][0], expected)
    assert begin(SEEDS, keep_drawing=False).draws == Draws((), CPU)


@pytest.mark.parametrize(
    "solver",
    [
        pytest.param(Heun(grid=Karras(steps=8), s_churn=4.0), id="churn"),
        pytest.param(DDIM(grid=Karras(steps=8), eta=1.0), id="ancestral"),
        pytest.param(Heun(grid=Karras(steps=8), dtype="float32"), id="float32"),
    ],
)
def test_samples_are_the_same_in_any_batch_and_order(solver: Solver):
    model, reference = kernel("digits", 0.25), kernel("digits", 0.5, conditional=False)
    guidance = difference(reference, Interval(w=2.0, lo=0.1, hi=2.0), Extrapolate())
    whole, labels = sample(model, guidance, solver, SEEDS, batch=7)
    assert whole.shape == (7, 1, 8, 8) and len({tuple(x.flatten().tolist()) for x in whole}) == 7
    for batch in (1, 3):
        found, again = sample(model, guidance, solver, SEEDS, batch=batch)
        assert again.tolist() == labels.tolist()
        torch.testing.assert_close(found, whole, rtol=0, atol=1e-6)
    found, again = sample(model, guidance, solver, SEEDS[::-1], batch=4)
    assert again.tolist() == labels.tolist()[::-1]
    torch.testing.assert_close(found.flip(0), whole, rtol=0, atol=1e-6)


def test_labels_are_sampled_as_asked():
    model, solver = kernel("digits", 0.25), Heun(grid=Karras(steps=8))
    images, labels = sample(model, none(), solver, SEEDS, labels=[0] * 7, batch=3)
    assert labels.tolist() == [0] * 7
    others, _ = sample(model, none(), solver, SEEDS, labels=[1] * 7, batch=3)
    assert (images - others).flatten(1).norm(dim=1).min() > 1


def test_seeds_are_parsed():
    for text, seeds in (
        (7, [7]),
        ("0-3", [0, 1, 2, 3]),
        ("5-5", [5]),
        ("3,1-2", [3, 1, 2]),
        (["0-2", 20, "30-31"], [0, 1, 2, 20, 30, 31]),
        (range(3), [0, 1, 2]),
        (f"{2**32 - 1}", [2**32 - 1]),
    ):
        assert parse_seeds(text) == seeds


@pytest.mark.parametrize(
    ("text", "match"),
    [
        (-1, "whole numbers >= 0"),
        ("", "whole numbers >= 0"),
        ("1-2-3", "whole numbers >= 0"),
        (1.5, "whole numbers >= 0"),
        (True, "whole numbers >= 0"),
        ("9-3", "must increase"),
        (f"{2**32}", "below 2\\^32"),
        ("1,2,1", "given twice"),
        ("0-999999999", "more than the 10000000 that a run may have"),
        ([], "no seeds given"),
    ],
)
def test_what_are_no_seeds_is_refused(text, match):
    with pytest.raises(UsageError, match=match):
        parse_seeds(text)
