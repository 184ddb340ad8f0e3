"""Weights of transformers from the files that they are published in.

Files of torch.save (`.pt`, of guidex.files.pickles) and `.safetensors`, in the names of the
published code or in those of diffusers' DiTTransformer2DModel.
"""

import json
import re
from pathlib import Path

import torch
from torch import Tensor

from guidex.errors import GuidexError, printable
from guidex.files.pickles import read_weights
from guidex.models.dit.network import Network, Shape, positions
from guidex.models.pretrained import safetensors_file

IGNORED = ("projectors.", "bn.", "feat_rope.")
"""What networks do not compute with: REPA's projectors, latents' statistics, tables of angles."""

_ATTENTION = ("to_q", "to_k", "to_v")
_DIFFUSERS = {
    "pos_embed.proj": "x_embedder.proj",
    "pos_embed.pos_embed": "pos_embed",
    "transformer_blocks.0.norm1.emb.timestep_embedder.linear_1": "t_embedder.mlp.0",
    "transformer_blocks.0.norm1.emb.timestep_embedder.linear_2": "t_embedder.mlp.2",
    "transformer_blocks.0.norm1.emb.class_embedder.embedding_table": "y_embedder.embedding_table",
    "proj_out_1": "final_layer.adaLN_modulation.1",
    "proj_out_2": "final_layer.linear",
    "norm1.linear": "adaLN_modulation.1",
    "attn1.to_out.0": "attn.proj",
    "ff.net.0.proj": "mlp.fc1",
    "ff.net.2": "mlp.fc2",
}


def weights_file(path: str | Path) -> Path:
    """The file of weights at a path, in a folder of diffusers where it is one."""
    path = Path(path).expanduser()
    if not path.is_dir():
        return path
    files = [path / part / "diffusion_pytorch_model.safetensors" for part in ("transformer", ".")]
    return files[0] if files[0].is_file() else files[1]


def read_network(path: str | Path, heads: int | None = None) -> Network:
    """The network of a checkpoint, float32, on the CPU; sizes are read from its tensors.

    Arguments:
        path: a file of torch.save, whose EMA is taken where there is one; .safetensors; or a
            folder as diffusers writes it.
        heads: see `Shape.of`.

    Raises:
        UsageError: no such file, or not of these kinds.
        GuidexError: damaged, of another network, or refused because it holds more than data.
    """
    path = weights_file(path)
    try:
        state = _counted_through(_read_state(path))
        if "pos_embed" not in state:
            state["pos_embed"] = _positions(path, state["x_embedder.proj.weight"])
        shape = Shape.of(state, heads)
        with torch.device("meta"):
            network = Network(shape)
        kept = {k: v.float() for k, v in state.items() if not k.startswith(IGNORED)}
        network.load_state_dict(kept, assign=True)
        return network
    except (LookupError, ValueError, RuntimeError) as error:  # what it lacks, or has beside
        reason = printable(" ".join(str(error).split()).partition("for Network: ")[2] or str(error))
        raise GuidexError(f"{path}: not the weights of a DiT: {reason}") from None


def _read_state(path: Path) -> dict[str, Tensor]:
    """All tensors of a file, by the names of the published code."""
    if path.suffix == ".safetensors":
        with safetensors_file(path) as file:
            state = {name: file.get_tensor(name) for name in file.keys()}
    else:
        state = read_weights(path)
    state = {name.removeprefix("module."): tensor for name, tensor in state.items()}
    return _renamed(state) if "proj_out_1.weight" in state else state


def _counted_through(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Blocks counted through, where REPA's oldest checkpoints count the later ones apart."""
    first = len({name.split(".")[1] for name in state if name.startswith("blocks.")})
    later = r"^decoder_blocks\.(\d+)"
    return {
        re.sub(later, lambda found: f"blocks.{first + int(found[1])}", name): tensor
        for name, tensor in state.items()
    }


def _positions(path: Path, patches: Tensor) -> Tensor:
    """The table of positions, which diffusers' files leave out: its size is in config.json."""
    description = path.with_name("config.json")
    try:
        side = json.loads(description.read_bytes())["sample_size"] // patches.shape[-1]
        return positions(side**2, len(patches))
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise GuidexError(f"no pos_embed, nor sample_size in {description} ({error!r})") from None


def _renamed(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The published names of diffusers' tensors; its copies of the embeddings are left out."""
    result: dict[str, Tensor] = {}
    for name, tensor in state.items():
        part, _, kind = name.rpartition(".")
        block = re.fullmatch(r"transformer_blocks\.(\d+)\.(.+)", part)
        if part in _DIFFUSERS or name in _DIFFUSERS:
            result[_DIFFUSERS.get(name) or f"{_DIFFUSERS[part]}.{kind}"] = tensor
        elif block and block[2] in _DIFFUSERS:
            result[f"blocks.{block[1]}.{_DIFFUSERS[block[2]]}.{kind}"] = tensor
        elif block and block[2] == "attn1.to_q":
            three = [state[name.replace("to_q", other)] for other in _ATTENTION]
            result[f"blocks.{block[1]}.attn.qkv.{kind}"] = torch.cat(three)
        elif not (block and block[2].startswith(("norm1.emb.", "attn1.to_"))):
            result[name] = tensor
    return result
