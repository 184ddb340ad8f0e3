"""What candidates cost together, with the steps that they share taken once."""

from collections import Counter
from collections.abc import Hashable, Sequence

import numpy as np

from guidex.runs.points import Planned


def price(points: Sequence[Planned]) -> Counter:
    """Evaluations of all networks, GFLOP and images, for one seed at all points."""
    spent, nodes = Counter(images=len(points)), dict[Hashable, int]()  # of the tree of steps
    for point in points:
        plan, run = point.plan, point.run
        calls = sum(plan.evaluations_ref)
        gflops = point.guidance.gflops(plan) / calls if calls else 0.0
        costs = np.array(plan.costs).reshape(-1, 1)
        node: Hashable = point.settings.cohort
        for step, levels in enumerate(plan.timeline.evaluations):
            before = len(nodes)
            node = nodes.setdefault((node, run.signature(step)), before)
            if node < before:
                continue
            main = int(np.count_nonzero(~np.isnan(levels)))
            references = int((costs * plan.guided[:, step]).sum())
            spent["evaluations"] += main + references
            spent["GFLOP"] += main * point.model.gflops + references * gflops
    return spent


def identity(point: Planned) -> Hashable:
    """Equal for points that make the same samples of a seed: their plans as snapped to the grid."""
    run, steps = point.run, len(point.plan.timeline.evaluations)
    return point.settings.cohort, tuple(run.signature(step) for step in range(steps))
