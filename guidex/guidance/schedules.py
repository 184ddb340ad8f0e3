"""Weight schedules: how the guidance weight w depends on the place in the sampling process.

A schedule is an amplitude `w` times a *shape*. With the default `ramps: omega` the shape
multiplies the excess over no guidance, w(t) = 1 + (w - 1) * shape(t), so that w = 1 is no guidance
for every schedule.

With `gate: step` the weight of a step is decided by the noise level at which the step starts and
holds for all its evaluations (as in the code of the interval paper); with `gate: evaluation` every
evaluation is judged by its own noise level.
"""

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from guidex.errors import UsageError
from guidex.guidance.timeline import Timeline, Times
from guidex.models.native_time import NATIVE, NativeUnit

Unit = Literal["sigma", "step", "fraction", NativeUnit]
Gate = Literal["step", "evaluation"]

ROUNDING = 1e-9  # of times that are worked out from noise levels


class EmptyInterval(UsageError):
    """Bounds with nothing between them."""


@dataclass(frozen=True, kw_only=True)
class Schedule(ABC):
    """The interface of all schedules, and the way from a shape to weights. w is None in the factors
    of a product, which have no weight."""

    w: float | None = None
    gate: Gate = "step"

    def __post_init__(self) -> None:
        if self.w is not None and not math.isfinite(self.w):
            raise UsageError(f"w must be a finite number, not {self.w}")

    @abstractmethod
    def shape(self, times: Times) -> np.ndarray:
        """The dimensionless profile at the given times, float64 [steps, stages]."""

    def plan(self, timeline: Timeline) -> np.ndarray:
        """Weights of all network evaluations, float64 [steps, stages]; NaN where there is none."""
        if self.w is None:
            raise UsageError("w is missing: give the schedule a guidance weight (1 = no guidance)")
        weights = self._weights(self.w, self.shape(timeline.times(self.gate)))
        return np.where(np.isnan(timeline.evaluations), np.nan, weights)

    def _weights(self, w: float, shape: np.ndarray) -> np.ndarray:
        return 1 + (w - 1) * shape


@dataclass(frozen=True, kw_only=True)
class Constant(Schedule):
    """The same weight everywhere: w(t) = w."""

    def shape(self, times: Times) -> np.ndarray:
        return np.ones_like(times.sigma)


@dataclass(frozen=True, kw_only=True)
class Interval(Schedule):
    """Guidance in a limited interval of noise levels (Kynkaanniemi et al. 2024, arXiv 2404.07724,
    eq. 5).

    w(sigma) = w for lo < sigma <= hi, and 1 elsewhere. As in the paper, bounds in sigma are
    snapped to the nearest boundary between sampler steps (nearest in log sigma), so that a printed
    2.90 means the step that starts at 2.9015. `gate: evaluation` does not snap.

    Attributes:
        lo, hi: bounds. unit "sigma": half open, (lo, hi]; "step": first and last guided step, both
            inclusive, counted from 0; "fraction": share of the steps at which guidance starts and
            stops, rounded to a step boundary, 0 = the noisiest; "time" and "timestep" (see
            guidex.models.native_time): both inclusive and not snapped, as in the code of REPA.
    """

    lo: float = 0.0
    hi: float = math.inf
    unit: Unit = "sigma"

    def __post_init__(self) -> None:
        super().__post_init__()
        closed = self.unit in ("step", *NATIVE)  # one step is an interval: lo = hi
        if math.isnan(self.lo) or math.isnan(self.hi) or self.lo < 0:
            raise UsageError(f"bounds must be numbers >= 0, not lo={self.lo:g}, hi={self.hi:g}")
        if not (self.lo <= self.hi if closed else self.lo < self.hi):
            raise EmptyInterval(
                f"lo must be below hi, but lo={self.lo:g} and hi={self.hi:g} ({self.unit})"
            )
        if self.unit == "fraction" and (self.lo > 1 or 1 < self.hi < math.inf):
            raise UsageError(
                f"fractions of the steps go from 0 to 1, not lo={self.lo:g}, hi={self.hi:g}"
            )
        if self.unit == "step" and any(b % 1 != 0 for b in (self.lo, self.hi) if b != math.inf):
            raise UsageError(f"steps are whole numbers, not lo={self.lo:g}, hi={self.hi:g}")

    def shape(self, times: Times) -> np.ndarray:
        return self.inside(times).astype(np.float64)

    def inside(self, times: Times) -> np.ndarray:
        """Where the interval is, bool [steps, stages]."""
        if self.unit == "sigma":
            if self.gate == "evaluation":
                return (self.lo < times.sigma) & (times.sigma <= self.hi)
            return self._between(times, times.boundary(self.hi), times.boundary(self.lo))
        if self.unit in NATIVE:
            time = NATIVE[self.unit](times.sigma)
            return (self.lo - ROUNDING <= time) & (time <= self.hi + ROUNDING)
        if self.unit == "step":
            if self.lo >= times.count:
                raise UsageError(
                    f"step {self.lo:g} does not exist: steps go from 0 to {times.count - 1}"
                )
            return (self.lo <= times.step) & (times.step <= self.hi)
        first, stop = (round(min(bound, 1.0) * times.count) for bound in (self.lo, self.hi))
        return self._between(times, first, stop)

    @staticmethod
    def _between(times: Times, first: int, stop: int) -> np.ndarray:
        return (first <= times.step) & (times.step < stop)


@dataclass(frozen=True, kw_only=True)
class Hole(Interval):
    """Guidance everywhere except in an interval: w(t) = 1 inside (lo, hi], w elsewhere; the
    negative-perturbation scan of Wang et al. 2024 (arXiv 2404.13040). Bounds as for Interval."""

    def shape(self, times: Times) -> np.ndarray:
        return 1.0 - self.inside(times)


@dataclass(frozen=True, kw_only=True)
class Ramp(Schedule):
    """A weight that changes smoothly over the sampling process (Wang et al. 2024, arXiv
    2404.13040).

    Shapes are functions of the time t: 1 at pure noise, 0 at the image.

    Attributes:
        ramps: what the shape multiplies: the excess omega = w - 1 (the paper's convention), or w
            itself, for which w = 1 is *not* "no guidance".
        normalise: "integral" scales the shape to a mean of 1 over t, so that the total guidance
            equals the constant schedule's (the paper's choice: the linear ramp then peaks at 2);
            "peak" to a maximum of 1.
        axis: what t is. "step": 1 - i / (N - 1) for step i of N; "vp": the time of the
            variance-preserving SDE with beta 0.1 ... 20 that has the same sigma; "sigma": sigma /
            sigma of the first step.
    """

    ramps: Literal["omega", "w"] = "omega"
    normalise: Literal["integral", "peak"] = "integral"
    axis: Literal["step", "vp", "sigma"] = "step"

    @abstractmethod
    def profile(self, t: np.ndarray) -> np.ndarray:
        """The shape with its peak at 1, for t in [0, 1]."""

    def shape(self, times: Times) -> np.ndarray:
        peak = 1.0 if self.normalise == "peak" else 1.0 / self._mean()
        return peak * self.profile(times.time(self.axis))

    def _weights(self, w: float, shape: np.ndarray) -> np.ndarray:
        return w * shape if self.ramps == "w" else super()._weights(w, shape)

    def _mean(self) -> float:
        """Integral of the profile over t in [0, 1] (midpoint rule; the profiles are smooth)."""
        return float(self.profile((np.arange(10_000) + 0.5) / 10_000).mean())


@dataclass(frozen=True, kw_only=True)
class Linear(Ramp):
    """omega(t) = 2 (1 - t) omega: from none at pure noise to the most at the image."""

    def profile(self, t: np.ndarray) -> np.ndarray:
        return 1 - t


@dataclass(frozen=True, kw_only=True)
class Cosine(Ramp):
    """omega(t) = (cos(pi t) + 1) omega: increases over sampling, slowly at both ends."""

    def profile(self, t: np.ndarray) -> np.ndarray:
        return (np.cos(np.pi * t) + 1) / 2


@dataclass(frozen=True, kw_only=True)
class InverseLinear(Ramp):
    """omega(t) = 2 t omega: decreases over sampling."""

    def profile(self, t: np.ndarray) -> np.ndarray:
        return t


@dataclass(frozen=True, kw_only=True)
class Sine(Ramp):
    """omega(t) = (sin(pi t - pi / 2) + 1) omega: decreases over sampling, slowly at both ends."""

    def profile(self, t: np.ndarray) -> np.ndarray:
        return (np.sin(np.pi * t - np.pi / 2) + 1) / 2


@dataclass(frozen=True, kw_only=True)
class VShape(Ramp):
    """omega(t) = 2 |1 - 2 t| omega: high, low, high."""

    def profile(self, t: np.ndarray) -> np.ndarray:
        return np.abs(1 - 2 * t)


@dataclass(frozen=True, kw_only=True)
class LambdaShape(Ramp):
    """omega(t) = 2 (1 - |1 - 2 t|) omega: low, high, low."""

    def profile(self, t: np.ndarray) -> np.ndarray:
        return 1 - np.abs(1 - 2 * t)


@dataclass(frozen=True, kw_only=True)
class PowerCosine(Ramp):
    """omega(t) = (1 - cos(pi (1 - t)^power)) / 2 omega: increases; a larger power starts later.

    The paper does not normalise it, hence the default `normalise: peak`.
    """

    normalise: Literal["integral", "peak"] = "peak"
    power: float = 2.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.power > 0:
            raise UsageError(f"power must be positive, not {self.power}")

    def profile(self, t: np.ndarray) -> np.ndarray:
        return (1 - np.cos(np.pi * (1 - t) ** self.power)) / 2


@dataclass(frozen=True, kw_only=True)
class Clamped(Ramp):
    """A ramp that never falls below a floor: omega(t) = max(floor, ramp(t)).

    The floor is an absolute omega >= 0, as published (1.1 for CIFAR-10, 2 for SD 1.5, 4 for SDXL),
    but never more than omega itself, so that w = 1 stays no guidance.
    """

    floor: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.floor >= 0:
            raise UsageError(f"floor is the least w - 1 and must be >= 0, not {self.floor}")
        if self.ramps != "omega":
            raise UsageError("a clamped ramp ramps omega = w - 1; ramps=w is not defined for it")

    def shape(self, times: Times) -> np.ndarray:
        if self.w is None:
            raise UsageError("a clamped ramp needs its own w and cannot be a factor of a product")
        omega = self.w - 1
        ramp = super().shape(times)
        return np.maximum(min(self.floor, omega) / omega, ramp) if omega > 0 else ramp


@dataclass(frozen=True, kw_only=True)
class ClampLinear(Clamped):
    """omega(t) = max(floor, 2 (1 - t) omega)."""

    def profile(self, t: np.ndarray) -> np.ndarray:
        return 1 - t


@dataclass(frozen=True, kw_only=True)
class ClampCosine(Clamped):
    """omega(t) = max(floor, (cos(pi t) + 1) omega)."""

    def profile(self, t: np.ndarray) -> np.ndarray:
        return (np.cos(np.pi * t) + 1) / 2


@dataclass(frozen=True, kw_only=True)
class Product(Schedule):
    """Product of the shapes of named factors, such as a cosine ramp inside an interval: w(t) = 1 +
    (w - 1) prod_k shape_k(t). Factors have no weight of their own, and the gate of the product."""

    factors: dict[str, Schedule] = field(default_factory=dict)

    def __post_init__(self) -> None:
        super().__post_init__()
        for name, factor in self.factors.items():
            if factor.w is not None:
                raise UsageError(
                    f"factor {name} has a weight: in a product only the product has one"
                )
            if isinstance(factor, Ramp) and factor.ramps != "omega":
                raise UsageError(f"factor {name} has ramps={factor.ramps}: products ramp w - 1")
            if factor.gate != self.gate:
                raise UsageError(f"factor {name} has gate={factor.gate}, the product {self.gate}")

    def shape(self, times: Times) -> np.ndarray:
        shapes = [factor.shape(times) for factor in self.factors.values()]
        return np.prod(shapes, axis=0) if shapes else np.ones_like(times.sigma)
