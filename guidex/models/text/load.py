"""Text-to-image models from folders that diffusers saves, or from huggingface.co by their ids."""

import hashlib
import json
from dataclasses import replace
from functools import cache, partial
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from guidex.errors import GuidexError, UsageError
from guidex.files.cache import file_sha256
from guidex.models.pretrained import library, local_first, read_part
from guidex.models.spec import ModelSpec, Source
from guidex.models.text.network import TextToImage
from guidex.models.text.process import Discrete, Flow, Process
from guidex.models.text.prompts import Encoder, Prompts, read_prompts


class Family(NamedTuple):
    """Of a pipeline of diffusers the network's folder and class, and the classes of its text
    encoders in transformers."""

    folder: str
    network: str
    encoders: tuple[str, ...]


_CLIP, _PROJECTED = "CLIPTextModel", "CLIPTextModelWithProjection"
_SD3_ENCODERS = (_PROJECTED, _PROJECTED, "T5EncoderModel")
FAMILIES = {
    "StableDiffusionPipeline": Family("unet", "UNet2DConditionModel", (_CLIP,)),
    "StableDiffusionXLPipeline": Family("unet", "UNet2DConditionModel", (_CLIP, _PROJECTED)),
    "StableDiffusion3Pipeline": Family("transformer", "SD3Transformer2DModel", _SD3_ENCODERS),
}
_ENDS = ("", "_2", "_3")  # of the names of what each text encoder takes


def text_to_image(
    path: str,
    prompts: str | list[str],
    negative: str | None = None,
    height: int | None = None,
    width: int | None = None,
    original: list[int] | None = None,
    crop: list[int] | None = None,
    reach: float = 1.0,
    dtype: Literal["float16", "bfloat16", "float32"] = "float16",
    variant: str | None = None,
    offload: bool = False,
    flow: bool = False,
) -> ModelSpec:
    """The recipe of a text-to-image model; of one that is not in a folder, only the prompts are
    known before it is loaded.

    Arguments:
        path: folder of a pipeline as diffusers saves it, or its id on huggingface.co.
        prompts: texts, or a file of them (see `read_prompts`).
        negative: the prompt of predictions without a condition; None: as its pipeline takes it, the
            empty one, or zeros for SDXL.
        height, width: of images, in pixels; None: those it was trained for.
        original, crop: what SDXL is told of height and width of the original image, and of its top
            and left corner; None: those of the image, and [0, 0].
        reach: how many times its largest noise level it may be asked at (see `Discrete`).
        dtype: in which network and text encoders compute.
        variant: of the files, such as fp16, where there are several.
        offload: let the text encoders wait in the CPU's memory while they are not needed.
        flow: whether the network is a flow, which takes a grid of its own.

    Raises:
        UsageError: diffusers or transformers are not installed; no prompts; a pipeline of another
            kind, or sizes that it does not make. Its network raises UsageError and GuidexError:
            files are not to be had, damaged, or not in safetensors.
    """
    if not 1 <= reach < float("inf") or any(len(two) != 2 for two in (original, crop) if two):
        raise UsageError(
            f"reach must be 1 or more, original and crop two numbers each, not {reach:g}, "
            f"{original} and {crop}"
        )
    known, kind = read_prompts(prompts), getattr(torch, dtype)

    def outline(folder: Path) -> TextToImage:
        network, process = _empty(folder), _process(folder, reach)
        if isinstance(process, Flow) != flow:
            raise UsageError(f"{folder}: use model=sd3 for flows, model=diffusers for the others")
        levels = _json(folder / "vae" / "config.json")["block_out_channels"]
        factor = 2 ** (len(levels) - 1)  # pixels to a latent, along each side
        config = network.config
        side = factor * config.sample_size
        image = (side if height is None else height, side if width is None else width)
        # U-Nets halve their latents at all levels but the last.
        unit = config.get("patch_size") or 2 ** (len(config.get("block_out_channels", "1")) - 1)
        if min(image) < 1 or any(length % (factor * unit) for length in image):
            raise UsageError(f"height and width must be multiples of {factor * unit}, not {image}")
        shape = (config.in_channels, *(length // factor for length in image))
        sizes = (*(original or image), *(crop or (0, 0)), *image)
        return TextToImage(network, process, shape, known, sizes, _gflops(folder, shape))

    def build() -> TextToImage:
        folder = _folder_of(path, variant)
        model, family = outline(folder), _family(folder)[1]
        encoder = Encoder(lambda: _encoders(folder, variant, kind), negative, offload)
        model.conditions = replace(known, encoder=encoder)
        total = hashlib.sha256(repr([known.names, known.texts, negative]).encode())
        for name in (family.folder, *(f"text_encoder{end}" for end in _ENDS)):
            files = sorted((folder / name).glob("*.safetensors"))
            if not files and (folder / name).is_dir():
                raise GuidexError(
                    f"{folder / name} has no weights in safetensors, and pickles are not read; "
                    "save the pipeline with save_pretrained(…, safe_serialization=True)"
                )
            for file in files:
                total.update(f"{name}/{file.name} {file_sha256(file)}".encode())
        model.network = _read(family.network, folder / family.folder, variant, kind)
        model.origin = {"source": path, "path": path, "sha256": total.hexdigest()}
        return model

    folder, sources = Path(path).expanduser(), (Source(path),)
    if folder.is_dir():
        return ModelSpec.of(outline(folder), build, sources)
    return ModelSpec(build, sources, conditions=known, space="latents")


def _process(folder: Path, reach: float) -> Process:
    config = _json(folder / "scheduler" / "scheduler_config.json")
    if _family(folder)[1].folder == "transformer":
        return Flow(config.get("num_train_timesteps", 1000))
    made = library("diffusers").DDPMScheduler.from_config(config)
    return Discrete(made.betas.double().numpy(), config.get("prediction_type", "epsilon"), reach)


@cache
def _empty(folder: Path) -> nn.Module:
    """A pipeline's network without weights."""
    family = _family(folder)[1]
    config = _json(folder / family.folder / "config.json")
    with torch.device("meta"):
        made = getattr(library("diffusers"), family.network).from_config(config)
    odd = [name for name in ("time_cond_proj_dim", "class_embed_type") if made.config.get(name)]
    odd += ["in_channels"] if made.config.in_channels != made.config.out_channels else []
    if odd or made.config.get("addition_embed_type") not in (None, "text_time"):
        raise UsageError(
            f"{folder} has another {(*odd, 'addition_embed_type')[0]} than SD and SDXL"
        )
    return made


@cache
def _gflops(folder: Path, shape: tuple[int, ...]) -> float:
    """10^9 floating-point operations for one image, counted where none runs."""
    network, pooled = _empty(folder), None
    config = network.config
    if config.get("addition_embed_type") == "text_time":
        pooled = config.projection_class_embeddings_input_dim - 6 * config.addition_time_embed_dim
    pooled = config.get("pooled_projection_dim", pooled)
    # Tokens of CLIP's prompts; with those of T5, and their width.
    text = (1, 77, config.get("cross_attention_dim"))
    if "joint_attention_dim" in config:
        text = (1, 77 + 256, config.joint_attention_dim)
    model = TextToImage(network, Flow(), shape, Prompts(), (0,) * 6, 0.0)
    with torch.device("meta"), torch.no_grad(), FlopCounterMode(display=False) as counter:
        sums = None if pooled is None else torch.empty(1, pooled)
        model.ask(torch.empty(1, *shape), torch.empty(1), torch.empty(text), sums)
    return counter.get_total_flops() / 1e9


def _family(folder: Path) -> tuple[str, Family]:
    name = str(_json(folder / "model_index.json").get("_class_name")).replace("PAG", "")
    if name not in FAMILIES:
        raise UsageError(f"{folder} is a {name:.80}; known are {', '.join(FAMILIES)}")
    return name, FAMILIES[name]


def _encoders(folder: Path, variant: str | None, dtype: torch.dtype) -> Any:
    """A pipeline that encodes prompts, and has nothing else."""
    name, family = _family(folder)
    parts: dict[str, Any] = dict.fromkeys((family.folder, "vae", "scheduler"))
    for kind, end in zip(family.encoders, _ENDS, strict=False):
        encoder, tokenizer = folder / f"text_encoder{end}", folder / f"tokenizer{end}"
        parts |= {encoder.name: None, tokenizer.name: None}
        if encoder.is_dir():  # SD3's third may be left out
            parts[encoder.name] = _read(kind, encoder, variant, dtype)
            kind = "T5TokenizerFast" if kind.startswith("T5") else "CLIPTokenizer"
            parts[tokenizer.name] = _read(kind, tokenizer)
    if name == "StableDiffusionPipeline":
        parts |= dict.fromkeys(("safety_checker", "feature_extractor"))
        parts["requires_safety_checker"] = False
    elif name == "StableDiffusionXLPipeline":
        zeros = _json(folder / "model_index.json").get("force_zeros_for_empty_prompt", True)
        parts |= {"force_zeros_for_empty_prompt": zeros, "add_watermarker": False}
    else:  # whose width stands in for a text encoder that is left out
        parts[family.folder] = _empty(folder)
    return getattr(library("diffusers"), name)(**parts)


def _read(name: str, place: Path, *how: Any) -> Any:
    """A part of a pipeline, by the name of a class; see `read_part`."""
    return local_first(lambda _: read_part(name, place, *how, local_files_only=True), place)


def _folder_of(path: str, variant: str | None) -> Path:
    """The folder of a pipeline, downloaded if need be."""
    library("transformers")  # without which diffusers has no pipelines
    if (folder := Path(path).expanduser()).is_dir():
        return folder
    unneeded = dict.fromkeys(("safety_checker", "feature_extractor", "image_encoder"))
    options = {"variant": variant, "use_safetensors": True, **unneeded}
    download = partial(library("diffusers").DiffusionPipeline.download, path, **options)
    advice = (
        f"Download it from https://huggingface.co/{path} on a machine that can, and give "
        "model.path=FOLDER"
    )
    return Path(local_first(lambda local_only: download(local_files_only=local_only), path, advice))


def _json(path: Path) -> dict[str, Any]:
    try:
        return dict(json.loads(path.read_bytes()))
    except (OSError, ValueError, TypeError) as error:
        raise UsageError(
            f"{path} cannot be read ({error}); a pipeline is a folder as diffusers saves it"
        ) from error
