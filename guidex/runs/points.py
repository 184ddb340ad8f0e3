"""A point of a table, made from its configuration: model, guidance, solver and plan."""

import functools
import hashlib
import sys
from dataclasses import dataclass, replace
from pathlib import PurePosixPath
from typing import Any

import numpy as np
import torch
from torch import nn

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
from guidex.runs.kinds import KINDS, SampleKind
from guidex.runs.settings import Settings
from guidex.sampling.solver import Solver
from guidex.sampling.trajectories import Run


@dataclass(frozen=True)
class Planned:
    """A point without its networks: what can be checked and planned before anything is loaded.

    Attributes:
        choices: the preset chosen in each group.
        values: swept keys and their values in this point.
        model: the main model, or its recipe.
        plan: all guidance weights.
        labels: class of each image as asked for, by number (by name, until the classes are known),
            or None to draw it from the seed.
    """

    settings: Settings
    choices: dict[str, str]
    values: dict[str, str]
    model: Model
    guidance: Guidance
    solver: Solver
    plan: Plan
    labels: list[Any] | None

    @property
    def config(self) -> Config:
        """The resolved configuration."""
        return self.settings.config

    @property
    def seeds(self) -> list[int]:
        """One per image."""
        return self.settings.seeds

    @property
    def count(self) -> int:
        """Samples of one evaluation."""
        return len(self.seeds) // self.settings.repeats

    @property
    def method(self) -> str:
        """Name of the guidance preset."""
        return self.choices["guidance"]

    @property
    def gflops(self) -> float:
        """Cost of one image, 10^9 floating-point operations, 2 per multiply-add; NaN where that is
        not known before the networks are loaded."""
        main = self.model.gflops * self.plan.evaluations_main
        return main + self.guidance.gflops(self.plan)

    @property
    def run(self) -> Run:
        """What the sampler carries out, once the networks are loaded. Equal guidance but for its
        weights shares steps."""
        guided = Guided(self.model, self.guidance, self.plan)
        return Run(guided, content_key(_without_schedules(self.settings.guidance)))

    @property
    def networks(self) -> str:
        """Names of the files that its networks come from; "" where they come from none."""
        files = [
            PurePosixPath(source.place).stem
            for model in (self.model, *self.guidance.networks)
            for source in getattr(model, "sources", ())
        ]
        return " against ".join(dict.fromkeys(files))

    def describe(self) -> str:
        """The plan in one line, what an image costs where that is known and not next to nothing,
        and its networks."""
        parts = [self.plan.describe(self.model.native_unit)]
        if self.gflops >= 0.5:
            parts.append(f"{self.gflops:,.0f} GFLOP per image (2 per multiply-add)")
        return "; ".join([*parts, self.networks] if self.networks else parts)

    @property
    def doubts(self) -> list[str]:
        """What may not be as it was meant, a sentence each."""
        schedules = [
            "guidance.schedule" if name == "direction" else f"guidance.terms.{name}.schedule"
            for name in self.plan.idle
        ]
        said = "acts at no step of the sampler, so nothing is guided by it"
        return [f"{schedule} {said}" for schedule in schedules]


def at_the_point(error: Exception, values: dict[str, str]) -> str:
    """A complaint, and the values of the point that it is about."""
    return f"{error}\n  at the point {words_of(values)}" if values else str(error)


def words_of(values: dict[str, str]) -> str:
    """Swept values as they are typed."""
    return " ".join(f"{key}={value}" for key, value in values.items())


def check(
    composed: Composed,
    values: dict[str, str],
    models: dict[str, Models] | None = None,
    settings: Settings | None = None,
) -> Planned:
    """Plan a point; everything that can be wrong without its networks is found here, by a
    UsageError that names the key. `models` are those made for other points, by device; `settings`,
    those of the configuration by default."""
    settings = settings or Settings.of(composed.config)
    made = ({} if models is None else models).setdefault(settings.device, Models())
    model = instantiate(settings.model, "model", made, Model)
    solver = instantiate(settings.sampler, "sampler", made, Solver)
    guidance = instantiate(settings.guidance, "guidance", made, Guidance)
    plan = guidance.plan(solver.timeline())
    _check_models(model, guidance, plan)
    if solver.learned_variance and model.learned_variance is False:
        raise UsageError("sampler: this model has not learned a variance; use sampler=ddim")
    labels = parse_labels(settings.labels, settings.seeds)
    if labels is not None and model.conditions is not None:
        labels = model.conditions.numbers(labels)
    return Planned(settings, composed.choices, values, model, guidance, solver, plan, labels)


@dataclass(frozen=True)
class Point:
    """A point that can be run, with its networks."""

    planned: Planned
    model: Denoiser
    guidance: Guidance
    kind: SampleKind

    @property
    def run(self) -> Run:
        """What the sampler carries out."""
        return self.planned.run

    @functools.cached_property
    def origins(self) -> dict[str, dict[str, str]]:
        """Source, place and SHA-256 of the files that the networks come from, by role."""
        models = {"main": self.model}
        for name, term in self.guidance.terms.items():
            networks = [query.network for query in term.direction.queries]
            networks += getattr(term.direction, "classifier", nn.Module()).children()
            for number, network in enumerate(networks, 1):
                models[name if number == 1 else f"{name} {number}"] = network
        origins = {name: dict(model.origin) for name, model in models.items() if model.origin}
        decoder = self.kind.decoder
        if decoder is not None and decoder.state_dict():
            origins["decoder"] = _origin_of(decoder)
        return origins

    @property
    def inputs(self) -> list[tuple[str, str]]:
        """Role and place, as one text, and SHA-256 of the files that the networks come from."""
        return [
            (f"{role} {origin.get('path', '')}".strip(), origin["sha256"])
            for role, origin in self.origins.items()
        ]


def load(planned: Planned, decoders: Models, latents_suffice: bool = False) -> Point:
    """The point with its networks on its device; of `decoders`, those made for other points. Where
    `latents_suffice`, it goes on with a notice if they cannot be decoded here.

    Raises:
        UsageError: as `check`, of what only files tell; a decoder of another kind of samples.
        GuidexError: a file is not to be had, or damaged.
    """
    settings = planned.settings
    model = load_model(planned.model, settings.device)
    guidance = planned.guidance.on(settings.device)
    _check_models(model, guidance, planned.plan)
    labels = None if planned.labels is None else model.conditions.numbers(planned.labels)
    planned = replace(planned, model=model, guidance=guidance, labels=labels)
    kind, decoder = KINDS[model.space], None
    if kind.is_image:
        config, key = settings.decoder, "decoder"
        if "_target_" not in config:  # the default: one for each space
            config, key = config[model.space], f"decoder.{model.space}"
        try:
            decoder = instantiate(config, key, decoders, Decoder).to(settings.device)
            decoder.eval().requires_grad_(False).image_shape(model.shape)
        except GuidexError as error:
            if not latents_suffice:
                raise
            decoder = None
            print(f"images are not made, latents are: {error}", file=sys.stderr)
    return Point(planned, model, guidance, kind(model.shape, decoder))


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
    let be. A GPU stops for good at a class that does not exist."""
    queries = [query for term in guidance.terms.values() for query in term.direction.queries]
    for network, k in [(model, 1.0), *((query.network, query.k) for query in queries)]:
        levels = k * plan.timeline.evaluations
        lowest, highest = np.nanmin(levels), np.nanmax(levels)
        if not network.sigma_min <= lowest <= highest <= network.sigma_max:
            raise UsageError(
                f"noise levels {lowest:.4g} … {highest:.4g} leave the range of the model, "
                f"{network.sigma_min:g} … {network.sigma_max:g}; change sampler.grid"
            )
    for query in queries:
        reference = query.network
        if None not in (model.shape, reference.shape) and (
            model.shape != reference.shape
            or len({model.num_classes, reference.num_classes} - {0}) > 1
        ):
            raise UsageError(
                f"the reference makes samples {list(reference.shape)} of {reference.num_classes} "
                f"classes, but the model makes {list(model.shape)} of {model.num_classes}; choose "
                "a reference for the same data (guidance.reference)"
            )
        if query.perturbation is not None and reference.attention_layers is not None:
            query.perturbation.chosen(reference.attention_layers)


def _without_schedules(node: Any) -> Any:
    """A guidance but for its weights, which the plan holds."""
    if not isinstance(node, dict):
        return node
    return {key: _without_schedules(value) for key, value in node.items() if key != "schedule"}
