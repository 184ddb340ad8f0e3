"""Transformers from checkpoints: a file of your own, or a published one by its preset."""

from functools import partial
from pathlib import Path
from typing import Literal

import torch

from guidex.errors import UsageError
from guidex.files.cache import fetch, file_sha256
from guidex.models.dit.checkpoints import read_network, weights_file
from guidex.models.dit.denoiser import Noise, Transformer, Velocity
from guidex.models.dit.network import Network, Shape
from guidex.models.spec import ModelSpec, Source, compile_network

Kind = Literal["dit", "sit", "repa", "lightningdit"]
Size = Literal["s", "b", "l", "xl"]
Dtype = Literal["float32", "bfloat16", "float16"]

SIZES = {"s": (384, 12, 6), "b": (768, 12, 12), "l": (1024, 24, 16), "xl": (1152, 28, 16)}
"""Width, depth and heads of the published sizes (arXiv 2212.09748, table 1)."""


def transformer(
    checkpoint: str,
    kind: Kind,
    size: Size | None = None,
    side: int = 32,
    patch: int = 2,
    channels: int = 4,
    heads: int | None = None,
    sha256: str | None = None,
    dtype: Dtype = "float32",
    compile: bool = False,
    licence: str | None = None,
) -> ModelSpec:
    """The recipe of a checkpoint's network. Nothing that the file holds is run.

    Arguments:
        checkpoint: path or https:// URL (downloaded into the cache once) of a file of
            torch.save or .safetensors, or a folder as diffusers writes it.
        kind: what it was trained to predict: noise (dit), the velocity in time 1 - t (sit,
            lightningdit) or in time t (repa, also REPA-E's).
        size: with side, patch and channels what is known before the file is read; None: nothing,
            and they do not count. What the file holds is read from its tensors.
        side, patch, channels: height and width of a latent and of a token, and a latent's channels.
        heads: of attention, where they are not as published.
        sha256: that the file must have, or None.
        dtype: in which the blocks compute. Published numbers are of TF32, which is between float32
            and bfloat16.
        compile: use torch.compile, which takes its time once for every size of batch.
        licence: of code and weights, to be told to people.

    Raises:
        UsageError: latents that cannot be cut into such patches.
    """
    if side < 1 or patch < 1 or side % patch != 0:
        raise UsageError(f"side={side} cannot be cut into patches of patch={patch}")
    build = partial(_load, checkpoint, kind, heads, sha256, dtype, compile)
    sources = (Source(checkpoint, sha256, licence),)
    if size is not None:
        outline = _outline(kind, size, side, patch, channels)
        return ModelSpec.of(_denoiser(outline, kind), build, sources)
    made, variance = (Noise, None) if kind == "dit" else (Velocity, False)
    facts = {name: getattr(made, name) for name in ("sigma_min", "sigma_max", "native_unit")}
    return ModelSpec(build, sources, **facts, learned_variance=variance)


def _load(
    checkpoint: str, kind: Kind, heads: int | None, sha256: str | None, dtype: Dtype, compile: bool
) -> Transformer:
    """The network of a checkpoint, on the CPU."""
    is_folder = Path(checkpoint).expanduser().is_dir()
    path = weights_file(checkpoint) if is_folder else fetch(checkpoint, sha256=sha256)
    model = _denoiser(read_network(path, heads).cast(getattr(torch, dtype)), kind)
    model.origin = {"source": path.name, "path": checkpoint, "sha256": file_sha256(path)}
    if compile:
        compile_network(model, model.network)
    return model


def _denoiser(network: Network, kind: Kind) -> Transformer:
    if kind == "dit":
        return Noise(network)
    return Velocity(network, data_time=kind in ("sit", "lightningdit"))


def _outline(kind: Kind, size: Size, side: int, patch: int, channels: int) -> Network:
    """A published network without weights."""
    width, depth, heads = SIZES[size]
    new = kind == "lightningdit"
    outputs = 2 * channels if kind in ("dit", "sit") else channels
    hidden = int(8 * width / 3) if new else 4 * width
    shape = Shape(
        side, patch, channels, outputs, width, depth, heads, hidden, rms=new, gated=new, rotary=new
    )
    with torch.device("meta"):
        return Network(shape)
