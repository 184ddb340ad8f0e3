"""What points cost, alone and sharing steps, and how fast runs last were on this machine.

Speeds lie in speeds.json of guidex's cache folder, which may be deleted at any time.
"""

import json
import math
import os
import platform
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import NamedTuple

import numpy as np
import torch

from guidex.config.instantiate import content_key
from guidex.errors import GuidexError
from guidex.files.atomic import atomic_write
from guidex.files.cache import cache_dir
from guidex.runs.points import Planned
from guidex.sampling.trajectories import taken

LEAST = 5.0  # seconds; shorter runs say little of speed


class Cost(NamedTuple):
    """Evaluations of the main network and of all references, and 10^9 floating-point operations
    (NaN where they are not known before networks are loaded)."""

    main: int
    ref: int
    gflops: float


def total(costs: Iterable[Cost]) -> Cost:
    """The sum of costs."""
    return Cost(*map(sum, zip((0, 0, 0.0), *costs, strict=True)))


def alone(planned: Planned) -> Cost:
    """Of one image of a point."""
    plan = planned.plan
    return Cost(plan.evaluations_main, sum(plan.evaluations_ref), planned.gflops)


def shared(cohort: Sequence[Planned]) -> Cost:
    """Of one image of each point of a cohort, where each step is taken once for all that share
    it."""
    counts = np.sum(~np.isnan(cohort[0].plan.timeline.evaluations), axis=1).tolist()
    guided = [planned.plan.guided for planned in cohort]
    costs = []
    for point, step in taken([planned.run for planned in cohort], len(counts)):
        planned, calls = cohort[point], guided[point][:, step].sum(1).tolist()
        gflops = [term.direction.gflops for term in planned.guidance.terms.values()]
        costs.append(
            Cost(
                counts[step],
                int(np.dot(calls, planned.plan.costs)),
                counts[step] * planned.model.gflops + float(np.dot(calls, gflops)),
            )
        )
    return total(costs)


def device_name(device: str) -> str:
    """What a device is, whatever its number."""
    if device.startswith("cuda"):
        return torch.cuda.get_device_name(device)
    return f"{platform.machine()} with {os.cpu_count()} cores"


def speed_of(planned: Planned) -> float | None:
    """10^9 floating-point operations per second of the last run with the model of a point on its
    device, with everything that goes with sampling; None where there was none."""
    speed = _speeds().get(_key(planned))
    return speed if isinstance(speed, float) and 0 < speed < math.inf else None


@contextmanager
def timed(work: Iterable[tuple[Sequence[Planned], int]]) -> Iterator[None]:
    """Remember how fast the body is, unless it fails or is short. `work` is what it makes: points
    that share steps, and a number of images of each. Of several models, nothing is remembered."""
    began = time.perf_counter()
    yield
    seconds = time.perf_counter() - began
    if seconds < LEAST:
        return
    images: Counter[tuple[int, ...]] = Counter()
    cohorts = {}
    for points, count in work:
        group = tuple(map(id, points))
        images[group] += count
        cohorts[group] = points
    keys = {_key(points[0]) for points in cohorts.values()}
    gflops = sum(images[group] * shared(points).gflops for group, points in cohorts.items())
    if len(keys) == 1 and gflops > 0:
        text = json.dumps({**_speeds(), keys.pop(): gflops / seconds}, indent=1)
        with suppress(OSError, GuidexError):  # a cache that cannot be written spoils no run
            cache_dir().mkdir(parents=True, exist_ok=True)
            atomic_write(cache_dir() / "speeds.json", lambda file: file.write(text.encode()))


def _speeds() -> dict[str, object]:
    try:
        speeds = json.loads((cache_dir() / "speeds.json").read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return speeds if isinstance(speeds, dict) else {}


def _key(planned: Planned) -> str:
    model = {key: value for key, value in planned.settings.model.items() if key != "references"}
    return f"{content_key(model)} on {device_name(planned.settings.device)}"
