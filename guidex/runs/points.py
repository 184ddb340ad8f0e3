"""A point of a table, made from its configuration: model, guidance, solver and plan."""

import functools
import hashlib
import math
import sys
from dataclasses import dataclass, replace
from pathlib import PurePosixPath
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from guidex.config.compose import Composed, Config
from guidex.config.instantiate import Models, content_key, instantiate
from guidex.errors import GuidexError, UsageError
from guidex.guidance.guidance import Guidance, Guided
from guidex.guidance.plan import Plan
from guidex.models.condition import parse_labels
from guidex.models.decoders import Decoder
from guidex.models.denoiser import Denoiser
from guidex.models.spec import Model
from guidex.models.spec import load as load_model
from guidex.runs.folder import VOLATILE
from guidex.runs.provenance import digest
from guidex.runs.ranks import this_rank
from guidex.sampling.seeds import SEED_LIMIT, check_count, check_seeds, parse_seeds
from guidex.sampling.solver import Solver
from guidex.sampling.trajectories import Run


@dataclass(frozen=True)
class Settings:
    """A point without its networks: what can be checked and planned before anything is loaded.

    Attributes:
        config: the resolved configuration.
        choices: the preset chosen in each group.
        values: swept keys and their values in this point.
        model: the main model, or its recipe.
        guidance: what guides it.
        solver: the sampler.
        plan: all guidance weights.
        seeds: one per image.
        labels: class of each image as asked for, by number (by name, until the classes are known),
            or None to draw it from the seed.
    """

    config: Config
    choices: dict[str, str]
    values: dict[str, str]
    model: Model
    guidance: Guidance
    solver: Solver
    plan: Plan
    seeds: list[int]
    labels: list[Any] | None

    @property
    def gflops(self) -> float:
        """Cost of one image, 10^9 floating-point operations, 2 per multiply-add; NaN where that is
        not known before the networks are loaded."""
        main = self.model.gflops * self.plan.evaluations_main
        return main + self.guidance.gflops(self.plan)

    def describe(self) -> str:
        """The plan in one line, what an image costs where that is known and not next to nothing,
        and its networks."""
        parts = [self.plan.describe()]
        if self.gflops >= 0.5:
            parts.append(f"{self.gflops:,.0f} GFLOP per image (2 per multiply-add)")
        files = [
            PurePosixPath(source.place).stem
            for model in (self.model, *self.guidance.networks)
            for source in getattr(model, "sources", ())
        ]
        return "; ".join([*parts, " against ".join(dict.fromkeys(files))] if files else parts)

    @property
    def doubts(self) -> list[str]:
        """What may not be as it was meant, a sentence each."""
        found = []
        for name in self.plan.idle:
            part = "guidance" if name == "direction" else f"guidance.terms.{name}"
            found.append(
                f"{part}.schedule acts at no step of the sampler, so nothing is guided by it"
            )
        main = self.model
        for reference in self.guidance.networks:
            lengths = [getattr(model, "ema", None) for model in (main, reference)]
            if main.num_classes and reference.num_classes == 0 and None not in lengths:
                if lengths[0] != lengths[1]:
                    found.append(
                        f"the EMA of the main network is {lengths[0]}, that of the unconditional "
                        f"reference {lengths[1]}; all published results of CFG and the interval "
                        "have equal ones"
                    )
        return found

    @property
    def method(self) -> str:
        """Name of the guidance preset."""
        return self.choices["guidance"]

    @property
    def cohort(self) -> str:
        """Equal for points that start from the same noise under the same main model and solver."""
        keys = ("model", "sampler", "seeds", "labels", "rng", "device", "repeats")
        parts = {key: self.config[key] for key in keys if key in self.config}
        parts["model"] = {k: v for k, v in parts["model"].items() if k != "references"}
        return content_key(parts)

    @property
    def key(self) -> str:
        """Names what is made of a seed: equal for points that differ in their seeds alone, and in
        the tables that they are of."""
        extent = ("seeds", "repeats", "block", "sweep")
        parts = {key: value for key, value in self.identity.items() if key not in extent}
        return digest(parts, 16)

    @property
    def identity(self) -> Config:
        """What decides the results: the kind of a device, but not its number."""
        kept = {key: value for key, value in self.config.items() if key not in VOLATILE}
        return {**kept, "device": kept["device"].partition(":")[0]}


def check(composed: Composed, values: dict[str, str], models: Models | None = None) -> Settings:
    """Settings of a point; everything that can be wrong without its networks is found here.

    Arguments:
        composed: the configuration.
        values: swept keys and their values in this point.
        models: models and recipes made for other points.

    Raises:
        UsageError: naming the key; labels that the model does not have, noise levels outside its
            range, a reference of another kind of samples.
    """
    config = composed.config
    models = Models() if models is None else models
    model = instantiate(config["model"], "model", models, Model)
    solver = instantiate(config["sampler"], "sampler", models, Solver)
    guidance = instantiate(config["guidance"], "guidance", models, Guidance)
    seeds = _all_seeds(config)
    labels = parse_labels(config["labels"], len(seeds))
    whole(config, "batch")
    whole(config, "block")
    if "gallery" in config:
        whole(config, "gallery", least=0)
        _check_view(config["figure"])
    if config["rng"] not in ("device", "cpu"):
        raise UsageError(f"rng must be device or cpu, not {config['rng']!r}")
    config["device"] = resolve_device(config["device"])
    plan = guidance.plan(solver.timeline())
    _check_models(model, guidance, plan)
    labels = _numbered(labels, model)
    return Settings(config, composed.choices, values, model, guidance, solver, plan, seeds, labels)


@dataclass(frozen=True)
class Point:
    """A point that can be run."""

    settings: Settings
    model: Denoiser
    guidance: Guidance
    decoder: Decoder | None

    @property
    def run(self) -> Run:
        """What the sampler carries out. Equal guidance but for its weights shares steps."""
        guided = Guided(self.model, self.guidance, self.settings.plan)
        return Run(guided, _without_schedules(self.settings.config["guidance"]))

    def decoded(self, x: Tensor) -> Tensor:
        """What is kept of samples: images uint8 [B, C, H, W]; as they are without a decoder."""
        return x if self.decoder is None else self.decoder(x)

    @property
    def latents_alone(self) -> bool:
        """Whether there are latents, and nothing here to decode them."""
        return self.decoder is None and self.model.space != "points"

    @property
    def bytes_per_sample(self) -> int:
        """A generous guess at what a sample takes on disk."""
        numbers = 8 * math.prod(self.model.shape)
        if self.decoder is None:
            return numbers
        return numbers + math.prod(self.decoder.image_shape(self.model.shape))

    @functools.cached_property
    def origins(self) -> dict[str, dict[str, str]]:
        """Source, place and SHA-256 of the files that the networks come from, by role."""
        models = {"main": self.model}
        for name, term in self.guidance.terms.items():
            networks = [query.network for query in term.direction.queries]
            networks += getattr(term.direction, "classifier", nn.Module()).children()
            for number, network in enumerate(networks, 1):
                models[name if number == 1 else f"{name} {number}"] = network
        found = {name: dict(model.origin) for name, model in models.items() if model.origin}
        if self.decoder is not None and self.decoder.state_dict():
            found["decoder"] = _origin_of(self.decoder)
        return found

    @property
    def inputs(self) -> list[tuple[str, str]]:
        """Role and place, as one text, and SHA-256 of the files that the networks come from."""
        items = self.origins.items()
        return [(f"{role} {one.get('path', '')}".strip(), one["sha256"]) for role, one in items]

    @property
    def gflops(self) -> float:
        """Cost of one image, 10^9 floating-point operations."""
        return replace(self.settings, model=self.model, guidance=self.guidance).gflops


def load(settings: Settings, decoders: Models, latents_suffice: bool = False) -> Point:
    """The point with its networks on its device.

    Arguments:
        settings: of the point.
        decoders: made for other points.
        latents_suffice: go on, with a notice, where latents cannot be decoded here.

    Raises:
        UsageError: as `check`, of what only the networks' files could tell; a decoder of another
            kind of samples.
        GuidexError: a file is not to be had, or damaged.
    """
    device = settings.config["device"]
    model = load_model(settings.model, device)
    guidance = settings.guidance.on(device)
    _check_models(model, guidance, settings.plan)
    settings = replace(settings, labels=_numbered(settings.labels, model))
    try:
        decoder = None if model.space == "points" else _decoder(settings, model, decoders)
    except GuidexError as error:
        if not latents_suffice:
            raise
        print(f"images are not made, latents are: {error}", file=sys.stderr)
        decoder = None
    return Point(settings, model, guidance, decoder)


@functools.lru_cache(maxsize=4)
def _origin_of(decoder: Decoder) -> dict[str, str]:
    """A decoder is known by its numbers, wherever its library has found them."""
    total = hashlib.sha256()
    for name, tensor in decoder.state_dict().items():
        total.update(f"{name} {tensor.dtype} {list(tensor.shape)}\n".encode())
        total.update(tensor.detach().cpu().flatten().view(torch.uint8).numpy())
    return {"source": type(decoder).__name__, "sha256": total.hexdigest()}


def _check_models(model: Model, guidance: Guidance, plan: Plan) -> None:
    """Refuse noise levels, references and layers that do not fit; what a recipe does not tell is
    let be."""
    _check_range(model, plan, 1.0)
    for term in guidance.terms.values():
        for query in term.direction.queries:
            _check_reference(model, query.network)
            _check_range(query.network, plan, query.k)
            if query.perturbation is not None and query.network.attention_layers is not None:
                query.perturbation.chosen(query.network.attention_layers)


def _numbered(labels: list[Any] | None, model: Model) -> list[Any] | None:
    """Conditions by number; as they are written, where the model's are not known."""
    if labels is None or model.conditions is None:
        return labels
    return model.conditions.numbers(labels)


def _check_reference(model: Model, reference: Model) -> None:
    """Refuse another kind of model here: a GPU stops for good at a class that does not exist."""
    if model.shape is None or reference.shape is None:
        return
    classes = {one.num_classes for one in (model, reference)} - {0}
    if reference.shape != model.shape or len(classes) > 1:
        raise UsageError(
            f"the reference makes samples {list(reference.shape)} of {reference.num_classes} "
            f"classes, but the model makes {list(model.shape)} of {model.num_classes}; choose a "
            "reference for the same data (guidance.reference)"
        )


def _decoder(settings: Settings, model: Denoiser, decoders: Models) -> Decoder:
    """The decoder chosen, or by default the one for the model's space."""
    config, key = settings.config["decoder"], "decoder"
    if "_target_" not in config:
        config, key = config[model.space], f"decoder.{model.space}"
    decoder = instantiate(config, key, decoders, Decoder).to(settings.config["device"]).eval()
    decoder.image_shape(model.shape)
    return decoder.requires_grad_(False)


def _check_range(model: Model, plan: Plan, k: float) -> None:
    """Refuse noise levels, k times the sampler's, that a model is not valid for."""
    levels = k * plan.timeline.evaluations
    lowest, highest = np.nanmin(levels), np.nanmax(levels)
    if not model.sigma_min <= lowest <= highest <= model.sigma_max:
        raise UsageError(
            f"noise levels {lowest:.4g} … {highest:.4g} leave the range of the model, "
            f"{model.sigma_min:g} … {model.sigma_max:g}; change sampler.grid"
        )


def resolve_device(device: str) -> str:
    """ "auto" to the device there is, "cuda" to the one of this process; any other as it is.

    Raises:
        UsageError: no such device.
    """
    if device == "auto":
        if not torch.cuda.is_available():
            return "cpu"
        _check_index(this_rank().local)
        return f"cuda:{this_rank().local}"
    try:
        given = torch.device(device)
    except RuntimeError as error:
        raise UsageError(f"device must be auto, cpu, cuda or cuda:N, not {device!r}") from error
    if given.type not in ("cpu", "cuda") or (
        given.type == "cuda" and not torch.cuda.is_available()
    ):
        raise UsageError(f"device={device} is not available here; use auto or cpu")
    if given.type == "cuda":
        index = this_rank().local if given.index is None else given.index
        _check_index(index)
        return f"cuda:{index}"
    return device


def _check_index(index: int) -> None:
    count = torch.cuda.device_count()
    if index >= count:
        raise UsageError(
            f"there is no GPU {index}: {count} can be seen here, from cuda:0 on; start one process "
            "for each (torchrun --nproc_per_node), or give device=cuda:0"
        )


def whole(config: Config, key: str, least: int = 1) -> int:
    """A whole number from the configuration."""
    value = config[key]
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise UsageError(f"{key} must be a whole number of at least {least}, not {value!r}")
    return value


def _check_view(figure: Config) -> None:
    """Refuse what figures of toys cannot show."""
    for key in ("x_range", "sigma_range", "center"):
        value = figure[key]
        if value is not None and not (
            isinstance(value, list) and len(value) == 2 and all(map(_is_finite, value))
        ):
            raise UsageError(f"figure.{key} must be two finite numbers or null, not {value!r}")
        if value is not None and key != "center" and not value[0] < value[1]:
            raise UsageError(f"figure.{key} must increase, unlike {value}")
    if figure["sigma_range"] is not None and figure["sigma_range"][0] < 0:
        raise UsageError(f"figure.sigma_range begins at 0 or above, not {figure['sigma_range']}")
    extent = figure["half_extent"]
    if extent is not None and not (_is_finite(extent) and extent > 0):
        raise UsageError(f"figure.half_extent must be a positive number or null, not {extent!r}")


def _is_finite(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _all_seeds(config: Config) -> list[int]:
    """The seeds and, for repeats, as many ranges of the same length after them."""
    first = parse_seeds(config["seeds"])
    repeats = whole(config, "repeats") if "repeats" in config else 1
    check_count(len(first) * repeats)
    stride = max(first) - min(first) + 1
    if max(first) + stride * (repeats - 1) >= SEED_LIMIT:
        raise UsageError(f"repeats={repeats} leaves the range of seeds, which end below 2^63")
    seeds = [seed + stride * r for r in range(repeats) for seed in first]
    check_seeds(seeds)
    return seeds


def _without_schedules(guidance: Any) -> str:
    """Identity of a guidance but for its weights, which the plan holds."""

    def strip(node: Any) -> Any:
        if not isinstance(node, dict):
            return node
        return {key: strip(value) for key, value in node.items() if key != "schedule"}

    return content_key(strip(guidance))
