"""Seeds decide images: noise, label and every later draw of image k come from seed k alone.

From a seed's own generator come the unit noise, then the label (which condition), then the noise of
stochastic solvers (as in EDM2's published images), whatever the batch or the number of processes.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from guidex.errors import UsageError
from guidex.models.condition import Condition, Conditions

SEED_LIMIT = 2**32  # EDM2 takes seeds modulo it; PyTorch's CPU generators look at no more bits
MOST_SEEDS = 10_000_000


@dataclass(frozen=True)
class Draws:
    """Fresh noise for each row of a batch, as a value: drawing returns the next Draws, and changes
    nothing. It holds the generators' states (none where none was asked for) and their device."""

    states: tuple[Tensor, ...]
    device: torch.device

    def draw(self, like: Tensor) -> tuple[Tensor, "Draws"]:
        """Unit noise in the shape and dtype of `like` [B, *shape], drawn in this dtype, row by row
        (as EDM2 does: the same seeds give other noise in float64)."""
        generator = torch.Generator(self.device)
        rows, states = [], []
        for state in self.states:
            generator.set_state(state)
            shape, dtype = like.shape[1:], like.dtype
            rows.append(torch.randn(shape, generator=generator, device=self.device, dtype=dtype))
            states.append(generator.get_state())
        return torch.stack(rows).to(like), Draws(tuple(states), self.device)


@dataclass(frozen=True)
class Start:
    """Where the sampling of a batch starts.

    Attributes:
        noise: unit noise, float32 [B, *shape].
        labels: numbers of the images' conditions, int64 [B], or None for a model without.
        condition: what the network takes for them.
        draws: later noise of the same generators.
    """

    noise: Tensor
    labels: Tensor | None
    condition: Condition
    draws: Draws


def start(
    seeds: Sequence[int],
    shape: tuple[int, ...],
    conditions: Conditions,
    labels: Sequence[int] | None,
    device: torch.device,
    generator_device: torch.device,
    keep_drawing: bool,
) -> Start:
    """Noise and labels of a batch.

    Arguments:
        seeds: one per image, 0 ... 2^32 - 1; beyond, they count modulo 2^32.
        shape: of one sample.
        conditions: of the model.
        labels: numbers of the conditions to make, one per seed, or None to draw each from its seed.
        device: where the results go.
        generator_device: where the generators live; the same seed gives other noise on another
            kind of device.
        keep_drawing: remember the generators for a stochastic solver.
    """
    noise, drawn, states = [], [], []
    for seed in seeds:
        generator = torch.Generator(generator_device).manual_seed(seed % SEED_LIMIT)
        noise.append(torch.randn(shape, generator=generator, device=generator_device))
        drawn.append(conditions.draw(generator))
        if keep_drawing:
            states.append(generator.get_state())
    chosen = None
    if conditions.count > 0:
        chosen = torch.stack(drawn) if labels is None else torch.tensor(list(labels))
        chosen = chosen.to(device)
    draws = Draws(tuple(states), generator_device)
    return Start(torch.stack(noise).to(device), chosen, conditions.batch(chosen), draws)


def parse_seeds(text: str | int | Sequence[str | int]) -> list[int]:
    """Seeds as written by people: 7, "0-63", ["0-9", 20, "30-39"]. Order is kept; UsageError where
    they are not of this form, out of range, or given twice."""
    parts = list(text) if isinstance(text, Sequence) and not isinstance(text, str) else [text]
    seeds: list[int] = []
    for part in (piece for entry in parts for piece in str(entry).split(",")):
        first, dash, last = part.strip().partition("-")
        if not first.isdecimal() or (dash and not last.isdecimal()):
            raise UsageError(
                f"seeds are whole numbers >= 0 such as 7, 0-63 or [0-9,20,30-39], not {part!r}"
            )
        low, high = int(first), int(last) if dash else int(first)
        if high < low or high >= SEED_LIMIT:
            raise UsageError(f"seeds {part!r}: the range must increase and stay below 2^32")
        check_count(len(seeds) + high - low + 1)
        seeds.extend(range(low, high + 1))
    if not seeds:
        raise UsageError("no seeds given; try seeds=0-63")
    if len(set(seeds)) < len(seeds):
        raise UsageError("a seed is given twice; each seed makes one image")
    return seeds


def check_count(count: int) -> None:
    """Refuse more seeds than a run can hold in memory."""
    if count > MOST_SEEDS:
        raise UsageError(f"{count} seeds are more than the {MOST_SEEDS} that a run may have")
