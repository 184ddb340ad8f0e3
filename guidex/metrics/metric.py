"""What a metric is: a pure function of two sets of features that says what it needs of them, and
how its columns are called, ranked and printed.

A new metric is one class in this folder and one YAML in configs/metrics.
"""

import importlib
import pkgutil
from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal, NamedTuple, NoReturn

from torch import Tensor

from guidex.errors import UsageError
from guidex.features.features import FeatureSet, check_comparable
from guidex.metrics.differences import block_means

# Images that published numbers are computed from (Heusel et al. 2017; EDM2; dgm-eval).
PUBLISHED_IMAGES = 50_000

# Ends of the columns that go with another one: an interval and its centre.
COMPANIONS = ("_unbiased", "_lo", "_hi")

# By name; of a mean over fakes, the value of each.
Numbers = dict[str, float | Tensor]


@dataclass(frozen=True)
class Column:
    """A column <name>_<detector> of tables."""

    name: str  # without the detector, such as fd
    label: str  # for people
    better: Literal["lower", "higher"] | None = None  # which values are the better ones
    digits: int | None = None  # decimals to print; None for as many as values demand
    is_share: bool = False  # whether all values lie between 0 and 1
    is_chief: bool = False  # points are compared by it first; never shown without its detector
    against: str = ""  # name of another column that this one is drawn against


class Fewest(NamedTuple):
    """The smallest numbers of real and fake images that a metric takes, 0 for any number; the
    options that ask for so many, such as "k=3"; and what else to do than to use more images."""

    real: int = 0
    fake: int = 0
    options: str = ""
    instead: str = ""


class Metric(ABC):
    """Called as metric(real=..., fake=...), it returns named numbers and keeps nothing. What it
    needs is known without any image, so that sets which lack something are refused first."""

    columns: ClassVar[tuple[Column, ...]] = ()  # of tables, in order
    least: ClassVar[dict[str, int]] = {}  # the smallest values of options that are whole numbers
    shares: ClassVar[tuple[str, ...]] = ()  # options that are above 0 and below 1
    needs_reference: ClassVar[bool] = True  # whether it takes a real set at all
    needs_values: ClassVar[bool] = True  # single features of the real set
    needs_truth: ClassVar[bool] = False  # its exact distribution
    needs_fake_values: bool = True  # single features of the fake set
    needs_labels: ClassVar[bool] = False  # the classes of both sets
    needs_detector: ClassVar[str | None] = None  # name of the only one that it is defined for

    def __post_init__(self) -> None:
        for name, least in self.least.items():
            if getattr(self, name) is not None:
                check_whole(name, getattr(self, name), least=least)
        for name in self.shares:
            if not 0 < getattr(self, name) < 1:
                told = f"{name} is {getattr(self, name)!r}"
                raise UsageError(f"{told}; it must be a number above 0 and below 1.")

    @abstractmethod
    def compute(self, real: FeatureSet | None, fake: FeatureSet) -> Numbers:
        """Numbers by the names of `columns`, which may end in COMPANIONS, of sets that lack nothing
        it needs; real is None where it needs no reference. Of a mean over fakes, the value of each
        [N] instead, which tells its confidence, too."""

    def pseudovalues(
        self, real: FeatureSet | None, fake: FeatureSet, numbers: Numbers
    ) -> dict[str, list[float]]:
        """Those of blocks of fakes (see `metrics.differences`) by column, as far as they are cheap;
        `numbers` are what `compute` has returned."""
        return {k: block_means(each) for k, each in numbers.items() if isinstance(each, Tensor)}

    def fewest(self, dim: int) -> Fewest:
        """The images needed for D features; UsageError where the options do not suit D."""
        return Fewest(2, 2)  # a single image has no distribution

    def doubts(self, *, real: int | None, fake: int, dim: int, network: bool) -> list[str]:
        """What the numbers of images do to a comparison with published values, in sentences; real
        is None where it is not recorded or needed, network tells whether the detector is one."""
        return []

    def caption(self, *, real: int | None, recorded: int | None) -> dict[str, str]:
        """What a table must say of the options, by subject: of `real` images, where the whole
        reference has `recorded` ones, if that is known."""
        return {}

    def __call__(self, *, real: FeatureSet | None, fake: FeatureSet) -> dict[str, float]:
        """Numbers by column, in order; UsageError where the sets are of different detectors, lack
        something, or are too few images."""
        return self.measured(real=real, fake=fake, blockwise=False)[0]

    def measured(
        self, *, real: FeatureSet | None, fake: FeatureSet, blockwise: bool = True
    ) -> tuple[dict[str, float], dict[str, list[float]]]:
        """As by a call, and with `blockwise` the pseudo-values that there are, also by column."""
        self.check(real=real, fake=fake)
        numbers = self.compute(real, fake)
        named = {}
        for name, value in numbers.items():
            end = next((end for end in COMPANIONS if name.endswith(end)), "")
            number = value.double().mean().item() if isinstance(value, Tensor) else value
            named[f"{name.removesuffix(end)}_{fake.detector}{end}"] = number
        pseudo = self.pseudovalues(real, fake, numbers) if blockwise else {}
        return named, {f"{name}_{fake.detector}": each for name, each in pseudo.items() if each}

    def check_detector(self, detector: str) -> None:
        """Raise UsageError where it is defined for another detector alone."""
        wanted = self.needs_detector
        if wanted not in (None, detector):
            self._refuse(f"is defined for features of {wanted} alone; use detector={wanted}")

    def check(self, *, real: FeatureSet | None, fake: FeatureSet) -> None:
        """Raise UsageError where the sets, or what they will be, are of different detectors, lack
        something that it needs, or are too few images."""
        self.check_detector(fake.detector)
        fewest = self.fewest(fake.dim)
        sides = [("fake", fake, self.needs_fake_values, fewest.fake)]
        if self.needs_reference:
            check_comparable(real=real, fake=fake)
            sides.insert(0, ("real", real, self.needs_values, fewest.real))
            if self.needs_truth and real.truth is None:
                self._refuse("needs a distribution known in closed form; use it with a toy model")
        for side, features, needs_values, least in sides:
            which = f"the {side} set ({features.detector})"
            if needs_values and features.values is None:
                self._refuse(f"compares single images; give those of {which}, not statistics alone")
            if self.needs_labels and features.labels is None:
                self._refuse(f"compares classes, but {which} has no labels. Give a labelled set")
            statistics = None if needs_values else features.given_statistics
            count = features.count if statistics is None else statistics.count
            if count < least:
                options = fewest.options and f"with {fewest.options} "
                instead = fewest.instead and f", {fewest.instead}"
                self._refuse(
                    f"{options}needs at least {least} {side} images, and has {count}; use more "
                    f"images{instead}"
                )

    def _refuse(self, why: str) -> NoReturn:
        raise UsageError(f"{type(self).__name__} {why}, or leave the metric out.")


def column_of(name: str) -> tuple[Column, str] | None:
    """The column of a metric, and the detector, by the name of a table's column; None for names
    that no metric of guidex, or of classes that were imported, has given."""
    for module in pkgutil.iter_modules([str(Path(__file__).parent)]):
        importlib.import_module(f"guidex.metrics.{module.name}")
    classes: list[type[Metric]] = [Metric]
    for metric in classes:
        classes += metric.__subclasses__()
    columns = [column for metric in classes for column in metric.columns]
    fitting = [column for column in columns if f"{name}_".startswith(f"{column.name}_")]
    # A name may begin with another one.
    column = max(fitting, key=lambda column: len(column.name), default=None)
    return None if column is None else (column, name[len(column.name) + 1 :])


def check_whole(name: str, value: int, *, least: int) -> None:
    """Raise UsageError unless an option is a whole number of at least `least`."""
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise UsageError(f"{name} is {value!r}; it must be a whole number of at least {least}.")


def doubts_of_count(
    side: str, count: int | None, published: str, wanted: int = PUBLISHED_IMAGES
) -> list[str]:
    """What to doubt where published values are of another number of images; None: not recorded."""
    if count in (None, wanted):
        return []
    told = f"published {published} are of {wanted:,}, and depend on their number."
    return [f"{count:,} {side} images: {told}"]
