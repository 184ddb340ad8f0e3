"""Guidance methods of one direction, as the YAMLs name them."""

from guidex.guidance.directions import ClassifierGradient, Difference, Direction
from guidex.guidance.guidance import Guidance, Term
from guidex.guidance.rules import Extrapolate, Rule
from guidex.guidance.schedules import Schedule
from guidex.models.classifier import BayesClassifier
from guidex.models.denoiser import Denoiser


def none() -> Guidance:
    """No guidance: the main model alone."""
    return Guidance({}, Extrapolate())


def difference(reference: Denoiser, schedule: Schedule, rule: Rule, k: float = 1.0) -> Guidance:
    """Away from a reference: CFG, autoguidance, sigma scaling (see directions.Difference)."""
    return single(Difference(reference, k), schedule, rule)


def classifier(reference: BayesClassifier, schedule: Schedule, rule: Rule) -> Guidance:
    """Up the gradient of a classifier (see directions.ClassifierGradient)."""
    return single(ClassifierGradient(reference), schedule, rule)


def single(direction: Direction, schedule: Schedule, rule: Rule) -> Guidance:
    """Guidance along any one direction."""
    return Guidance({"direction": Term(direction, schedule)}, rule)
