"""What a table will take, before anything is loaded or run: `--plan`."""

import math
from collections.abc import Iterator, Sequence

import numpy as np

from guidex.config.instantiate import Models, content_key, instantiate
from guidex.features.detectors import Detector
from guidex.guidance.plan import level, native_span, ranges
from guidex.reports.columns import Cell, Column
from guidex.reports.labels import short_names
from guidex.runs.cost import cohorts_of, cost, device_name, speed_of
from guidex.runs.measure import parts_of
from guidex.runs.points import Planned, words_of
from guidex.runs.points_table import Table

_COLUMNS = ("guided steps", "sigma", "native time", "weights", "evaluations", "GFLOP", "networks")


def print_plans(table: Table) -> None:
    """A line for each point: its values, plan, cost and networks; below, what all take together."""
    keys = dict.fromkeys(key for point in table.planned for key in point.values)
    columns = {
        name: [point.values.get(key, "") for point in table.planned]
        for key, name in short_names(list(keys)).items()
    }
    cells = zip(*map(_cells, table.planned), strict=True)
    columns |= zip(_COLUMNS, cells, strict=True)
    aligned = [
        Column(name, list(map(Cell, texts)), name in ("evaluations", "GFLOP")).aligned()
        for name, texts in columns.items()
        if any(texts)
    ]
    print(*("  ".join(line).rstrip() for line in zip(*aligned, strict=True)), sep="\n")
    left = [entry for entry in table.entries if entry.planned is None]
    for entry in left[:1]:
        print(f"\n{len(left)} left out, such as {words_of(entry.values)}: {entry.missing}")
    print("", *_totals(table.planned), sep="\n")


def detectors(planned: Planned) -> Iterator[Detector]:
    """What a point is measured by, each detector once; nothing of it is loaded."""
    parts = {content_key(part.detector): part for part in parts_of(planned.config) if part.metrics}
    for part in parts.values():
        yield instantiate(part.detector, f"{part.key}detector", Models(), Detector)


def _cells(planned: Planned) -> list[str]:
    """What the columns say of a point."""
    plan, steps = planned.plan, planned.plan.guided_steps
    sigmas, weights = plan.timeline.sigmas, plan.weights[plan.guided]
    unit = planned.model.native_unit
    cells = ["–", "–", "–" if unit else "", "–"]
    if steps:
        start, end = sigmas[steps[0]], sigmas[steps[-1] + 1]
        low, high = weights.min(), weights.max()
        cells = [
            f"{ranges(steps)} of {len(sigmas) - 1}",
            f"{level(start)} → {level(end)}",
            native_span(start, end, unit) if unit else "",
            f"{low:.4g}" if low == high else f"{low:.3g} … {high:.3g}",
        ]
    evaluations = " + ".join(map(str, [plan.evaluations_main, *plan.evaluations_ref]))
    gflops = "" if math.isnan(planned.gflops) else _number(planned.gflops)
    return [*cells, evaluations, gflops, planned.networks]


def _totals(planned: Sequence[Planned]) -> list[str]:
    """What all points take together, without and with sharing steps, a line each."""
    groups = cohorts_of(planned)
    apart = np.array([sum(cost([point]) for point in group) for group in groups])
    together = np.array([cost(group) for group in groups])
    (main, ref, gflops), (main_shared, ref_shared, gflops_shared) = apart.sum(0), together.sum(0)
    counts = np.array([len(group[0].seeds) for group in groups])
    lines = [
        "An image of every point takes, without → with steps shared: evaluations of main "
        f"{main:.0f} → {main_shared:.0f}, of references {ref:.0f} → {ref_shared:.0f}",
        f"{sum(len(one.seeds) for one in planned):,} images",
    ]
    if not math.isnan(gflops_shared):
        lines[0] += f"; {_flop(gflops)} → {_flop(gflops_shared)}"
        lines[1] += f": {_flop(counts @ apart[:, 2])} → {_flop(counts @ together[:, 2])}"
    size = sum(map(_features_size, planned))
    if not math.isnan(size):
        lines[1] += f"; features on disk: {size / 1e6:,.1f} MB"
    hours = counts @ (together[:, 2] / [speed_of(group[0]) for group in groups]) / 3600
    if not math.isnan(hours):
        device = planned[0].settings.device
        unit = "GPU-hours" if device.startswith("cuda") else "hours"
        lines.append(f"{_number(hours)} {unit} as fast as it last was on {device_name(device)}")
    return lines


def _features_size(planned: Planned) -> float:
    """Bytes of the features of a point, float32; NaN where that is not known before networks and
    decoders are loaded."""
    is_seen = planned.model.space in ("pixels", "points") and planned.model.shape is not None
    own = math.prod(planned.model.shape) if is_seen else math.nan
    dims = [getattr(detector, "dim", own) for detector in detectors(planned)]
    return 4 * sum(dims) * len(planned.seeds)


def _number(value: float) -> str:
    """With three digits or more."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def _flop(gflops: float) -> str:
    """A number of operations with a fitting unit."""
    power = min(3, max(0, math.floor(math.log10(gflops) / 3))) if gflops > 0 else 0
    return f"{_number(gflops / 1000**power)} {'GTPE'[power]}FLOP"
