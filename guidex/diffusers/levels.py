"""What diffusers' schedulers and predictions mean in guidex: sigma of x0 + sigma * n, and x0."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from guidex.errors import UsageError
from guidex.guidance.timeline import Timeline


def timeline(scheduler: Any, step: int, steps: int, timestep: Tensor) -> Timeline:
    """A run's evaluations, from its first on; inf is pure noise.

    Arguments:
        scheduler: set to its timesteps.
        step, timestep: of the evaluation to come, counted from 0.
        steps: of the run; fewer than the scheduler's where it begins or ends within them.

    Raises:
        UsageError: a timestep that the scheduler was not set to; a scheduler whose steps evaluate
            elsewhere than where they start (and, Heun's, end).
    """
    name, order, times = type(scheduler).__name__, scheduler.order, scheduler.timesteps
    places = (times == torch.as_tensor(timestep, device=times.device)).nonzero().flatten().tolist()
    firsts = [place - step for place in places if place >= step and (place - step) % order == 0]
    if not firsts:
        raise UsageError(f"timestep {float(timestep):g} is none that the {name} was set to")
    levels = _levels(scheduler)[firsts[0] :]
    count = min(len(times) - firsts[0], order * (steps - 1) + 1)
    evaluations = np.pad(levels[:count], (0, -count % order), constant_values=np.nan)
    evaluations = evaluations.reshape(-1, order)
    sigmas = np.append(evaluations[:, 0], levels[count])
    if (order > 1 and "Heun" not in name) or not (np.diff(sigmas) < 0).all() or sigmas[-1] < 0:
        raise UsageError(
            f"guidex cannot plan on {name}: it needs one evaluation per step, at falling noise "
            "levels (Euler, DDIM, DPM-Solver multistep, UniPC, FlowMatchEuler, …), or Heun's two"
        )
    return Timeline(sigmas, evaluations)


def _is_flow(scheduler: Any) -> bool:
    """Whether the network sees (1 - t) x0 + t n, and the scheduler counts in t."""
    named = type(scheduler).__name__.startswith("FlowMatch")
    return named or bool(scheduler.config.get("use_flow_sigmas"))


def _levels(scheduler: Any) -> np.ndarray:
    """Sigma at each timestep, and at the end, float64."""
    if len(getattr(scheduler, "sigmas", ())) > len(scheduler.timesteps):
        levels = torch.as_tensor(scheduler.sigmas).double().cpu().numpy()
        return levels / (1 - levels) if _is_flow(scheduler) else levels
    if not hasattr(scheduler, "alphas_cumprod"):
        raise UsageError(f"{type(scheduler).__name__} tells no noise levels")
    alphas = scheduler.alphas_cumprod.double().cpu()[scheduler.timesteps.long().cpu()]
    alphas = np.append(alphas.numpy(), float(getattr(scheduler, "final_alpha_cumprod", 1)))
    return np.sqrt((1 - alphas) / alphas)


def conversion(scheduler: Any) -> Callable[[float], tuple[float, float]]:
    """From sigma to a, b in x0 = a * x + b * prediction, where x = signal * x0 + noise * n is what
    the network sees; a UsageError where that is not known."""
    kind = scheduler.config.get("prediction_type")
    kind = "flow_prediction" if type(scheduler).__name__.startswith("FlowMatch") else kind
    if hasattr(scheduler, "precondition_inputs") or kind not in _X0:
        raise UsageError(
            f"how to get x0 from what {type(scheduler).__name__} takes ({kind}) is not known; only "
            "the rule Extrapolate does without"
        )
    flow = _is_flow(scheduler)

    def at(sigma: float) -> tuple[float, float]:
        signal = 1 / (1 + sigma) if flow else 1 / math.hypot(1, sigma)
        return _X0[kind](signal, 1 - signal if flow else math.sqrt(1 - signal**2))

    return at


_X0 = {
    "epsilon": lambda signal, noise: (1 / signal, -noise / signal),
    "sample": lambda signal, noise: (0.0, 1.0),
    "v_prediction": lambda signal, noise: (signal, -noise),
    "flow_prediction": lambda signal, noise: (1.0, -noise),
}
