"""How often the confidence of a difference of two points holds the true difference.

gaussians: features whose distances are known in closed form. digits: samples of the default
experiment's model, whose distances are those of all seeds together. Of each pair of points: how
often the interval holds the truth, what pairing saves in its width, and how often the truly best
point is among the marked ones (docs/evaluation.md).

Run: .venv/bin/python scripts/bench_confidence.py [--sections gaussians digits] [--trials N]
"""

import argparse
import itertools
from collections.abc import Iterator, Sequence

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
    difference,
    frechet_distance,
    kernel,
    model_features,
    none,
    sample,
    to_uint8,
)  # fmt: skip
from guidex.features.statistics import GaussianStatistics
from guidex.metrics import differences
from guidex.metrics.metric import Metric

LEVEL = 0.9
BATCH = 1200


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sections", nargs="+", default=["gaussians", "digits"])
    parser.add_argument("--trials", type=int, default=400, help="of each case; fewer of digits")
    args = parser.parse_args()
    print(f"{'case':<44} {'pairs':>6} {'held':>6} {'width':>6} {'best':>6}   (nominal {LEVEL})")
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
                yield FeatureSet.from_values(detector="d", values=shift + scale * mixed)

        sets = ([list(draws()) for _ in range(repeats)] for _ in range(trials))
        _report(f"{name} (D={dim}, N={count})", {"fd_d": truths}, Frechet(), real, sets)


def digits(trials: int) -> None:
    """Disjoint ranges of seeds of a model of the digits, under four guidances."""
    model, count = kernel("digits", h=0.25), 600
    reference = kernel("digits", h=0.5, conditional=False)
    weaker = kernel("digits", h=0.5)
    guidances = [
        none(),
        difference(reference, Constant(w=2), Extrapolate()),
        difference(reference, Interval(w=8, lo=0, hi=0.8), Extrapolate()),
        difference(reference, Interval(w=12, lo=0, hi=0.8), Extrapolate()),
        difference(weaker, Constant(w=5), Extrapolate()),
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
    _digits(real, pools, count, 1)
    _digits(real, pools, count, 3)


def _digits(real: FeatureSet, pools: Sequence[FeatureSet], count: int, repeats: int) -> None:
    trials = pools[0].count // (count * repeats)

    def sets() -> Iterator[list[list[FeatureSet]]]:
        for first in range(0, trials * repeats, repeats):
            cuts = [slice(k * count, (k + 1) * count) for k in range(first, first + repeats)]
            yield [[pool.rows(cut) for pool in pools] for cut in cuts]

    name = f"digits, {repeats} x {count} images"
    whole = [Frechet().measured(real=real, fake=pool)[1]["fd_pixels"] for pool in pools]
    distances = {"fd_pixels": [float(np.mean(pseudo)) for pseudo in whole]}
    _report(name, distances, Frechet(), real, sets())
    for metric in (PRDC(), KNNAccuracy()):
        _report(name, None, metric, real, sets())


def _report(
    case: str,
    truths: dict[str, Sequence[float]] | None,
    metric: Metric,
    real: FeatureSet,
    sets: Iterator[list[list[FeatureSet]]],
) -> None:
    """Measure the pairs of points of each trial, whose repeats are lists of fakes by point. The
    truths of means over fakes (None) are the means of all trials."""
    found = [
        [
            {name: sum((p[name] for p in some), []) for name in some[0]}
            for some in zip(*(_pseudo(metric, real, fakes) for fakes in trial), strict=True)
        ]
        for trial in sets
    ]
    if truths is None:
        truths = {
            name: np.mean([[np.mean(point[name]) for point in points] for points in found], axis=0)
            for name in found[0][0]
        }
    for name, truth in truths.items():
        held, widths, alone, best = [], [], [], []
        better = 1 if name.startswith("fd") else -1
        for points in found:
            values = [point[name] for point in points]
            for a, b in itertools.combinations(range(len(truth)), 2):
                apart = differences.difference(values[a], values[b])
                reach = apart.reach(LEVEL)
                held.append(abs(apart.centre - (truth[a] - truth[b])) <= reach)
                widths.append(apart.error)
                alone.append(np.hypot(*(np.std(values[k], ddof=1) for k in (a, b))))
                alone[-1] /= len(values[a]) ** 0.5
            scores = [better * float(np.mean(each)) for each in values]
            marked = differences.among_best(values, int(np.argmin(scores)), better, LEVEL)
            best.append(marked[int(np.argmin([better * t for t in truth]))])
        label = f"{case}: {name.partition('_')[0]}"
        ratio = np.mean(widths) / np.mean(alone)
        print(
            f"{label:<44} {len(held):>6} {np.mean(held):>6.3f} {ratio:>6.2f} {np.mean(best):>6.3f}"
        )


def _pseudo(
    metric: Metric, real: FeatureSet, fakes: Sequence[FeatureSet]
) -> list[dict[str, list[float]]]:
    return [metric.measured(real=real, fake=fake)[1] for fake in fakes]


def _known(mean: Tensor, covariance: Tensor) -> FeatureSet:
    """A Gaussian whose moments are known."""
    moments = GaussianStatistics.from_moments(
        count=10**9, mean=mean.double(), covariance=covariance.double()
    )
    return FeatureSet.from_statistics(detector="d", statistics=moments)


if __name__ == "__main__":
    main()
