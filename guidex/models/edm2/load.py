"""EDM2 networks from checkpoints: a file of your own, or one of the published ones by its name.

Published networks are float16, and so were the numbers published with them; that is the default
here, on every device. CPUs compute float16 several times slower than float32: use float32 there.
"""

from collections.abc import Mapping
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Literal
from urllib.parse import urlsplit

import torch
from torch import Tensor

from guidex.errors import GuidexError, UsageError
from guidex.files.cache import fetch, file_sha256
from guidex.files.pickles import printable
from guidex.files.progress import download_bar
from guidex.models.edm2.checkpoints import Checkpoint, read_checkpoint, read_config
from guidex.models.edm2.folded import fold
from guidex.models.edm2.network import EDM2, Config
from guidex.models.spec import ModelSpec, Source

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
    checkpoint: str,
    sha256: str | None = None,
    dtype: Dtype = "float16",
    folded: bool = True,
    compile: bool = False,
) -> ModelSpec:
    """The recipe of a checkpoint's network; see `load_network`. Without its weights all is known
    of a converted checkpoint on this machine, and nothing of others."""
    build = partial(load_network, checkpoint, sha256, dtype, folded, compile)
    sources = (Source(checkpoint, sha256),)
    config = read_config(checkpoint)
    if config is None:
        return ModelSpec(build, sources)
    return ModelSpec.of(_outline(_config(config, checkpoint)), build, sources)


def load_network(
    checkpoint: str,
    sha256: str | None = None,
    dtype: Dtype = "float16",
    folded: bool = True,
    compile: bool = False,
) -> EDM2:
    """The EDM2 network of a checkpoint. Nothing that the file holds is run.

    Arguments:
        checkpoint: path, file:// URL or https:// URL (downloaded into the cache once) of an EDM2
            snapshot (.pkl) or of what `guidex convert` made of one (.safetensors beside .json).
        sha256: that the file must have, or None.
        dtype: in which the U-Net computes.
        folded: use the inference form, which computes the same up to rounding, and faster.
        compile: use torch.compile, which takes its time once for every size of batch that occurs.
            There is only one where `batch` divides `block`, and `block` the number of seeds, and
            another where guidance asks the network for several predictions at once.

    Returns:
        The network on the CPU; 1 or 3 channels are pixels in [-1, 1], other numbers latents.

    Raises:
        UsageError: no such file, or not of these kinds.
        GuidexError: not to be downloaded, damaged, refused, or no EDM2 network.
    """
    path = obtain(checkpoint, sha256)
    model = network_of(read_checkpoint(path), str(path), getattr(torch, dtype))
    model.origin = {**model.origin, "path": checkpoint}
    if path.suffix == ".safetensors":  # the hash that it says itself is that of the original
        if "sha256" in model.origin:
            model.origin["original"] = model.origin["sha256"]
        model.origin["sha256"] = file_sha256(path)
    if folded:
        model = fold(model)
    if compile:
        compile_network(model)
    return model


def compile_network(model: EDM2) -> None:
    """Use torch.compile for a network from now on, anew for each size of batch."""
    import torch._dynamo.config

    # Torch goes on without compiling beyond this number, towards which the sizes of batches of all
    # networks of a process count together: those of a table may be many.
    torch._dynamo.config.recompile_limit = 64
    model.unet.compile(dynamic=False)
    model.compiled = True


def released(
    dataset: Literal["img512", "img64"],
    size: Size,
    kimg: int,
    ema: float,
    conditional: bool = True,
    root: str = ROOT,
    dtype: Dtype = "float16",
    folded: bool = True,
    compile: bool = False,
) -> ModelSpec:
    """The recipe of a published EDM2 network (Karras et al. 2024, arXiv 2312.02696, 2406.02507).

    Arguments:
        dataset: ImageNet at 512x512 (latents) or 64x64 (pixels).
        size: of the network.
        kimg: training, in thousands of images.
        ema: length of its averaged weights, sigma_rel, a multiple of 0.001. Not every length is
            published; `guidex ema` makes others from raw snapshots, for model=edm2.
        conditional: False for the networks without classes.
        root: URL or folder that has the files under their published names.
        dtype, folded, compile: see `load_network`.

    Raises:
        UsageError: a kimg or ema that no file is named after.
    """
    source = released_source(dataset, size, kimg, ema, conditional, root)
    build = partial(load_network, source, None, dtype, folded, compile)
    channels = {"img512": 4, "img64": 3}[dataset]
    config = Config(64, channels, 1000 if conditional else 0, CHANNELS[size])
    return ModelSpec.of(_outline(config), build, (Source(source),), GFLOPS[size], ema)


def _outline(config: Config) -> EDM2:
    """A network without weights."""
    with torch.device("meta"):
        return EDM2(config)


def released_source(
    dataset: str, size: str, kimg: int, ema: float, conditional: bool, root: str
) -> str:
    """Path or URL of a published network, such as ROOT/edm2-img512-s-2147483-0.130.pkl."""
    if not 0 < kimg < 10_000_000:
        raise UsageError(f"kimg is {kimg}; it must be 1 to 9999999, thousands of images")
    if not (0 < ema < 1 and round(ema, 3) == ema):
        raise UsageError(f"ema is {ema}; files are named by lengths such as 0.130, up to 0.001")
    network = size if conditional else f"{size}-uncond"
    return f"{root.rstrip('/')}/edm2-{dataset}-{network}-{kimg:07d}-{ema:.3f}.pkl"


def obtain(checkpoint: str, sha256: str | None = None) -> Path:
    """The file of a checkpoint on this machine, downloaded if need be, with progress."""
    parts = urlsplit(checkpoint)
    name = PurePosixPath(parts.path).name
    if parts.scheme in ("http", "https") and name.endswith(".safetensors"):
        raise UsageError(
            f"{checkpoint}: a converted checkpoint is two files, {name} and its .json, and is not "
            "downloaded; get both and give the path, or give the URL of the original .pkl"
        )
    with download_bar(name) as progress:
        return fetch(checkpoint, sha256=sha256, progress=progress)


def network_of(checkpoint: Checkpoint, where: str, dtype: torch.dtype) -> EDM2:
    """The network that a checkpoint describes, with its weights as they are stored.

    Arguments:
        checkpoint: as read; of its description nothing is trusted.
        where: it was read from, for messages.
        dtype: in which the U-Net computes.

    Raises:
        UsageError: the description is not of an EDM2 network.
        GuidexError: the tensors are not those of the network described.
    """
    config = _config(checkpoint.config, where)
    with torch.device("meta"):
        model = EDM2(config, dtype)
    _require_same(checkpoint.tensors, model.state_dict(), where)
    # As stored: the float16 gains of the published networks have to be read in float16.
    model.load_state_dict(checkpoint.tensors, assign=True)
    found = {k: str(v) for k, v in checkpoint.metadata.items() if k in ("source", "sha256")}
    model.origin = {"source": where, **found}
    return model.requires_grad_(False)


def _config(given: Mapping[str, object], where: str) -> Config:
    try:
        return Config.from_mapping(given)
    except UsageError as error:
        raise UsageError(f"{where}: {error}") from error


def _require_same(given: Mapping[str, Tensor], wanted: Mapping[str, Tensor], where: str) -> None:
    faults = [f"{printable(name)} is unknown" for name in given if name not in wanted]
    for name, tensor in wanted.items():
        if name not in given:
            faults.append(f"it lacks {name}")
        elif given[name].shape != tensor.shape or not given[name].is_floating_point():
            shape = f"{list(given[name].shape)} of {given[name].dtype}"
            faults.append(f"{name} is {shape} instead of {list(tensor.shape)}")
    if faults:
        more = f"; and {len(faults) - 3} more" if len(faults) > 3 else ""
        raise GuidexError(
            f"{where}: its tensors are not those of the EDM2 network that it describes: "
            f"{'; '.join(faults[:3])}{more}"
        )
