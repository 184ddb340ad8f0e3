"""How fast the transformers of DiT, SiT and LightningDiT are evaluated, against a plain eager one.

Run with guidex installed (or PYTHONPATH=.); nothing is downloaded, weights are random:

    python scripts/bench_dit.py --quick                                   # in small, on a CPU
    python scripts/bench_dit.py --device cpu --size b --batch 4
    python scripts/bench_dit.py --device cuda --size xl --batch 64 --dtypes float32 bfloat16

The plain network writes softmax(q k^T) v out and asks for two predictions one after the other.
Ratios are to it, in its dtype. Errors are those of D, relative to the largest value in float32.
"""

import argparse
from functools import partial
from unittest import mock

import torch
from bench_tools import describe, head, reported, row, say, seconds_per_call
from torch import Tensor

from guidex.features.networks import full_float32
from guidex.models.denoiser import View
from guidex.models.dit import network as module
from guidex.models.dit.denoiser import Velocity
from guidex.models.dit.load import SIZES
from guidex.models.dit.network import Network, Shape, positions

SIGMA = 1.0


def written_out(q: Tensor, k: Tensor, v: Tensor, parts: None = None) -> Tensor:
    """Attention without a kernel of its own."""
    return (q @ k.transpose(-2, -1) * q.shape[-1] ** -0.5).softmax(dim=-1) @ v


def random_velocity(size: str, new: bool, device: torch.device) -> Velocity:
    """A network of a published size: SiT's /2 on 4 channels, or LightningDiT's /1 on 32."""
    width, depth, heads = SIZES[size]
    side, patch, channels = (16, 1, 32) if new else (32, 2, 4)
    hidden = int(8 * width / 3) if new else 4 * width
    shape = Shape(
        side, patch, channels, channels, width, depth, heads, hidden, rms=new, gated=new, rotary=new
    )
    torch.manual_seed(0)
    network = Network(shape)
    network.pos_embed.data = positions(shape.tokens, width)
    return Velocity(network, data_time=True).to(device).eval().requires_grad_(False)


def bench(args: argparse.Namespace, new: bool) -> None:
    """A table of one network."""
    device = torch.device(args.device)
    name = f"{'LightningDiT' if new else 'SiT'}-{args.size.upper()}/{1 if new else 2}"
    head(
        f"{name}, batch {args.batch}",
        *("form", "evaluations/s", "TFLOP/s", "x plain", "error of D"),
    )
    model = random_velocity(args.size, new, device)
    x = torch.randn(args.batch, *model.shape, device=device, dtype=torch.float64)
    labels = torch.arange(args.batch, device=device)
    with full_float32():
        exact = model(x, SIGMA, labels)
    for dtype in args.dtypes:
        made = random_velocity(args.size, new, device)
        made.network.cast(getattr(torch, dtype))
        views = [View(SIGMA, labels), View(SIGMA, None)]
        plain = 0.0
        for form in ("plain", "attention kernel", "two in one call", "compiled"):
            if form == "compiled" and not args.compile:
                continue
            calls = {"two in one call": partial(made.joint, x, views)}
            call = calls.get(form, partial(made, x, SIGMA, labels))
            attend = written_out if form == "plain" else module.attention
            with reported(f"{dtype} {form}"), mock.patch.object(module, "attention", attend):
                if form == "compiled":
                    made.network.compile(dynamic=False)
                found = call()
                found = found[0] if isinstance(found, list) else found
                count = args.batch * (2 if form in calls else 1)
                rate = count / seconds_per_call(call, device, args.seconds)
                plain = plain or rate
                error = float((found - exact).abs().max() / exact.abs().max())
                row(f"{dtype} {form}", rate, rate * model.gflops / 1e3, rate / plain, error)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--size", default="b", choices=SIZES)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--dtypes", nargs="+", default=["float32", "bfloat16"])
    parser.add_argument("--seconds", type=float, default=3.0)
    parser.add_argument("--compile", action=argparse.BooleanOptionalAction, default=True)
    parser.add_argument("--quick", action="store_true", help="in small: it shows that all runs")
    args = parser.parse_args()
    if args.quick:
        args.size, args.batch, args.seconds, args.compile = "s", 2, 0.1, False
    say(describe(torch.device(args.device)))
    with torch.no_grad():
        for new in (False, True):
            bench(args, new)


if __name__ == "__main__":
    main()
