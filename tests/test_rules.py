"""Rules against their formulas, worked out by hand."""

import math

import pytest
import torch
from helpers import concrete, normal
from torch import Tensor

from guidex.errors import UsageError
from guidex.guidance.rules import APG, Extrapolate, Offset, Rescale, Rule

RULES = {Extrapolate: {}, Rescale: {}, APG: {"momentum": -0.5, "norm_threshold": 2.0}}


def rows(*values: list[float]) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def test_every_rule_is_tested():
    assert set(RULES) == set(concrete(Rule))


@pytest.mark.parametrize("rule", RULES)
def test_rules_keep_shape_and_dtype_and_change_nothing_that_they_are_given(rule):
    rule, main, direction = rule(**RULES[rule]), normal(3, 2, 4, 4), normal(3, 2, 4, 4, seed=1)
    _, state = rule(main, [Offset(0, 1.5, direction)], None)
    copies = main.clone(), direction.clone()
    before = {term: value.clone() for term, value in (state or {}).items()}
    first, second = (rule(main, [Offset(0, 1.5, direction)], state)[0] for _ in range(2))
    assert torch.equal(first, second)  # nothing is remembered but the state
    assert torch.equal(main, copies[0]) and torch.equal(direction, copies[1])
    assert all(torch.equal(state[term], value) for term, value in before.items())
    single, _ = rule(main.float(), [Offset(0, 1.5, direction.float())], None)
    assert single.shape == main.shape and single.dtype == torch.float32


def test_extrapolation_adds_all_terms():
    main, first, second = rows([1, 2]), rows([1, 0]), rows([0, 4])
    state = object()
    guided, after = Extrapolate()(main, [Offset(0, 2.0, first), Offset(3, -0.5, second)], state)
    assert guided.tolist() == [[3, 0]] and after is state


def test_rescaling_draws_the_deviation_back_per_image():
    main, direction = normal(3, 2, 4, 4), normal(3, 2, 4, 4, seed=1)
    offsets = [Offset(0, 4.0, direction)]
    guided = main + 4 * direction
    for k in range(3):
        ratio = main[k].std() / guided[k].std()
        assert ratio < 0.5
        expected = 0.7 * guided[k] * ratio + 0.3 * guided[k]
        torch.testing.assert_close(Rescale()(main, offsets, None)[0][k], expected)
    torch.testing.assert_close(Rescale(phi=0.0)(main, offsets, None)[0], guided)


def test_apg_keeps_what_is_orthogonal_to_the_main_prediction():
    # (2, 1) = 0.4 (3, 4) + (0.8, -0.6)
    guided, _ = APG()(rows([3, 4]), [Offset(0, 2.0, rows([2, 1]))], None)
    torch.testing.assert_close(guided, rows([3 + 1.6, 4 - 1.2]))
    half, _ = APG(eta=0.5)(rows([3, 4]), [Offset(0, 2.0, rows([2, 1]))], None)
    torch.testing.assert_close(half, rows([3 + 1.6 + 1.2, 4 - 1.2 + 1.6]))
    main, direction = normal(5, 2, 4, 4), normal(5, 2, 4, 4, seed=1)
    offset = APG()(main, [Offset(0, 3.0, direction)], None)[0] - main
    assert (offset.flatten(1).norm(dim=1) > 1).all()
    assert ((offset * main).flatten(1).sum(1).abs() < 1e-12).all()


def test_apg_limits_the_norm_of_each_direction():
    offsets = [Offset(0, 2.0, rows([0, 8], [0, 0.25]))]
    guided, _ = APG(norm_threshold=0.5)(rows([1, 0], [1, 0]), offsets, None)
    torch.testing.assert_close(guided, rows([1, 1.0], [1, 0.5]))


def test_apg_momentum_over_several_evaluations():
    """Delta_n = direction_n + momentum * Delta_{n-1}, kept before the limit of the norm."""
    main, rule = rows([1, 0]), APG(momentum=-0.5, norm_threshold=3.0)
    seen, state = [], None
    for value in (4.0, 1.0, 2.0):
        before = state
        guided, state = rule(main, [Offset(0, 1.0, rows([0, value]))], state)
        seen.append(guided[0, 1].item())
    # Delta: 4, 1 - 2 = -1, 2 + 0.5 = 2.5
    assert seen == pytest.approx([3.0, -1.0, 2.5])
    assert state[0].tolist() == [[0, 2.5]]
    # A state may be used twice, and neither branch knows of the other.
    other, _ = rule(main, [Offset(0, 1.0, rows([0, 1.5]))], before)
    assert other[0, 1].item() == 2.0


def test_apg_momentum_of_each_term_is_its_own():
    rule, main = APG(momentum=0.5), rows([1, 0, 0])
    first, second = rows([0, 4, 0]), rows([0, 0, 2])
    _, state = rule(main, [Offset(0, 1.0, first)], None)
    guided, state = rule(main, [Offset(1, 1.0, second)], state)  # the first term rests
    assert guided.tolist() == [[1, 0, 2]]
    guided, _ = rule(main, [Offset(0, 2.0, first), Offset(1, 1.0, second)], state)
    assert guided.tolist() == [[1, 12, 3]]


def test_apg_in_neutral_is_extrapolation():
    main = normal(3, 2, 4, 4)
    offsets = [Offset(k, 1.0 + k, normal(3, 2, 4, 4, seed=k)) for k in (1, 2)]
    neutral = APG(eta=1.0, norm_threshold=math.inf, momentum=0.0)
    found, _ = neutral(main, offsets, neutral(main, offsets, None)[1])
    torch.testing.assert_close(found, Extrapolate()(main, offsets, None)[0])


def test_apg_of_nothing_is_finite():
    zero = rows([0, 0])
    for main, direction in ((zero, rows([1, 2])), (rows([1, 2]), zero), (zero, zero)):
        guided, _ = APG(norm_threshold=5.0)(main, [Offset(0, 2.0, direction)], None)
        torch.testing.assert_close(guided, main + 2 * direction)


def test_impossible_settings_are_refused():
    with pytest.raises(UsageError, match="more than one number per sample"):
        Rescale()(rows([1.0]), [Offset(0, 1.0, rows([1.0]))], None)
    for value in (-1.0, math.nan):
        with pytest.raises(UsageError, match="phi is a share"):
            Rescale(phi=value)
        with pytest.raises(UsageError, match="norm_threshold must be positive"):
            APG(norm_threshold=value)
