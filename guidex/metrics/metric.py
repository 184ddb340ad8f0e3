"""What a metric is: a pure function of two sets of features that says what it needs of them, and
how its columns are called, ranked and printed.

A new metric is one class in this folder and one YAML in configs/metrics.
"""

import importlib
import pkgutil
from abc import ABC, abstractmethod
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import ClassVar, Literal, NamedTuple

from guidex.errors import UsageError
from guidex.features.features import AnySet, FeatureSet, check_comparable

# Images that published FID, FD_DINOv2, precision and recall are computed from (Heusel et al. 2017;
# EDM2; dgm-eval).
PUBLISHED_IMAGES = 50_000

COMPANIONS = ("_unbiased", "_lo", "_hi")
"""Ends of the columns that go with another one: an interval and its centre."""


@dataclass(frozen=True)
class Column:
    """A column <name>_<detector> of tables.

    Attributes:
        name: without the detector, such as fd.
        label: for people.
        better: which values are the better ones; None where neither are.
        digits: decimals with which to print values; None for as many as they demand.
        is_share: whether all values lie between 0 and 1.
        is_chief: whether points are compared by it first; it is never shown without its detector.
        against: name of another column that this one is drawn against; "" for none.
    """

    name: str
    label: str
    better: Literal["lower", "higher"] | None = None
    digits: int | None = None
    is_share: bool = False
    is_chief: bool = False
    against: str = ""


class Fewest(NamedTuple):
    """The smallest numbers of images that a metric takes.

    Attributes:
        real, fake: images of each side; 0 for any number.
        options: that ask for so many, for messages, such as "k=3".
        instead: what else can be done than to use more images.
    """

    real: int = 0
    fake: int = 0
    options: str = ""
    instead: str = "leave it out"


class Metric(ABC):
    """A metric: called as metric(real=..., fake=...), it returns named numbers and keeps nothing.

    What it needs is known without any image, so that sets which lack something are refused before
    the first image is made or goes through a network.

    Attributes:
        columns: of tables, in order.
        needs_reference: whether it takes a real set at all.
        needs_values, needs_truth: whether it needs single features of the real set, or its exact
            distribution.
        needs_fake_values: whether it needs single features of the fake set.
        needs_labels: whether it needs the classes of both sets.
        needs_detector: name of the only detector that it is defined for, or None for any.
    """

    columns: ClassVar[tuple[Column, ...]] = ()
    needs_reference: ClassVar[bool] = True
    needs_values: ClassVar[bool] = True
    needs_truth: ClassVar[bool] = False
    needs_fake_values: bool = True
    needs_labels: ClassVar[bool] = False
    needs_detector: ClassVar[str | None] = None

    @abstractmethod
    def compute(self, real: FeatureSet | None, fake: FeatureSet) -> dict[str, float]:
        """Numbers by the names of `columns`, which may end in COMPANIONS.

        Arguments:
            real: None where it needs no reference. Sets lack nothing that it needs.
        """

    def fewest(self, dim: int) -> list[Fewest]:
        """The images needed for D features; UsageError where the options do not suit D."""
        return []

    def doubts(
        self, *, real: int | None, fake: int, detector: str, dim: int, network: bool
    ) -> list[str]:
        """What the numbers of images do to a comparison with published values, in whole sentences.

        Arguments:
            real, fake, dim: as for `check_counts`.
            detector: name of the detector.
            network: whether that is a published network.
        """
        return []

    def caption(self, *, real: int | None, recorded: int | None) -> dict[str, str]:
        """What a table must say of the options, by subject.

        Arguments:
            real: number of real images that it is given.
            recorded: number of images of the whole reference, where that is known.
        """
        return {}

    def __call__(self, *, real: FeatureSet | None, fake: FeatureSet) -> dict[str, float]:
        """Numbers by column, in the order of the columns.

        Raises:
            UsageError: sets of different detectors, that lack something, or of too few images.
        """
        self.check_detector(fake.detector)
        if self.needs_reference:
            check_comparable(real=real, fake=fake)
            self.check_reference(real)
        self._check(fake, "fake", values=self.needs_fake_values)
        self.check_counts(
            real=_count(real, self.needs_values) if self.needs_reference else None,
            fake=_count(fake, self.needs_fake_values),
            dim=fake.dim,
        )
        numbers = self.compute(real, fake)
        return {_column_name(name, fake.detector): value for name, value in numbers.items()}

    def check_detector(self, detector: str | None) -> None:
        """Raise UsageError where it is defined for another detector alone.

        Arguments:
            detector: its name; None where it depends on the samples.
        """
        if self.needs_detector not in (None, detector):
            raise UsageError(
                f"{self._name} is defined for features of {self.needs_detector}, and these are of "
                f"{detector or 'another detector'}; use detector={self.needs_detector}, or leave "
                "the metric out."
            )

    def check_reference(self, real: AnySet) -> None:
        """Raise UsageError where the real set lacks features, labels or truth that it needs."""
        self._check(real, "real", values=self.needs_values)
        if self.needs_truth and real.truth is None:
            raise UsageError(
                f"{self._name} needs a distribution known in closed form, and the real set "
                f"(detector {real.detector}) has none. Use it with a toy model, or leave the "
                "metric out."
            )

    def check_counts(self, *, real: int | None, fake: int, dim: int) -> None:
        """Raise UsageError where there are too few images.

        Arguments:
            real: number of real images: of single ones, where it needs_values; None where it is
                not recorded, or no reference is needed.
            fake: number of fakes.
            dim: number of features D.
        """
        for fewest in self.fewest(dim):
            options = fewest.options and f" with {fewest.options}"
            for side, count, least in (("real", real, fewest.real), ("fake", fake, fewest.fake)):
                if count is not None and count < least:
                    there = "there is 1" if count == 1 else f"there are {count}"
                    raise UsageError(
                        f"{self._name}{options} needs at least {least} {side} images, but {there}; "
                        f"use more images or {fewest.instead}."
                    )

    def _check(self, features: AnySet, side: str, *, values: bool) -> None:
        number = f"{features.count} images" if features.count else "number of images not known"
        described = f"(detector {features.detector}, {number})"
        if values and not features.has_values:
            raise UsageError(
                f"{self._name} compares single images, but of the {side} set only statistics are "
                f"known {described}. Give the images or their features, or leave the metric out."
            )
        if self.needs_labels and not features.has_labels:
            raise UsageError(
                f"{self._name} compares classes, but the {side} set {described} has no labels. "
                "Give a labelled set, or leave the metric out."
            )

    @property
    def _name(self) -> str:
        return type(self).__name__


def _count(features: FeatureSet, single: bool) -> int:
    """Number of single images, or of those that the statistics are of."""
    given = None if single else features.given_statistics
    return features.count if given is None else given.count


def _column_name(name: str, detector: str) -> str:
    end = next((end for end in COMPANIONS if name.endswith(end)), "")
    return f"{name.removesuffix(end)}_{detector}{end}"


@cache
def _import_all() -> None:
    for module in pkgutil.iter_modules([str(Path(__file__).parent)]):
        importlib.import_module(f"guidex.metrics.{module.name}")


def column_of(name: str) -> tuple[Column, str] | None:
    """The column of a metric, and the detector, by the name of a table's column; None for names
    that no metric of guidex, or of classes that were imported, has given."""
    _import_all()
    classes: list[type[Metric]] = [Metric]
    for metric in classes:
        classes += metric.__subclasses__()
    columns = [column for metric in classes for column in metric.columns]
    # A name may begin with another one.
    for column in sorted(columns, key=lambda column: len(column.name), reverse=True):
        if name == column.name or name.startswith(f"{column.name}_"):
            return column, name[len(column.name) + 1 :]
    return None


def check_whole(name: str, value: int, *, least: int) -> None:
    """Raise UsageError unless an option is a whole number of at least `least`."""
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise UsageError(f"{name} is {value!r}; it must be a whole number of at least {least}.")


def check_share(name: str, value: float) -> None:
    """Raise UsageError unless an option is a number between 0 and 1."""
    if not isinstance(value, float) or not 0 < value < 1:
        raise UsageError(f"{name} is {value!r}; it must be a number above 0 and below 1.")
