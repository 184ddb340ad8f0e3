"""`guidex list layers`: the self-attention layers of a model, for perturbed-attention guidance."""

from collections.abc import Sequence

from guidex.config.compose import compose
from guidex.config.instantiate import Models, instantiate
from guidex.errors import UsageError
from guidex.models.spec import Model, load


def layers(words: Sequence[str]) -> list[str]:
    """Names of a model's self-attention layers, in the order in which x passes them."""
    composed = compose("sample", ["guidance=none", *words])
    model = instantiate(composed.config["model"], "model", Models(), Model)
    if model.attention_layers is None:  # only its file knows
        model = load(model, "cpu")
    if not model.attention_layers:
        raise UsageError(
            f"model={composed.choices['model']} has no self-attention layers; EDM2 models have some"
        )
    return list(model.attention_layers)
