"""Write two tiny SiTs with random weights, which model=sit-tiny takes.

Run: .venv/bin/python scripts/make_tiny_sit.py [OUT.pt]

OUT (default outputs/sit-tiny.pt) has 10 classes and 16x16 RGB pixels, and is what a training of SiT
writes: weights under `ema`. Beside it comes OUT-weaker.pt, with one block less, for autoguidance.
They sample noise, but through everything that a real network goes through.
"""

import argparse
from pathlib import Path

import torch

from guidex.models.dit.network import Network, Shape, positions

SHAPE = Shape(
    side=16, patch=2, channels=3, outputs=6, width=64, depth=2, heads=1, hidden=256, classes=10
)


def tiny_state(depth: int, seed: int) -> dict[str, torch.Tensor]:
    """A state dict with random weights, none of them 0, with which a training begins."""
    torch.manual_seed(seed)
    state = Network(Shape(**{**SHAPE.__dict__, "depth": depth})).state_dict()
    return state | {"pos_embed": positions(SHAPE.tokens, SHAPE.width)}


def main(out: Path) -> None:
    out.parent.mkdir(parents=True, exist_ok=True)
    for depth, path in ((2, out), (1, out.with_stem(out.stem + "-weaker"))):
        torch.save({"ema": tiny_state(depth, seed=depth)}, path)
        print(path)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("out", nargs="?", default="outputs/sit-tiny.pt", type=Path)
    main(parser.parse_args().out)
