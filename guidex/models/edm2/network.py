"""The EDM2 denoiser: a U-Net with magnitude-preserving layers inside the EDM preconditioning.

Karras et al. 2024 (arXiv 2312.02696): figure 21, configuration G; preconditioning of Karras et al.
2022 (arXiv 2206.00364), table 1. Inference only. Parameters are named as in the released
checkpoints, so that `load_state_dict` takes theirs.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from functools import cache, partial
from math import inf, sqrt
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from guidex.errors import UsageError
from guidex.models.attention import Change, Parts
from guidex.models.condition import Condition, Conditions
from guidex.models.denoiser import Denoiser, View
from guidex.models.edm2.layers import (
    Block,
    Fourier,
    MPConv,
    double,
    halve,
    learned_gain,
    mp_cat,
    mp_sum_weights,
)

DTYPES = (torch.float32, torch.bfloat16, torch.float16)

TRAINING_ONLY = ("dropout", "use_fp16")
"""Keys of a checkpoint's configuration that say nothing about the function it computes."""

FIXED = {"resample_filter": (1, 1), "channel_mult_noise": None, "channel_mult_emb": None}
"""Keys whose default is the only value that is computed here; no published network has another."""


@dataclass(frozen=True)
class Config:
    """The shape of an EDM2 network, under the names of the released checkpoints.

    Attributes:
        img_resolution: height and width of a sample.
        img_channels: channels of a sample.
        label_dim: number of classes; 0 for an unconditional network.
        model_channels: channels at multiplier 1 (XS 128, S 192, M 256, L 320, XL 384, XXL 448).
        channel_mult: multiplier of each resolution, from the finest, each half of the one before.
        num_blocks: blocks per resolution in the encoder (the decoder has one more).
        attn_resolutions: resolutions with self-attention.
        channels_per_head: width of an attention head. Where it does not divide the channels, there
            are as many heads as fit, somewhat wider, and no attention where none does.
        sigma_data: standard deviation of the data.
        logvar_channels: Fourier features of the uncertainty head.
        label_balance, concat_balance, res_balance, attn_balance: share, 0 to 1, of the class
            embedding, the skip connection, the residual branch and the attention.
        clip_act: bound on the magnitude of activations; infinity for none.

    Raises:
        UsageError: where a value is out of range.
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

    def __post_init__(self) -> None:
        for field in fields(self):
            value, several = getattr(self, field.name), field.type not in (int, float)
            kinds = (int, float) if field.type is float else (int,)
            zero = field.name == "label_dim" or field.name.endswith("_balance")
            valid = isinstance(value, tuple) == several and all(
                type(number) in kinds and (number > 0 or (zero and number == 0))
                for number in (value if several else [value])
            )
            if not valid:
                what = "numbers" if float in kinds else "whole numbers"
                least = "of 0 or more" if zero else "above 0"
                raise UsageError(f"EDM2 {field.name} is {value!r}; it takes {what} {least}")

    @classmethod
    def from_mapping(cls, values: Mapping[str, object]) -> "Config":
        """Read the configuration stored in a checkpoint, of which nothing is trusted.

        Lists may stand for tuples, keys that matter in training alone (dropout, use_fp16) are
        passed over, and clip_act may be None.

        Raises:
            UsageError: for a missing or unknown key, or a value of another kind.
        """
        given = {k: tuple(v) if isinstance(v, list) else v for k, v in values.items()}
        for key, only in FIXED.items():
            if given.pop(key, only) != only:
                raise UsageError(f"EDM2 {key} is {values[key]!r}; it must be {only}")
        given = {key: value for key, value in given.items() if key not in TRAINING_ONLY}
        if given.get("clip_act", 0) is None:
            given["clip_act"] = inf
        known = [field.name for field in fields(cls)]
        unknown = sorted(str(key) for key in given if key not in known)
        missing = [key for key in known[:3] if key not in given]
        if unknown:
            raise UsageError(
                f"unknown keys in the EDM2 configuration: {', '.join(unknown)}; "
                f"allowed: {', '.join([*known, *TRAINING_ONLY, *FIXED])}"
            )
        if missing:
            raise UsageError(f"the EDM2 configuration lacks {', '.join(missing)}")
        return cls(**given)

    @property
    def levels(self) -> list["Level"]:
        """The resolutions of the U-Net, from the finest."""
        levels = []
        for i, mult in enumerate(self.channel_mult):
            resolution, channels = self.img_resolution >> i, mult * self.model_channels
            heads = channels // self.channels_per_head if resolution in self.attn_resolutions else 0
            levels.append(Level(f"{resolution}x{resolution}", channels, heads))
        return levels


class Level(NamedTuple):
    """One resolution of the U-Net, as the names of its blocks begin (16x16), its channels, and the
    attention heads of its blocks."""

    name: str
    channels: int
    heads: int


class UNet(nn.Module):
    """The raw network F(x; c_noise, c): computes in the dtype of x, its embedding in float32.

    `embed` and `trunk` are apart so that the inference form puts its own modulations between them.
    """

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.concat_balance = config.concat_balance
        self.constants = 1
        noise_channels = config.levels[0].channels
        emb_channels = max(level.channels for level in config.levels)
        noise_share, label_share = mp_sum_weights(config.label_balance)
        self.emb_fourier = Fourier(noise_channels)
        classes = config.label_dim
        gain = noise_share if classes > 0 else 1.0
        self.emb_noise = MPConv(noise_channels, emb_channels, None, gain)
        gain = label_share * sqrt(classes)
        self.emb_label = MPConv(classes, emb_channels, None, gain) if classes > 0 else None
        names = ("res_balance", "attn_balance", "clip_act")
        options = {name: getattr(config, name) for name in names}
        block = partial(Block, emb_channels=emb_channels, **options)
        self.enc, skips = _encoder(config, partial(block, encoder=True))
        self.dec = _decoder(config, partial(block, encoder=False), skips)
        self.out_conv = MPConv(config.levels[0].channels, config.img_channels, 3)
        self.out_gain = nn.Parameter(torch.zeros([]), requires_grad=False)

    def blocks(self) -> list[Block]:
        """All blocks in the order of their modulations: encoder, then decoder."""
        layers = (*self.enc.values(), *self.dec.values())
        return [layer for layer in layers if isinstance(layer, Block)]

    def attention_shapes(self) -> dict[str, tuple[int, int]]:
        """Heads and tokens of every self-attention layer, by the name of its block."""
        shapes = {}
        for part, blocks in (("enc", self.enc), ("dec", self.dec)):
            for name, block in blocks.items():
                if isinstance(block, Block) and block.heads > 0:
                    resolution = int(name.partition("x")[0])
                    shapes[f"{part}.{name}"] = (block.heads, resolution**2)
        return shapes

    def embed(self, c_noise: Tensor, classes: Tensor | None) -> Tensor:
        """c_noise [B], classes [B, label_dim] (one-hot; zeros: no class) -> embedding [B, E]."""
        emb = self.emb_noise(self.emb_fourier(c_noise))
        if self.emb_label is not None:
            emb = emb + self.emb_label(classes)
        return F.silu(emb)

    def trunk(
        self, x: Tensor, modulations: Iterable[Tensor], parts: Mapping[str, Parts] | None = None
    ) -> Tensor:
        """x [B, C, H, W], a modulation [B, channels] per block -> [B, C, H, W] (no `out_gain`)."""
        modulations = iter(modulations)
        parts = parts or {}
        # A constant channel lets the convolutions, which have no biases, make one.
        x = F.pad(x, (0, 0, 0, 0, 0, self.constants), value=1.0)
        skips = []
        for name, layer in self.enc.items():
            if isinstance(layer, Block):
                x = layer(x, next(modulations), parts.get(f"enc.{name}"))
            else:
                x = layer(x)
            skips.append(x)
        for name, block in self.dec.items():
            if block.joins_skip:
                x = mp_cat(x, skips.pop(), self.concat_balance)
            x = block(x, next(modulations), parts.get(f"dec.{name}"))
        return self.out_conv(x)

    def forward(
        self, x: Tensor, c_noise: Tensor, classes: Tensor, parts: Mapping[str, Parts] | None = None
    ) -> Tensor:
        """x [B, C, H, W], c_noise [B], classes [B, label_dim] -> [B, C, H, W]."""
        emb = self.embed(c_noise, classes)
        modulations = [block.modulation(emb).to(x.dtype) for block in self.blocks()]
        return self.trunk(x, modulations, parts) * learned_gain(self.out_gain, self.out_conv)


def _encoder(config: Config, block: Callable[..., Block]) -> tuple[nn.ModuleDict, list[int]]:
    """The encoder, and the channels of its outputs, each a skip connection to the decoder."""
    enc = nn.ModuleDict()
    skips = []
    channels = config.levels[0].channels
    for i, level in enumerate(config.levels):
        if i == 0:
            enc[f"{level.name}_conv"] = MPConv(config.img_channels + 1, channels, 3)
        else:
            enc[f"{level.name}_down"] = block(channels, channels, heads=0, resample=halve)
        skips.append(channels)
        for j in range(config.num_blocks):
            enc[f"{level.name}_block{j}"] = block(channels, level.channels, heads=level.heads)
            channels = level.channels
            skips.append(channels)
    return enc, skips


def _decoder(config: Config, block: Callable[..., Block], skips: list[int]) -> nn.ModuleDict:
    """The decoder, for skip connections of these channels, which it takes from the last."""
    skips = list(skips)
    dec = nn.ModuleDict()
    channels = skips[-1]
    for i, level in enumerate(reversed(config.levels)):
        if i == 0:
            heads = channels // config.channels_per_head
            dec[f"{level.name}_in0"] = block(channels, channels, heads=heads)
            dec[f"{level.name}_in1"] = block(channels, channels, heads=0)
        else:
            dec[f"{level.name}_up"] = block(channels, channels, heads=0, resample=double)
        for j in range(config.num_blocks + 1):
            width = channels + skips.pop()
            dec[f"{level.name}_block{j}"] = block(
                width, level.channels, heads=level.heads, joins_skip=True
            )
            channels = level.channels
    return dec


class EDM2(Denoiser):
    """D(x; sigma, c) = c_skip x + c_out F(c_in x; c_noise, c), with F the EDM2 U-Net.

    Arguments:
        config: the shape of the network. Its weights are random until they are loaded; make it on
            the meta device and load with `assign=True` to keep a checkpoint's float16 as it is.
        dtype: in which the U-Net computes: torch.float32 (on a GPU with convolutions in TF32, which
            is PyTorch's default), bfloat16 or float16 (as released). What goes in, what comes out
            and the preconditioning are in the dtype of x.

    Raises:
        UsageError: for another dtype.
    """

    # D is defined for all sigma > 0; the bounds keep sigma^2 well inside float32. The range that a
    # network is trained for is narrower (about 0.002 to 80); its checkpoint does not record it.
    sigma_min = 1e-6
    sigma_max = 1e6

    def __init__(
        self,
        config: Config,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        super().__init__()
        if dtype not in DTYPES:
            raise UsageError(
                f"EDM2 cannot compute in {dtype}; allowed: {', '.join(map(str, DTYPES))}"
            )
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
        self._attention_shapes = self.unet.attention_shapes()
        self.attention_layers = tuple(self._attention_shapes)

    @property
    def gflops(self) -> float:
        """10^9 floating-point operations of one evaluation, by counting, 2 per multiply-add."""
        return count_gflops(self.config)

    def forward(self, x: Tensor, sigma: float, condition: Condition = None) -> Tensor:
        """Denoise; see Denoiser. Without classes their embedding is zero; a network without
        classes, such as the reference of classifier-free guidance, ignores them.
        """
        sigmas = torch.full(x.shape[:1], sigma, dtype=x.dtype, device=x.device)
        return self.predict(x, sigmas, self._classes(condition, x))

    def joint(self, x: Tensor, views: Sequence[View]) -> list[Tensor]:
        """Denoise the same x several times in one call of the U-Net; see Denoiser."""
        if len(views) == 1 and views[0].perturbation is None:
            return super().joint(x, views)
        count = len(x)
        sigma = torch.cat([x.new_full((count,), view.sigma) for view in views])
        classes = torch.cat([self._classes(view.condition, x) for view in views])
        repeated = x.repeat(len(views), 1, 1, 1)
        return list(self.predict(repeated, sigma, classes, self._parts(views, x)).split(count))

    def _classes(self, condition: Condition, x: Tensor) -> Tensor:
        if condition is None or self.num_classes == 0:
            return x.new_zeros(len(x), self.num_classes)
        return F.one_hot(condition, self.num_classes).to(x.dtype)

    def _parts(self, views: Sequence[View], x: Tensor) -> dict[str, Parts]:
        """How the parts of a joint call attend, in the layers that some view perturbs."""
        parts: dict[str, list[Change | None]] = {}
        for i, view in enumerate(views):
            if view.perturbation is None:
                continue
            for layer in view.perturbation.chosen(self.attention_layers):
                heads, tokens = self._attention_shapes[layer]
                change = view.perturbation.change(layer, heads, tokens, view.sigma, x.device)
                parts.setdefault(layer, [None] * len(views))[i] = change
        return parts

    def predict(
        self,
        x: Tensor,
        sigma: Tensor,
        classes: Tensor | None,
        parts: Mapping[str, Parts] | None = None,
    ) -> Tensor:
        """Denoise with a noise level and a class vector for each sample.

        Arguments:
            x: noisy samples [B, *shape], float32 or float64.
            sigma: noise levels [B], above 0, in the dtype of x.
            classes: weights of the classes [B, num_classes] (one-hot; zeros: no class), or None.
            parts: how the parts of the batch attend, by layer, where not as usual.

        Returns:
            The denoised prediction [B, *shape], in the dtype of x.
        """
        if classes is None:
            classes = x.new_zeros(x.shape[0], self.num_classes)
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
    """Count 10^9 floating-point operations for one image; on the meta device, so nothing is run."""
    with torch.device("meta"), torch.no_grad():
        unet = UNet(config)
        x = torch.empty(1, config.img_channels, config.img_resolution, config.img_resolution)
        with FlopCounterMode(display=False) as counter:
            unet(x, torch.empty(1), torch.empty(1, config.label_dim))
    return counter.get_total_flops() / 1e9
