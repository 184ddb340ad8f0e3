"""The guider: a guidance of guidex, carried out by a pipeline of diffusers.

The pipeline makes the predictions; the guider decides which are made in a step, by a plan on the
noise levels of the pipeline's own scheduler, and joins them by a rule. Sigma is that of x = x0 +
sigma * n, whatever the scheduler counts in; rules act on x0, whatever the network predicts.
"""

import logging
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field, fields, is_dataclass
from typing import Any, Literal, Self

import numpy as np
import torch
from diffusers import BaseGuidance
from diffusers.guiders.guider_utils import GuiderOutput
from torch import Tensor, nn

from guidex.config.instantiate import instantiate
from guidex.diffusers.layers import attention_layers, perturbed, replaced
from guidex.diffusers.levels import is_flow, prediction_type, timeline, to_x0
from guidex.errors import UsageError
from guidex.guidance.directions import Direction
from guidex.guidance.guidance import Guidance
from guidex.guidance.plan import Plan
from guidex.guidance.rules import Extrapolate, Offset
from guidex.models.condition import Condition


@dataclass(frozen=True)
class Reference(Direction):
    """D_main - D_ref, the reference being evaluated by the pipeline. The default is classifier-free
    guidance; prompt="same" is perturbed attention with layers, autoguidance with a network.

    Attributes:
        prompt: which prompt it is asked with, the negative one or the main prediction's.
        layers: names of self-attention layers, or patterns with * and ?, that are perturbed.
        network: another network's name, see `GuidexGuider.attach`; None: the pipeline's.
    """

    prompt: Literal["negative", "same"] = "negative"
    layers: str | list[str] = field(default_factory=list)
    network: str | None = None

    gflops = 0.0  # nobody says

    def __post_init__(self) -> None:
        if self.prompt not in ("negative", "same"):
            raise UsageError(f'prompt is "negative" or "same", not {self.prompt!r}')
        if self.prompt == "same" and not self.layers and self.network is None:
            raise UsageError(
                'a reference with prompt="same" needs layers, or a network of its own: it would '
                "be the main prediction"
            )

    @property
    def patterns(self) -> list[str]:
        """The layers as a list."""
        return [self.layers] if isinstance(self.layers, str) else self.layers

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
                raise UsageError(
                    f"the direction {name} is a {type(term.direction).__name__}; a pipeline "
                    "evaluates references itself: use guidex.diffusers.Reference"
                )
        self.guidance = guidance
        self.register_to_config(guidance=_plain(guidance), enabled=enabled)
        self._pipeline: Any = None
        self._networks: dict[str, nn.Module] = {}
        self._installed = ExitStack()  # a forward that waits to be called
        self._forget()

    def _forget(self) -> None:
        self._plan: Plan | None = None
        self._memory: Any = None  # of the rule
        self._input: Any = None  # of the network
        self._asked: list[Reference | None] = [None]  # None: the main prediction
        self._acting: list[tuple[int, float, int]] = []  # term, omega, its place in _asked
        self._checked = False

    def attach(self, pipeline: Any, networks: Mapping[str, nn.Module] | None = None) -> Self:
        """Tell it the pipeline, whose scheduler is looked at when a run begins, and the networks
        that references name: they are called in place of the pipeline's own, with its arguments."""
        networks = dict(networks or {})
        wanted = {term.direction.network for term in self.guidance.terms.values()} - {None}
        if wanted != networks.keys():
            raise UsageError(
                f"the references name the networks {sorted(wanted)}, but {sorted(networks)} are "
                "attached"
            )
        self._pipeline, self._networks = pipeline, networks
        return self

    def plan(self, scheduler: Any) -> Plan:
        """The plan on all timesteps that a scheduler has been set to; a UsageError for schedulers
        that guidex does not know (see guidex.diffusers.levels)."""
        times = scheduler.timesteps
        return self._planned(scheduler, 0, len(times), times[0])

    # What pipelines ask of every guider

    def set_state(self, step: int, num_inference_steps: int, timestep: Tensor) -> None:
        if self._plan is None or step <= self._step:
            self._forget()
        super().set_state(step, num_inference_steps, timestep)
        if not self._enabled:
            return
        if self._plan is None:
            self._plan = self._begin(step, num_inference_steps, timestep)
        step, stage = divmod(step, self._plan.weights.shape[2])
        self._asked, self._acting = [None], []
        for k, term in enumerate(self.guidance.terms.values()):
            omega = float(self._plan.weights[k, step, stage]) - 1
            if omega != 0:
                if term.direction not in self._asked:
                    self._asked.append(term.direction)
                self._acting.append((k, omega, self._asked.index(term.direction)))

    def prepare_inputs(self, data: dict[str, Any]) -> list[Any]:
        return [self._prepare_batch(data, *batch) for batch in self._batches()]

    def prepare_inputs_from_block_state(self, data: Any, input_fields: dict[str, Any]) -> list[Any]:
        batches = self._batches()
        return [self._prepare_batch_from_block_state(input_fields, data, *one) for one in batches]

    def prepare_models(self, denoiser: nn.Module) -> None:
        self._installed.close()
        self._count_prepared += 1
        if not self._checked:
            for term in self.guidance.terms.values():
                attention_layers(self._network(term.direction, denoiser), term.direction.patterns)
            self._checked = True
        reference = self._asked[self._count_prepared - 1]
        if reference is None:
            changed = bool(self._acting) and not self._is_linear
        else:
            changed = bool(reference.layers) or reference.network is not None
        if changed:
            once = self._once(denoiser, reference)
            self._installed.enter_context(replaced(denoiser, once))

    def cleanup_models(self, denoiser: nn.Module) -> None:
        self._installed.close()

    def __call__(self, data: list[Any]) -> GuiderOutput:
        main, *references = (batch.noise_pred for batch in data)
        pred = self._guided(main, references) if references else main
        self._input = None
        return GuiderOutput(pred=pred, pred_cond=main, pred_uncond=(references or [None])[0])

    @property
    def is_conditional(self) -> bool:
        reference = self._asked[max(self._count_prepared, 1) - 1]
        return reference is None or reference.prompt == "same"

    @property
    def num_conditions(self) -> int:
        """The most predictions of a step. Pipelines ask it before the first, to know whether to
        encode the negative prompt; so it does not depend on the step."""
        acting = [term for term in self.guidance.terms.values() if term.schedule.w != 1]
        return 1 + len(acting) if self._enabled else 1

    # What happens in a step

    @property
    def _is_linear(self) -> bool:
        """Whether the rule is the same for all kinds of predictions."""
        return type(self.guidance.rule) is Extrapolate

    def _planned(self, scheduler: Any, step: int, steps: int, timestep: Tensor) -> Plan:
        with np.errstate(all="ignore"):  # a flow starts at infinity
            plan = self.guidance.plan(timeline(scheduler, step, steps, timestep))
        if np.isnan(plan.weights[:, ~np.isnan(plan.timeline.evaluations)]).any():
            raise UsageError(
                f"{type(scheduler).__name__} starts at pure noise, where sigma is infinite; "
                "schedules need another axis there: step or vp"
            )
        return plan

    def _begin(self, step: int, steps: int, timestep: Tensor) -> Plan:
        """The plan of a run, once what can go wrong has been looked at."""
        if self._pipeline is None:
            raise UsageError(
                "GuidexGuider needs the noise levels of the pipeline's scheduler: call "
                "guider.attach(pipeline) when either is made or loaded"
            )
        scheduler = self._pipeline.scheduler
        if not self._is_linear:
            self._predicts, self._flow = prediction_type(scheduler), is_flow(scheduler)
        plan = self._planned(scheduler, step, steps, timestep)
        for name in plan.idle:
            logging.getLogger(__name__).warning("no step is guided by %s", name)
        return plan

    def _batches(self) -> list[tuple[int, str]]:
        """Of each prediction, which of a pair of inputs it takes, and what it is called."""
        indices = [int(one is not None and one.prompt == "negative") for one in self._asked]
        names = ["pred_cond", "pred_uncond", *(f"pred_{k}" for k in range(2, len(indices)))]
        return list(zip(indices, names[: len(indices)], strict=True))

    def _network(self, reference: Reference, denoiser: nn.Module) -> nn.Module:
        return denoiser if reference.network is None else self._networks[reference.network]

    def _once(self, denoiser: nn.Module, reference: Reference | None) -> Callable[..., Any]:
        """A forward for one call, that sees the main network's input, or answers for it."""

        def forward(*args: Any, **kwargs: Any) -> Any:
            self._installed.close()
            if reference is None:
                names = (name for name in ("sample", "hidden_states") if name in kwargs)
                self._input = args[0] if args else kwargs.get(next(names, ""))
                return denoiser.forward(*args, **kwargs)
            network = self._network(reference, denoiser)
            with perturbed(network, reference.patterns):
                return (network.forward if network is denoiser else network)(*args, **kwargs)

        return forward

    def _guided(self, main: Tensor, references: list[Tensor]) -> Tensor:
        """The predictions of a step joined, in the main one's dtype."""
        wide = main.to(torch.promote_types(main.dtype, torch.float32))
        x0, factor = wide, 1.0
        if not self._is_linear:
            x = self._input
            if isinstance(x, Tensor) and x.ndim > 3:
                x = x[:, : main.shape[1]]  # channels of an image to paint into come after
            if not isinstance(x, Tensor) or x.shape != main.shape:
                raise UsageError(
                    f"the rule {type(self.guidance.rule).__name__} acts on x0, and this pipeline's "
                    "network takes no sample of its prediction's shape; only Extrapolate works"
                )
            sigma = float(self._plan.timeline.evaluations.flat[self._step])
            x0, factor = to_x0(self._predicts, self._flow, sigma, x.to(wide.dtype), wide)
        offsets = []
        for k, omega, place in self._acting:
            difference = wide - references[place - 1].to(wide.dtype)
            offsets.append(Offset(k, omega, factor * difference))
        guided, self._memory = self.guidance.rule(x0, offsets, self._memory)
        if not self._is_linear:
            guided = wide + (guided - x0) / factor
        return guided.to(main.dtype)


def _plain(value: Any) -> Any:
    """Dataclasses as configuration; what has its default value is left out."""
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if not is_dataclass(value):
        return value
    kind = type(value)
    named = {one.name: getattr(value, one.name) for one in fields(value)}
    given = {one.name: named[one.name] for one in fields(value) if named[one.name] != one.default}
    return {"_target_": f"{kind.__module__}.{kind.__qualname__}", **_plain(given)}
