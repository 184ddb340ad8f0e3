"""Text-to-image models from folders that diffusers saves, or from huggingface.co by their ids.

Weights are read from safetensors alone, by classes that are named here and not by the folder; none
of its code is run.
"""

import hashlib
import json
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cache, partial
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from guidex.errors import GuidexError, UsageError
from guidex.files.cache import file_sha256, offline
from guidex.models.spec import ModelSpec, Source
from guidex.models.text.network import TextToImage
from guidex.models.text.process import Discrete, Flow, Process
from guidex.models.text.prompts import Encoder, Prompts, read_prompts

Dtype = Literal["float16", "bfloat16", "float32"]


class Family(NamedTuple):
    """A pipeline of diffusers: its network's folder and class, the classes of its text encoders and
    tokenizers in transformers, and the tokens of a prompt."""

    folder: str
    network: str
    encoders: tuple[str, ...]
    tokenizers: tuple[str, ...]
    tokens: int

    @property
    def pipeline(self) -> str:
        return next(f"{name}Pipeline" for name, family in FAMILIES.items() if family == self)

    @property
    def suffixes(self) -> list[str]:
        """Ends of the names of what each text encoder takes."""
        return ["", "_2", "_3"][: len(self.encoders)]


_CLIP, _PROJECTED = "CLIPTextModel", "CLIPTextModelWithProjection"
FAMILIES = {
    "StableDiffusion": Family("unet", "UNet2DConditionModel", (_CLIP,), ("CLIPTokenizer",), 77),
    "StableDiffusionXL": Family(
        "unet", "UNet2DConditionModel", (_CLIP, _PROJECTED), ("CLIPTokenizer",) * 2, 77
    ),
    "StableDiffusion3": Family(
        "transformer",
        "SD3Transformer2DModel",
        (_PROJECTED, _PROJECTED, "T5EncoderModel"),
        ("CLIPTokenizer", "CLIPTokenizer", "T5TokenizerFast"),
        77 + 256,
    ),
}


@dataclass(frozen=True)
class Options:
    """See `text_to_image`."""

    path: str
    negative: str | None
    height: int | None
    width: int | None
    original: tuple[int, int] | None
    crop: tuple[int, int]
    reach: float
    dtype: torch.dtype
    variant: str | None
    offload: bool


def text_to_image(
    path: str,
    prompts: str | list[str],
    negative: str | None = None,
    height: int | None = None,
    width: int | None = None,
    original: list[int] | None = None,
    crop: list[int] | None = None,
    reach: float = 1.0,
    dtype: Dtype = "float16",
    variant: str | None = None,
    offload: bool = False,
) -> ModelSpec:
    """The recipe of a text-to-image model; of one that is not on this machine, only the prompts are
    known.

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

    Raises:
        UsageError: diffusers or transformers are not installed; no prompts; a pipeline of another
            kind, or sizes that it does not make.
    """
    if not 1 <= reach < np.inf:
        raise UsageError(f"reach is a factor on the largest noise level, 1 or more, not {reach:g}")
    pairs = [None if pair is None else tuple(pair) for pair in (original, crop)]
    if any(pair is not None and len(pair) != 2 for pair in pairs):
        raise UsageError(f"original and crop are two numbers each, not {original} and {crop}")
    options = Options(
        path, negative, height, width, pairs[0], pairs[1] or (0, 0), reach,
        getattr(torch, dtype), variant, offload,
    )  # fmt: skip
    wanted = read_prompts(prompts)
    build, sources = partial(load_network, options, wanted), (Source(path),)
    _libraries()
    folder = place_of(path)
    if folder is None:
        return ModelSpec(build, sources, conditions=wanted, space="latents")
    return ModelSpec.of(_outline(folder, options, wanted), build, sources)


def load_network(options: Options, prompts: Prompts) -> TextToImage:
    """The denoiser with its weights, on the CPU. Raises UsageError, GuidexError: its files are not
    to be had, damaged, or not in safetensors."""
    diffusers, transformers = _libraries()
    folder = obtain(options.path, options.variant)
    outline, family = _outline(folder, options, prompts), _family(folder)
    names = [f"{part}{end}" for end in family.suffixes for part in ("text_encoder", "tokenizer")]
    there = [name for name in names if (folder / name).is_dir()]
    files = list(_weights(folder, [family.folder, *(n for n in there if "encoder" in n)], options))
    given = {"variant": options.variant, "use_safetensors": True, "local_files_only": True}
    quick = diffusers.utils.is_accelerate_available()

    def read_encoders() -> Any:
        parts: dict[str, Any] = dict.fromkeys(names)
        for number, end in enumerate(family.suffixes):
            place = folder / f"text_encoder{end}"
            if place.is_dir():  # SD3's third may be left out
                encoder = getattr(transformers, family.encoders[number])
                parts[place.name] = _read(encoder, place, given).to(options.dtype)
                tokenizer = getattr(transformers, family.tokenizers[number])
                parts[f"tokenizer{end}"] = _read(
                    tokenizer, folder / f"tokenizer{end}", {"local_files_only": True}
                )
        return _pipeline(folder, family, parts)

    network_class = getattr(diffusers, family.network)
    typed = {**given, "low_cpu_mem_usage": quick, "torch_dtype": options.dtype}
    network = _read(network_class, folder / family.folder, typed)
    others = [f"prompt{end}" for end in family.suffixes[1:]]
    encoder = Encoder(read_encoders, others, options.negative, options.offload)
    model = TextToImage(
        network,
        outline.process,
        outline.shape,
        replace(prompts, encoder=encoder),
        outline.sizes,
        outline.gflops,
    )
    total = hashlib.sha256(repr([prompts.names, prompts.texts, options.negative]).encode())
    for file in files:
        total.update(f"{file.relative_to(folder)} {file_sha256(file)}".encode())
    model.origin = {"source": options.path, "path": options.path, "sha256": total.hexdigest()}
    return model


def _outline(folder: Path, options: Options, prompts: Prompts) -> TextToImage:
    """The denoiser without weights."""
    family = _family(folder)
    config = _json(folder / family.folder / "config.json")
    network, factor = _empty(family.network, json.dumps(config)), vae_factor(folder)
    known = network.config
    side = known.sample_size if isinstance(known.sample_size, int) else known.sample_size[0]
    height, width = options.height or side * factor, options.width or side * factor
    # U-Nets halve their latents at all levels but the last.
    unit = known.get("patch_size") or 2 ** (len(known.get("block_out_channels", [0])) - 1)
    if height % (factor * unit) or width % (factor * unit) or min(height, width) < 1:
        raise UsageError(
            f"height and width must be multiples of {factor * unit}, not {height} and {width}"
        )
    odd = [k for k in ("time_cond_proj_dim", "class_embed_type") if known.get(k) is not None]
    odd += ["in_channels"] if known.in_channels != known.out_channels else []
    odd += ["addition_embed_type"] if known.get("addition_embed_type") not in (None, "text_time") else []  # fmt: skip  # noqa: E501
    if odd:
        raise UsageError(
            f"{folder}: networks with another {odd[0]} than SD's and SDXL's: not known"
        )
    shape = (known.in_channels, height // factor, width // factor)
    sizes = (*(options.original or (height, width)), *options.crop, height, width)
    process = _process(folder, family, options.reach)
    model = TextToImage(network, process, shape, prompts, sizes, 0.0)
    model.gflops = _gflops(family, json.dumps(config), shape)
    return model


def _process(folder: Path, family: Family, reach: float) -> Process:
    config = _json(folder / "scheduler" / "scheduler_config.json")
    if family.folder == "transformer":
        return Flow(config.get("num_train_timesteps", 1000))
    prediction = config.get("prediction_type", "epsilon")
    if prediction not in ("epsilon", "v_prediction", "sample"):
        raise UsageError(f"{folder}: networks that predict {prediction} are not known")
    names = ("num_train_timesteps", "beta_start", "beta_end", "beta_schedule", "trained_betas")
    names += ("rescale_betas_zero_snr",)
    diffusers, _ = _libraries()
    scheduler = diffusers.DDPMScheduler(**{name: config[name] for name in names if name in config})
    return Discrete(scheduler.betas.double().numpy(), prediction, reach)


@cache
def _empty(network: str, config: str) -> nn.Module:
    """A network without weights."""
    diffusers, _ = _libraries()
    with torch.device("meta"):
        return getattr(diffusers, network).from_config(json.loads(config))


@cache
def _gflops(family: Family, config: str, shape: tuple[int, ...]) -> float:
    """10^9 floating-point operations for one image, counted where none runs."""
    network = _empty(family.network, config)
    model = TextToImage(network, Flow(), shape, Prompts(), (0,) * 6, 0.0)
    known = network.config
    width = known.get("joint_attention_dim") or known.get("cross_attention_dim")
    pooled = known.get("pooled_projection_dim")
    if pooled is None and known.get("addition_embed_type") == "text_time":
        pooled = known.projection_class_embeddings_input_dim - 6 * known.addition_time_embed_dim
    with torch.device("meta"), torch.no_grad(), FlopCounterMode(display=False) as counter:
        sums = None if pooled is None else torch.empty(1, pooled)
        model.ask(
            torch.empty(1, *shape), torch.empty(1), torch.empty(1, family.tokens, width), sums
        )
    return counter.get_total_flops() / 1e9


def _family(folder: Path) -> Family:
    name = str(_json(folder / "model_index.json").get("_class_name"))
    family = FAMILIES.get(name.removesuffix("Pipeline").removesuffix("PAG"))
    if family is None:
        known = ", ".join(f"{known}Pipeline" for known in FAMILIES)
        raise UsageError(f"{folder} is of a {name:.80}; known are {known}")
    return family


def _pipeline(folder: Path, family: Family, parts: dict[str, Any]) -> Any:
    """A pipeline that encodes prompts, and has nothing else."""
    diffusers, _ = _libraries()
    rest: dict[str, Any] = {family.folder: None, "vae": None, "scheduler": None}
    if family.folder == "transformer":  # whose widths stand in for a text encoder that is left out
        config = _json(folder / family.folder / "config.json")
        rest[family.folder] = _empty(family.network, json.dumps(config))
    if family.pipeline == "StableDiffusionPipeline":
        rest |= {"safety_checker": None, "feature_extractor": None}
        rest |= {"requires_safety_checker": False}
    elif family.pipeline == "StableDiffusionXLPipeline":
        zeros = _json(folder / "model_index.json").get("force_zeros_for_empty_prompt", True)
        rest |= {"force_zeros_for_empty_prompt": zeros, "add_watermarker": False}
    return getattr(diffusers, family.pipeline)(**parts, **rest)


def vae_factor(folder: Path) -> int:
    """Pixels to a latent, along each side."""
    return 2 ** (len(_json(folder / "vae" / "config.json")["block_out_channels"]) - 1)


def place_of(path: str) -> Path | None:
    """Where a pipeline lies on this machine, in a folder or in the cache of Hugging Face."""
    folder = Path(path).expanduser()
    if folder.is_dir():
        return folder
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    try:
        index = try_to_load_from_cache(path, "model_index.json")
    except HFValidationError as error:
        raise UsageError(f"there is no folder {path}, and it is no id on huggingface.co") from error
    return Path(index).parent if isinstance(index, str) else None


def obtain(path: str, variant: str | None) -> Path:
    """The folder of a pipeline, downloaded if need be."""
    folder = Path(path).expanduser()
    if folder.is_dir():
        return folder
    diffusers, _ = _libraries()
    unneeded = dict.fromkeys(("safety_checker", "feature_extractor", "image_encoder"))
    # What is on this machine comes first: no waiting for a site.
    for local_only in (True,) if offline() else (True, False):
        try:
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", module=r"huggingface_hub\.")
                return Path(
                    diffusers.DiffusionPipeline.download(
                        path,
                        variant=variant,
                        use_safetensors=True,
                        local_files_only=local_only,
                        **unneeded,
                    )
                )
        except Exception as error:  # every library on the way has its own
            failure = str(error).splitlines()[0] if str(error) else type(error).__name__
    raise UsageError(
        f"{path} is not to be had ({failure:.200}). Download it from https://huggingface.co/{path} "
        "on a machine that can, and give model.path=FOLDER"
    )


def _read(kind: Any, place: Path, options: dict[str, Any]) -> Any:
    """A part of a pipeline, by a class that is known."""
    options = {key: value for key, value in options.items() if value is not None}
    try:
        return kind.from_pretrained(str(place), **options)
    except Exception as error:  # damaged or foreign: every library on the way has its own
        reason = " ".join(str(error).split())
        raise GuidexError(f"{place} cannot be read as {kind.__name__}: {reason:.300}") from error


def _weights(folder: Path, names: list[str], options: Options) -> Iterator[Path]:
    """The files of weights of some parts. Raises GuidexError: one has none in safetensors."""
    for name in names:
        pattern = f"*.{options.variant}*.safetensors" if options.variant else "*.safetensors"
        files = sorted((folder / name).glob(pattern))
        if not files:
            raise GuidexError(
                f"{folder / name} has no weights in {pattern}; pickles are not read. "
                "Save the pipeline with save_pretrained(…, safe_serialization=True)"
            )
        yield from files


def _json(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_bytes())
    except (OSError, ValueError) as error:
        raise UsageError(
            f"{path} cannot be read ({error}); a pipeline is a folder as diffusers saves it"
        ) from error
    if not isinstance(found, dict):
        raise UsageError(f"{path} is no configuration")
    return found


def _libraries() -> tuple[Any, Any]:
    """diffusers and transformers."""
    try:
        import diffusers
        import transformers
    except ImportError as error:
        raise UsageError(
            f"text-to-image models need diffusers and transformers ({error}); install them in the "
            "clone of guidex: pip install '.[diffusers]'"
        ) from error
    transformers.utils.logging.disable_progress_bar()
    return diffusers, transformers
