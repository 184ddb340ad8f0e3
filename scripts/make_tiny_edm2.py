"""Write three tiny EDM2 networks with random weights, which model=edm2-tiny takes.

Run: .venv/bin/python scripts/make_tiny_edm2.py [OUT.safetensors]

OUT (default outputs/edm2-tiny.safetensors) has 10 classes and 16x16 RGB pixels; beside it come
OUT-uncond.safetensors without classes, for CFG, and OUT-weaker.safetensors, narrower, for
autoguidance. They sample noise, but through everything that a real network goes through.
"""

import argparse
from dataclasses import asdict, replace
from pathlib import Path

import torch

from guidex.models.edm2.checkpoints import Checkpoint, write_checkpoint
from guidex.models.edm2.network import EDM2, Config

CONFIG = Config(
    img_resolution=16,
    img_channels=3,
    label_dim=10,
    model_channels=16,
    channel_mult=(1, 2),
    num_blocks=1,
    attn_resolutions=(8,),
    channels_per_head=8,
    logvar_channels=16,
)
VARIANTS = {
    "": CONFIG,
    "-uncond": replace(CONFIG, label_dim=0),
    "-weaker": replace(CONFIG, model_channels=8),
}


def tiny_checkpoint(config: Config, seed: int) -> Checkpoint:
    """A network with random weights, in float16 as published ones are."""
    torch.manual_seed(seed)
    model = EDM2(config)
    # Gains start at 0 in training, with which a network ignores its input.
    for name, parameter in model.named_parameters():
        if name.endswith("gain"):
            parameter.copy_(0.5 + torch.rand([]))
    tensors = {name: tensor.half() for name, tensor in model.state_dict().items()}
    about = {"source": f"random weights, seed {seed}", "network": "Precond", "dtype": "float16"}
    values = {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(config).items()}
    return Checkpoint(values, tensors, about)


def main(out: Path) -> None:
    out.parent.mkdir(parents=True, exist_ok=True)
    for seed, (variant, config) in enumerate(VARIANTS.items()):
        path = out.with_stem(out.stem + variant)
        write_checkpoint(tiny_checkpoint(config, seed), path)
        print(path)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("out", nargs="?", default="outputs/edm2-tiny.safetensors", type=Path)
    main(parser.parse_args().out)
