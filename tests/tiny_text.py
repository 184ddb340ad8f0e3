"""Tiny random text-to-image pipelines of diffusers, saved to a folder; no downloads."""

from pathlib import Path
from typing import Any

import pytest
import torch

SIDE = 8  # of the latents; images have 16 pixels a side
WIDTH = 32  # of text encoders
WORDS = ["a", "cat", "two", "dogs", "photograph", "of", "an", "astronaut", "the", "blurry"]


def libraries() -> tuple[Any, Any]:
    """diffusers and transformers, or the test is skipped."""
    reason = "needs the extra diffusers"
    return (
        pytest.importorskip("diffusers", reason=reason),
        pytest.importorskip("transformers", reason=reason),
    )


def tokenizer() -> Any:
    _, transformers = libraries()
    letters = [chr(code) for code in range(ord("a"), ord("z") + 1)]
    tokens = [
        *letters,
        *(f"{letter}</w>" for letter in letters),
        "<|startoftext|>",
        "<|endoftext|>",
    ]
    vocabulary = {token: number for number, token in enumerate(tokens)}
    made = transformers.CLIPTokenizer(vocab=vocabulary, merges=[], model_max_length=77)
    return made


def text_encoder(projection: int | None = None) -> Any:
    _, transformers = libraries()
    config = transformers.CLIPTextConfig(
        vocab_size=54,
        hidden_size=WIDTH,
        intermediate_size=37,
        num_hidden_layers=3,
        num_attention_heads=4,
        projection_dim=projection or WIDTH,
        bos_token_id=52,
        eos_token_id=53,
        pad_token_id=53,
    )
    if projection is None:
        return transformers.CLIPTextModel(config)
    return transformers.CLIPTextModelWithProjection(config)


def vae(channels: int = 4) -> Any:
    diffusers, _ = libraries()
    return diffusers.AutoencoderKL(
        block_out_channels=[8, 16],
        norm_num_groups=4,
        in_channels=3,
        out_channels=3,
        down_block_types=["DownEncoderBlock2D"] * 2,
        up_block_types=["UpDecoderBlock2D"] * 2,
        latent_channels=channels,
        sample_size=2 * SIDE,
        shift_factor=0.06 if channels == 16 else None,
    )


def unet(**options: Any) -> Any:
    diffusers, _ = libraries()
    return diffusers.UNet2DConditionModel(
        block_out_channels=(8, 16),
        norm_num_groups=4,
        layers_per_block=1,
        sample_size=SIDE,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        attention_head_dim=4,
        **{"cross_attention_dim": WIDTH, **options},
    )


def scheduler(prediction: str = "epsilon", **options: Any) -> Any:
    diffusers, _ = libraries()
    return diffusers.DDIMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        steps_offset=1,
        clip_sample=False,
        set_alpha_to_one=True,
        prediction_type=prediction,
        **options,
    )


def pipeline(kind: str, prediction: str = "epsilon", seed: int = 0) -> Any:
    """A pipeline "sd", "sdxl" or "sd3", which computes in float32."""
    diffusers, _ = libraries()
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        if kind == "sd":
            made = diffusers.StableDiffusionPipeline(
                vae=vae(),
                text_encoder=text_encoder(),
                tokenizer=tokenizer(),
                unet=unet(),
                scheduler=scheduler(prediction),
                safety_checker=None,
                feature_extractor=None,
                requires_safety_checker=False,
            )
        elif kind == "sdxl":
            network = unet(
                cross_attention_dim=2 * WIDTH,
                addition_embed_type="text_time",
                addition_time_embed_dim=8,
                projection_class_embeddings_input_dim=6 * 8 + WIDTH,
                use_linear_projection=True,
                transformer_layers_per_block=(1, 2),
            )
            made = diffusers.StableDiffusionXLPipeline(
                vae=vae(),
                text_encoder=text_encoder(),
                text_encoder_2=text_encoder(WIDTH),
                tokenizer=tokenizer(),
                tokenizer_2=tokenizer(),
                unet=network,
                scheduler=scheduler(prediction),
                add_watermarker=False,
            )
        else:
            transformer = diffusers.SD3Transformer2DModel(
                sample_size=SIDE,
                patch_size=2,
                in_channels=16,
                num_layers=3,
                attention_head_dim=8,
                num_attention_heads=4,
                joint_attention_dim=2 * WIDTH,
                caption_projection_dim=32,
                pooled_projection_dim=2 * WIDTH,
                out_channels=16,
                pos_embed_max_size=16,
            )
            made = diffusers.StableDiffusion3Pipeline(
                vae=vae(16),
                text_encoder=text_encoder(WIDTH),
                text_encoder_2=text_encoder(WIDTH),
                text_encoder_3=None,
                tokenizer=tokenizer(),
                tokenizer_2=tokenizer(),
                tokenizer_3=None,
                transformer=transformer,
                scheduler=diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0),
            )
    made.set_progress_bar_config(disable=True)
    return made


def saved(folder: Path, kind: str, prediction: str = "epsilon", seed: int = 0) -> str:
    """The same, on disk."""
    pipeline(kind, prediction, seed).save_pretrained(folder, safe_serialization=True)
    return str(folder)
