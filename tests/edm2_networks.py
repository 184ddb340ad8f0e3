"""EDM2 networks that several test files share: the golden ones, and a tiny random one."""

import json

import pytest
import torch
from helpers import GOLDEN, golden

from guidex.models.edm2.checkpoints import read_checkpoint
from guidex.models.edm2.network import EDM2, Config

TINY = Config(
    img_resolution=16,
    img_channels=4,
    label_dim=5,
    model_channels=16,
    channel_mult=(1, 2),
    num_blocks=1,
    attn_resolutions=(8,),
    channels_per_head=8,
    logvar_channels=16,
)


def golden_tensors(name: str) -> dict[str, torch.Tensor]:
    return {key: torch.from_numpy(array) for key, array in golden(name).items()}


def golden_model(name: str) -> EDM2:
    config = json.loads((GOLDEN / f"edm2-tiny-{name}.config.json").read_text())
    with torch.device("meta"):
        model = EDM2(Config.from_mapping(config, name))
    # The numbers were made with the float16 weights of the snapshot; its rounding is part of them.
    weights = read_checkpoint(GOLDEN / f"edm2-tiny-{name}.pkl").tensors
    model.load_state_dict(weights, assign=True)
    return model


def golden_x0(model: EDM2, io: dict[str, torch.Tensor]) -> torch.Tensor:
    """What a model makes of the golden input; a network without classes takes none."""
    return model.predict(io["x"], io["sigma"], io.get("labels", torch.zeros(len(io["x"]), 0)))


def tiny_model(config: Config = TINY, dtype: torch.dtype = torch.float32) -> EDM2:
    """A random network in which every layer has a say in the output."""
    with torch.random.fork_rng():
        torch.manual_seed(1)
        model = EDM2(config, dtype)
        for name, parameter in model.named_parameters():
            if name.endswith("gain"):
                parameter.copy_(0.5 + torch.rand([]))
    return model


def relative(a: torch.Tensor, b: torch.Tensor) -> float:
    """The largest relative error of a sample."""
    return ((a - b).flatten(1).norm(dim=1) / b.flatten(1).norm(dim=1)).max().item()


def captured_graphs(monkeypatch: pytest.MonkeyPatch) -> list:
    """Modules that are compiled from now on only have their graphs captured, in this list."""
    graphs = []

    def backend(graph: torch.fx.GraphModule, inputs: list) -> torch.fx.GraphModule:
        graphs.append(graph)
        return graph

    def compile_eagerly(module: torch.nn.Module, **options: object) -> None:
        assert options == {"dynamic": False}
        call = torch.compile(module._call_impl, backend=backend, fullgraph=True, **options)
        module._compiled_call_impl = call

    monkeypatch.setattr(torch.nn.Module, "compile", compile_eagerly)
    return graphs
