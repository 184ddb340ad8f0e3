"""Guidance methods of one direction, as the YAMLs name them."""

from guidex.guidance.directions import ClassifierGradient, Difference, Direction, PerturbedAttention
from guidex.guidance.guidance import Guidance, Term
from guidex.guidance.rules import Extrapolate, Rule
from guidex.guidance.schedules import Schedule
from guidex.models.attention import Mode
from guidex.models.classifier import BayesClassifier
from guidex.models.spec import Model


def none() -> Guidance:
    """No guidance: the main model alone."""
    return Guidance({}, Extrapolate())


def difference(
    reference: Model,
    schedule: Schedule,
    rule: Rule,
    k: float = 1.0,
    drop_labels: bool = False,
    channels: int | None = None,
) -> Guidance:
    """Away from a reference: CFG, autoguidance, sigma scaling (see directions.Difference)."""
    return single(Difference(reference, k, drop_labels, channels), schedule, rule)


def perturbed_attention(
    reference: Model,
    schedule: Schedule,
    rule: Rule,
    layers: str | list[str],
    mode: Mode = "identity",
    ratio: float = 0.25,
    std: float = 1.0,
    seed: int = 0,
) -> Guidance:
    """Away from the same network with perturbed self-attention (directions.PerturbedAttention)."""
    return single(PerturbedAttention(reference, layers, mode, ratio, std, seed), schedule, rule)


def classifier(reference: BayesClassifier, schedule: Schedule, rule: Rule) -> Guidance:
    """Up the gradient of a classifier (see directions.ClassifierGradient)."""
    return single(ClassifierGradient(reference), schedule, rule)


def single(direction: Direction, schedule: Schedule, rule: Rule) -> Guidance:
    """Guidance along any one direction."""
    return Guidance({"direction": Term(direction, schedule)}, rule)
