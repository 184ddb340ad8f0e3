"""What a search ends with: the winner, how sure that is, and what quality costs."""

import math
import shlex
from collections.abc import Callable, Sequence

import numpy as np
from scipy.stats import t as student

from guidex.runs.points import words_of
from guidex.tuning.cost import identity
from guidex.tuning.search import Candidate, Objective, Search, Values

RUNNERS_UP = 4
LEVEL = 0.9


def paired(losses: np.ndarray, without: np.ndarray, level: float = LEVEL) -> np.ndarray:
    """Intervals for by how much others are worse than the first: delete-a-block jackknife of the
    differences, whose blocks have the same seeds for all (bias-corrected, Student's t).

    Arguments:
        losses: of all images [C].
        without: without each of B equal blocks [B, C].

    Returns:
        [C - 1, 3]: low end, difference, high end.
    """
    blocks = len(without)
    whole, part = losses[1:] - losses[0], without[:, 1:] - without[:, :1]
    pseudo = blocks * whole - (blocks - 1) * part
    half = student.ppf((1 + level) / 2, blocks - 1) * pseudo.std(axis=0, ddof=1) / math.sqrt(blocks)
    centre = pseudo.mean(axis=0)
    return np.stack([centre - half, centre, centre + half], axis=1)


def front(group: Sequence[Candidate], objective: Objective) -> list[Candidate]:
    """The candidates that no other one, of the same evaluations or fewer, is as good as; from the
    cheapest."""
    best, found = math.inf, []
    for one in sorted(group, key=lambda one: (one.evaluations, objective.loss(one.rows[-1]))):
        if objective.loss(one.rows[-1]) < best:
            best = objective.loss(one.rows[-1])
            found.append(one)
    return found


def edges(search: Search, winner: Candidate) -> list[str]:
    """The searched keys whose end makes the same plan as the winner's value."""
    found = []
    for one in search.space:
        for end in one.ends:
            planned = search.plan({**winner.values, one.key: end})
            if planned is not None and identity(planned) == identity(winner.planned):
                found.append(f"{one.key} = {end}")
    return found


def answer(
    search: Search,
    fixed: Sequence[str],
    blocks: int,
    without: Callable[[Sequence[Candidate], int], Sequence],
) -> list[str]:
    """Lines that tell it, for each objective.

    Arguments:
        fixed: words of the command that are not searched.
        blocks: how many blocks the images come in.
        without: candidates and the number of a block to rows of all other images.
    """
    lines = []
    for objective in search.objectives:
        name = objective.metric
        ranked = sorted(search.finalists, key=lambda one: objective.loss(one.rows[-1]))
        winner, *others = ranked[: 1 + RUNNERS_UP]
        value = winner.rows[-1].metrics[name]
        lines += [
            f"best {name}: {value:.4g} at {words_of(winner.values)}",
            f"  {winner.planned.plan.describe()}",
        ]
        if others and blocks > 1:
            group = [winner, *others]
            part = [[objective.loss(row) for row in without(group, k)] for k in range(blocks)]
            whole = np.array([objective.loss(one.rows[-1]) for one in group])
            for one, (low, by, high) in zip(others, paired(whole, np.array(part)), strict=True):
                mark = "" if low > 0 else "; not distinguishable"
                lines.append(
                    f"  better by {by:.3g} ({LEVEL:.0%}: {low:.3g} … {high:.3g}{mark}) than "
                    f"{words_of(one.values)}"
                )
        if places := edges(search, winner):
            lines.append(
                "  on the edge of a range, beyond which better values may lie: " + ", ".join(places)
            )
        lines.append(f"  quality against cost, {name} by evaluations per image:")
        for one in front(ranked, objective):
            lines.append(
                f"    {one.rows[-1].metrics[name]:.4g}  {one.evaluations}  {words_of(one.values)}"
            )
        lines.append(f"  again: {command(fixed, winner.values)}")
    if len(search.objectives) > 1:
        names = ", ".join(one.metric for one in search.objectives)
        lines.append(f"not beaten in both, {names}:")
        for one in search.trade_offs:
            numbers = [f"{one.rows[-1].metrics[each.metric]:.4g}" for each in search.objectives]
            lines.append(f"    {'  '.join(numbers)}  {words_of(one.values)}")
    return lines


def command(fixed: Sequence[str], values: Values) -> str:
    """The command that samples and measures a candidate."""
    return shlex.join(
        ["guidex", "sample", "eval=true", *fixed, *(f"{k}={v}" for k, v in values.items())]
    )


def summary(search: Search) -> str:
    """A line on a round."""
    best, budget = search.finalists[:1], search.budget
    told = f"{len(search.candidates)} candidates, {len(search.finalists)} with all images"
    spent = f"{search.spent[budget.unit]:.4g} of {budget.amount:.4g} {budget.unit}"
    parts = [told, spent]
    for one in best:
        names = [each.metric for each in search.objectives]
        parts += [f"{name} {one.rows[-1].metrics[name]:.4g}" for name in names]
        parts.append(words_of(one.values))
    return "; ".join(parts)
