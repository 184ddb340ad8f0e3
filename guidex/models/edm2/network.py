"""The EDM2 denoiser: a U-Net with magnitude-preserving layers inside the EDM preconditioning.

Karras et al. 2024 (arXiv 2312.02696): figure 21, configuration G; preconditioning of Karras et al.
2022 (arXiv 2206.00364), table 1. Inference only. Parameters are named as in the released
checkpoints, so that `load_state_dict` takes theirs.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache, partial
from math import inf, sqrt
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from guidex.errors import UsageError
from guidex.models.attention import Parts, attention
from guidex.models.condition import Condition, Conditions
from guidex.models.denoiser import Denoiser, View, changed_parts
from guidex.models.edm2.layers import (
    Fourier,
    MPConv,
    learned_gain,
    mp_cat,
    mp_sum_weights,
    normalize,
)

SILU_MAGNITUDE = 0.596  # root mean square of silu(n), n ~ N(0, 1): mp_silu(x) = silu(x) / 0.596

# Keys of a checkpoint's configuration that say nothing about the function it computes, and those
# whose default is the only value that is computed here; no published network has another.
TRAINING_ONLY = ("dropout", "use_fp16")
FIXED = {"resample_filter": (1, 1), "channel_mult_noise": None, "channel_mult_emb": None}


@dataclass(frozen=True)
class Config:
    """The shape of an EDM2 network, under the names of the released checkpoints.

    Attributes:
        img_resolution, img_channels, label_dim: of a sample, and number of classes (0: none).
        model_channels, channel_mult: their products are the channels of each resolution, from the
            finest, each half of the one before.
        num_blocks: blocks per resolution in the encoder (the decoder has one more).
        attn_resolutions, channels_per_head: where there is self-attention, of how many heads.
            Where the width does not divide the channels, as many as fit, somewhat wider, or none.
        logvar_channels: Fourier features of the uncertainty head.
        label_balance, concat_balance, res_balance, attn_balance: share, 0 to 1, of the class
            embedding, the skip connection, the residual branch and the attention.
        clip_act: bound on the magnitude of activations; infinity for none.
    """

    img_resolution: int
    img_channels: int
    label_dim: int
    model_channels: int = 192
    channel_mult: tuple[int, ...] = (1, 2, 3, 4)
    num_blocks: int = 3
    attn_resolutions: tuple[int, ...] = (16, 8)
    channels_per_head: int = 64
    sigma_data: float = 0.5
    logvar_channels: int = 128
    label_balance: float = 0.5
    concat_balance: float = 0.5
    res_balance: float = 0.3
    attn_balance: float = 0.3
    clip_act: float = 256.0

    @classmethod
    def from_mapping(cls, values: Mapping[str, object], where: str) -> "Config":
        """The configuration of the checkpoint at `where`; lists may stand for tuples.

        Raises:
            UsageError: for a missing or unknown key, or a value that is not computed here.
        """
        given = {k: tuple(v) if isinstance(v, list) else v for k, v in values.items()}
        for key, only in FIXED.items():
            if given.pop(key, only) != only:
                raise UsageError(f"{where}: EDM2 {key} is {values[key]!r}; it must be {only}")
        for key in TRAINING_ONLY:
            given.pop(key, None)
        if given.get("clip_act", 0) is None:
            given["clip_act"] = inf
        try:
            return cls(**given)
        except TypeError as error:
            raise UsageError(f"{where}: not the description of an EDM2 network: {error}") from error


class Block(nn.Module):
    """Encoder or decoder block: a residual branch, steered by the embedding, then self-attention.

    The constants of the paper's mp_silu and mp_sum are linear factors, so they are part of the gain
    of the convolution beside them: 1/0.596 of the one after mp_silu, a branch's share of mp_sum of
    the last one of the branch. The encoder's input is normalised (pixel norm).
    """

    def __init__(
        self,
        config: Config,
        emb_channels: int,
        encoder: bool,
        in_channels: int,
        out_channels: int,
        attends: bool = False,
        resample: Literal["halve", "double"] | None = None,
    ) -> None:
        super().__init__()
        self.out_channels = out_channels
        self.encoder = encoder
        self.heads = out_channels // config.channels_per_head if attends else 0
        self.clip_act = config.clip_act
        self.resample = resample
        self.res_weight, res_share = mp_sum_weights(config.res_balance)
        self.attn_weight, attn_share = mp_sum_weights(config.attn_balance)

        self.emb_gain = nn.Parameter(torch.zeros([]), requires_grad=False)
        width = out_channels if encoder else in_channels
        self.conv_res0 = MPConv(width, out_channels, 3, gain=1 / SILU_MAGNITUDE)
        self.emb_linear = MPConv(emb_channels, out_channels, None, gain=1 / SILU_MAGNITUDE)
        self.conv_res1 = MPConv(out_channels, out_channels, 3, gain=res_share / SILU_MAGNITUDE)
        same = in_channels == out_channels
        self.conv_skip = None if same else MPConv(in_channels, out_channels, 1)
        if self.heads > 0:
            self.attn_qkv = MPConv(out_channels, 3 * out_channels, 1, interleave=3)
            self.attn_proj = MPConv(out_channels, out_channels, 1, gain=attn_share)

    def modulation(self, emb: Tensor) -> Tensor:
        """[B, E] embedding -> [B, out_channels] factors of the residual branch, if not folded."""
        return 1 + learned_gain(self.emb_gain, self.emb_linear) * self.emb_linear(emb)

    def forward(self, x: Tensor, modulation: Tensor, parts: Parts | None = None) -> Tensor:
        """x [B, in_channels, H, W], modulation [B, out_channels] -> [B, out_channels, H', W']."""
        if self.resample == "halve":
            x = F.avg_pool2d(x, 2)
        elif self.resample == "double":
            x = F.interpolate(x, scale_factor=2, mode="nearest")
        skip = x if self.conv_skip is None else self.conv_skip(x)
        if self.encoder:
            x = skip = normalize(skip, dim=1)
        y = self.conv_res0(F.silu(x)) * modulation[:, :, None, None]
        x = torch.add(self.conv_res1(F.silu(y)), skip, alpha=self.res_weight)
        if self.heads > 0:
            x = torch.add(self._attend(x, parts), x, alpha=self.attn_weight)
        return x.clamp(-self.clip_act, self.clip_act)

    def _attend(self, x: Tensor, parts: Parts | None) -> Tensor:
        """Cosine self-attention over the pixels of x [B, C, H, W]; q, k and v are normalised."""
        batch, channels, height, width = x.shape
        qkv = self.attn_qkv(x).permute(0, 2, 3, 1)
        qkv = qkv.reshape(batch, height * width, 3, self.heads, channels // self.heads)
        q, k, v = normalize(qkv, dim=-1).transpose(1, 3).unbind(2)
        y = attention(q, k, v, parts)
        y = y.transpose(1, 2).reshape(batch, height, width, channels)
        return self.attn_proj(y.permute(0, 3, 1, 2))


class UNet(nn.Module):
    """The raw network F(x; c_noise, c): computes in the dtype of x, its embedding in float32.

    `constants` is how many channels of ones are added to x, of which convolutions without biases
    can make one; `modulation` is one layer for all blocks, in the folded form alone.
    """

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.concat_balance = config.concat_balance
        self.constants = 1
        self.modulation: nn.Linear | None = None
        self.attention_shapes: dict[str, tuple[int, int]] = {}  # heads and tokens, by block
        widths = [mult * config.model_channels for mult in config.channel_mult]
        channels, emb_channels = widths[0], max(widths)
        noise_share, label_share = mp_sum_weights(config.label_balance)
        classes = config.label_dim
        self.emb_fourier = Fourier(channels)
        self.emb_noise = MPConv(channels, emb_channels, None, noise_share if classes else 1.0)
        self.emb_label = None
        if classes > 0:
            self.emb_label = MPConv(classes, emb_channels, None, label_share * sqrt(classes))

        sides = [config.img_resolution >> i for i in range(len(widths))]
        attend = [side in config.attn_resolutions for side in sides]
        levels = list(zip([f"{side}x{side}" for side in sides], widths, attend, strict=True))
        block, skips = partial(Block, config, emb_channels, True), []
        self.enc = nn.ModuleDict()
        for name, width, attends in levels:
            if not skips:
                self.enc[f"{name}_conv"] = MPConv(config.img_channels + 1, channels, 3)
            else:
                self.enc[f"{name}_down"] = block(channels, channels, resample="halve")
            skips.append(channels)
            for j in range(config.num_blocks):
                self.enc[f"{name}_block{j}"] = block(channels, width, attends)
                channels = width
                skips.append(channels)
        block = partial(Block, config, emb_channels, False)
        self.dec = nn.ModuleDict()
        for name, width, attends in reversed(levels):
            if not self.dec:
                self.dec[f"{name}_in0"] = block(channels, channels, attends=True)
                self.dec[f"{name}_in1"] = block(channels, channels)
            else:
                self.dec[f"{name}_up"] = block(channels, channels, resample="double")
            for j in range(config.num_blocks + 1):
                joined = channels + skips.pop()
                self.dec[f"{name}_block{j}"] = block(joined, width, attends)
                channels = width
        self.out_conv = MPConv(widths[0], config.img_channels, 3)
        self.out_gain = nn.Parameter(torch.zeros([]), requires_grad=False)
        self.widths = [block.out_channels for block in self.blocks()]
        for part in ("enc", "dec"):
            for name, layer in getattr(self, part).items():
                if isinstance(layer, Block) and layer.heads > 0:
                    tokens = int(name.partition("x")[0]) ** 2
                    self.attention_shapes[f"{part}.{name}"] = (layer.heads, tokens)

    def blocks(self) -> list[Block]:
        """All blocks in the order of their modulations: encoder, then decoder."""
        layers = (*self.enc.values(), *self.dec.values())
        return [layer for layer in layers if isinstance(layer, Block)]

    def forward(
        self, x: Tensor, c_noise: Tensor, classes: Tensor, parts: Mapping[str, Parts] | None = None
    ) -> Tensor:
        """x [B, C, H, W], c_noise [B], classes [B, label_dim] -> [B, C, H, W]; parts: how the parts
        of the batch attend, by layer, where not as usual."""
        emb = self.emb_noise(self.emb_fourier(c_noise))
        if self.emb_label is not None:
            emb = emb + self.emb_label(classes)
        emb = F.silu(emb)
        if self.modulation is None:
            modulations = [block.modulation(emb).to(x.dtype) for block in self.blocks()]
        else:
            modulations = self.modulation(emb).to(x.dtype).split(self.widths, dim=1)
        modulations = iter(modulations)
        parts = parts or {}
        channels = x.shape[1]
        x = x.contiguous(memory_format=torch.channels_last)
        x = F.pad(x, (0, 0, 0, 0, 0, self.constants), value=1.0)
        skips = []
        for name, layer in self.enc.items():
            if isinstance(layer, Block):
                x = layer(x, next(modulations), parts.get(f"enc.{name}"))
            else:
                x = layer(x)
            skips.append(x)
        for name, block in self.dec.items():
            if "_block" in name:
                x = mp_cat(x, skips.pop(), self.concat_balance)
            x = block(x, next(modulations), parts.get(f"dec.{name}"))
        x = self.out_conv(x)[:, :channels].contiguous()
        return x if self.out_gain is None else x * learned_gain(self.out_gain, self.out_conv)


class EDM2(Denoiser):
    """D(x; sigma, c) = c_skip x + c_out F(c_in x; c_noise, c), with F the EDM2 U-Net.

    The U-Net computes in `dtype`: float32 (on a GPU with convolutions in TF32, which is PyTorch's
    default), bfloat16 or float16 (as released); what goes in, what comes out and the
    preconditioning are in the dtype of x. Weights are random until they are loaded.
    """

    # D is defined for all sigma > 0; the bounds keep sigma^2 well inside float32. The range that a
    # network is trained for is narrower (about 0.002 to 80); its checkpoint does not record it.
    sigma_min = 1e-6
    sigma_max = 1e6

    def __init__(self, config: Config, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        self.config = config
        self.dtype = dtype
        # An image has 1 or 3 channels; the latents of Stable Diffusion's VAE have 4.
        self.space = "pixels" if config.img_channels in (1, 3) else "latents"
        self.shape = (config.img_channels, config.img_resolution, config.img_resolution)
        self.conditions = Conditions(config.label_dim)
        self.sigma_data = config.sigma_data
        self.unet = UNet(config)
        self.logvar_fourier = Fourier(config.logvar_channels)
        self.logvar_linear = MPConv(config.logvar_channels, 1, None)
        self.attention_layers = tuple(self.unet.attention_shapes)

    @property
    def gflops(self) -> float:
        return count_gflops(self.config)

    def forward(self, x: Tensor, sigma: float, condition: Condition = None) -> Tensor:
        """See Denoiser; without labels the embedding of classes is zero."""
        return self.joint(x, [View(sigma, condition)])[0]

    def joint(self, x: Tensor, views: Sequence[View]) -> list[Tensor]:
        """See Denoiser; in one call of the U-Net."""
        count = len(x)
        sigma = torch.cat([x.new_full((count,), view.sigma) for view in views])
        classes = torch.cat([self._classes(view.condition, x) for view in views])
        repeated = x if len(views) == 1 else x.repeat(len(views), 1, 1, 1)
        parts = changed_parts(views, self.unet.attention_shapes, x.device) or None
        return list(self.predict(repeated, sigma, classes, parts).split(count))

    def _classes(self, condition: Condition, x: Tensor) -> Tensor:
        if condition is None or self.num_classes == 0:
            return x.new_zeros(len(x), self.num_classes)
        return F.one_hot(condition, self.num_classes).to(x.dtype)

    def predict(
        self, x: Tensor, sigma: Tensor, classes: Tensor, parts: Mapping[str, Parts] | None = None
    ) -> Tensor:
        """Denoise x [B, *shape] with noise levels [B], in the dtype of x, and weights of the
        classes [B, num_classes] (one-hot; zeros: no class); parts: see `UNet.forward`."""
        level = sigma[:, None, None, None]
        variance = level**2 + self.sigma_data**2
        c_skip = self.sigma_data**2 / variance
        c_out = level * self.sigma_data / variance.sqrt()
        c_in = 1 / variance.sqrt()
        raw = self.unet((c_in * x).to(self.dtype), _c_noise(sigma), classes.float(), parts)
        return c_skip * x + c_out * raw.to(x.dtype)

    def uncertainty(self, sigma: Tensor) -> Tensor:
        """Log variance u(sigma) of the training loss: noise levels [B] -> [B], float32."""
        return self.logvar_linear(self.logvar_fourier(_c_noise(sigma)))[:, 0]


def _c_noise(sigma: Tensor) -> Tensor:
    return (sigma.log() / 4).float()


@cache
def count_gflops(config: Config) -> float:
    """10^9 floating-point operations for one image, counted on the meta device, where none runs."""
    with torch.device("meta"), torch.no_grad():
        unet = UNet(config)
        x = torch.empty(1, config.img_channels, config.img_resolution, config.img_resolution)
        with FlopCounterMode(display=False) as counter:
            unet(x, torch.empty(1), torch.empty(1, config.label_dim))
    return counter.get_total_flops() / 1e9
