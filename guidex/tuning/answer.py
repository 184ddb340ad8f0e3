"""What a search ends with: the winner, how sure that is, and what quality costs."""

import shlex
from collections.abc import Callable, Iterator, Sequence
from functools import partial

from guidex.metrics.differences import LEVEL, difference
from guidex.reports.labels import short_names
from guidex.tuning.search import Candidate, Objective, Search, beats, identity

RUNNERS_UP = 4


def answer(search: Search, fixed: Sequence[str]) -> Iterator[str]:
    """Lines that tell it, for each objective.

    Arguments:
        fixed: words of the command that are not searched.
    """
    for one in search.objectives:
        ranked = sorted(search.finalists, key=lambda each: one.loss(each.rows[-1]))
        group, best = ranked[: 1 + RUNNERS_UP], ranked[0]
        yield f"best {_told(best, [one])}; {best.planned.plan.describe()}"
        for other in group[1:]:
            ours, theirs = (each.rows[-1].pseudovalues.get(one.metric) for each in (other, best))
            interval = ", how surely is not known of this metric or so few images"
            if ours and theirs:
                apart = difference(ours, theirs)
                mark = "" if apart.low > 0 or apart.high < 0 else ", not distinguishable"
                ends = f"{apart.low:.3g} … {apart.high:.3g}{mark}"
                interval = f", by {apart.centre:.3g} ({LEVEL:.0%}: {ends})"
            yield f"  then {_told(other, [one])}{interval}"
        if places := edges(search, best):
            yield f"  on the edge of its range, beyond which better may lie: {', '.join(places)}"
        yield f"  {one.metric} against evaluations per image:"
        cost_and_loss = partial(_cost_and_loss, one)
        for each in sorted(front(ranked, cost_and_loss), key=cost_and_loss):
            yield f"    {cost_and_loss(each)[0]}: {_told(each, [one])}"
        words = [*fixed, *(f"{key}={value}" for key, value in best.values.items())]
        yield f"  again: {shlex.join(['guidex', 'sample', 'eval=true', *words])}"
    if len(search.objectives) > 1:
        yield f"beaten by none in both ({' and '.join(one.metric for one in search.objectives)}):"
        for each in front(search.finalists, search.losses):
            yield f"    {_told(each, search.objectives)}"


def front(
    group: Sequence[Candidate], losses: Callable[[Candidate], tuple[float, ...]]
) -> list[Candidate]:
    """The candidates that no other one beats: Pareto's front."""
    return [one for one in group if not any(beats(losses(each), losses(one)) for each in group)]


def edges(search: Search, best: Candidate) -> list[str]:
    """The ends of ranges that make the same plan as the values of a candidate."""
    found = []
    for key, end in ((one.key, end) for one in search.space for end in one.ends):
        planned = search.plan({**best.values, key: end})
        if planned is not None and identity(planned) == identity(best.planned):
            found.append(f"{key} = {end}")
    return found


def summary(search: Search) -> str:
    """A line on the search so far."""
    budget, finalists = search.budget, search.finalists
    told = f"{len(search.candidates)} candidates, {len(finalists)} with all images"
    spent = f"{search.spent[budget.unit]:.4g} of {budget.amount:.4g} {budget.unit}"
    best = [f"best {_told(finalists[0], search.objectives)}"] if finalists else []
    return "; ".join([told, spent, *best])


def _cost_and_loss(one: Objective, candidate: Candidate) -> tuple[float, ...]:
    row = candidate.rows[-1]
    return row.evals_main + row.evals_ref, one.loss(row)


def _told(candidate: Candidate, objectives: Sequence[Objective]) -> str:
    """Such as "fd_pixels 0.0715 (w 9.29, lo 0.0616, hi 0.857)"."""
    metrics, short = candidate.rows[-1].metrics, short_names(list(candidate.values))
    values = ", ".join(f"{short[key]} {value}" for key, value in candidate.values.items())
    return (
        ", ".join(f"{one.metric} {metrics[one.metric]:.4g}" for one in objectives) + f" ({values})"
    )
