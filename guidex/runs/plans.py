"""What a table will take, before anything is loaded or run: `--plan`."""

import math
from collections.abc import Sequence

import numpy as np

from guidex.config.instantiate import Models, content_key, instantiate
from guidex.features.detectors import Detector
from guidex.guidance.plan import level, ranges
from guidex.reports.columns import Cell, Column
from guidex.reports.labels import short_names
from guidex.runs.cost import alone, device_name, shared, speed_of, total
from guidex.runs.measure import parts_of
from guidex.runs.points import Planned, words_of
from guidex.runs.points_table import Table

_COLUMNS = ("guided steps", "sigma", "weights", "evaluations", "GFLOP", "networks")


def print_plans(table: Table) -> None:
    """A line for each point: its values, plan, cost and networks; below, what all take together."""
    entries = [entry for entry in table.entries if entry.planned is not None]
    keys = dict.fromkeys(key for entry in entries for key in entry.values)
    columns = {
        name: [entry.values.get(key, "") for entry in entries]
        for key, name in short_names(list(keys)).items()
    }
    cells = zip(*(_cells(entry.planned) for entry in entries), strict=True)
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
    print("", *_totals([entry.planned for entry in entries]), sep="\n")


def _cells(planned: Planned) -> list[str]:
    """What the columns say of a point."""
    plan, steps = planned.plan, planned.plan.guided_steps
    sigmas, weights = plan.timeline.sigmas, plan.weights[plan.guided]
    cells = ["–", "–", "–"]
    if steps:
        low, high = weights.min(), weights.max()
        cells = [
            f"{ranges(steps)} of {len(sigmas) - 1}",
            f"{level(sigmas[steps[0]])} → {level(sigmas[steps[-1] + 1])}",
            f"{low:.4g}" if low == high else f"{low:.3g} … {high:.3g}",
        ]
    evaluations = " + ".join(map(str, [plan.evaluations_main, *plan.evaluations_ref]))
    gflops = "" if math.isnan(planned.gflops) else _number(planned.gflops)
    return [*cells, evaluations, gflops, planned.networks]


def _number(value: float) -> str:
    """With three digits or more."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def _flop(gflops: float) -> str:
    """A number of operations with a fitting unit."""
    power = min(3, max(0, math.floor(math.log10(gflops) / 3))) if gflops > 0 else 0
    return f"{_number(gflops / 1000**power)} {'GTPE'[power]}FLOP"


def _totals(planned: Sequence[Planned]) -> list[str]:
    """What all points take together, with and without sharing steps, a line each."""
    cohorts: dict[str, list[Planned]] = {}
    for one in planned:
        cohorts.setdefault(one.settings.cohort, []).append(one)
    groups = list(cohorts.values())
    apart, together = [total(map(alone, group)) for group in groups], list(map(shared, groups))
    before, after = total(apart), total(together)
    lines = [
        "An image of every point takes, without → with steps shared: evaluations of main "
        f"{before.main} → {after.main}, of references {before.ref} → {after.ref}"
    ]
    if not math.isnan(after.gflops):
        lines[0] += f"; {_flop(before.gflops)} → {_flop(after.gflops)}"
    counts = [len(group[0].seeds) for group in groups]
    gflops = [float(np.dot(counts, [one.gflops for one in each])) for each in (apart, together)]
    made = f"{sum(len(one.seeds) for one in planned):,} images"
    if not math.isnan(gflops[1]):
        made += f": {_flop(gflops[0])} → {_flop(gflops[1])}"
    size = features_size(planned)
    lines.append(made if size is None else f"{made}; features on disk: {size / 1e6:,.1f} MB")
    speeds = [speed_of(group[0]) for group in groups]
    if None not in speeds and not math.isnan(gflops[1]):
        work = zip(counts, together, speeds, strict=True)
        hours = sum(count * cost.gflops / speed for count, cost, speed in work) / 3600
        device = planned[0].settings.device
        unit = "GPU-hours" if device.startswith("cuda") else "hours"
        lines.append(f"{_number(hours)} {unit} as fast as it last was on {device_name(device)}")
    return lines


def features_size(planned: Sequence[Planned]) -> int | None:
    """Bytes of the features of all samples, float32; None where that is not known before networks
    and decoders are loaded."""
    dims: dict[str, int | None] = {}
    size = 0
    for one in planned:
        parts = {content_key(part.detector): part for part in parts_of(one.config) if part.metrics}
        for key, part in parts.items():
            if key not in dims:
                detector = instantiate(part.detector, f"{part.key}detector", Models(), Detector)
                dims[key] = getattr(detector, "dim", None)
            is_seen = one.model.space in ("pixels", "points") and one.model.shape is not None
            dim = dims[key] or (math.prod(one.model.shape) if is_seen else None)
            if dim is None:
                return None
            size += 4 * dim * len(one.seeds)
    return size
