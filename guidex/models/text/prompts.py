"""Prompts: what a text-to-image model is conditioned on, numbered in the order they are given."""

import csv
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from inspect import signature
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from guidex.errors import UsageError
from guidex.models.condition import Conditions

_KEPT = 256  # encoded prompts that stay on the device


class Text(NamedTuple):
    """What a network takes of prompts: tokens [B, L, D], and what sums each up [B, P], or None."""

    tokens: Tensor
    pooled: Tensor | None


class Encoder:
    """The text encoders of a pipeline of diffusers, which are read when first needed. A prompt is
    encoded by itself, so that it does not depend on its batch, and once.

    Arguments:
        read: makes the pipeline, on the CPU.
        negative: the prompt that stands for none; None: what its pipeline takes by default.
        offload: let the encoders wait in the CPU's memory.
    """

    def __init__(self, read: Callable[[], Any], negative: str | None, offload: bool) -> None:
        self.read, self.negative, self.offload = read, negative, offload
        self.pipeline: Any = None
        self.known: dict[str | None, Text] = {}

    def __call__(self, prompts: Sequence[str | None], device: torch.device) -> Text:
        """Prompts, or None for the negative one, a row each."""
        found = {each: self.known[each] for each in prompts if each in self.known}
        if missing := [each for each in dict.fromkeys(prompts) if each not in found]:
            self.pipeline = self.pipeline or self.read()
            parts = self.pipeline.components
            encoders = [parts[name] for name in parts if name.startswith("text_encoder")]
            encoders = [encoder.to(device) for encoder in encoders if encoder is not None]
            found |= {each: self._encode(each, device) for each in missing}
            for encoder in encoders if self.offload else ():
                encoder.to("cpu")
        self.known = dict(list({**self.known, **found}.items())[-_KEPT:])
        rows = [found[each] for each in prompts]
        sums = None if rows[0].pooled is None else torch.cat([row.pooled for row in rows])
        return Text(torch.cat([row.tokens for row in rows]), sums)

    @torch.no_grad()
    def _encode(self, prompt: str | None, device: torch.device) -> Text:
        # SDXL and SD3 take further prompts for their further encoders.
        taken = signature(self.pipeline.encode_prompt).parameters
        given = {name: None for name in ("prompt_2", "prompt_3") if name in taken}
        found = self.pipeline.encode_prompt(
            prompt or "",
            **given,
            device=device,
            num_images_per_prompt=1,
            do_classifier_free_guidance=prompt is None,
            negative_prompt=self.negative,
        )
        wanted = found[1 if prompt is None else 0 :: 2]  # with and without it in turn
        return Text(wanted[0], wanted[1] if len(wanted) > 1 else None)


@dataclass(frozen=True)
class Prompts(Conditions):
    """Prompts by number; their names are their ids, or else themselves. Seed k draws number k
    modulo their count, so that seeds in a row take them in turn.

    Attributes:
        texts: the prompts, `count` of them.
        encoder: None in a recipe.
    """

    texts: tuple[str, ...] = ()
    encoder: Encoder | None = None

    def draw(self, generator: torch.Generator) -> Tensor:
        return torch.tensor(generator.initial_seed() % self.count, device=generator.device)

    def batch(self, numbers: Tensor | None) -> Text | None:
        if numbers is None:
            return None
        return self.encoder([self.texts[number] for number in numbers.tolist()], numbers.device)

    def caption(self, number: int) -> str:
        return self.texts[number]


def read_prompts(given: str | list[str]) -> Prompts:
    """Prompts from a list, or from a file: one per line; of a .csv, its column prompt, named by its
    column id, if it has one. Raises UsageError: no such file, or no prompts in it."""
    if isinstance(given, list):
        if not given or not all(isinstance(each, str) for each in given):
            raise UsageError(f"""prompts must be texts, as prompts='["…","…"]', not {given}""")
        return Prompts(len(given), tuple(given), tuple(given))
    path = Path(given).expanduser()
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines(keepends=True)
    except (OSError, UnicodeError) as error:
        raise UsageError(
            f"prompts={given}: no file of text ({error}); a prompt itself is written in a list, "
            f"""prompts='["{given}"]'"""
        ) from error
    if path.suffix.lower() != ".csv":
        texts = names = tuple(line.strip() for line in lines if line.strip())
    else:
        rows = list(csv.DictReader(lines))
        if rows and rows[0].get("prompt") is None:
            raise UsageError(f"{path} needs a column prompt, and may have a column id")
        texts = tuple(row["prompt"] or "" for row in rows)
        names = tuple(row["id"] for row in rows) if rows and "id" in rows[0] else texts
        if names is not texts and len(set(names)) < len(names):
            raise UsageError(f"{path}: an id is given to two prompts")
    if not texts:
        raise UsageError(f"{path} has no prompts")
    return Prompts(len(texts), names, texts)
