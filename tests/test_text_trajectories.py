"""Text-to-image samples against those of diffusers' own pipelines, from the same noise."""

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from tiny_text import libraries, saved
from torch import Tensor

from guidex.guidance.directions import Difference, PerturbedAttention
from guidex.guidance.guidance import Guidance, Guided, Term
from guidex.guidance.rules import Extrapolate
from guidex.guidance.schedules import Constant
from guidex.models.decoders import VAE
from guidex.models.denoiser import Denoiser
from guidex.models.text.load import text_to_image
from guidex.sampling.flow import Flow
from guidex.sampling.grids import DDPM, Grid, Karras
from guidex.sampling.seeds import Draws, Start
from guidex.sampling.solver import Solver
from guidex.sampling.solvers import DDIM, Euler, Heun
from guidex.sampling.trajectories import Run, trajectories

# diffusers' schedulers with a newer numpy
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

PROMPTS = ["a cat", "two dogs"]
NEGATIVE = "blurry"
STEPS = 7
SD = {"beta_first": 0.00085, "beta_last": 0.012, "even_in": "sqrt_beta"}


@dataclass(frozen=True, kw_only=True)
class Given(Grid):
    """These noise levels."""

    at: tuple[float, ...]

    def levels(self, progress: np.ndarray) -> np.ndarray:
        return np.array(self.at)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory):
    made: dict[tuple[str, str], str] = {}

    def folder(kind: str, prediction: str = "epsilon") -> str:
        if (kind, prediction) not in made:
            place = tmp_path_factory.mktemp("pipelines")
            made[kind, prediction] = saved(place, kind, prediction)
        return made[kind, prediction]

    return folder


Terms = dict[str, Callable[[Denoiser], Term]]


def ours(folder: str, solver: Solver, terms: Terms, start: Tensor) -> Tensor:
    """Latents from x at the first noise level."""
    flow = isinstance(solver.grid, Flow)
    model = text_to_image(folder, PROMPTS, NEGATIVE, dtype="float32", flow=flow).load("cpu")
    guidance = Guidance({name: term(model) for name, term in terms.items()}, Extrapolate())
    numbers = torch.arange(2)
    noise = start / float(solver.sigmas()[0])
    begin = Start(noise, numbers, model.conditions.batch(numbers), Draws((), torch.device("cpu")))
    plan = guidance.plan(solver.timeline())
    [outcome] = trajectories([Run(Guided(model, guidance, plan), None)], solver, begin, [0, 1])
    return outcome.x


def cfg(w: float) -> Terms:
    return {"cfg": lambda model: Term(Difference(model, drop_labels=True), Constant(w=w))}


def pag(s: float, layers: str) -> Terms:
    return {"pag": lambda model: Term(PerturbedAttention(model, layers), Constant(w=1 + s))}


def theirs(
    folder: str,
    kind: str,
    scheduler: Any,
    noise: Tensor,
    w: float,
    output: str = "latent",
    **more: Any,
) -> Any:
    diffusers, _ = libraries()
    name = {"sd": "StableDiffusion", "sdxl": "StableDiffusionXL", "sd3": "StableDiffusion3"}[kind]
    name += "PAGPipeline" if "pag_scale" in more else "Pipeline"
    options = {} if kind != "sd" else {"safety_checker": None, "requires_safety_checker": False}
    if kind == "sd3":
        options = {"text_encoder_3": None, "tokenizer_3": None}
    layers = more.pop("layers", None)
    options |= {} if layers is None else {"pag_applied_layers": layers}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        pipe = getattr(diffusers, name).from_pretrained(folder, **options)
        pipe.set_progress_bar_config(disable=True)
        if scheduler is not None:
            pipe.scheduler = scheduler
        made = pipe(
            PROMPTS,
            negative_prompt=[NEGATIVE] * 2,
            num_inference_steps=STEPS,
            guidance_scale=w,
            latents=noise.clone(),
            output_type=output,
            **more,
        )
    return made.images


def noise_of(channels: int = 4) -> Tensor:
    return torch.randn(2, channels, 8, 8, generator=torch.Generator().manual_seed(3))


def assert_alike(x: Tensor, other: Tensor) -> None:
    error = float((x - other).norm() / other.norm())
    assert error < 1e-4, error


def schedulers(name: str, prediction: str, **options: Any) -> Any:
    diffusers, _ = libraries()
    return getattr(diffusers, name)(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        prediction_type=prediction,
        **options,
    )


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction", "sample"])
@pytest.mark.parametrize("kind", ["sd", "sdxl"])
def test_ddim_with_cfg(folders, kind, prediction):
    folder, noise = folders(kind, prediction), noise_of()
    solver = DDIM(grid=DDPM(steps=STEPS, **SD, first=1, leading=True))
    first = float(solver.sigmas()[0])
    x = ours(folder, solver, cfg(4.0), noise * np.hypot(1, first))
    options = {"steps_offset": 1, "clip_sample": False, "set_alpha_to_one": True}
    assert_alike(
        x, theirs(folder, kind, schedulers("DDIMScheduler", prediction, **options), noise, 4.0)
    )


@pytest.mark.parametrize("spacing", ["leading", "linspace", "trailing", "karras"])
def test_euler(folders, spacing):
    folder, noise = folders("sd"), noise_of()
    options = {"timestep_spacing": spacing, "steps_offset": 1}
    if spacing == "karras":
        options = {"use_karras_sigmas": True}
    scheduler = schedulers("EulerDiscreteScheduler", "epsilon", **options)
    scheduler.set_timesteps(STEPS)
    grids = {
        "leading": DDPM(steps=STEPS, **SD, first=1, leading=True),
        "karras": Karras(steps=STEPS, sigma_min=0.029167, sigma_max=14.6146),
    }
    at = tuple(scheduler.sigmas[:-1].double().tolist())
    grid = grids.get(spacing) or Given(steps=STEPS, at=at)
    np.testing.assert_allclose(grid.sigmas()[:-1], at, rtol=1e-4)
    x = ours(folder, Euler(grid=grid), cfg(3.0), noise * float(scheduler.init_noise_sigma))
    assert_alike(x, theirs(folder, "sd", scheduler, noise, 3.0))


@pytest.mark.parametrize("kind", ["sd", "sdxl"])
def test_heun(folders, kind):
    folder, noise = folders(kind), noise_of()
    options = {"use_karras_sigmas": True}
    scheduler = schedulers("HeunDiscreteScheduler", "epsilon", **options)
    scheduler.set_timesteps(STEPS)
    grid = Karras(steps=STEPS, sigma_min=0.029167, sigma_max=14.6146)
    x = ours(folder, Heun(grid=grid), cfg(5.0), noise * float(scheduler.init_noise_sigma))
    assert_alike(x, theirs(folder, kind, scheduler, noise, 5.0))


@pytest.mark.parametrize("w", [1.0, 4.0])
@pytest.mark.parametrize("kind", ["sd", "sdxl"])
def test_pag_alone_and_with_cfg(folders, kind, w):
    folder, noise = folders(kind), noise_of()
    solver = DDIM(grid=DDPM(steps=STEPS, **SD, first=1, leading=True))
    first = float(solver.sigmas()[0])
    terms = pag(3.0, "mid_block.*") | (cfg(w) if w > 1 else {})
    x = ours(folder, solver, terms, noise * np.hypot(1, first))
    more = {"pag_scale": 3.0, "layers": ["mid"]}
    assert_alike(x, theirs(folder, kind, None, noise, w if w > 1 else 0.0, **more))


@pytest.mark.parametrize("s", [0.0, 2.0])
def test_flow(folders, s):
    folder, noise = folders("sd3"), noise_of(16)
    diffusers, _ = libraries()
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0)
    scheduler.set_timesteps(STEPS)
    solver = Euler(grid=Flow(steps=STEPS, last=0.003 / 1.002, shift=3.0))
    levels = solver.sigmas()[:-1]
    times = scheduler.sigmas[:-1].double().numpy()
    np.testing.assert_allclose(levels / (1 + levels), times, rtol=1e-4)
    terms = cfg(4.0) | (pag(s, "transformer_blocks.1.attn") if s > 0 else {})
    x = ours(folder, solver, terms, noise * levels[0])
    more = {"pag_scale": s, "layers": ["blocks.1"]} if s > 0 else {}
    assert_alike(x, theirs(folder, "sd3", None, noise, 4.0, **more))


@pytest.mark.parametrize("kind", ["sd", "sd3"])
def test_decoded_images_are_theirs(folders, kind):
    folder, noise = folders(kind), noise_of(16 if kind == "sd3" else 4)
    latents = theirs(folder, kind, None, noise, 1.0)
    images = theirs(folder, kind, None, noise, 1.0, output="np")
    decoder = VAE(folder).eval()
    assert decoder.image_shape(tuple(latents.shape[1:])) == (3, 16, 16)
    made = decoder(latents.double()).permute(0, 2, 3, 1).numpy()
    assert np.abs(made.astype(int) - (images * 255).round().astype(int)).max() <= 1
