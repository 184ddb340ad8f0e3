"""The search: rounds of candidates from Optuna, halved over image counts, all on the same seeds.

A round asks for more candidates than it takes, and takes half of them as they come, the others
because they share most steps. Of all candidates of a rung, the best go on with more images
(successive halving, Li et al. 2018, arXiv 1810.05934, in batches), so one that was passed over may
yet go on in a later round. The search is a function of its results: given again, it goes the same
way, and what was measured before is there.
"""

import math
import warnings
from collections import Counter
from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from guidex.config.presets import nearest
from guidex.errors import GuidexError, UsageError
from guidex.reports.rows import Row
from guidex.runs.cost import cost
from guidex.runs.points import Planned
from guidex.tuning.space import Budget, Choice, Range

SAMPLERS = ("TPE", "GP", "QMC", "Random", "CmaEs", "NSGAII", "NSGAIII", "BruteForce")
POOL = 2  # times as many candidates are asked for as are taken
PATIENCE = 10  # times as many, before a space is thought to be exhausted

Values = dict[str, str]


@dataclass
class Candidate:
    """A point that is tried.

    Attributes:
        values: of the searched keys, as they are typed.
        rows: what was measured at each rung, so far.
        trials: of Optuna, yet to be told; several, where their values make the same plan.
        early: the first trial, where it was told before all images were measured.
    """

    values: Values
    planned: Planned
    rows: list[Row] = field(default_factory=list)
    trials: list[Any] = field(default_factory=list)
    early: Any = None


@dataclass(frozen=True)
class Objective:
    """A column of the table, and which values of it are the better ones: lower or higher."""

    metric: str
    better: str

    def loss(self, row: Row) -> float:
        """Smaller is better; infinite where the metric is no number."""
        if self.metric not in row.metrics:
            raise UsageError(f"metric={self.metric} cannot be measured of {row.images} samples")
        value = row.metrics[self.metric]
        return math.inf if math.isnan(value) else value if self.better == "lower" else -value


def identity(point: Planned) -> Hashable:
    """Equal for points that make the same samples of a seed: their plans as snapped to the grid."""
    run, steps = point.run, len(point.plan.timeline.evaluations)
    return point.settings.cohort, tuple(run.signature(step) for step in range(steps))


def price(points: Sequence[Planned]) -> Counter:
    """What a seed costs at all points, by the unit of a budget, but for seconds."""
    main, references, gflops = cost(points)
    return Counter(evaluations=main + references, GFLOP=gflops, images=len(points))


def new_study(sampler: str, seed: int, objectives: int, storage: str | None = None) -> Any:
    """An empty study of Optuna; one in the storage is begun anew, and filled again by the search.
    UsageError where there is no such sampler, GuidexError where Optuna is not installed."""
    try:
        import optuna
    except ImportError as error:
        told = "guidex tune needs Optuna, which is not installed: pip install 'guidex[tune]'"
        raise GuidexError(told) from error
    if sampler not in SAMPLERS:
        raise UsageError(f"search.sampler={sampler}: no such sampler{nearest(sampler, SAMPLERS)}")
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    name = None if storage is None else "guidex"
    if storage is not None:
        with suppress(KeyError):  # there is none
            optuna.delete_study(study_name=name, storage=storage)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of what Optuna calls experimental
        options = {"multivariate": True} if sampler == "TPE" else {}
        chosen = getattr(optuna.samplers, f"{sampler}Sampler")(seed=seed, **options)
    options = {"directions": ["minimize"] * objectives, "sampler": chosen}
    return optuna.create_study(storage=storage, study_name=name, **options)


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
        spent: evaluations, GFLOP, images and seconds so far.
        candidates: by the identity of their plans.
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
    spent: Counter = field(default_factory=Counter)
    candidates: dict[Hashable, Candidate] = field(default_factory=dict)

    def rounds(self) -> Iterator[None]:
        """Go on, round by round, until the budget or the space is exhausted; UsageError where the
        budget does not pay for one candidate."""
        while asked := self._asked():
            if not (fresh := self._affordable(asked, 0)):
                break
            self._take(fresh, 0)
            for rung in range(1, len(self.rungs)):
                self._take(self._affordable(self._best(rung), rung), rung)
            for candidate in self.candidates.values():
                self._tell(candidate)
            yield
        else:  # the space is exhausted; what the budget still pays for goes to those that wait
            for rung in range(1, len(self.rungs)):
                self._take(self._affordable(self._ranked(rung), rung), rung)
            yield
        if not self.finalists:
            raise UsageError(
                f"budget: {self.budget.amount:g} {self.budget.unit} do not pay for one candidate "
                f"of {self.rungs[-1]} images; give more, or fewer seeds"
            )

    @property
    def finalists(self) -> list[Candidate]:
        """The candidates that were measured with all images, the best first."""
        return self._ranked(len(self.rungs))

    def losses(self, candidate: Candidate) -> tuple[float, ...]:
        """Of each objective, with the most images there are."""
        return tuple(one.loss(candidate.rows[-1]) for one in self.objectives)

    def _asked(self) -> list[Candidate]:
        """New candidates, of which no two make the same images."""
        from optuna.samplers import RandomSampler

        pool, sampler = dict[Hashable, Candidate](), self.study.sampler
        for asked in range(PATIENCE * self.count):
            if asked >= 2 * POOL * self.count and len(pool) >= self.count:
                break
            if asked == 2 * POOL * self.count:  # it comes back to what is known: look elsewhere
                self.study.sampler = RandomSampler(seed=len(self.candidates))
            trial = self.study.ask()
            values = {one.key: one.ask(trial) for one in self.space}
            planned = self.plan(values)
            if planned is None:
                self._drop([trial])
                continue
            key = identity(planned)
            known = self.candidates.get(key) or pool.setdefault(key, Candidate(values, planned))
            known.trials.append(trial)
            if known.rows:
                self._tell(known)
            if len(pool) == POOL * self.count:
                break
        self.study.sampler = sampler
        half = math.ceil(self.count / 2)
        taken, rest = list(pool.values())[:half], list(pool.values())[half:]
        while rest and len(taken) < self.count:
            group = [one.planned for one in taken]
            costs = [price([*group, one.planned])["evaluations"] for one in rest]
            taken.append(rest.pop(costs.index(min(costs))))
        self._drop(trial for one in rest for trial in one.trials)
        return taken

    def _affordable(self, group: list[Candidate], rung: int) -> list[Candidate]:
        """As many as the budget pays for, if one of them is then to get all images."""
        left = self.budget.amount - self.spent[self.budget.unit]
        while group:
            dearest = max(self._price([one]) for one in group)
            rest = dearest * (self.rungs[-1] - self.rungs[rung])
            if self._price(group) * self._images(rung) + rest <= left:
                break
            last = group.pop()
            self._drop(() if last.rows else last.trials)
        return group

    def _price(self, group: Sequence[Candidate]) -> float:
        """For one seed, in the unit of the budget; seconds as they were spent so far."""
        costs = price([one.planned for one in group])
        if math.isnan(costs[self.budget.unit]):
            raise UsageError("budget: the GFLOP of this model are not known; give evaluations")
        if self.budget.unit == "seconds":
            rate = self.spent["seconds"] / max(self.spent["evaluations"], 1)
            return rate * costs["evaluations"]
        return costs[self.budget.unit]

    def _images(self, rung: int) -> int:
        """By how many a rung has more than the one below."""
        return self.rungs[rung] - (self.rungs[rung - 1] if rung > 0 else 0)

    def _best(self, rung: int) -> list[Candidate]:
        """Those of the rung below that go on: of all that came so far, one in `keep`."""
        came = sum(len(one.rows) >= rung for one in self.candidates.values())
        gone = sum(len(one.rows) > rung for one in self.candidates.values())
        return self._ranked(rung)[: max(math.ceil(came / self.keep) - gone, 0)]

    def _ranked(self, rungs: int) -> list[Candidate]:
        """Those with so many rungs behind them, best first: those that few beat everywhere."""
        group = [one for one in self.candidates.values() if len(one.rows) == rungs]
        losses = [self.losses(one) for one in group]
        beaten = [sum(beats(other, own) for other in losses) for own in losses]
        order = sorted(range(len(group)), key=lambda k: (beaten[k], losses[k]))
        return [group[k] for k in order]

    def _take(self, group: Sequence[Candidate], rung: int) -> None:
        """Measure candidates at a rung."""
        if not group:
            return
        for row, one in zip(self.measure(group, rung), group, strict=True):
            self.spent["seconds"] += row.seconds - (one.rows[-1].seconds if one.rows else 0.0)
            one.rows.append(row)
            self.candidates[identity(one.planned)] = one
        for unit, amount in price([one.planned for one in group]).items():
            self.spent[unit] += amount * self._images(rung)

    def _tell(self, candidate: Candidate) -> None:
        """Tell Optuna what is known of a candidate, and once more when it is measured in full."""
        from optuna.trial import TrialState, create_trial

        losses, is_whole = self.losses(candidate), len(candidate.rows) == len(self.rungs)
        for trial in candidate.trials:
            if is_whole or len(losses) > 1:  # several objectives know no unfinished trials
                self.study.tell(trial, losses)
            else:
                trial.report(losses[0], step=candidate.rows[-1].images)
                self.study.tell(trial, state=TrialState.PRUNED)
        early = candidate.early
        if is_whole and early is not None:
            known = {"params": early.params, "distributions": early.distributions}
            self.study.add_trial(create_trial(values=losses, **known))
        candidate.early = None if is_whole else early or candidate.trials[0]
        candidate.trials = []

    def _drop(self, trials: Sequence[Any]) -> None:
        """Forget trials that are not measured."""
        from optuna.trial import TrialState

        for trial in trials:
            self.study.tell(trial, state=TrialState.FAIL)


def beats(one: Sequence[float], other: Sequence[float]) -> bool:
    """Whether one is nowhere worse than the other, and somewhere better."""
    return all(a <= b for a, b in zip(one, other, strict=True)) and tuple(one) != tuple(other)
