"""Rules against their formulas, worked out by hand."""

import math

import pytest
import torch
from helpers import concrete
from torch import Tensor

from guidex.errors import UsageError
from guidex.guidance.rules import APG, Extrapolate, Offset, Rescale, Rule

RULES = {Extrapolate: {}, Rescale: {}, APG: {"momentum": -0.5, "norm_threshold": 2.0}}


def noise(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def rows(*values: list[float]) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def test_every_rule_is_tested():
    assert set(RULES) == set(concrete(Rule))


@pytest.mark.parametrize("rule", RULES)
def test_rules_change_nothing_that_they_are_given(rule):
    main, direction = noise(0, 3, 2, 4, 4), noise(1, 3, 2, 4, 4)
    rule = rule(**RULES[rule])
    _, state = rule(main, [Offset(0, 1.5, direction)], None)
    copies = main.clone(), direction.clone()
    before = {term: value.clone() for term, value in (state or {}).items()}
    first, second = (rule(main, [Offset(0, 1.5, direction)], state)[0] for _ in range(2))
    assert torch.equal(first, second)  # nothing is remembered but the state
    assert torch.equal(main, copies[0]) and torch.equal(direction, copies[1])
    assert all(torch.equal(state[term], value) for term, value in before.items())


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_rules_keep_shape_and_dtype(rule, dtype):
    main, direction = noise(0, 3, 2, 4, 4).to(dtype), noise(1, 3, 2, 4, 4).to(dtype)
    guided, _ = rule(**RULES[rule])(main, [Offset(0, 1.5, direction)], None)
    assert guided.shape == main.shape and guided.dtype == dtype


def test_extrapolation_adds_all_terms():
    main, first, second = rows([1, 2]), rows([1, 0]), rows([0, 4])
    state = object()
    guided, after = Extrapolate()(main, [Offset(0, 2.0, first), Offset(3, -0.5, second)], state)
    assert guided.tolist() == [[3, 0]] and after is state


def test_rescaling_draws_the_deviation_back_per_image():
    main, direction = noise(0, 3, 2, 4, 4), noise(1, 3, 2, 4, 4)
    offsets = [Offset(0, 4.0, direction)]
    guided = main + 4 * direction
    for k in range(3):
        ratio = main[k].std() / guided[k].std()
        assert ratio < 0.5
        expected = 0.7 * guided[k] * ratio + 0.3 * guided[k]
        torch.testing.assert_close(Rescale()(main, offsets, None)[0][k], expected)
        whole = Rescale(phi=1.0)(main, offsets, None)[0][k]
        torch.testing.assert_close(whole.std(), main[k].std())
    torch.testing.assert_close(Rescale(phi=0.0)(main, offsets, None)[0], guided)


def test_rescaling_needs_a_deviation():
    with pytest.raises(UsageError, match="more than one number per sample"):
        Rescale()(rows([1.0]), [Offset(0, 1.0, rows([1.0]))], None)
    for phi in (-0.1, 1.1, math.nan):
        with pytest.raises(UsageError, match="phi is a share"):
            Rescale(phi=phi)


def test_apg_keeps_what_is_orthogonal_to_the_main_prediction():
    # (2, 1) = 0.4 (3, 4) + (0.8, -0.6)
    guided, _ = APG()(rows([3, 4]), [Offset(0, 2.0, rows([2, 1]))], None)
    torch.testing.assert_close(guided, rows([3 + 1.6, 4 - 1.2]))
    half, _ = APG(eta=0.5)(rows([3, 4]), [Offset(0, 2.0, rows([2, 1]))], None)
    torch.testing.assert_close(half, rows([3 + 1.6 + 1.2, 4 - 1.2 + 1.6]))


def test_apg_without_parallel_part_is_orthogonal_per_image():
    main, direction = noise(0, 5, 2, 4, 4), noise(1, 5, 2, 4, 4)
    guided, _ = APG()(main, [Offset(0, 3.0, direction)], None)
    offset = guided - main
    assert (offset.flatten(1).norm(dim=1) > 1).all()
    assert ((offset * main).flatten(1).sum(1).abs() < 1e-12).all()


def test_apg_limits_the_norm_of_each_direction():
    main = rows([1, 0], [1, 0])
    direction = rows([0, 8], [0, 0.25])
    guided, _ = APG(norm_threshold=0.5)(main, [Offset(0, 2.0, direction)], None)
    torch.testing.assert_close(guided, rows([1, 1.0], [1, 0.5]))


def test_apg_momentum_over_several_evaluations():
    """Delta_n = direction_n + momentum * Delta_{n-1}, kept before the limit of the norm."""
    main = rows([1, 0])
    rule = APG(momentum=-0.5, norm_threshold=3.0)
    seen, state = [], None
    for value in (4.0, 1.0, 2.0):
        guided, state = rule(main, [Offset(0, 1.0, rows([0, value]))], state)
        seen.append(guided[0, 1].item())
    # Delta: 4, 1 - 2 = -1, 2 + 0.5 = 2.5
    assert seen == pytest.approx([3.0, -1.0, 2.5])
    assert state[0].tolist() == [[0, 2.5]]


def test_apg_branches():
    """A state may be used twice, and neither branch knows of the other."""
    rule, main = APG(momentum=-0.5), rows([1, 0])
    _, trunk = rule(main, [Offset(0, 1.0, rows([0, 4]))], None)
    left, _ = rule(main, [Offset(0, 1.0, rows([0, 1]))], trunk)
    right, _ = rule(main, [Offset(0, 1.0, rows([0, 3]))], trunk)
    assert (left[0, 1].item(), right[0, 1].item()) == (-1.0, 1.0)


def test_apg_momentum_of_each_term_is_its_own():
    rule, main = APG(momentum=0.5), rows([1, 0, 0])
    first, second = rows([0, 4, 0]), rows([0, 0, 2])
    _, state = rule(main, [Offset(0, 1.0, first)], None)
    guided, state = rule(main, [Offset(1, 1.0, second)], state)  # the first term rests
    assert guided.tolist() == [[1, 0, 2]]
    guided, _ = rule(main, [Offset(0, 2.0, first), Offset(1, 1.0, second)], state)
    assert guided.tolist() == [[1, 12, 3]]


def test_apg_in_neutral_is_extrapolation():
    main, offsets = noise(0, 3, 2, 4, 4), [Offset(k, 1.0 + k, noise(k, 3, 2, 4, 4)) for k in (1, 2)]
    neutral = APG(eta=1.0, norm_threshold=math.inf, momentum=0.0)
    _, state = neutral(main, offsets, None)
    torch.testing.assert_close(
        neutral(main, offsets, state)[0], Extrapolate()(main, offsets, None)[0]
    )


def test_apg_of_nothing_is_finite():
    zero = rows([0, 0])
    for main, direction in ((zero, rows([1, 2])), (rows([1, 2]), zero), (zero, zero)):
        guided, _ = APG(norm_threshold=5.0)(main, [Offset(0, 2.0, direction)], None)
        torch.testing.assert_close(guided, main + 2 * direction)


def test_apg_refuses_a_limit_that_allows_nothing():
    for limit in (0.0, -1.0, math.nan):
        with pytest.raises(UsageError, match="norm_threshold must be positive"):
            APG(norm_threshold=limit)
