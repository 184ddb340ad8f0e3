"""What points cost, and how fast runs last were on this machine: in speeds.json of guidex's cache
folder, which may be deleted at any time."""

import math
import os
import platform
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress

import numpy as np
import torch

from guidex.config.instantiate import content_key
from guidex.errors import GuidexError
from guidex.files.cache import cache_dir
from guidex.runs.folder import read_json, write_json
from guidex.runs.points import Planned
from guidex.sampling.trajectories import taken

Sampled = tuple[Sequence[Planned], int]  # points that shared steps, and images of each
LEAST = 5.0  # seconds; shorter runs say little of speed


def cohorts_of(points: Iterable[Planned]) -> list[list[Planned]]:
    """Points in groups that may share steps."""
    cohorts: dict[str, list[Planned]] = {}
    for point in points:
        cohorts.setdefault(point.settings.cohort, []).append(point)
    return list(cohorts.values())


def cost(points: Sequence[Planned]) -> np.ndarray:
    """What an image of every point takes, each step taken once for all that share it: evaluations
    of the main network, of all references, and 10^9 floating-point operations, NaN where they are
    not known before networks are loaded; float64 [3]."""
    total = np.zeros(3)
    for cohort in cohorts_of(points):
        stages = np.sum(~np.isnan(cohort[0].plan.timeline.evaluations), axis=1)
        guided = [point.plan.guided for point in cohort]
        for number, step in taken([point.run for point in cohort], len(stages)):
            point, calls = cohort[number], guided[number][:, step].sum(1)
            gflops = [term.direction.gflops for term in point.guidance.terms.values()]
            gflop = stages[step] * point.model.gflops + np.dot(calls, gflops)
            total += (stages[step], np.dot(calls, point.plan.costs), gflop)
    return total


def device_name(device: str) -> str:
    """What a device is, whatever its number."""
    if device.startswith("cuda"):
        return torch.cuda.get_device_name(device)
    return f"{platform.machine()} with {os.cpu_count()} cores"


def speed_of(planned: Planned) -> float:
    """10^9 floating-point operations per second of the last run with the model of a point on its
    device, with everything that goes with sampling; NaN where there was none."""
    speed = _speeds().get(_key(planned))
    return speed if isinstance(speed, float) and 0 < speed < math.inf else math.nan


@contextmanager
def timed() -> Iterator[list[Sampled]]:
    """Remember how fast the body is, unless it fails or is short, by what it says it has made. Of
    several models, nothing is remembered."""
    began, made = time.perf_counter(), []
    yield made
    seconds = time.perf_counter() - began
    if seconds < LEAST:
        return
    groups: dict[tuple[int, ...], tuple[Sequence[Planned], int]] = {}
    for points, count in (each for each in made if each[0]):
        group = tuple(map(id, points))
        groups[group] = points, count + groups.get(group, (points, 0))[1]
    keys = {_key(points[0]) for points, _ in groups.values()}
    gflops = sum(count * cost(points)[2] for points, count in groups.values())
    if len(keys) == 1 and gflops > 0:
        with suppress(OSError, GuidexError):  # a cache that cannot be written spoils no run
            cache_dir().mkdir(parents=True, exist_ok=True)
            speeds = {**_speeds(), keys.pop(): gflops / seconds}
            write_json(cache_dir() / "speeds.json", speeds)


def _speeds() -> dict[str, object]:
    found = read_json(cache_dir() / "speeds.json")
    return found if isinstance(found, dict) else {}


def _key(planned: Planned) -> str:
    model = {key: value for key, value in planned.settings.model.items() if key != "references"}
    return f"{content_key(model)} on {device_name(planned.settings.device)}"
