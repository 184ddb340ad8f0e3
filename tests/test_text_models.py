"""Text-to-image models: their timesteps and prompts, whole commands, attention put back, errors."""

import csv
import json
import math
import pickle
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import feature_set
from tiny_text import libraries, saved, text_encoder, tokenizer

from guidex.cli import main
from guidex.errors import GuidexError, UsageError
from guidex.features.clip_pair import clip_pair, embed_texts
from guidex.guidance.methods import difference, perturbed_attention
from guidex.guidance.rules import Extrapolate
from guidex.guidance.schedules import Constant
from guidex.metrics.clip_score import CLIPScore
from guidex.models.attention import Perturbation
from guidex.models.denoiser import View
from guidex.models.text.load import text_to_image
from guidex.models.text.process import Discrete, Flow
from guidex.models.text.prompts import read_prompts
from guidex.sampling.grids import DDPM
from guidex.sampling.solvers import DDIM
from guidex.sampling.trajectories import sample

MIDDLE = "mid_block.attentions.0.transformer_blocks.0.attn1"
SD = {"beta_first": 0.00085, "beta_last": 0.012, "even_in": "sqrt_beta"}
BETAS = np.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    return saved(tmp_path_factory.mktemp("pipelines") / "tiny-sd", "sd")


@pytest.fixture(scope="module")
def model(tiny):
    return text_to_image(tiny, ["a cat", "two dogs"], dtype="float32").load("cpu")


def test_timesteps_and_noise_levels_are_exact_both_ways():
    process = Discrete(BETAS, "epsilon")
    for timestep in (0, 1, 0.25, 500, 737.5, 999):
        assert process.timestep(process.sigma(timestep)) == pytest.approx(timestep, abs=1e-9)
    sigmas = np.sqrt(1 / np.cumprod(1 - BETAS) - 1)
    assert process.sigma(0) == pytest.approx(sigmas[0]) and sigmas[0] == pytest.approx(
        0.0292, abs=1e-4
    )
    assert process.sigma(999) == pytest.approx(sigmas[-1]) == pytest.approx(14.6146, abs=1e-3)
    assert process.timestep(math.sqrt(sigmas[3] * sigmas[4])) == pytest.approx(3.5)
    assert process.timestep(99) == 999 and Discrete(BETAS, "epsilon", 2.0).sigma_max > 29
    flow = Flow()
    assert (flow.timestep(1.0), flow.timestep(3.0)) == (500, 750)
    with pytest.raises(UsageError, match="networks that predict noise are not known"):
        Discrete(BETAS, "noise")


def test_a_process_without_a_signal_at_its_end_stops_before_it():
    process = Discrete(np.append(BETAS, 1.0), "v_prediction")
    assert process.sigma_max < 15


def test_noise_levels_are_those_of_diffusers():
    diffusers, _ = libraries()
    scheduler = diffusers.EulerDiscreteScheduler(1000, 0.00085, 0.012, "scaled_linear")
    process = Discrete(scheduler.betas.double().numpy(), "epsilon")
    known = scheduler.alphas_cumprod.double().numpy()
    logs = np.log(np.sqrt((1 - known) / known))
    for sigma in np.geomspace(0.03, 14.6, 40):
        theirs = scheduler._sigma_to_t(np.array(sigma), logs)
        assert process.timestep(sigma) == pytest.approx(float(theirs), abs=2e-3)
    levels = DDPM(steps=50, **SD, first=1, leading=True).sigmas()
    assert process.timestep(levels[0]) == pytest.approx(981, abs=1e-3)
    assert process.timestep(levels[-2]) == pytest.approx(1, abs=1e-3)


def test_prompts_from_lists_and_files(tmp_path):
    assert read_prompts(["a cat", ""]).texts == ("a cat", "")
    lines = tmp_path / "prompts.txt"
    lines.write_text("a cat\n\n two dogs \n", encoding="utf-8")
    assert read_prompts(str(lines)).names == ("a cat", "two dogs")
    table = tmp_path / "prompts.csv"
    table.write_text('id,prompt\nk1,"a cat, asleep"\nk2,two dogs\n', encoding="utf-8")
    prompts = read_prompts(str(table))
    assert prompts.texts == ("a cat, asleep", "two dogs") and prompts.numbers(["k2", 0]) == [1, 0]
    assert prompts.name(0) == "k1" and prompts.caption(0) == "a cat, asleep"
    table.write_text("id,text\n1,a\n", encoding="utf-8")
    for given, said in [
        (str(table), "needs a column prompt"),
        (str(tmp_path / "none.txt"), "no file of text .*a prompt itself is written in a list"),
        ([], "must be texts"),
        ([1], "must be texts"),
    ]:
        with pytest.raises(UsageError, match=said):
            read_prompts(given)
    lines.write_text("\n", encoding="utf-8")
    with pytest.raises(UsageError, match="has no prompts"):
        read_prompts(str(lines))
    table.write_text("id,prompt\n1,a\n1,b\n", encoding="utf-8")
    with pytest.raises(UsageError, match="an id is given to two prompts"):
        read_prompts(str(table))


def test_seed_k_shows_prompt_k_and_the_noise_is_the_seeds(model):
    solver = DDIM(grid=DDPM(steps=2, **SD, first=1, leading=True))
    guidance = difference(model, Constant(w=2.0), Extrapolate(), drop_labels=True)
    x, labels = sample(model, guidance, solver, [0, 1, 2, 5])
    assert labels.tolist() == [0, 1, 0, 1]
    other, _ = sample(model, guidance, solver, [0, 1], [1, 0], batch=1)
    same, _ = sample(model, guidance, solver, [0, 1], [0, 1], batch=1)
    torch.testing.assert_close(same, x[:2], rtol=1e-4, atol=1e-4)
    assert not torch.allclose(other, x[:2], rtol=1e-4, atol=1e-4)
    # The same noise under another prompt: images that are alike.
    assert (other - x[:2]).norm() < 0.5 * x[:2].norm()


def test_prompts_are_encoded_once(model, monkeypatch):
    encoder = model.conditions.encoder
    encoder.known.clear()
    asked = []
    encode = encoder._encode
    monkeypatch.setattr(encoder, "_encode", lambda p, d: asked.append(p) or encode(p, d))
    numbers = torch.tensor([1, 0, 1])
    for _ in range(2):
        text = model.conditions.batch(numbers)
        model(torch.zeros(3, *model.shape), 1.0, None)
    assert asked == ["two dogs", "a cat", None]
    assert torch.equal(text.tokens[0], text.tokens[2]) and text.tokens.shape == (3, 77, 32)
    encoder.offload = True
    model.conditions.batch(numbers)


def test_one_call_answers_all_views(model):
    x = torch.randn(
        2, *model.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0)
    )
    text = model.conditions.batch(torch.tensor([0, 1]))
    views = [
        View(2.0, text),
        View(2.0, None),
        View(2.4, text),
        View(2.0, text, Perturbation((MIDDLE,))),
    ]
    calls = []
    handle = model.network.register_forward_pre_hook(lambda m, given: calls.append(len(given[0])))
    joint = model.joint(x, views)
    assert calls == [8]
    alone = [model.joint(x, [view])[0] for view in views]
    handle.remove()
    for one, other in zip(joint, alone, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)
    assert torch.equal(alone[0], model(x, 2.0, text))
    assert (joint[0] - joint[3]).abs().max() > 1e-3


@pytest.mark.parametrize("mode", ["mask", "off_diagonal", "noise"])
@pytest.mark.parametrize("kind", ["sd", "sd3"])
def test_other_perturbations(kind, mode, model, tmp_path):
    if kind == "sd3":
        model = text_to_image(saved(tmp_path, kind), ["a cat"], dtype="float32", flow=True).load(
            "cpu"
        )
    x = torch.randn(1, *model.shape, generator=torch.Generator().manual_seed(0))
    text = model.conditions.batch(torch.tensor([0]))

    def ask(**options):
        perturbation = Perturbation((model.attention_layers[-1],), **options)
        return model.joint(x, [View(2.0, text, perturbation)])[0]

    plain, changed = model(x, 2.0, text), ask(mode=mode, ratio=0.5, std=0.5)
    assert torch.isfinite(changed).all() and not torch.allclose(changed, plain, atol=1e-5)
    nothing, everything = ask(mode=mode, ratio=0.0, std=0.0), ask(mode="identity")
    torch.testing.assert_close(nothing, plain, rtol=1e-4, atol=1e-4)
    if mode == "off_diagonal":
        torch.testing.assert_close(ask(mode=mode, ratio=1.0), everything, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("failure", [None, RuntimeError, KeyboardInterrupt])
def test_attention_is_put_back(model, failure):
    layer = model.network.get_submodule(MIDDLE)
    x, text = torch.zeros(1, *model.shape), model.conditions.batch(torch.tensor([0]))
    seen = []

    def watch(module, given):
        seen.append("forward" in vars(layer))
        if failure is not None:
            raise failure

    handle = model.network.register_forward_pre_hook(watch)
    view = View(2.0, text, Perturbation(("mid_block.*",)))
    try:
        if failure is None:
            model.joint(x, [view])
        else:
            with pytest.raises(failure):
                model.joint(x, [view])
    finally:
        handle.remove()
    assert seen == [True] and "forward" not in vars(layer)


def test_layers_are_named_and_checked(model):
    assert MIDDLE in model.attention_layers and len(model.attention_layers) == 4
    with pytest.raises(UsageError, match="no self-attention layer is called mid_blok"):
        perturbed_attention(model, Constant(w=2.0), Extrapolate(), "mid_blok.*")


WORDS = ["model=diffusers", "model.dtype=float32", "sampler.grid.steps=3"]
PROMPTS = 'prompts=["a cat","two dogs"]'


def test_sample_makes_images_of_prompts(tiny, tmp_path, capsys):
    out = tmp_path / "out"
    words = [*WORDS, f"model.path={tiny}", PROMPTS, "negative=blurry", "seeds=0-3", f"out={out}"]
    assert main(["sample", *words]) == 0
    assert "3 + 3 evaluations per image; w 7.5; tiny-sd" in capsys.readouterr().out
    with (out / "labels.csv").open() as file:
        assert [row["label"] for row in csv.DictReader(file)] == ["0", "1", "0", "1"]
    assert len(list(out.glob("images/*/*.png"))) == 4 and (out / "grid.png").exists()
    summary = json.loads((out / "summary.json").read_bytes())
    assert summary["config"]["model"]["prompts"] == ["a cat", "two dogs"]
    assert len(summary["provenance"]["origins"]["main"]["sha256"]) == 64
    assert "transformers" in summary["provenance"] and summary["gflops"] > 0


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    """A tiny random CLIP as transformers saves it."""
    _, transformers = libraries()
    folder = tmp_path_factory.mktemp("networks") / "tiny-clip"
    sizes = {"hidden_size": 32, "intermediate_size": 37, "num_hidden_layers": 2}
    sizes |= {"num_attention_heads": 4, "image_size": 30, "patch_size": 6, "projection_dim": 24}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        config = transformers.CLIPConfig(
            text_config=text_encoder().config.to_dict(), vision_config=sizes, projection_dim=24
        )
        transformers.CLIPModel(config).save_pretrained(folder)
    tokenizer().save_pretrained(folder)
    return str(folder)


def test_a_sweep_over_settings_scores_prompts_by_clip(tiny, clip, tmp_path):
    prompts = tmp_path / "prompts.csv"
    prompts.write_text("id,prompt\nx,a cat\ny,two dogs\n", encoding="utf-8")
    out = tmp_path / "out"
    words = [*WORDS, f"model.path={tiny}", f"prompts={prompts}", "seeds=0-3", f"out={out}"]
    words += ["detector=clip_score", f"detector.weights={clip}", "metrics=[clip_score]"]
    assert main(["sweep", *words, "guidance=none,interval,sigma_scaling,cfg_pag"]) == 0
    with (out / "table.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["evals_ref"] for row in rows] == ["0", "1", "3", "6"]
    assert len({row["clip_score_tiny_clip"] for row in rows}) == 4
    row = json.loads((out / "rows.jsonl").read_text().splitlines()[0])
    assert "transformers" in row["provenance"] and row["settings"]["weights"].startswith("SHA-256")
    assert (out / "grid.png").exists()


def test_clip_scores_are_cosines(clip):
    _, transformers = libraries()
    images = torch.randint(0, 256, (3, 3, 30, 30), dtype=torch.uint8)
    values = clip_pair(clip)(images)
    model = transformers.CLIPModel.from_pretrained(clip).eval()
    processor = transformers.CLIPImageProcessor(
        size={"shortest_edge": 30}, crop_size={"height": 30, "width": 30}
    )
    arrays = [image.permute(1, 2, 0).numpy() for image in images]
    tokens = tokenizer()(["a cat", "two dogs"], padding="max_length", return_tensors="pt")
    with torch.no_grad():
        made = model(**tokens, **processor(images=arrays, return_tensors="pt"))
    torch.testing.assert_close(values, made.image_embeds, rtol=1e-4, atol=1e-5)
    cpu = torch.device("cpu")
    texts = embed_texts(clip, ("a cat", "two dogs"), cpu)
    torch.testing.assert_close(texts, made.text_embeds, rtol=1e-4, atol=1e-5)
    labels = torch.tensor([1, 0, 1])
    fake = feature_set(values, labels, "tiny_clip")
    metric = CLIPScore(["a cat", "two dogs"], clip)
    expected = 100 * (values * texts[labels]).sum(1).clamp(min=0).mean()
    assert metric(real=None, fake=fake)["clip_score_tiny_clip"] == pytest.approx(
        float(expected), rel=1e-5
    )
    with pytest.raises(UsageError, match="labels go from 0 to 0"):
        CLIPScore(["a cat"], clip)(real=None, fake=fake)
    with pytest.raises(UsageError, match="tiny_clip alone"):
        metric(real=None, fake=feature_set(values, labels, "other"))


@pytest.fixture
def copy(tiny, tmp_path):
    return Path(shutil.copytree(tiny, tmp_path / "copy"))


def change(path: Path, **values: object) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}), encoding="utf-8")


def test_what_is_not_known_is_refused(copy):
    def refused(said: str, **options: object) -> None:
        with pytest.raises(UsageError, match=said):
            text_to_image(str(copy), ["a"], **options)

    refused("height and width must be multiples of 4", height=18)
    refused("reach must be 1 or more", reach=0.5)
    refused("two numbers each", crop=[1])
    refused("use model=sd3 for flows", flow=True)
    change(copy / "scheduler" / "scheduler_config.json", prediction_type="noise")
    refused("networks that predict noise are not known")
    change(copy / "model_index.json", _class_name="EvilPipeline")
    refused("is a EvilPipeline; known are StableDiffusionPipeline")
    (copy / "model_index.json").write_text("[")
    refused("model_index.json cannot be read")
    with pytest.raises(UsageError, match="a/b/c is not to be had"):
        text_to_image("a/b/c", ["a"]).load("cpu")


def test_an_inpainting_network_is_refused(copy):
    change(copy / "unet" / "config.json", in_channels=9)
    with pytest.raises(UsageError, match="another in_channels"):
        text_to_image(str(copy), ["a"])


def test_pickles_are_never_read(copy):
    file = copy / "unet" / "diffusion_pytorch_model.safetensors"
    ran = copy / "ran"

    class Evil:
        def __reduce__(self):
            return (Path.touch, (ran,))

    file.with_suffix(".bin").write_bytes(pickle.dumps(Evil()))
    file.unlink()
    with pytest.raises(GuidexError, match="no weights in safetensors"):
        text_to_image(str(copy), ["a"], dtype="float32").load("cpu")
    assert not ran.exists()


def test_classes_that_a_folder_names_are_not_run(copy):
    index = json.loads((copy / "model_index.json").read_text())
    change(copy / "model_index.json", unet=["evil", "Evil"], text_encoder=["evil", "Evil"])
    (copy / "evil.py").write_text("raise SystemExit")
    (copy / "unet" / "evil.py").write_text("raise SystemExit")
    assert index["unet"][0] == "diffusers"
    model = text_to_image(str(copy), ["a"], dtype="float32").load("cpu")
    assert model.conditions.batch(torch.tensor([0])).tokens.shape == (1, 77, 32)


def test_damage_is_told(copy):
    file = copy / "unet" / "diffusion_pytorch_model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(GuidexError, match="unet cannot be read"):
        text_to_image(str(copy), ["a"], dtype="float32").load("cpu")


def test_a_pipeline_that_is_not_here_is_told_offline(monkeypatch):
    monkeypatch.setenv("GUIDEX_OFFLINE", "1")
    spec = text_to_image("nobody/nothing", ["a", "b"])
    assert spec.num_classes == 2 and spec.shape is None
    with pytest.raises(UsageError, match="nobody/nothing is not to be had"):
        spec.load("cpu")


def test_without_the_extra_it_is_named(tiny, monkeypatch):
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(UsageError, match=r"pip install '\.\[diffusers\]'"):
        text_to_image("nobody/nothing", ["a"]).load("cpu")


def test_a_second_checkpoint_is_a_reference(model, tmp_path):
    prompts = ["a cat", "two dogs"]
    weaker = text_to_image(saved(tmp_path / "b", "sd", seed=1), prompts, dtype="float32")
    guidance = difference(weaker, Constant(w=2.0), Extrapolate()).on("cpu")
    [other] = guidance.networks
    x = torch.randn(2, *model.shape, generator=torch.Generator().manual_seed(0))
    text = model.conditions.batch(torch.tensor([0, 1]))
    assert (other(x, 2.0, text) - model(x, 2.0, text)).abs().max() > 1e-3
    assert other.conditions.encoder.pipeline is None  # its text encoders are not even read
    xl = text_to_image(saved(tmp_path / "xl", "sdxl"), prompts, dtype="float32").load("cpu")
    with pytest.raises(UsageError, match="choose a reference of the same family"):
        xl(x, 2.0, text)


def test_half_precision_computes_and_keeps_the_dtype_of_x(tiny, model):
    half = text_to_image(tiny, ["a cat", "two dogs"], dtype="bfloat16").load("cpu")
    x = torch.randn(
        2, *model.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0)
    )
    numbers = torch.tensor([0, 1])
    made = half(x, 2.0, half.conditions.batch(numbers))
    assert made.dtype == torch.float64
    wanted = model(x, 2.0, model.conditions.batch(numbers))
    assert (made - wanted).norm() < 0.05 * wanted.norm()
