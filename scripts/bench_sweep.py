"""What sharing steps between the points of a table saves, against running every point by itself.

The default experiment's points on real digits. Both give the same images, which is checked.

Run: .venv/bin/python scripts/bench_sweep.py [IMAGES]
"""

import sys
import time

import torch

from guidex.config.instantiate import Models
from guidex.models.memory import Halving
from guidex.runs.blocks import Block
from guidex.runs.engine import run_block
from guidex.runs.points import load
from guidex.runs.points_table import plan_table
from guidex.sampling.trajectories import taken


def main(images: int) -> None:
    """Time one block both ways."""
    table = plan_table([f"seeds=0-{images - 1}", "repeats=1"])
    models = Models()
    points = [load(entry.planned, models) for entry in table.entries if entry.planned]
    block = Block(points[0].planned.seeds, None)

    def sample(chosen: list) -> list[torch.Tensor]:
        [(_, _, outcomes)] = run_block(chosen, block, Halving(images), 0, lambda amount: None)
        return [outcome.x for outcome in outcomes]

    sample(points[:1])
    began = time.perf_counter()
    alone = [sample([point])[0] for point in points]
    separate = time.perf_counter() - began
    began = time.perf_counter()
    together = sample(points)
    shared = time.perf_counter() - began
    assert all(torch.equal(a, b) for a, b in zip(alone, together, strict=True))
    steps = len(points[0].planned.plan.timeline.sigmas) - 1
    count = len(list(taken([point.run for point in points], steps)))
    print(f"{len(points)} points, {images} images each, {steps} steps")
    print(f"each point by itself {separate:6.1f} s  {steps * len(points)} steps  (baseline)")
    print(f"shared steps         {shared:6.1f} s  {count} steps")
    print(f"ratio                {separate / shared:6.2f} x")


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 600)
