"""What kind of sample a model makes, and so how samples are called, decoded, kept and seen."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from torch import Tensor

from guidex.errors import UsageError
from guidex.models.decoders import Decoder
from guidex.runs.outputs import Arrays, Coordinates, Gallery, Output, Paths, PngFolder, Zip


@dataclass(frozen=True)
class SampleKind:
    """Images in pixels; the other kinds say what is different with them.

    Attributes:
        decoder: from samples to images; None where there is none.
        is_image: whether samples are images, once they are decoded.
    """

    shape: tuple[int, ...]
    decoder: Decoder | None
    is_image: ClassVar[bool] = True

    @property
    def unit(self) -> str:
        """What samples are called."""
        return "images"

    @property
    def image_shape(self) -> tuple[int, int, int] | None:
        """Shape [C, H, W] of the images; None where there are none."""
        return None if self.decoder is None else self.decoder.image_shape(self.shape)

    def decode(self, x: Tensor) -> Tensor:
        """What is looked at: images uint8 [B, C, H, W]; samples as they are without a decoder."""
        return x if self.decoder is None else self.decoder(x)

    def files(self, form: str, latents: bool, folder: Path) -> list[Output]:
        """The files in a folder that all samples go to: images as png, zip or npz, and latents.

        Raises:
            UsageError: there are no latents.
        """
        if latents:
            raise UsageError("latents=true: this model has none; its samples are its output")
        if form == "png":
            return [PngFolder(folder)]
        file = folder / f"images.{form}"
        if form == "zip":
            return [Zip(file=file)]
        names = {"entry": "arr_0", "labels": "arr_1", "seeds_entry": None}
        return [Arrays(file=file, **names, channels_last=True)]

    def view(self, seeds: Sequence[int]) -> list[Output]:
        """What people see of the samples of some seeds."""
        return [Gallery(frozenset(seeds))]


class Latents(SampleKind):
    """Latents of images."""

    @property
    def unit(self) -> str:
        return "latents" if self.decoder is None else "images"

    def files(self, form: str, latents: bool, folder: Path) -> list[Output]:
        outputs = [] if self.decoder is None else super().files(form, False, folder)
        kept = Arrays(file=folder / "latents.npz", entry="latents", undecoded=True)
        return [*outputs, kept] if latents else outputs

    def view(self, seeds: Sequence[int]) -> list[Output]:
        return [] if self.decoder is None else super().view(seeds)


class Points(SampleKind):
    """Points of a toy, which are kept as numbers."""

    is_image = False
    unit = "samples"

    def files(self, form: str, latents: bool, folder: Path) -> list[Output]:
        if latents:
            return super().files(form, latents, folder)
        return [Arrays(file=folder / "samples.npz", entry="samples")]

    def view(self, seeds: Sequence[int]) -> list[Output]:
        return [Coordinates(), Paths(frozenset(seeds))]


KINDS: dict[str, type[SampleKind]] = {"pixels": SampleKind, "latents": Latents, "points": Points}
