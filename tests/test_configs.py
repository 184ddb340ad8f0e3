"""The contract of every YAML: it is enrolled here by existing.

It composes; it lists all arguments; w = 1 changes nothing bit for bit; samples have the right shape
and are finite; no state is left behind; plan and cost agree with the calls actually counted.
"""

import functools
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from edm2_networks import TINY, tiny_model
from helpers import Calls, starts
from torch import Tensor, nn

from guidex.config.compose import compose
from guidex.config.instantiate import Models, _locate, arguments_of, instantiate
from guidex.config.presets import (
    KINDS,
    config_dir,
    contents,
    describe,
    listing,
    options,
    preset_text,
)
from guidex.errors import UsageError
from guidex.guidance.directions import ClassifierGradient, Direction
from guidex.guidance.guidance import Guidance, Guided
from guidex.guidance.plan import Plan
from guidex.models.denoiser import Denoiser
from guidex.models.edm2.checkpoints import Checkpoint, write_checkpoint
from guidex.models.spec import ModelSpec, load
from guidex.sampling.solver import Solver
from guidex.sampling.trajectories import Run, trajectories

SEEDS = [5, 0, 2]
STEPS = 8

# Networks with trained weights can be planned without them, but not run.
TRAINED = ("guidex.models.edm2", "guidex.models.dit", "guidex.models.text")

YAMLS = sorted(config_dir().rglob("*.yaml"))
GROUPS = sorted({file.parent.relative_to(config_dir()).as_posix() for file in YAMLS} - {"."})
PRESETS = [
    (group, name)
    for group in GROUPS
    if not group.startswith("experiment")
    for name in options(group)
]


def preset_ids(preset: tuple[str, str]) -> str:
    return "=".join(preset)


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A set of one's own images, for models that want one."""
    path = tmp_path_factory.mktemp("images") / "set.npz"
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (12, 4, 4, 3), dtype=np.uint8)
    np.savez(path, images=pixels, labels=np.arange(12) % 3)
    return str(path)


def words_of(group: str, name: str, images: str) -> list[str]:
    """What chooses a preset."""
    words = [f"{group}={name}"]
    if group.startswith("guidance/"):
        words.insert(0, "guidance=cfg")
    # What takes keys of a text-to-image model, or of its own detector.
    text = {"pipeline": ["model=sd15"], "text": ["model=sd15"]}
    text["clip_score"] = ["model=sd15", "detector=clip_score"] if group == "metrics" else []
    words += text.get(name, [])
    if group == "model":
        text = preset_text("model", name)
        needed = {"data": images, "checkpoint": "network.safetensors", "path": "a/pipeline"}
        words += [f"model.{k}={v}" for k, v in needed.items() if f"\n{k}: ???" in text]
    return words


def target_of(name: str) -> str:
    """What a model preset makes, maybe by way of another preset."""
    content = yaml.safe_load(preset_text("model", name))
    if "_target_" in content:
        return content["_target_"]
    return target_of(next(base for base in content["defaults"] if isinstance(base, str)))


NETWORKS = [name for name in options("model") if target_of(name).startswith(TRAINED)]
EXACT = [name for name in options("model") if name not in NETWORKS]


def nodes(config: Any, path: str = "") -> Iterator[tuple[str, dict[str, Any]]]:
    """Everything that becomes an object."""
    if not isinstance(config, dict):
        return
    if "_target_" in config:
        yield path, config
    for key, value in config.items():
        yield from nodes(value, f"{path}.{key}" if path else key)


@functools.cache
def config_of(*words: str) -> dict[str, Any]:
    return compose("sample", words).config


def subtree(config: Any, group: str) -> Any:
    for name in group.split("/"):
        config = config[name]
    return config


@pytest.mark.parametrize("file", YAMLS, ids=lambda file: file.name)
def test_every_yaml_says_in_one_line_what_it_is(file):
    lines = file.read_text(encoding="utf-8").splitlines()
    first = lines[1] if lines[0].startswith("# @package") else lines[0]
    assert first.startswith("# ") and 10 < len(first.removeprefix("# ")) <= 100
    folder = file.parent.relative_to(config_dir()).as_posix()
    assert f"# {describe(folder, file.stem)}" == first


ROWS = {(group, name) for group, name, _ in contents() if group} - {
    (group, name)
    for group in GROUPS
    for name in options(group)
    if (config_dir() / group / f"{name}.yaml").exists()
}


@pytest.mark.parametrize(("group", "name"), sorted(ROWS))
def test_every_row_of_a_table_says_what_it_is(group, name):
    assert name in options(group) and 10 < len(describe(group, name)) <= 98


def test_every_kind_lists_its_presets():
    for kind, group in KINDS.items():
        assert [name for name, _ in listing(kind)] == options(group)
        assert listing(kind) and all(text for _, text in listing(kind))
    with pytest.raises(UsageError, match="nothing called 'schedule' to list; did you mean sched"):
        listing("schedule")


@pytest.mark.parametrize("words", [["sample"], ["sweep"], ["eval", "images=a", "ref=b"]])
def test_every_command_composes(words):
    command, *rest = words
    assert compose(command, rest).config["out"] is None


@pytest.mark.parametrize("preset", PRESETS, ids=preset_ids)
def test_every_preset_lists_all_arguments(preset, images):
    group, name = preset
    found = compose("sweep", words_of(group, name, images))
    assert group == "metrics" or found.choices[group] == name
    checked = list(nodes(subtree(found.config, group)))
    assert checked
    for path, config in checked:
        parameters = set(arguments_of(_locate(config["_target_"], path, object)))
        given = set(config) - {"_target_", "references"}
        assert given <= parameters, path
        # The product has the one weight of its factors, and says how it ramps.
        exempt = {"w", "ramps"} if ".factors." in f".{path}" else set()
        assert parameters - given <= exempt, path


CALLS = Calls()
MODELS = Models()
WATCHED: set[int] = set()


def made(config: Any, key: str) -> Any:
    """What a configuration makes; the calls of its networks are counted."""
    thing = instantiate(config, key, MODELS, object)
    thing = thing.on("cpu") if isinstance(thing, Guidance) else thing
    thing = load(thing, "cpu") if isinstance(thing, ModelSpec) else thing
    terms = thing.terms.values() if isinstance(thing, Guidance) else ()
    for network in [thing, *(network_of(term.direction) for term in terms)]:
        if isinstance(network, nn.Module) and id(network) not in WATCHED:
            WATCHED.add(id(network))
            CALLS.watch(network)
    return thing


def network_of(direction: Direction) -> nn.Module | None:
    """The network that a direction asks."""
    if isinstance(direction, ClassifierGradient):
        return direction.classifier
    return direction.queries[0].network if direction.queries else None


@dataclass
class Result:
    model: Denoiser
    guidance: Guidance
    plan: Plan
    x: Tensor
    calls: Counter[int]

    @property
    def expected_calls(self) -> Counter[int]:
        """What the plan says, by network and image."""
        expected = Counter({id(self.model): self.plan.evaluations_main * len(SEEDS)})
        for term, count in zip(
            self.guidance.terms.values(), self.plan.evaluations_ref, strict=True
        ):
            expected[id(network_of(term.direction))] += count * len(SEEDS)
        return +expected


def run(words: list[str]) -> Result:
    config = config_of(*words, f"sampler.grid.steps={STEPS}")
    model, guidance, solver = (
        made(config[name], name) for name in ("model", "guidance", "sampler")
    )
    plan = guidance.plan(solver.timeline())
    begin = starts(model, SEEDS, solver)
    CALLS.images.clear()
    [outcome] = trajectories([Run(Guided(model, guidance, plan), None)], solver, begin, SEEDS)
    return Result(model, guidance, plan, outcome.x, CALLS.images.copy())


def keys_ending(words: list[str], end: str) -> list[str]:
    """Keys of the guidance that end so."""

    def walk(config: Any, path: str) -> Iterator[str]:
        for key, value in config.items() if isinstance(config, dict) else ():
            if key != "reference":
                yield f"{path}.{key}"
                yield from walk(value, f"{path}.{key}")

    return [key for key in walk(config_of(*words)["guidance"], "guidance") if key.endswith(end)]


@functools.cache
def run_unguided(*words: str) -> Result:
    return run([*words, "guidance=none"])


def check_contract(base: list[str], guidance: list[str], moves: bool = True) -> Result:
    """The contract of one combination; `moves`: guidance changes samples where it acts."""
    words = [*base, *guidance]
    result, unguided = run(words), run_unguided(*base)
    assert result.x.shape == (len(SEEDS), *result.model.shape)
    assert torch.isfinite(result.x).all()
    assert result.calls == result.expected_calls
    assert unguided.calls == unguided.expected_calls
    assert torch.equal(run(words).x, result.x)  # no state is left behind
    neutral = run([*words, *(f"{key}=1" for key in keys_ending(words, ".schedule.w"))])
    assert torch.equal(neutral.x, unguided.x)
    assert neutral.calls == unguided.calls
    assert neutral.guidance.gflops(neutral.plan) == 0
    acts = bool(result.plan.guided.any())
    assert acts == (result.guidance.gflops(result.plan) > 0)
    assert torch.equal(result.x, unguided.x) == (not acts or not moves)
    return result


@pytest.mark.parametrize("name", EXACT)
def test_every_model_knows_its_facts(name, images):
    config = config_of(*words_of("model", name, images))["model"]
    model = made(config, "model")
    assert isinstance(model, Denoiser) and model.space in ("pixels", "latents", "points")
    assert model.gflops > 0 and model.sigma_data > 0 and 0 <= model.sigma_min < model.sigma_max
    x = torch.zeros(2, *model.shape)
    labels = torch.zeros(2, dtype=torch.int64) if model.num_classes > 0 else None
    for key, other in config["references"].items():
        reference = made(other, f"model.references.{key}")
        assert reference.gflops > 0
        assert reference(x, 1.0, labels).shape in (x.shape, (2,))
    with pytest.raises(UsageError):
        model(x, 1.0, torch.full((2,), max(model.num_classes, 1)))


@pytest.mark.parametrize("guidance", options("guidance"))
@pytest.mark.parametrize("model", EXACT)
def test_every_model_under_every_guidance(model, guidance, images):
    words = words_of("model", model, images)
    if keys_ending([*words, f"guidance={guidance}"], ".layers"):
        with pytest.raises(UsageError, match="^guidance.*no self-attention layers"):
            run([*words, f"guidance={guidance}"])
        return
    result = check_contract(words, [f"guidance={guidance}"])
    assert result.plan.guided.any() == (guidance != "none")


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """What chooses a tiny network with attention, and one without classes as its reference."""
    folder, words = tmp_path_factory.mktemp("networks"), ["model=edm2-tiny"]
    for key, config in {
        "model.checkpoint": TINY,
        "model.references.unconditional.checkpoint": replace(TINY, label_dim=0, model_channels=8),
    }.items():
        path = folder / f"{key}.safetensors"
        weights = tiny_model(config).state_dict()
        write_checkpoint(Checkpoint(asdict(config), weights, {"source": "random"}), path)
        words.append(f"{key}={path}")
    return words


@pytest.mark.parametrize("guidance", ["cfg", "cfg_pag", "pag", "sigma_scaling"])
def test_a_network_that_answers_several_questions_at_once(guidance, tiny):
    result = check_contract(tiny, [f"guidance={guidance}"])
    assert result.plan.guided.any()


@pytest.mark.parametrize("name", NETWORKS)
def test_every_network_can_be_planned_before_it_is_there(name, images):
    config = config_of(*words_of("model", name, images))
    models = Models()
    guidance = instantiate(config["guidance"], "guidance", models, Guidance)
    solver = instantiate(config["sampler"], "sampler", models, Solver)
    assert guidance.plan(solver.timeline()).evaluations_main > 0


@pytest.mark.parametrize("gate", ["step", "evaluation"])
@pytest.mark.parametrize("schedule", options("guidance/schedule"))
def test_every_schedule(schedule, gate):
    words = ["guidance=cfg", f"guidance/schedule={schedule}"]
    words += [f"{key}={gate}" for key in keys_ending(words, ".gate")]
    assert len(words) > 2
    assert check_contract(["model=digits"], words).plan.guided.any()


@pytest.mark.parametrize("rule", options("guidance/rule"))
@pytest.mark.parametrize("model", ["digits", "fractal2d", "mixture1d"])
def test_every_rule(rule, model):
    guidance = ["guidance=cfg_autoguidance", f"guidance/rule={rule}"]
    if (rule, model) == ("rescale", "mixture1d"):
        with pytest.raises(UsageError, match="more than one number per sample"):
            run([f"model={model}", *guidance])
        return
    # In one dimension nothing is orthogonal to the prediction, and all that APG would keep is.
    moves = (rule, model) != ("apg", "mixture1d")
    result = check_contract([f"model={model}"], guidance, moves)
    plain = run([f"model={model}", "guidance=cfg_autoguidance"])
    assert torch.equal(result.x, plain.x) == (rule == "extrapolate")


# One evaluation per step and two, with noise and without: on every grid; the others on EDM's.
# DDPM's ancestral sampling is for models that have learned a variance (tests/test_dit_samplers.py).
PAIRS = {
    *((sampler, "karras") for sampler in options("sampler") if sampler != "ddpm"),
    *((sampler, grid) for sampler in ("churn", "dpmpp_2m") for grid in options("sampler/grid")),
}


@pytest.mark.parametrize(("sampler", "grid"), sorted(PAIRS))
def test_every_sampler_and_every_grid(sampler, grid):
    base = ["model=digits", f"sampler={sampler}", f"sampler/grid={grid}"]
    bounds = ["guidance.schedule.lo=0.1", "guidance.schedule.hi=5"]
    result = check_contract(base, ["guidance=interval", *bounds])
    assert result.plan.guided.any() and not result.plan.guided[:, 0].any()
    assert result.x.dtype == torch.float64
    assert run([*base, "sampler.dtype=float32"]).x.dtype == torch.float32


@pytest.mark.parametrize("name", options("experiment"))
def test_every_experiment_can_be_planned(name):
    from guidex.runs.points_table import plan_table

    table = plan_table([f"experiment={name}"])
    assert table.name == name and table.entries
    for entry in table.entries:
        if name == "interval/bounds" and entry.planned is None:
            assert "lo must be below hi" in entry.missing
            continue
        assert entry.planned is not None, entry.missing
        assert entry.planned.plan.evaluations_main > 0
