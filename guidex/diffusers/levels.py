"""What diffusers' schedulers and predictions mean in guidex: noise levels of x = x0 + sigma * n,
and x0."""

import math
from typing import Any

import numpy as np
import torch
from torch import Tensor

from guidex.errors import UsageError
from guidex.guidance.timeline import Timeline


def is_flow(scheduler: Any) -> bool:
    """Whether the network sees (1 - t) x0 + t n, and the scheduler counts in t."""
    named = type(scheduler).__name__.startswith("FlowMatch")
    return named or bool(scheduler.config.get("use_flow_sigmas"))


def timeline(scheduler: Any, step: int, steps: int, timestep: Tensor) -> Timeline:
    """The evaluations of a run on a scheduler that has been set to timesteps, inf where one starts
    at pure noise.

    Arguments:
        step: the evaluation that is to come, counted from 0.
        steps: how many steps the run takes (fewer than the scheduler's, image to image).
        timestep: that of the evaluation to come.

    Raises:
        UsageError: another scheduler's timestep, or a scheduler that evaluates elsewhere than at
            the starts of steps (Heun's excepted).
    """
    name, order = type(scheduler).__name__, scheduler.order
    times = scheduler.timesteps
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
            f"guidex cannot plan on {name} as it is configured: it takes schedulers that evaluate "
            "once per step at falling noise levels (Euler, DDIM, DPM-Solver multistep, UniPC, "
            "FlowMatchEuler, …), and Heun's"
        )
    return Timeline(sigmas, evaluations)


def _levels(scheduler: Any) -> np.ndarray:
    """Sigma at each timestep and at the end, float64."""
    with np.errstate(divide="ignore"):
        sigmas = getattr(scheduler, "sigmas", None)
        if sigmas is not None and len(sigmas) > len(scheduler.timesteps):
            levels = torch.as_tensor(sigmas).double().cpu().numpy()
            return levels / (1 - levels) if is_flow(scheduler) else levels
        if not hasattr(scheduler, "alphas_cumprod"):
            raise UsageError(f"{type(scheduler).__name__} tells no noise levels")
        alphas = scheduler.alphas_cumprod.double().cpu()[scheduler.timesteps.long().cpu()]
        last = float(getattr(scheduler, "final_alpha_cumprod", 1.0))
        alphas = np.append(alphas.numpy(), last)
        return np.sqrt((1 - alphas) / alphas)


def prediction_type(scheduler: Any) -> str:
    """What the network of a pipeline predicts; a UsageError if it is not known."""
    if type(scheduler).__name__.startswith("FlowMatch"):
        return "flow_prediction"
    kind = scheduler.config.get("prediction_type")
    if hasattr(scheduler, "precondition_inputs") or kind not in _X0:
        raise UsageError(
            f"how to get x0 from what {type(scheduler).__name__} takes ({kind}) is not known; only "
            "the rule Extrapolate does without"
        )
    return kind


def to_x0(kind: str, flow: bool, sigma: float, x: Tensor, prediction: Tensor) -> tuple:
    """x0 [B, ...] from the network's input x = signal * x0 + noise * n and its prediction, both [B,
    ...], and how x0 changes with the prediction, a float."""
    signal = 1 / (1 + sigma) if flow else 1 / math.hypot(1, sigma)
    noise = 1 - signal if flow else math.sqrt(1 - signal**2)
    a, b = _X0[kind](signal, noise)
    return a * x + b * prediction, b


# x0 = a * x + b * prediction
_X0 = {
    "epsilon": lambda signal, noise: (1 / signal, -noise / signal),
    "sample": lambda signal, noise: (0.0, 1.0),
    "v_prediction": lambda signal, noise: (signal, -noise),
    "flow_prediction": lambda signal, noise: (1.0, -noise),
}
