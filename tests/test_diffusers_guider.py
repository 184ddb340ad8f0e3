"""The guider in real denoising loops of diffusers' modular pipelines, with tiny random networks."""

import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

pytest.importorskip("diffusers", reason="the extra guidex[diffusers]")
pytest.importorskip("transformers", reason="the extra guidex[diffusers]")

import diffusers
from diffusers.guiders.guider_utils import BaseGuidance
from diffusers.hooks import LayerSkipConfig
from diffusers.models.attention_processor import (
    AttnProcessor,
    FusedJointAttnProcessor2_0,
    JointAttnProcessor2_0,
)
from diffusers.modular_pipelines.stable_diffusion_xl import (
    modular_blocks_stable_diffusion_xl as sdxl,
)

from guidex.api import (
    APG,
    Constant,
    Cosine,
    Euler,
    Extrapolate,
    Guidance,
    Guided,
    Heun,
    Interval,
    Karras,
    Product,
    Rescale,
    Rule,
    Schedule,
    Term,
    difference,
    kernel,
    single,
)
from guidex.diffusers import GuidexGuider, Reference
from guidex.diffusers.levels import timeline
from guidex.errors import UsageError
from guidex.guidance.timeline import Timeline
from guidex.models.condition import Conditions
from guidex.models.denoiser import Denoiser
from guidex.sampling.solver import Solver, State

pytestmark = pytest.mark.filterwarnings("ignore:__array_:DeprecationWarning")

STEPS = 6
BETAS = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}
RULE = "guidex.guidance.rules"
MIDDLE = "mid_block.attentions.0.transformer_blocks.0.attn1"


@dataclass
class Loop:
    """A pipeline's core, fed with random embeddings of prompts, and its network's calls."""

    pipe: Any
    network: nn.Module
    inputs: dict[str, Any]

    def __call__(self, guider: BaseGuidance, steps: int = STEPS, **more: Any) -> torch.Tensor:
        self.pipe.update_components(guider=guider)
        if isinstance(guider, GuidexGuider):
            guider.attach(self.pipe, guider._networks)
        self.calls = []
        return self.pipe(num_inference_steps=steps, output="latents", **self.inputs | more)


def watch(network: nn.Module, calls: Callable[[], list]) -> nn.Module:
    """Write down what the network is asked with: the noise level's timestep and the text."""

    def note(module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
        timestep = args[1] if len(args) > 1 else kwargs["timestep"]
        text = kwargs["encoder_hidden_states"]
        calls().append((float(timestep.flatten()[0]), float(text.flatten()[0])))

    network.register_forward_pre_hook(note, with_kwargs=True)
    return network


def make_unet(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    unet = diffusers.UNet2DConditionModel(
        sample_size=8,
        layers_per_block=1,
        block_out_channels=(8, 16),
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        attention_head_dim=(2, 4),
        use_linear_projection=True,
        addition_embed_type="text_time",
        addition_time_embed_dim=4,
        projection_class_embeddings_input_dim=6 * 4 + 8,
        cross_attention_dim=12,
        norm_num_groups=4,
    )
    return unet.eval().requires_grad_(False)


def embeddings(width: int, pooled: int) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    shapes = {"prompt_embeds": (2, 5, width), "pooled_prompt_embeds": (2, pooled)}
    names = {f"{sign}{name}": shape for name, shape in shapes.items() for sign in ("", "negative_")}
    return {
        name: 10 * torch.randn(shape, generator=generator, dtype=torch.float32)
        for name, shape in names.items()
    }


def noise(seed: int = 2, channels: int = 4) -> torch.Tensor:
    return torch.randn(2, channels, 8, 8, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(scope="module")
def xl() -> Loop:
    inputs = embeddings(12, 8) | {"latents": noise(), "height": 64, "width": 64}
    loop = Loop(sdxl.StableDiffusionXLCoreDenoiseStep().init_pipeline(), make_unet(), inputs)
    watch(loop.network, lambda: loop.calls)
    loop.pipe.update_components(unet=loop.network)
    loop.pipe.set_progress_bar_config(disable=True)
    return loop


@pytest.fixture
def loop(xl: Loop) -> Loop:
    return scheduled(xl, "EulerDiscreteScheduler", timestep_spacing="leading", steps_offset=1)


def scheduled(loop: Loop, name: str, **config: Any) -> Loop:
    """The loop with a scheduler of Stable Diffusion."""
    loop.pipe.update_components(scheduler=getattr(diffusers, name)(**BETAS, **config))
    return loop


@pytest.fixture(scope="module")
def flow() -> Loop:
    name = "diffusers.modular_pipelines.stable_diffusion_3.modular_blocks_stable_diffusion_3"
    sd3 = pytest.importorskip(name, reason="an older diffusers, without Stable Diffusion 3 here")
    torch.manual_seed(0)
    transformer = diffusers.SD3Transformer2DModel(
        sample_size=8,
        patch_size=2,
        in_channels=4,
        num_layers=1,
        attention_head_dim=4,
        num_attention_heads=2,
        joint_attention_dim=12,
        caption_projection_dim=8,
        pooled_projection_dim=8,
        out_channels=4,
        pos_embed_max_size=8,
    )
    inputs = embeddings(12, 8) | {"latents": noise(), "height": 64, "width": 64}
    loop = Loop(sd3.StableDiffusion3T2ICoreDenoiseStep().init_pipeline(), transformer, inputs)
    watch(transformer.eval().requires_grad_(False), lambda: loop.calls)
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0)
    loop.pipe.update_components(transformer=transformer, scheduler=scheduler)
    loop.pipe.set_progress_bar_config(disable=True)
    return loop


def cfg(schedule: Schedule, rule: Rule | None = None) -> GuidexGuider:
    return GuidexGuider(single(Reference(), schedule, rule or Extrapolate()))


# With diffusers' own guiders


def test_a_constant_weight_is_their_guidance(loop):
    ours = loop(cfg(Constant(w=5.0)))
    original = loop(diffusers.ClassifierFreeGuidance(4.0, use_original_formulation=True))
    assert torch.equal(ours, original)  # the same sum in the same order
    theirs = loop(diffusers.ClassifierFreeGuidance(5.0))
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)
    assert not torch.allclose(ours, loop(cfg(Constant(w=1.0))), atol=0.1)


def test_a_flow_of_joint_attention(flow):
    ours = flow(cfg(Constant(w=5.0)))
    assert torch.equal(
        ours, flow(diffusers.ClassifierFreeGuidance(4.0, use_original_formulation=True))
    )


def test_a_sum_with_perturbed_attention_is_theirs(loop):
    terms = {
        "cfg": Term(Reference(), Constant(w=5.0)),
        "pag": Term(Reference("same", layers=[MIDDLE]), Constant(w=4.0)),
    }
    ours = loop(GuidexGuider(Guidance(terms, Extrapolate())))
    config = LayerSkipConfig(
        [0], "mid_block.attentions.0.transformer_blocks", False, True, skip_ff=False
    )
    theirs = diffusers.PerturbedAttentionGuidance(
        5.0,
        perturbed_guidance_scale=3.0,
        perturbed_guidance_start=-1.0,  # theirs leaves out the first step
        perturbed_guidance_stop=1.0,
        perturbed_guidance_config=config,
    )
    torch.testing.assert_close(ours, loop(theirs), rtol=1e-4, atol=1e-4)
    assert not torch.allclose(ours, loop(cfg(Constant(w=5.0))), atol=1e-2)


# The plan


def test_guided_steps_are_those_of_the_plan(loop):
    guider = cfg(Interval(w=5.0, lo=0.3, hi=4.0))
    loop(guider)
    scheduler = loop.pipe.scheduler
    sigmas = scheduler.sigmas.double().numpy()
    plan = guider.guidance.plan(Timeline(sigmas, sigmas[:-1, None]))
    assert plan.guided_steps == [1, 2, 3]  # (0.3, 4] is snapped to (0.495, 2.907]
    assert guider.plan(scheduler).describe() == plan.describe()
    negative = float(loop.inputs["negative_prompt_embeds"].flatten()[0])
    unconditional = [timestep for timestep, text in loop.calls if text == negative]
    assert unconditional == scheduler.timesteps[plan.guided_steps].tolist()
    assert len(loop.calls) == plan.evaluations_main + sum(plan.evaluations_ref)


def test_a_run_after_one_that_ended_without_guidance(loop):
    guider = cfg(Interval(w=5.0, lo=1.0))
    first = loop(guider)
    assert guider.num_conditions == 2  # the negative prompt is wanted again
    assert torch.equal(first, loop(guider))
    guider.disable()
    assert guider.num_conditions == 1


@pytest.mark.parametrize("name", ["EulerDiscreteScheduler", "HeunDiscreteScheduler"])
def test_image_to_image(xl, name):
    loop = scheduled(xl, name, timestep_spacing="trailing")
    guider = cfg(Interval(w=5.0, lo=0.3, hi=2.0))
    x = {"image_latents": noise(4), "strength": 0.67, "latents": None}
    loop(guider, generator=torch.Generator().manual_seed(0), **x)
    sigmas = guider._plan.timeline.sigmas
    assert len(sigmas) == 5 and sigmas[-1] == 0 and sigmas[0] < 4
    assert len(loop.calls) == guider._plan.evaluations_main + sum(guider._plan.evaluations_ref)


def test_a_run_that_ends_early(loop):
    guider = cfg(Interval(w=5.0, lo=0.3, hi=2.0))
    loop(guider, denoising_end=0.5)
    sigmas = guider._plan.timeline.sigmas
    assert len(sigmas) == 3 and sigmas[-1] > 1
    assert len(loop.calls) == guider._plan.evaluations_main + sum(guider._plan.evaluations_ref)


@pytest.mark.parametrize("name", ["EulerDiscreteScheduler", "HeunDiscreteScheduler"])
def test_a_run_that_begins_later(name):
    scheduler = getattr(diffusers, name)(**BETAS, timestep_spacing="trailing")
    scheduler.set_timesteps(STEPS)
    start = 2 * scheduler.order
    part = timeline(scheduler, 0, STEPS - 2, scheduler.timesteps[start])
    whole = timeline(scheduler, 0, STEPS, scheduler.timesteps[0])
    np.testing.assert_array_equal(part.sigmas, whole.sigmas[2:])
    np.testing.assert_array_equal(part.evaluations, whole.evaluations[2:])
    later = timeline(scheduler, start, STEPS, scheduler.timesteps[start])  # a guider for low noise
    np.testing.assert_array_equal(later.sigmas, whole.sigmas)


@pytest.mark.parametrize(
    "name",
    [
        *("DDIM", "DDPM", "LCM", "DEISMultistep", "UniPCMultistep", "LMSDiscrete"),
        *("DPMSolverMultistep", "DPMSolverSinglestep", "EulerAncestralDiscrete"),
    ],
)
def test_levels_of_schedulers(xl, name):
    loop = scheduled(xl, f"{name}Scheduler")
    guider = cfg(Interval(w=2.0, hi=1.0), APG())
    assert loop(guider).isfinite().all()
    assert len(loop.calls) == STEPS + guider._plan.evaluations_ref[0] < 2 * STEPS
    scheduler = loop.pipe.scheduler
    alphas = scheduler.alphas_cumprod.double()[scheduler.timesteps.long()].numpy()
    sigmas = guider._plan.timeline.sigmas
    np.testing.assert_allclose(sigmas[:-1], np.sqrt((1 - alphas) / alphas), rtol=5e-3)


def test_levels_of_flows():
    heun = diffusers.FlowMatchHeunDiscreteScheduler()
    heun.set_timesteps(4)
    unipc = diffusers.UniPCMultistepScheduler(
        prediction_type="flow_prediction", use_flow_sigmas=True, final_sigmas_type="zero"
    )
    unipc.set_timesteps(4)
    for scheduler in (heun, unipc):
        sigmas = cfg(Constant(w=2.0)).plan(scheduler).timeline.sigmas
        first = scheduler.order * 2  # the third step's
        time = float(scheduler.timesteps[first]) / 1000
        np.testing.assert_allclose(sigmas[2], time / (1 - time), rtol=5e-3)
        assert len(sigmas) == 5 and sigmas[-1] == 0


# Rules act on x0: the same trajectories as guidex's own


class Asked(Denoiser):
    """A pipeline's network as a denoiser of guidex; the condition None is the negative prompt."""

    shape, conditions, sigma_data, gflops = (4, 8, 8), Conditions(2), 1.0, 0.0
    sigma_min, sigma_max = 0.0, np.inf

    def __init__(self, loop: Loop, network: nn.Module, timesteps: dict[float, float]) -> None:
        super().__init__()
        self.network, self.timesteps = network, timesteps
        self.inputs, self.scheduler = loop.inputs, loop.pipe.scheduler

    def signal(self, sigma: float) -> float:
        flow = "Flow" in type(self.scheduler).__name__
        return 1 / (1 + sigma) if flow else 1 / np.hypot(1, sigma)

    def forward(self, x, sigma, condition=None):
        sign = "negative_" if condition is None else ""
        text, pooled = (self.inputs[f"{sign}{k}_embeds"] for k in ("prompt", "pooled_prompt"))
        signal, timestep = self.signal(sigma), torch.tensor([self.timesteps[sigma]] * 2)
        noisy, noise = (signal * x).float(), sigma * signal
        if "Flow" in type(self.scheduler).__name__:
            answer = self.network(
                noisy,
                encoder_hidden_states=text,
                pooled_projections=pooled,
                timestep=timestep,
                return_dict=False,
            )[0]
            return noisy - noise * answer
        sizes = torch.tensor([[64.0, 64, 0, 0, 64, 64]] * 2)
        added = {"text_embeds": pooled, "time_ids": sizes}
        answer = self.network(
            noisy, timestep[0], encoder_hidden_states=text, added_cond_kwargs=added
        ).sample
        kind = self.scheduler.config.prediction_type
        if kind == "sample":
            return answer
        return x.float() - sigma * answer if kind == "epsilon" else signal * noisy - noise * answer


def by_guidex(loop: Loop, guider: GuidexGuider, solver: Solver, weak: nn.Module | None = None):
    """The guider's guidance in guidex, with the noise levels of the loop's scheduler."""
    scheduler = loop.pipe.scheduler
    plan = guider.plan(scheduler)
    sigmas = plan.timeline.sigmas
    flat = plan.timeline.evaluations.flatten().tolist()
    timesteps = dict(zip(flat, scheduler.timesteps.tolist(), strict=False))
    main = Asked(loop, loop.network, timesteps)
    (term,) = guider.guidance.terms.values()
    reference = main if weak is None else Asked(loop, weak, timesteps)
    guidance = difference(reference, term.schedule, guider.guidance.rule, drop_labels=weak is None)
    guided = Guided(main, guidance, plan)
    latents = loop.inputs["latents"]
    if hasattr(scheduler, "scale_model_input"):
        scheduler.set_timesteps(STEPS)
        begin = latents * scheduler.init_noise_sigma
        latents = scheduler.scale_model_input(begin, scheduler.timesteps[0])
    state = State(latents.double() / main.signal(float(sigmas[0])), None)
    memory = None

    def denoise(x, sigma, stage):
        nonlocal memory
        x0, memory = guided(x, sigma, torch.zeros(2), step, stage, memory)
        return x0.double()

    for step in range(len(sigmas) - 1):
        state = solver.step(state, sigmas, step, denoise)
    return state.x.float()


RULES = [Extrapolate(), Rescale(0.7), APG(eta=0.2, norm_threshold=15.0, momentum=-0.5)]
KINDS = [
    *(("EulerDiscreteScheduler", {"prediction_type": "epsilon"}, rule) for rule in RULES),
    ("EulerDiscreteScheduler", {"prediction_type": "v_prediction"}, RULES[1]),
    ("EulerDiscreteScheduler", {"prediction_type": "sample"}, RULES[2]),
    ("DDIMScheduler", {"prediction_type": "v_prediction", "clip_sample": False}, RULES[2]),
    ("HeunDiscreteScheduler", {"timestep_spacing": "trailing"}, RULES[2]),
]


@pytest.mark.parametrize("name, config, rule", KINDS)
def test_rules_act_on_x0(xl, name, config, rule):
    loop = scheduled(xl, name, **config)
    guider = cfg(Interval(w=3.0, lo=0.5), rule)
    ours = loop(guider)
    solver = (Heun if "Heun" in name else Euler)(grid=Karras())
    expected = by_guidex(loop, guider, solver)
    torch.testing.assert_close(ours, expected, rtol=2e-4, atol=2e-4)


@pytest.mark.parametrize("rule", RULES[1:], ids=repr)
def test_rules_act_on_x0_of_a_flow(flow, rule):
    guider = cfg(Interval(w=3.0, lo=0.2, hi=5.0), rule)
    ours = flow(guider, sigmas=np.linspace(0.95, 0.1, STEPS).tolist())
    expected = by_guidex(flow, guider, Euler(grid=Karras()))
    torch.testing.assert_close(ours, expected, rtol=2e-4, atol=2e-4)


def test_another_network_as_reference(loop):
    weak = make_unet(seed=1)
    guidance = single(Reference("same", network="weak"), Constant(w=2.0), APG())
    guider = GuidexGuider(guidance).attach(loop.pipe, {"weak": weak})
    evaluations = []
    handles = [
        network.conv_in.register_forward_pre_hook(lambda layer, args: evaluations.append(layer))
        for network in (loop.network, weak)
    ]
    ours = loop(guider)
    for handle in handles:
        handle.remove()
    assert evaluations == [loop.network.conv_in, weak.conv_in] * STEPS
    expected = by_guidex(loop, guider, Euler(grid=Karras()), weak)
    torch.testing.assert_close(ours, expected, rtol=2e-4, atol=2e-4)


def test_half_precision_is_joined_in_float32(loop):
    guider = cfg(Constant(w=5.0)).attach(loop.pipe)
    loop.pipe.scheduler.set_timesteps(STEPS)
    guider.set_state(0, STEPS, loop.pipe.scheduler.timesteps[0])
    text = loop.inputs["prompt_embeds"]
    batches = guider.prepare_inputs({"prompt_embeds": (text, -text)})
    for batch in batches:
        batch.noise_pred = batch.prompt_embeds.half() / 3
    out = guider(batches).pred
    assert out.dtype == torch.float16 and len(batches) == 2
    assert torch.equal(out, (text.half() / 3).float().mul(9).half())


# Configs


def test_round_trip_of_the_config(loop, tmp_path):
    factors = {"ramp": Cosine(), "interval": Interval(lo=0.3, hi=4.0)}
    terms = {
        "cfg": Term(Reference(), Product(w=5.0, factors=factors)),
        "pag": Term(Reference("same", layers=["mid_block.*"]), Constant(w=2)),
    }
    guider = GuidexGuider(Guidance(terms, APG(eta=0.5)))
    guider.save_pretrained(tmp_path)
    loaded = GuidexGuider.from_pretrained(tmp_path)
    assert loaded.guidance == guider.guidance and loaded.config == guider.config
    assert guider.new(enabled=False).config["guidance"] == guider.config["guidance"]
    assert torch.equal(loop(guider), loop(loaded))
    assert "infinity" not in (tmp_path / "guider_config.json").read_text().lower()
    with pytest.raises(UsageError, match="there is no key guidance.rule.etta; did you mean eta"):
        GuidexGuider(
            {**guider.config["guidance"], "rule": {"_target_": f"{RULE}.APG", "etta": 1.0}}
        )
    with pytest.raises(UsageError, match="must name something in guidex, not os.system"):
        GuidexGuider({"_target_": "os.system"})


# What is refused, and that nothing is left behind


def test_layers_are_checked_before_the_first_evaluation(loop):
    guidance = single(Reference("same", layers=["mid.*"]), Interval(w=2.0, hi=0.1), Extrapolate())
    with pytest.raises(UsageError, match="no self-attention layer is called mid"):
        loop(GuidexGuider(guidance))
    assert loop.calls == []
    with pytest.raises(UsageError, match="no self-attention layer is called .*attn2"):
        loop(
            GuidexGuider(
                single(
                    Reference("same", [MIDDLE[:-1] + "2"]),
                    Constant(w=2),
                    Extrapolate(),
                )
            )
        )


def test_joint_attention_is_perturbed_and_that_of_unknown_kinds_refused(flow):
    guidance = single(Reference("same", ["*"]), Constant(w=2.0), Extrapolate())
    perturbed = flow(GuidexGuider(guidance))
    assert not torch.allclose(perturbed, flow(cfg(Constant(w=1.0))), atol=1e-3)
    layer = flow.network.transformer_blocks[0].attn
    layer.set_processor(FusedJointAttnProcessor2_0())
    with pytest.raises(UsageError, match="no self-attention layers"):
        flow(GuidexGuider(guidance))
    layer.set_processor(JointAttnProcessor2_0())


@pytest.mark.parametrize("channels", [2, 4, 9])
def test_x_is_the_first_channels_of_what_the_network_sees(loop, channels):
    guider = cfg(Constant(w=3.0), Rescale(1.0)).attach(loop.pipe)
    loop.pipe.scheduler.set_timesteps(STEPS)
    guider.set_state(0, STEPS, loop.pipe.scheduler.timesteps[0])
    x, layer = noise(channels=channels), nn.Conv2d(channels, 4, 1)
    batches = guider.prepare_inputs({"prompt_embeds": (noise(), noise(3))})
    for batch in batches:
        guider.prepare_models(layer)
        batch.noise_pred = layer(x).detach() + batch.prompt_embeds
        guider.cleanup_models(layer)
    if channels == 2:
        with pytest.raises(UsageError, match="only Extrapolate"):
            guider(batches)
        return
    pred = guider(batches).pred.double()
    sigma = float(loop.pipe.scheduler.sigmas[0])
    main, guided = (
        x[:, :4].double() * np.hypot(1, sigma) - sigma * one
        for one in (batches[0].noise_pred.double(), pred)
    )
    torch.testing.assert_close(guided.std((1, 2, 3)), main.std((1, 2, 3)), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_networks_are_as_before_after_an_error(loop, error):
    broken = make_unet(seed=3)

    def fail(*args: Any) -> None:
        raise error("here")

    def forwards() -> list[Any]:
        modules = (*broken.modules(), *loop.network.modules())
        return [vars(module).get("forward") for module in modules]

    before = forwards()
    handle = broken.mid_block.attentions[0].transformer_blocks[0].attn1.register_forward_hook(fail)
    guidance = single(Reference(layers=[MIDDLE], network="weak"), Constant(w=2.0), APG())
    guider = GuidexGuider(guidance).attach(loop.pipe, {"weak": broken})
    with pytest.raises(error, match="here"):
        loop(guider)
    handle.remove()
    assert forwards() == before


def test_other_attention_than_sdpa_is_refused(loop):
    weak = make_unet(seed=3)
    weak.set_attn_processor(AttnProcessor())
    guidance = single(Reference(layers=[MIDDLE], network="weak"), Constant(w=2.0), Extrapolate())
    with pytest.raises(UsageError, match="scaled_dot_product_attention"):
        loop(GuidexGuider(guidance).attach(loop.pipe, {"weak": weak}))


def test_errors(loop, caplog):
    pipe, scheduler = loop.pipe, loop.pipe.scheduler
    scheduler.set_timesteps(STEPS)
    guider = cfg(Interval(w=2.0, lo=100.0))
    with pytest.raises(UsageError, match=r".attach\(pipeline\) first"):
        guider.set_state(0, STEPS, scheduler.timesteps[0])
    guider.attach(pipe).set_state(0, STEPS, scheduler.timesteps[0])
    assert "no step is guided by direction" in caplog.text
    with pytest.raises(UsageError, match="timestep 3.5 is none"):
        guider.set_state(0, STEPS, torch.tensor(3.5))
    with pytest.raises(UsageError, match="name the networks {'small'}, not set"):
        GuidexGuider(single(Reference(network="small"), Constant(w=2), APG())).attach(pipe)
    with pytest.raises(UsageError, match="needs layers, or a network"):
        Reference("same")
    with pytest.raises(UsageError, match="is a Difference, not"):
        GuidexGuider(difference(kernel("digits", h=0.5), Constant(w=2), APG()))


@pytest.mark.parametrize(
    "name, rule, message",
    [
        ("PNDMScheduler", Extrapolate(), "cannot plan on PNDMScheduler"),
        ("KDPM2DiscreteScheduler", Extrapolate(), "cannot plan on KDPM2DiscreteScheduler"),
        ("EDMEulerScheduler", APG(), "how to get x0 .* EDMEulerScheduler"),
    ],
)
def test_schedulers_that_are_refused(loop, name, rule, message):
    config = {"skip_prk_steps": True} if name == "PNDMScheduler" else {}
    scheduler = getattr(diffusers, name)(**config)
    scheduler.set_timesteps(STEPS)
    pipe = type("Pipe", (), {"scheduler": scheduler})
    guider = cfg(Constant(w=2.0), rule).attach(pipe)
    with pytest.raises(UsageError, match=message):
        guider.set_state(0, STEPS, scheduler.timesteps[0])


def test_flows_start_at_infinity():
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler()
    scheduler.set_timesteps(4)
    plan = cfg(Interval(w=2.0, lo=0.4, hi=2.0)).plan(scheduler)
    assert plan.timeline.sigmas[0] == np.inf and plan.guided_steps == [1]
    with pytest.raises(UsageError, match="sigma = inf"):
        cfg(Cosine(w=2.0, axis="sigma")).plan(scheduler)


def test_without_diffusers(monkeypatch):
    for name in [name for name in sys.modules if name.startswith("guidex.diffusers")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "diffusers", None)
    with pytest.raises(ImportError, match=r"pip install '\.\[diffusers\]'"):
        import guidex.diffusers  # noqa: F401


def test_the_documentation(loop, tmp_path, monkeypatch, capsys):
    page = (Path(__file__).parents[1] / "docs" / "diffusers.md").read_text(encoding="utf-8")
    part = page.partition("\n## Our guidance in diffusers\n")[2].partition("\n## ")[0]
    names = {"pipe": loop.pipe, "weak_unet": make_unet(seed=1)}
    monkeypatch.chdir(tmp_path)
    loop.calls = []
    for block in part.split("```python\n")[1:]:
        exec(block.partition("```")[0], names)
        loop.pipe(num_inference_steps=STEPS, output="latents", **loop.inputs)
    assert "of 32, sigma" in capsys.readouterr().out
    assert (tmp_path / "my_guider" / "guider_config.json").exists()
