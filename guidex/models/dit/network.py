"""The transformer of DiT, SiT, REPA, REPA-E and LightningDiT: one network, with three switches.

Peebles & Xie 2023 (arXiv 2212.09748), figure 3, adaLN-Zero; Yao et al. 2025 (arXiv 2501.01423) for
RMS norms, gated MLPs and rotary positions. Inference only. Parameters are named as in the published
checkpoints, so that `load_state_dict` takes theirs.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from guidex.errors import UsageError
from guidex.models.attention import Parts, attention

EPSILON = 1e-6  # of all norms
FREQUENCIES = 128  # of the time embedding
PERIOD = 10_000.0


@dataclass(frozen=True)
class Shape:
    """The sizes of a network.

    Attributes:
        side: height and width of a latent.
        patch: height and width of what becomes one token.
        channels, outputs: of a latent, and of the answer, which may hold more than that.
        width, depth, heads, hidden: of a token, in blocks, per attention, of the MLP.
        classes: without the last row of the table, which stands for no class.
        rms, gated, rotary: LightningDiT's norm, MLP and positions.
    """

    side: int
    patch: int
    channels: int
    outputs: int
    width: int
    depth: int
    heads: int
    hidden: int
    classes: int = 1000
    rms: bool = False
    gated: bool = False
    rotary: bool = False

    @classmethod
    def of(cls, state: Mapping[str, Tensor], heads: int | None = None) -> "Shape":
        """The sizes that a state dict has; KeyError: it lacks a tensor. Heads, which no tensor
        tells, are as published unless given: 16 of 72 numbers for width 1152 (XL), else of 64;
        UsageError: so many do not fit."""
        width, channels, patch, _ = state["x_embedder.proj.weight"].shape
        heads = heads or (16 if width == 1152 else max(width // 64, 1))
        if width % (4 * heads) != 0:
            raise UsageError(f"width {width} has no {heads} heads: give model.heads")
        gated = "blocks.0.mlp.w12.weight" in state
        return cls(
            side=patch * round(state["pos_embed"].shape[1] ** 0.5),
            patch=patch,
            channels=channels,
            outputs=len(state["final_layer.linear.bias"]) // patch**2,
            width=width,
            depth=sum(name.endswith("attn.qkv.weight") for name in state),
            heads=heads,
            hidden=state[f"blocks.0.mlp.{'w3' if gated else 'fc2'}.weight"].shape[1],
            classes=len(state["y_embedder.embedding_table.weight"]) - 1,
            rms="blocks.0.norm1.weight" in state,
            gated=gated,
            rotary="feat_rope.freqs_cos" in state,
        )

    @property
    def tokens(self) -> int:
        """Per image."""
        return (self.side // self.patch) ** 2

    @property
    def gflops(self) -> float:
        """10^9 floating-point operations of one evaluation, 2 per multiply-add (papers count 1), in
        products of matrices."""
        d, pixels = self.width, self.patch**2
        mlp = self.hidden * d * (3 if self.gated else 2)
        block = 4 * d * d + 2 * self.tokens * d + mlp
        token = pixels * d * (self.channels + self.outputs) + self.depth * block
        image = 2 * FREQUENCIES * d + d * d + (6 * self.depth + 2) * d * d
        return 2e-9 * (self.tokens * token + image)


class Network(nn.Module):
    """The raw network, with random weights until they are loaded."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.shape = shape
        d, pixels = shape.width, shape.patch**2
        convolution = nn.Conv2d(shape.channels, d, shape.patch, shape.patch)
        self.x_embedder = nn.ModuleDict({"proj": convolution})
        self.pos_embed = nn.Parameter(torch.zeros(1, shape.tokens, d))
        time = nn.Sequential(nn.Linear(2 * FREQUENCIES, d), nn.SiLU(), nn.Linear(d, d))
        self.t_embedder = nn.ModuleDict({"mlp": time})
        self.y_embedder = nn.ModuleDict({"embedding_table": nn.Embedding(shape.classes + 1, d)})
        self.blocks = nn.ModuleList(Block(shape) for _ in range(shape.depth))
        self.final_layer = nn.ModuleDict(
            {
                "norm_final": _norm(shape),
                "linear": nn.Linear(d, pixels * shape.outputs),
                "adaLN_modulation": _modulation(d, 2),
            }
        )
        self.register_buffer("turns", _turns(shape) if shape.rotary else None, persistent=False)

    def forward(
        self, x: Tensor, time: Tensor, labels: Tensor, parts: Mapping[str, Parts] | None = None
    ) -> Tensor:
        """Latents x [B, channels, side, side] in the dtype of the blocks, time [B] float32, labels
        [B] int64 (`shape.classes`: no class), as it was trained -> [B, outputs, side, side].

        parts: how the parts of the batch attend, by layer, where not as usual.
        """
        parts = parts or {}
        z = self.x_embedder["proj"](x).flatten(2).transpose(1, 2) + self.pos_embed
        e = self.t_embedder["mlp"](_waves(time)) + self.y_embedder["embedding_table"](labels)
        e = e.to(x.dtype)
        for i, block in enumerate(self.blocks):
            z = block(z, e, self.turns, parts.get(f"blocks.{i}.attn"))
        head = self.final_layer
        shift, scale = head["adaLN_modulation"](e)[:, None].chunk(2, dim=-1)
        y = head["linear"](head["norm_final"](z) * (1 + scale) + shift)
        side, patch = x.shape[-1] // self.shape.patch, self.shape.patch
        y = y.unflatten(2, (patch, patch, -1)).unflatten(1, (side, side))
        return y.permute(0, 5, 1, 3, 2, 4).flatten(4, 5).flatten(2, 3)

    def cast(self, dtype: torch.dtype) -> "Network":
        """This network, computing its blocks in another dtype, its embeddings in float32."""
        for name, parameter in self.named_parameters():
            if not name.startswith(("t_embedder", "y_embedder")):
                parameter.data = parameter.data.to(dtype)
        return self


class Block(nn.Module):
    """Attention and MLP, each normed, steered and gated by the conditioning vector."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        d = shape.width
        self.norm1, self.norm2 = _norm(shape), _norm(shape)
        self.attn = Attention(d, shape.heads)
        self.mlp = (GatedMLP if shape.gated else MLP)(d, shape.hidden)
        self.adaLN_modulation = _modulation(d, 6)

    def forward(self, z: Tensor, e: Tensor, turns: Tensor | None, parts: Parts | None) -> Tensor:
        """Tokens z [B, N, D], conditioning e [B, D] -> [B, N, D]."""
        steer = self.adaLN_modulation(e)[:, None].chunk(6, dim=-1)
        shift, scale, gate = steer[:3]
        z = z + gate * self.attn(self.norm1(z) * (1 + scale) + shift, turns, parts)
        shift, scale, gate = steer[3:]
        return z + gate * self.mlp(self.norm2(z) * (1 + scale) + shift)


class Attention(nn.Module):
    """Self-attention of several heads."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, z: Tensor, turns: Tensor | None, parts: Parts | None) -> Tensor:
        """[B, N, D] -> [B, N, D]. turns: cosines and sines of rotary positions [2, N, d / 2]."""
        q, k, v = self.qkv(z).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        if turns is not None:
            q, k = _turned(q, turns), _turned(k, turns)
        return self.proj(attention(q, k, v, parts).transpose(1, 2).flatten(2))


class MLP(nn.Module):
    """Two layers with GELU in its tanh form."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(width, hidden), nn.Linear(hidden, width)

    def forward(self, z: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(z), approximate="tanh"))


class GatedMLP(nn.Module):
    """SiLU(a) b of one layer's two halves, and a second layer."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.w12, self.w3 = nn.Linear(width, 2 * hidden), nn.Linear(hidden, width)

    def forward(self, z: Tensor) -> Tensor:
        a, b = self.w12(z).chunk(2, dim=-1)
        return self.w3(F.silu(a) * b)


def positions(tokens: int, width: int) -> Tensor:
    """The table of positions [1, tokens, width], float32: sine and cosine of the column, then of
    the row; for checkpoints that leave it out."""
    row, column = _angles(tokens, width // 4)
    return torch.cat([column.sin(), column.cos(), row.sin(), row.cos()], dim=1)[None].float()


def _norm(shape: Shape) -> nn.Module:
    if shape.rms:
        return nn.RMSNorm(shape.width, EPSILON)
    return nn.LayerNorm(shape.width, EPSILON, elementwise_affine=False)


def _modulation(width: int, count: int) -> nn.Sequential:
    return nn.Sequential(nn.SiLU(), nn.Linear(width, count * width))


def _waves(time: Tensor) -> Tensor:
    """Features of times [B] -> [B, 2 FREQUENCIES], cosines first."""
    k = torch.arange(FREQUENCIES, device=time.device, dtype=torch.float32)
    angle = time[:, None] * PERIOD ** (-k / FREQUENCIES)
    return torch.cat([angle.cos(), angle.sin()], dim=1)


def _turns(shape: Shape) -> Tensor:
    """Cosines and sines of the angles by which pairs of a head's numbers turn, [2, N, d / 2],
    float32; the first half of the pairs by the row, the second by the column."""
    angles = torch.cat(_angles(shape.tokens, shape.width // shape.heads // 4), dim=1)
    return torch.stack([angles.cos(), angles.sin()]).float()


def _angles(tokens: int, count: int) -> tuple[Tensor, Tensor]:
    """Row and column of each token times `count` frequencies, float64 [tokens, count]; on the CPU,
    also where a network without weights is made."""
    side = round(tokens**0.5)
    options = {"dtype": torch.float64, "device": "cpu"}
    frequency = PERIOD ** (-torch.arange(count, **options) / count)
    angle = torch.outer(torch.arange(side, **options), frequency)
    return angle.repeat_interleave(side, dim=0), angle.repeat(side, 1)


def _turned(q: Tensor, turns: Tensor) -> Tensor:
    """q [B, heads, N, d] with neighbours (2k, 2k + 1) turned, in float32, back in its dtype."""
    a, b = q.float().unflatten(-1, (-1, 2)).unbind(-1)
    cos, sin = turns
    return torch.stack([a * cos - b * sin, b * cos + a * sin], dim=-1).flatten(-2).to(q.dtype)
