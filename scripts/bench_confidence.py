"""How often the confidence of a difference of two points holds the true difference.

gaussians: features whose distances are known in closed form. digits: samples of the default
experiment's model, whose distances are those of all seeds together. Of each pair of points: how
often the interval holds the truth, what pairing saves in its width, and how often the truly best
point is among the marked ones (docs/evaluation.md).

Run: .venv/bin/python scripts/bench_confidence.py [--sections gaussians digits] [--trials N]
"""

import argparse
import itertools
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from guidex.api import (
    PRDC,
    Constant,
    Extrapolate,
    FeatureSet,
    Frechet,
    Heun,
    Interval,
    Karras,
    KNNAccuracy,
    Pixels,
    detect,
    frechet_distance,
    kernel,
    model_features,
    none,
    sample,
    to_uint8,
)
from guidex.features.statistics import GaussianStatistics
from guidex.guidance.methods import difference as guided
from guidex.metrics.differences import LEVEL, among_best, difference
from guidex.metrics.metric import Metric

BATCH = 1200


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sections", nargs="+", default=["gaussians", "digits"])
    parser.add_argument("--trials", type=int, default=400, help="of each case")
    args = parser.parse_args()
    print(f"{'case':<58} {'pairs':>6} {'held':>6} {'width':>6} {'best':>6}   (nominal {LEVEL})")
    if "gaussians" in args.sections:
        gaussians(args.trials)
    if "digits" in args.sections:
        digits(args.trials)


def gaussians(trials: int) -> None:
    """Points whose fakes are shift + scale (common noise and some of their own)."""
    cases = [
        # name, D, N, repeats, share of common noise, (shift, scale) of each point
        ("alike, mostly common noise", 8, 600, 1, 0.95, [(0.2, 1.0), (0.21, 0.99), (0.22, 1.0)]),
        ("alike, half of it common", 8, 600, 1, 0.5, [(0.2, 1.0), (0.21, 0.99), (0.22, 1.0)]),
        ("nothing common", 8, 600, 1, 0.0, [(0.2, 1.0), (0.21, 0.99), (0.22, 1.0)]),
        ("other variances, so other biases", 32, 600, 1, 0.9, [(0.1, 0.6), (0.0, 1.0), (0.1, 1.3)]),
        ("the same, 3 repeats of 200", 32, 200, 3, 0.9, [(0.1, 0.6), (0.0, 1.0), (0.1, 1.3)]),
        ("5 images per feature", 64, 320, 1, 0.9, [(0.1, 0.9), (0.1, 1.0), (0.12, 1.1)]),
        ("2 images per feature", 64, 128, 1, 0.9, [(0.1, 0.9), (0.1, 1.0), (0.12, 1.1)]),
        ("perfect, against nearly perfect", 16, 1000, 1, 0.9, [(0.0, 1.0), (0.02, 1.0)]),
        ("8 equal points", 8, 600, 1, 0.8, [(0.2, 1.0)] * 8),
    ]
    for name, dim, count, repeats, common, points in cases:
        real = _known(torch.zeros(dim), torch.eye(dim))
        scales = [scale * torch.linspace(0.8, 1.2, dim) for _, scale in points]
        truths = [
            frechet_distance(
                real=real.statistics,
                fake=_known(torch.full((dim,), shift), scales[k].square().diag()).statistics,
            )
            for k, (shift, _) in enumerate(points)
        ]
        generator = torch.Generator().manual_seed(0)

        def draws(dim=dim, count=count, common=common, points=points, scales=scales, g=generator):
            noise = torch.randn(count, dim, generator=g, dtype=torch.float64)
            for (shift, _), scale in zip(points, scales, strict=True):
                own = torch.randn(count, dim, generator=g, dtype=torch.float64)
                mixed = common**0.5 * noise + (1 - common) ** 0.5 * own
                yield FeatureSet("d", shift + scale * mixed)

        found = [_pseudovalues(Frechet(), real, list(draws())) for _ in range(trials * repeats)]
        _report(f"{name} (D={dim}, N={count})", truths, found, "fd_d", repeats, count)


def digits(trials: int) -> None:
    """Disjoint ranges of seeds of a model of the digits, under four guidances."""
    model, count = kernel("digits", h=0.25), 600
    reference = kernel("digits", h=0.5, conditional=False)
    weaker = kernel("digits", h=0.5)
    guidances = [
        none(),
        guided(reference, Constant(w=2), Extrapolate()),
        guided(reference, Interval(w=8, lo=0, hi=0.8), Extrapolate()),
        guided(reference, Interval(w=12, lo=0, hi=0.8), Extrapolate()),
        guided(weaker, Constant(w=5), Extrapolate()),
    ]
    solver, pools = Heun(grid=Karras(steps=16)), []
    for guidance in guidances:
        parts = []
        for first in range(0, trials * count, BATCH):
            seeds = range(first, min(first + BATCH, trials * count))
            parts.append(sample(model, guidance, solver, seeds=seeds))
        x, labels = (torch.cat(some) for some in zip(*parts, strict=True))
        pools.append(detect(Pixels(), to_uint8(x), labels))
    real = model_features(model, Pixels())
    whole = [_mean(each, "fd_pixels") for each in _pseudovalues(Frechet(), real, pools)]
    for metric in (Frechet(), PRDC(), KNNAccuracy()):
        found = []
        for first in range(0, trials * count, count):
            fakes = [pool.rows(slice(first, first + count)) for pool in pools]
            found.append(_pseudovalues(metric, real, fakes))
        for name in found[0][0]:
            # Of means over fakes, the truth is the mean of all.
            means = np.mean([[_mean(each, name) for each in points] for points in found], axis=0)
            truths = whole if name == "fd_pixels" else means.tolist()
            for repeats in (1, 3):
                _report(f"digits, {repeats} x {count} images", truths, found, name, repeats, count)


def _pseudovalues(
    metric: Metric, real: FeatureSet, fakes: Sequence[FeatureSet]
) -> list[dict[str, list[float]]]:
    """Of each point, by column."""
    return [metric.measured(real=real, fake=fake)[1] for fake in fakes]


def _mean(pseudovalues: dict[str, list[float]], name: str) -> float:
    return float(np.mean(pseudovalues[name]))


def _report(
    case: str,
    truths: Sequence[float],
    found: Sequence[Sequence[dict[str, list[float]]]],
    name: str,
    repeats: int,
    count: int,
) -> None:
    """Print what intervals of all pairs of points hold, trial by trial of some repeats each."""
    held, widths, alone, among = [], [], [], []
    sign, numbers = 1 if name.startswith("fd") else -1, list(range(len(truths)))
    least = 1 / (repeats * count) if name.startswith(("precision", "accuracy")) else 0.0
    for first in range(0, len(found) // repeats * repeats, repeats):
        trial = found[first : first + repeats]
        values = [sum((points[k][name] for points in trial), []) for k in numbers]
        for a, b in itertools.combinations(numbers, 2):
            apart = difference(values[a], values[b], least=least)
            held.append(apart.low <= truths[a] - truths[b] <= apart.high)
            widths.append(np.std(np.subtract(values[a], values[b])))
            alone.append(np.hypot(np.std(values[a]), np.std(values[b])))
        seems = min(numbers, key=lambda k: sign * np.mean(values[k]))
        best = min(numbers, key=lambda k: sign * truths[k])
        among.append(best in among_best(numbers, values, seems, sign, least=least))
    label, ratio = f"{case}: {name.partition('_')[0]}", np.mean(widths) / np.mean(alone)
    print(f"{label:<58} {len(held):>6} {np.mean(held):>6.3f} {ratio:>6.2f} {np.mean(among):>6.3f}")


def _known(mean: Tensor, covariance: Tensor) -> FeatureSet:
    """A Gaussian whose moments are known."""
    moments = GaussianStatistics.from_moments(
        count=10**9, mean=mean.double(), covariance=covariance.double()
    )
    return FeatureSet("d", given_statistics=moments)


if __name__ == "__main__":
    main()
