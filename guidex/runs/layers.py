"""`guidex list layers`: the self-attention layers of a model, for perturbed-attention guidance."""

from collections.abc import Sequence
from typing import Any

import torch

from guidex.config import compose
from guidex.errors import UsageError
from guidex.instantiate import Models, instantiate
from guidex.models.denoiser import Denoiser
from guidex.models.edm2.network import EDM2, Config

PUBLISHED = "guidex.models.edm2.load.released"


def layers(words: Sequence[str]) -> list[str]:
    """Names of a model's self-attention layers, in the order in which x passes them.

    Arguments:
        words: Hydra overrides that choose the model, such as "model=edm2-img512-s".

    Raises:
        UsageError: there are none, or no such model.
        GuidexError: its checkpoint cannot be had or read.
    """
    composed = compose("sample", ["guidance=none", *words])
    model = _shape_of(composed.config["model"])
    if not model.attention_layers:
        raise UsageError(
            f"model={composed.choices['model']} has no self-attention layers; EDM2 models have some"
        )
    return list(model.attention_layers)


def _shape_of(config: dict[str, Any]) -> Denoiser:
    """A model with the layers of this one, without its weights where that can be."""
    if config["_target_"] == PUBLISHED:
        # All published networks have the same blocks, so that none has to be downloaded for names.
        with torch.device("meta"):
            return EDM2(Config(img_resolution=64, img_channels=4, label_dim=0))
    return instantiate(config, "model", Models(finish=lambda model: model), Denoiser)
