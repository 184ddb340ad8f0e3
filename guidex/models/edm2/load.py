"""EDM2 networks from checkpoints: a file of your own, or one of the published ones by its name.

Published networks and the numbers published with them are float16, the default on every device.
CPUs compute float16 several times slower than float32: use float32 there.
"""

from functools import partial
from typing import Literal

import torch

from guidex.errors import GuidexError, UsageError
from guidex.files.cache import fetch, file_sha256
from guidex.files.pickles import printable
from guidex.models.edm2.checkpoints import Checkpoint, read_checkpoint, read_config
from guidex.models.edm2.folded import fold
from guidex.models.edm2.network import EDM2, Config
from guidex.models.spec import ModelSpec, Source, compile_network

Dtype = Literal["float16", "bfloat16", "float32"]
Size = Literal["xxs", "xs", "s", "m", "l", "xl", "xxl"]

ROOT = "https://nvlabs-fi-cdn.nvidia.com/edm2/posthoc-reconstructions"
"""Where the networks of the EDM2 and autoguidance papers are published."""

CHANNELS = {"xxs": 64, "xs": 128, "s": 192, "m": 256, "l": 320, "xl": 384, "xxl": 448}
"""`Config.model_channels` of the published sizes."""

GFLOPS = {"xxs": 22.69, "xs": 89.9, "s": 201.6, "m": 357.9, "l": 558.7, "xl": 804.0, "xxl": 1093.8}
"""10^9 floating-point operations of one evaluation, 2 per multiply-add (papers often count 1), as
`count_gflops` finds them to four digits; pixels or latents, with or without classes. Counting takes
a second, which a plan should not."""


def edm2(
    checkpoint: str, sha256: str | None = None, dtype: Dtype = "float16", compile: bool = False
) -> ModelSpec:
    """The recipe of a checkpoint's network; see `load_network`. All is known of a converted one on
    this machine, and nothing of others."""
    build = partial(load_network, checkpoint, sha256, dtype, compile)
    sources = (Source(checkpoint, sha256),)
    values = read_config(checkpoint)
    if values is None:
        return ModelSpec(build, sources)
    return ModelSpec.of(_outline(Config.from_mapping(values, checkpoint)), build, sources)


def released(
    dataset: Literal["img512", "img64"],
    size: Size,
    kimg: int,
    ema: float,
    conditional: bool = True,
    root: str = ROOT,
    dtype: Dtype = "float16",
    compile: bool = False,
) -> ModelSpec:
    """The recipe of a published EDM2 network (Karras et al. 2024, arXiv 2312.02696, 2406.02507).

    Arguments:
        dataset: ImageNet at 512x512 (latents) or 64x64 (pixels).
        size, kimg: of the network; of its training, in thousands of images.
        ema: length of its averaged weights, sigma_rel, a multiple of 0.001. Not every length is
            published; `guidex ema` makes others from raw snapshots, for model=edm2.
        conditional: False for the networks without classes.
        root: URL or folder that has the files under their published names.
        dtype, compile: see `load_network`.
    """
    if not 0 < kimg < 10_000_000:
        raise UsageError(f"kimg is {kimg}; it must be 1 to 9999999, thousands of images")
    if not (0 < ema < 1 and round(ema, 3) == ema):
        raise UsageError(f"ema is {ema}; files are named by lengths such as 0.130, up to 0.001")
    network = size if conditional else f"{size}-uncond"
    place = f"{root.rstrip('/')}/edm2-{dataset}-{network}-{kimg:07d}-{ema:.3f}.pkl"
    build = partial(load_network, place, None, dtype, compile)
    channels = {"img512": 4, "img64": 3}[dataset]
    config = Config(64, channels, 1000 if conditional else 0, CHANNELS[size])
    return ModelSpec.of(_outline(config), build, (Source(place),), GFLOPS[size])


def _outline(config: Config, dtype: torch.dtype = torch.float32) -> EDM2:
    """A network without weights."""
    with torch.device("meta"):
        return EDM2(config, dtype)


def load_network(
    checkpoint: str, sha256: str | None = None, dtype: Dtype = "float16", compile: bool = False
) -> EDM2:
    """The EDM2 network of a checkpoint, in its inference form. Nothing that the file holds is run.

    Arguments:
        checkpoint: path or https:// URL (downloaded into the cache once) of an EDM2
            snapshot (.pkl) or of what `guidex convert` made of one (.safetensors).
        sha256: that the file must have, or None.
        dtype: in which the U-Net computes.
        compile: use torch.compile, which takes its time once for every size of batch that occurs.

    Raises:
        UsageError: no such file, or not of these kinds.
        GuidexError: not to be downloaded, damaged, refused, or no EDM2 network.
    """
    path = fetch(checkpoint, sha256=sha256)
    read = read_checkpoint(path)
    model = fold(network_of(read, str(path), getattr(torch, dtype)))
    origin = {"path": checkpoint, **read.metadata}
    if path.suffix == ".safetensors":  # the hash that it says itself is that of the original
        origin |= {"original": read.metadata.get("sha256"), "sha256": file_sha256(path)}
    names = ("source", "path", "sha256", "original")
    model.origin = {name: str(origin[name]) for name in names if origin.get(name) is not None}
    if compile:
        compile_network(model, model.unet)
    return model


def network_of(checkpoint: Checkpoint, where: str, dtype: torch.dtype) -> EDM2:
    """The network that a checkpoint, read from `where`, describes, with its weights as stored.
    Raises UsageError, GuidexError: it is not of EDM2, or its tensors are of another network."""
    model = _outline(Config.from_mapping(checkpoint.config, where), dtype)
    try:
        # As stored: the float16 gains of the published networks have to be read in float16.
        model.load_state_dict(checkpoint.tensors, assign=True)
    except RuntimeError as error:
        faults = " ".join(printable(line.strip()) for line in str(error).splitlines()[1:])
        raise GuidexError(
            f"{where}: its tensors are not those of the EDM2 network that it describes: "
            f"{faults:.400}"
        ) from error
    return model.requires_grad_(False)
