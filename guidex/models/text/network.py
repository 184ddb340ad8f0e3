"""The denoiser of a text-to-image network of diffusers."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from guidex.errors import UsageError
from guidex.models.denoiser import Denoiser, View
from guidex.models.text.attention import attention_layers, perturbed
from guidex.models.text.process import Flow, Process
from guidex.models.text.prompts import Prompts, Text


class TextToImage(Denoiser):
    """D(x; sigma, prompts) of a UNet2DConditionModel or SD3Transformer2DModel, x in the units of
    its latents, after their scaling. Without a condition, it is that of the negative prompt.

    Arguments:
        network: of diffusers, in the dtype that it computes in.
        process: how it sees noise.
        shape: [C, H, W] of the latents.
        prompts: with an encoder, but in a recipe.
        sizes: what SDXL is told besides: height and width of the original, top and left of the
            crop, height and width of the image, in pixels.
        gflops: of one evaluation.
    """

    space = "latents"
    sigma_data = 1.0

    def __init__(
        self,
        network: nn.Module,
        process: Process,
        shape: tuple[int, ...],
        prompts: Prompts,
        sizes: tuple[int, ...],
        gflops: float,
    ) -> None:
        super().__init__()
        self.network, self.process, self.sizes = network, process, sizes
        self.shape, self.conditions, self.gflops = shape, prompts, gflops
        self.sigma_min, self.sigma_max = process.sigma_min, process.sigma_max
        self.attention_layers = attention_layers(network)
        self.native_unit = "time" if isinstance(process, Flow) else None
        self.is_transformer = not hasattr(network.config, "cross_attention_dim")

    def forward(self, x: Tensor, sigma: float, condition: Text | None = None) -> Tensor:
        """See Denoiser."""
        return self.joint(x, [View(sigma, condition)])[0]

    def joint(self, x: Tensor, views: Sequence[View]) -> list[Tensor]:
        """See Denoiser; in one call of the network."""
        dtype, process, count = next(self.network.parameters()).dtype, self.process, len(x)
        inputs = [(process.scale(view.sigma) * x).to(dtype) for view in views]
        times = [x.new_full([count], process.timestep(view.sigma)) for view in views]
        texts = [self._text(view.condition, x) for view in views]
        tokens = torch.cat([text.tokens for text in texts]).to(dtype)
        pooled = None
        if texts[0].pooled is not None:
            pooled = torch.cat([text.pooled for text in texts]).to(dtype)
        with perturbed(self.network, self.attention_layers, views):
            answer = self.ask(torch.cat(inputs), torch.cat(times).float(), tokens, pooled)
        answers = answer.to(x.dtype).split(count)
        return [process.x0(x, v.sigma, each) for v, each in zip(views, answers, strict=True)]

    def ask(self, inputs: Tensor, times: Tensor, tokens: Tensor, pooled: Tensor | None) -> Tensor:
        """The network's answer [B, C, H, W], at timesteps [B], for what is known of prompts."""
        if self.is_transformer:
            return self.network(inputs, tokens, pooled, times, return_dict=False)[0]
        added = None
        if self.network.config.addition_embed_type == "text_time":
            sizes = tokens.new_tensor([self.sizes]).expand(len(inputs), -1)
            added = {"text_embeds": pooled, "time_ids": sizes}
        return self.network(inputs, times, tokens, added_cond_kwargs=added, return_dict=False)[0]

    def _text(self, condition: Text | None, x: Tensor) -> Text:
        """What the network takes for a condition of x; None is the negative prompt."""
        if condition is None:
            found = self.conditions.encoder([None], x.device)
            return Text(*(None if t is None else t.expand(len(x), *t.shape[1:]) for t in found))
        config = self.network.config
        width = config.joint_attention_dim if self.is_transformer else config.cross_attention_dim
        if condition.tokens.shape[-1] != width:
            raise UsageError(
                f"prompts are encoded to {condition.tokens.shape[-1]} numbers a token, but this "
                f"network takes {width}; choose a reference of the same family"
            )
        return condition
