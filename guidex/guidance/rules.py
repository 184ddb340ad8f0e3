"""Rules: how the main prediction and the weighted directions become one prediction.

All rules act on x0 predictions. Linear combinations are the same in any space; projections, norm
limits and standard deviations are not. What a rule remembers from evaluation to evaluation is a
value that it takes and returns, so that a run can branch.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from guidex.errors import UsageError


@dataclass(frozen=True)
class Offset:
    """One term's part in a guided evaluation: omega = w - 1 and its direction [B, *shape]."""

    term: int
    omega: float
    direction: Tensor


class Rule(ABC):
    """The interface of all rules."""

    @abstractmethod
    def __call__(self, main: Tensor, offsets: list[Offset], state: Any) -> tuple[Tensor, Any]:
        """The main prediction [B, *shape], float32 or float64, guided by at least one term, and the
        state for the next guided evaluation; `state` is None at first."""


@dataclass(frozen=True)
class Extrapolate(Rule):
    """Linear extrapolation, D_w = D_main + sum_k (w_k - 1) direction_k."""

    def __call__(self, main: Tensor, offsets: list[Offset], state: Any) -> tuple[Tensor, Any]:
        return extrapolate(main, offsets), state


@dataclass(frozen=True)
class Rescale(Rule):
    """Extrapolation whose standard deviation is drawn back to the main prediction's.

    D = phi D_w std(D_main) / std(D_w) + (1 - phi) D_w, per image, with phi in 0 ... 1 (Lin et al.
    2023, arXiv 2305.08891, section 3.4; there phi = 0.7).
    """

    phi: float = 0.7

    def __post_init__(self) -> None:
        if not 0 <= self.phi <= 1:
            raise UsageError(f"phi is a share and lies in 0 ... 1, not {self.phi}")

    def __call__(self, main: Tensor, offsets: list[Offset], state: Any) -> tuple[Tensor, Any]:
        guided = extrapolate(main, offsets)
        dims = tuple(range(1, main.ndim))
        if main[0].numel() < 2:
            raise UsageError(
                "the rescale rule needs more than one number per sample to have a deviation"
            )
        ratio = main.std(dims, keepdim=True) / guided.std(dims, keepdim=True)
        return guided * (self.phi * ratio + (1 - self.phi)), state


@dataclass(frozen=True)
class APG(Rule):
    """Adaptive projected guidance (Sadat et al. 2024, arXiv 2410.02416).

    Per term, with direction Delta: momentum, Delta <- Delta + momentum * Delta_previous; norm
    limit, Delta <- Delta min(1, r / |Delta|); then only a share eta of what is parallel to D_main
    is kept: D = D_main + (w - 1) (Delta_orthogonal + eta Delta_parallel).

    Attributes:
        eta: share of the parallel part, 0 = none (the paper's), 1 = all.
        norm_threshold: r, the largest L2 norm of Delta, in units of x0; inf = no limit.
        momentum: factor on the running Delta; the paper's are negative (-0.75 for EDM2-S).
    """

    eta: float = 0.0
    norm_threshold: float = float("inf")
    momentum: float = 0.0

    def __post_init__(self) -> None:
        if not self.norm_threshold > 0:
            raise UsageError(f"norm_threshold must be positive, not {self.norm_threshold}")

    def __call__(
        self, main: Tensor, offsets: list[Offset], state: dict[int, Tensor] | None
    ) -> tuple[Tensor, dict[int, Tensor]]:
        running = dict(state or {})
        projected = []
        for offset in offsets:
            delta = offset.direction
            if offset.term in running:
                delta = delta + self.momentum * running[offset.term]
            running[offset.term] = delta
            projected.append(Offset(offset.term, offset.omega, self._project(delta, main)))
        return extrapolate(main, projected), running

    def _project(self, delta: Tensor, main: Tensor) -> Tensor:
        delta = delta * (self.norm_threshold / _norm(delta)).clamp(max=1)
        axis = main / _norm(main)
        parallel = _inner(delta, axis) * axis
        return delta - (1 - self.eta) * parallel


def extrapolate(main: Tensor, offsets: list[Offset]) -> Tensor:
    """D_main + sum_k omega_k direction_k."""
    for offset in offsets:
        main = main + offset.omega * offset.direction
    return main


def _inner(a: Tensor, b: Tensor) -> Tensor:
    return (a * b).sum(tuple(range(1, a.ndim)), keepdim=True)


def _norm(a: Tensor) -> Tensor:
    # The smallest normal number keeps 0 / 0 away without changing any norm that matters.
    return _inner(a, a).sqrt().clamp_min(torch.finfo(a.dtype).tiny)
