"""The guider: the pipeline makes predictions, a plan on its scheduler's noise levels says which,
and a rule joins them, as x0, whatever the network predicts."""

import logging
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field, fields, is_dataclass
from functools import partial
from typing import Any, Literal, Self

import numpy as np
import torch
from diffusers import BaseGuidance
from diffusers.guiders.guider_utils import GuiderOutput
from torch import Tensor, nn

from guidex.config.instantiate import instantiate
from guidex.diffusers.levels import conversion, timeline
from guidex.errors import UsageError
from guidex.guidance.directions import Direction
from guidex.guidance.guidance import Guidance
from guidex.guidance.plan import Plan
from guidex.guidance.rules import Extrapolate, Offset
from guidex.models.attention import Perturbation
from guidex.models.condition import Condition
from guidex.models.denoiser import View
from guidex.models.text.attention import attention_layers, perturbed, replaced


@dataclass(frozen=True)
class Reference(Direction):
    """D_main - D_ref, the reference being evaluated by the pipeline. The default is classifier-free
    guidance; prompt="same" with layers is perturbed attention, with a network autoguidance.

    Attributes:
        prompt: which prompt it is asked with, the negative one or the main prediction's.
        layers: self-attention layers that are perturbed, names or patterns with * and ?.
        network: another network, by its name in `GuidexGuider.attach`; None: the pipeline's.
    """

    prompt: Literal["negative", "same"] = "negative"
    layers: list[str] = field(default_factory=list)
    network: str | None = None
    gflops = 0.0  # nobody says

    def __post_init__(self) -> None:
        if self.prompt not in ("negative", "same") or not isinstance(self.layers, list):
            raise UsageError(f'prompt is "negative" or "same" and layers a list, not {self}')
        if self.prompt == "same" and not self.layers and self.network is None:
            raise UsageError('a reference with prompt="same" needs layers, or a network of its own')

    @property
    def perturbation(self) -> Perturbation | None:
        """What its layers do."""
        return Perturbation(tuple(self.layers)) if self.layers else None

    def __call__(
        self, x: Tensor, sigma: float, condition: Condition, main: Tensor, reference: Tensor
    ) -> Tensor:
        return main - reference


class GuidexGuider(BaseGuidance):
    """A guidance of guidex as a guider of diffusers.

        guidance = single(Reference(), Interval(w=7.5, lo=0.28, hi=5.42), Extrapolate())
        pipe.update_components(guider=GuidexGuider(guidance).attach(pipe))

    Its config (`save_pretrained`, `from_pretrained`, `from_config`, `new`) is the guidance in the
    terms of guidex's YAMLs; nothing but classes of guidex is made of it.

    Arguments:
        guidance: schedules and a rule, all directions `Reference`; or that as a config.
        enabled: False for the main prediction alone.

    Raises:
        UsageError: a direction that a pipeline cannot evaluate, or an impossible config.
    """

    _input_predictions = ["pred_cond", "pred_uncond"]

    def __init__(self, guidance: Guidance | dict[str, Any], enabled: bool = True) -> None:
        super().__init__(enabled=enabled)
        if isinstance(guidance, dict):
            guidance = instantiate(guidance, "guidance", {}, Guidance)
        for name, term in guidance.terms.items():
            if not isinstance(term.direction, Reference):
                kind = type(term.direction).__name__
                raise UsageError(
                    f"the direction {name} is a {kind}, not guidex.diffusers.Reference"
                )
        self.guidance = guidance
        self.register_to_config(guidance=_plain(guidance), enabled=enabled)
        self._is_linear = type(guidance.rule) is Extrapolate  # the same for all predictions
        self._pipeline: Any = None
        self._networks: dict[str | None, nn.Module] = {}
        self._installed = ExitStack()  # a forward that waits for its call
        self._forget()

    def _forget(self) -> None:
        self._plan: Plan | None = None
        self._memory = self._input = None  # of the rule; of the network
        self._asked: list[Reference | None] = [None]  # the main prediction, references
        self._acting: list[tuple[int, float, int]] = []  # term, omega, place in _asked

    def attach(self, pipeline: Any, networks: Mapping[str, nn.Module] | None = None) -> Self:
        """Tell it the pipeline, whose scheduler is looked at when a run begins, and the networks
        that references name: they are called in place of the pipeline's own, with its arguments."""
        networks = dict(networks or {})
        wanted = {term.direction.network for term in self.guidance.terms.values()} - {None}
        if wanted != networks.keys():
            raise UsageError(f"references name the networks {wanted or '{}'}, not {set(networks)}")
        self._pipeline, self._networks = pipeline, networks
        return self

    def plan(
        self, scheduler: Any, step: int = 0, steps: int | None = None, timestep: Any = None
    ) -> Plan:
        """The plan of a run, by default on all timesteps that a scheduler has been set to; for the
        other arguments and errors see `timeline`."""
        steps = len(scheduler.timesteps) if steps is None else steps
        timestep = scheduler.timesteps[0] if timestep is None else timestep
        with np.errstate(all="ignore"):  # flows start at infinity
            plan = self.guidance.plan(timeline(scheduler, step, steps, timestep))
        if np.isnan(plan.weights[:, ~np.isnan(plan.timeline.evaluations)]).any():
            raise UsageError("this scheduler starts at sigma = inf; ramps need axis=step or vp")
        return plan

    # What pipelines ask of every guider

    def set_state(self, step: int, num_inference_steps: int, timestep: Tensor) -> None:
        begins = self._plan is None or step <= self._step
        super().set_state(step, num_inference_steps, timestep)
        if begins:
            self._forget()
        if not self._enabled:
            return
        if begins:
            if self._pipeline is None:
                raise UsageError(
                    "GuidexGuider does not know its scheduler: .attach(pipeline) first"
                )
            scheduler = self._pipeline.scheduler
            self._conversion = None if self._is_linear else conversion(scheduler)
            self._plan = self.plan(scheduler, step, num_inference_steps, timestep)
            for name in self._plan.idle:
                logging.getLogger(__name__).warning("no step is guided by %s", name)
        self._asked, self._acting = [None], []
        weights = self._plan.weights.reshape(len(self.guidance.terms), -1)[:, step].tolist()
        for k, term in enumerate(self.guidance.terms.values()):
            if weights[k] != 1:
                if term.direction not in self._asked:
                    self._asked.append(term.direction)
                self._acting.append((k, weights[k] - 1, self._asked.index(term.direction)))

    def prepare_inputs(self, data: dict[str, Any]) -> list[Any]:
        return [self._prepare_batch(data, *batch) for batch in self._batches()]

    def prepare_inputs_from_block_state(self, data: Any, input_fields: dict[str, Any]) -> list[Any]:
        return [
            self._prepare_batch_from_block_state(input_fields, data, *batch)
            for batch in self._batches()
        ]

    def _batches(self) -> list[tuple[int, str]]:
        """For each prediction, which of a pair of inputs it takes, and its name."""
        names = ["pred_cond", "pred_uncond", *(f"pred_{k}" for k in range(2, len(self._asked)))]
        indices = [0 if one is None or one.prompt == "same" else 1 for one in self._asked]
        return list(zip(indices, names, strict=False))

    def prepare_models(self, denoiser: nn.Module) -> None:
        self._installed.close()
        if self._step == 0 and self._count_prepared == 0:  # before anything is evaluated
            for term in self.guidance.terms.values() if self._enabled else ():
                if (perturbation := term.direction.perturbation) is not None:
                    network = self._networks.get(term.direction.network, denoiser)
                    perturbation.chosen(attention_layers(network))
        reference = self._asked[self._count_prepared]
        self._count_prepared += 1
        if reference is None:
            changed = bool(self._acting) and not self._is_linear
        else:
            changed = bool(reference.layers) or reference.network is not None
        if changed:
            once = partial(self._once, denoiser, reference)
            self._installed.enter_context(replaced(denoiser, once))

    def _once(
        self, denoiser: nn.Module, reference: Reference | None, *args: Any, **kwargs: Any
    ) -> Any:
        """The denoiser's next forward: it notes the input, or answers for a reference."""
        self._installed.close()
        if reference is None:
            self._input = args[0] if args else kwargs.get("sample", kwargs.get("hidden_states"))
            return denoiser.forward(*args, **kwargs)
        network = self._networks.get(reference.network)
        asked, view = network or denoiser, View(0.0, None, reference.perturbation)
        with perturbed(asked, attention_layers(asked), [view]):
            return (network or denoiser.forward)(*args, **kwargs)

    def cleanup_models(self, denoiser: nn.Module) -> None:
        self._installed.close()

    def __call__(self, data: list[Any]) -> GuiderOutput:
        main, *references = (batch.noise_pred for batch in data)
        pred = self._guided(main, references) if references else main
        self._input = None
        return GuiderOutput(pred=pred, pred_cond=main, pred_uncond=(references or [None])[0])

    def _guided(self, main: Tensor, references: list[Tensor]) -> Tensor:
        """The predictions of a step joined, in the main one's dtype."""
        wide = main.to(torch.promote_types(main.dtype, torch.float32))
        x0, b = wide, 1.0
        if not self._is_linear:
            x = self._input
            if isinstance(x, Tensor) and x.ndim > 3:
                x = x[:, : main.shape[1]]  # what an inpainting network is told comes after
            if not isinstance(x, Tensor) or x.shape != main.shape:
                raise UsageError("this network takes no x as it predicts; only Extrapolate works")
            a, b = self._conversion(float(self._plan.timeline.evaluations.flat[self._step]))
            x0 = a * x.to(wide.dtype) + b * wide
        offsets = [
            Offset(k, omega, b * (wide - references[place - 1].to(wide.dtype)))
            for k, omega, place in self._acting
        ]
        guided, self._memory = self.guidance.rule(x0, offsets, self._memory)
        return (guided if self._is_linear else wide + (guided - x0) / b).to(main.dtype)

    @property
    def is_conditional(self) -> bool:
        reference = self._asked[max(self._count_prepared, 1) - 1]
        return reference is None or reference.prompt == "same"

    @property
    def num_conditions(self) -> int:
        """The most predictions of any step: pipelines ask it before they begin, to know whether the
        negative prompt is wanted."""
        acting = [term for term in self.guidance.terms.values() if term.schedule.w != 1]
        return 1 + len(acting) * self._enabled


def _plain(value: Any) -> Any:
    """Dataclasses as configuration; what has its default value is left out."""
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if not is_dataclass(value):
        return value
    named = {one.name: (getattr(value, one.name), one.default) for one in fields(value)}
    given = {name: _plain(item) for name, (item, default) in named.items() if item != default}
    return {"_target_": f"{type(value).__module__}.{type(value).__qualname__}", **given}
