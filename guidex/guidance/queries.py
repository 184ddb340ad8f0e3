"""Queries: the predictions that an evaluation of guidance needs, made in as few calls as can be."""

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from guidex.models.attention import Perturbation
from guidex.models.condition import Condition
from guidex.models.denoiser import View
from guidex.models.spec import Model


@dataclass(frozen=True)
class Query:
    """A prediction that is wanted of a network (a recipe can be planned with, not asked): at k
    times the noise level, maybe without the condition or with its self-attention perturbed."""

    network: Model
    k: float = 1.0
    drop_labels: bool = False
    perturbation: Perturbation | None = None
    extras: dict[str, Tensor] | None = None

    def view(self, sigma: float, condition: Condition) -> View:
        """What it is at a noise level, for a batch's condition."""
        condition = None if self.drop_labels else condition
        return View(self.k * sigma, condition, self.perturbation, self.extras)


def answer(queries: Sequence[Query], x: Tensor, sigma: float, condition: Condition) -> list[Tensor]:
    """The predictions at x [B, *shape], in the order of the queries; each network is asked once, in
    the order of its first query."""
    places: dict[int, list[int]] = {}
    for i, query in enumerate(queries):
        places.setdefault(id(query.network), []).append(i)
    answers: dict[int, Tensor] = {}
    for own in places.values():
        views = [queries[i].view(sigma, condition) for i in own]
        answers.update(zip(own, queries[own[0]].network.joint(x, views), strict=True))
    return [answers[i] for i in range(len(queries))]
