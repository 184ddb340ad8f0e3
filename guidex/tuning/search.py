"""The search: rounds of candidates from Optuna, halved over image counts, all on the same seeds.

A round asks for more candidates than it takes, and takes half of them as they come, the others
because they share most steps. Of all candidates of a rung, the best go on with more images
(successive halving, Li et al. 2018, arXiv 1810.05934, in batches), so one that was passed over may
yet go on in a later round. The search is a function of its results: given again, it goes the same
way, and what was measured before costs nothing.
"""

import inspect
import math
import warnings
from collections import Counter
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field
from typing import Any

from guidex.config.presets import nearest
from guidex.errors import GuidexError, UsageError
from guidex.reports.rows import Row
from guidex.runs.points import Planned
from guidex.tuning.cost import identity, price
from guidex.tuning.space import Budget, Choice, Range

POOL = 2  # times as many candidates are asked for as are taken
PATIENCE = 50  # times as many, before a space is thought to be exhausted

Values = dict[str, str]


@dataclass
class Candidate:
    """A point that is tried.

    Attributes:
        values: of the searched keys, as they are typed.
        rows: what was measured at each rung, so far.
        trials: of Optuna, that are yet to be told; several, where they make the same plan.
        first, told: the first trial that was told, and whether of all images.
    """

    values: Values
    planned: Planned
    rows: list[Row] = field(default_factory=list)
    trials: list[Any] = field(default_factory=list)
    first: Any = None
    told: bool = False

    @property
    def evaluations(self) -> int:
        """Per image."""
        return self.planned.plan.evaluations_main + sum(self.planned.plan.evaluations_ref)


@dataclass(frozen=True)
class Objective:
    """A column of the table, and which values of it are the better ones."""

    metric: str
    better: str

    def loss(self, row: Row) -> float:
        """Smaller is better; infinite where the metric is no number."""
        value = row.metrics[self.metric]
        loss = value if self.better == "lower" else -value
        return math.inf if math.isnan(loss) else loss


def new_study(sampler: str, seed: int, objectives: Sequence[Objective], storage: str | None) -> Any:
    """An empty study of Optuna; one in the storage is begun anew, and refilled by the search.

    Raises:
        UsageError: no such sampler, or one that needs more than a seed.
        GuidexError: Optuna is not installed.
    """
    try:
        import optuna
    except ImportError as error:
        raise GuidexError(
            "guidex tune needs Optuna, which is not installed: pip install 'guidex[tune]'"
        ) from error
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    made = {
        name.removesuffix("Sampler"): getattr(optuna.samplers, name)
        for name in dir(optuna.samplers)
        if name.endswith("Sampler") and "seed" in _options(getattr(optuna.samplers, name))
    }
    made = {name: each for name, each in made.items() if not _required(each)}
    if sampler not in made:
        raise UsageError(f"search.sampler={sampler}: no such sampler{nearest(sampler, made)}")
    options = {"multivariate": True} if sampler == "TPE" else {}
    directions = ["minimize"] * len(objectives)
    if storage is not None:
        known = {each.study_name for each in optuna.get_all_study_summaries(storage)}
        if "guidex" in known:
            optuna.delete_study(study_name="guidex", storage=storage)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of what Optuna calls experimental
        chosen = made[sampler](seed=seed, **options)
        name = None if storage is None else "guidex"
        return optuna.create_study(
            storage=storage, study_name=name, sampler=chosen, directions=directions
        )


def _options(sampler: Any) -> dict[str, inspect.Parameter]:
    return dict(inspect.signature(sampler.__init__).parameters)


def _required(sampler: Any) -> list[str]:
    given = [each for name, each in _options(sampler).items() if name != "self"]
    return [each.name for each in given if each.default is each.empty]


@dataclass
class Search:
    """Candidates under a budget.

    Attributes:
        study: of Optuna.
        rungs: numbers of images, increasing; the last is all that there are.
        count: candidates of a round.
        keep: one in so many of a rung goes on to the next.
        plan: values to a point, or None where there is none, as with lo >= hi.
        measure: candidates and the number of a rung to rows.
        say: told after each round.
        spent: evaluations, GFLOP, images and seconds so far.
    """

    study: Any
    space: Sequence[Range | Choice]
    objectives: Sequence[Objective]
    budget: Budget
    rungs: Sequence[int]
    count: int
    keep: int
    plan: Callable[[Values], Planned | None]
    measure: Callable[[Sequence[Candidate], int], list[Row]]
    say: Callable[["Search"], None] = lambda search: None
    spent: Counter = field(default_factory=Counter)
    candidates: dict[Hashable, Candidate] = field(default_factory=dict)

    def run(self) -> None:
        """Rounds until the budget or the space is exhausted.

        Raises:
            UsageError: the budget is too small for one candidate.
        """
        while fresh := self._affordable(self._asked(), 0):
            self._take(fresh, 0)
            for rung in range(1, len(self.rungs)):
                self._take(self._affordable(self._best(rung), rung), rung)
            for candidate in list(self.candidates.values()):
                self._tell(candidate)
            self.say(self)
        if not self.finalists:
            raise UsageError(
                f"budget: {self.budget.amount:g} {self.budget.unit} do not pay for one candidate "
                f"of {self.rungs[-1]} images; give more, or fewer seeds"
            )

    @property
    def finalists(self) -> list[Candidate]:
        """The candidates that were measured with all images, the best first."""
        return self._ranked([c for c in self.candidates.values() if len(c.rows) == len(self.rungs)])

    @property
    def trade_offs(self) -> list[Candidate]:
        """The finalists that no other one beats in every objective."""
        group = self.finalists
        return [a for a in group if not any(_beats(self.losses(b), self.losses(a)) for b in group)]

    def losses(self, candidate: Candidate) -> tuple[float, ...]:
        """Smaller is better, for each objective, by the most images there are."""
        return tuple(one.loss(candidate.rows[-1]) for one in self.objectives)

    def _asked(self) -> list[Candidate]:
        """New candidates, of which no two make the same images."""
        pool: dict[Hashable, Candidate] = {}
        for _ in range(PATIENCE * self.count):
            trial = self.study.ask()
            values = {one.key: one.ask(trial) for one in self.space}
            planned = self.plan(values)
            if planned is None:
                self._skip(trial)
                continue
            key = identity(planned)
            known = self.candidates.get(key) or pool.get(key)
            if known is None:
                pool[key] = known = Candidate(values, planned)
            known.trials.append(trial)
            if known.rows:
                self._tell(known)
            if len(pool) == POOL * self.count:
                break
        return self._sharing(list(pool.values()))

    def _sharing(self, pool: list[Candidate]) -> list[Candidate]:
        """The first half of a round as it was asked for, the others for the steps they share."""
        taken, rest = pool[: math.ceil(self.count / 2)], pool[math.ceil(self.count / 2) :]
        while rest and len(taken) < self.count:
            group = [one.planned for one in taken]
            costs = [price([*group, one.planned])["evaluations"] for one in rest]
            taken.append(rest.pop(costs.index(min(costs))))
        for one in rest:
            self._drop(one)
        return taken

    def _affordable(self, group: Sequence[Candidate], rung: int) -> list[Candidate]:
        """As many as the budget pays for, if one of them is then to get all images."""
        group, left = list(group), self.budget.left(self.spent)
        while group:
            dearest = max(self._price([one]) for one in group)
            rest = dearest * (self.rungs[-1] - self.rungs[rung])
            if self._price(group) * self._images(rung) + rest <= left:
                break
            self._drop(group.pop())
        return group

    def _price(self, group: Sequence[Candidate]) -> float:
        """For one seed, in the unit of the budget; seconds as they were spent so far."""
        costs = price([one.planned for one in group])
        if self.budget.unit == "seconds":
            rate = self.spent["seconds"] / max(self.spent["evaluations"], 1)
            return rate * costs["evaluations"]
        return costs[self.budget.unit]

    def _images(self, rung: int) -> int:
        """By how many a rung has more than the one below."""
        return self.rungs[rung] - (self.rungs[rung - 1] if rung > 0 else 0)

    def _best(self, rung: int) -> list[Candidate]:
        """Those of the rung below that go on: of all that came so far, one in `keep`."""
        below = [one for one in self.candidates.values() if len(one.rows) >= rung]
        gone = [one for one in below if len(one.rows) > rung]
        most = math.ceil(len(below) / self.keep) - len(gone)
        return self._ranked([one for one in below if len(one.rows) == rung])[: max(most, 0)]

    def _ranked(self, group: list[Candidate]) -> list[Candidate]:
        """The best first: those that few others beat in every objective."""
        losses = [self.losses(one) for one in group]
        beaten = [sum(_beats(other, own) for other in losses) for own in losses]
        order = sorted(range(len(group)), key=lambda k: (beaten[k], losses[k]))
        return [group[k] for k in order]

    def _take(self, group: Sequence[Candidate], rung: int) -> None:
        """Measure candidates at a rung."""
        if not group:
            return
        for row, one in zip(self.measure(group, rung), group, strict=True):
            before = one.rows[-1].seconds if one.rows else 0.0
            self.spent["seconds"] += row.seconds - before
            one.rows.append(row)
            self.candidates[identity(one.planned)] = one
        for unit, cost in price([one.planned for one in group]).items():
            self.spent[unit] += cost * self._images(rung)

    def _tell(self, candidate: Candidate) -> None:
        """Tell Optuna what is known of a candidate, and once more when it is measured in full."""
        import optuna

        losses, is_whole = self.losses(candidate), len(candidate.rows) == len(self.rungs)
        for trial in candidate.trials:
            if is_whole or len(losses) > 1:  # several objectives know no unfinished trials
                self.study.tell(trial, losses)
            else:
                trial.report(losses[0], step=candidate.rows[-1].images)
                self.study.tell(trial, state=optuna.trial.TrialState.PRUNED)
        first = candidate.first
        if first is not None and is_whole and not candidate.told:
            whole = optuna.trial.create_trial(
                values=losses, params=first.params, distributions=first.distributions
            )
            self.study.add_trial(whole)
        candidate.first = first or candidate.trials[0]
        candidate.told, candidate.trials = is_whole, []

    def _drop(self, candidate: Candidate) -> None:
        """Forget a candidate that is not measured further."""
        if not candidate.rows:
            for trial in candidate.trials:
                self._skip(trial)

    def _skip(self, trial: Any) -> None:
        import optuna

        self.study.tell(trial, state=optuna.trial.TrialState.FAIL)


def _beats(one: Sequence[float], other: Sequence[float]) -> bool:
    """Whether one is nowhere worse than the other, and somewhere better."""
    return all(a <= b for a, b in zip(one, other, strict=True)) and tuple(one) != tuple(other)
