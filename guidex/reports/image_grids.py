"""Sheets of images: same-seed grids over swept parameters, and contact sheets of samples."""

import math
import textwrap
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path

import matplotlib
import numpy as np
from PIL import Image, ImageDraw, ImageFont
from PIL.PngImagePlugin import PngInfo

from guidex.files.atomic import atomic_write
from guidex.reports.pictures import Box, parts_text
from guidex.reports.rows import Value, one_line

# Images smaller than this are enlarged to it, or up to the second size where labels need the room.
_SMALLEST_CELL, _LABELLED_CELL = 48, 96
# Images larger than this are reduced to it, or further where the sheet would exceed the side.
_LARGEST_CELL, _LARGEST_SIDE = 256, 8192

_GAP, _MARGIN = 4, 12
_ROW_LABEL_WIDTH = 180
_LABEL_LINES = 3
_LABEL_SIZE, _CAPTION_SIZE, _TITLE_SIZE = 13, 11, 15


def image_grid(
    images: np.ndarray,
    row_labels: Sequence[str],
    column_labels: Sequence[str],
    path: Path,
    *,
    title: str | None = None,
    points: Sequence[Mapping[str, Value]] = (),
) -> None:
    """Write a PNG of images in rows and columns, with both axes labelled.

    Images under 48 pixels are enlarged by a whole factor (nearest neighbour), to 48 or, where the
    column labels need it, up to 96; those over 256 are reduced to 256 (Lanczos), or less in very
    large grids. Long labels are wrapped, then shortened.

    Arguments:
        images: uint8 [R, C, K, H, W], K = 1 (grey) or 3 (RGB).
        row_labels, column_labels: R and C of them.
        path: the PNG; GuidexError where it cannot be written.
        title: line above everything.
        points: the swept values of each row, for the report.
    """
    font, line = _font(_LABEL_SIZE), sum(_font(_LABEL_SIZE).getmetrics())
    width, height = _cell_size(images, max(images.shape[:2]), column_labels, font)
    names = [_wrap(label, _ROW_LABEL_WIDTH, font) for label in row_labels]
    headings = [_wrap(label, width, font) for label in column_labels]
    left = max(math.ceil(font.getlength(words)) for name in names for words in ["", *name]) + _GAP
    across = width + _GAP
    down = max(height, *(line * len(name) for name in names)) + _GAP
    title_font = _font(_TITLE_SIZE, bold=True)
    above = _wrap(title or "", left + len(headings) * across - _GAP, title_font)
    top = (sum(title_font.getmetrics()) + _GAP) * len(above)
    top += line * max(map(len, headings)) + _GAP
    sheet = _Sheet(left + len(headings) * across - _GAP, top + len(names) * down - _GAP)
    sheet.write(above, (0, 0), "la", title_font)
    for k, heading in enumerate(headings):
        sheet.write(heading, (left + k * across + width / 2, top - _GAP), "md", font)
    boxes: list[list[Box]] = []
    for row, name in enumerate(names):
        sheet.write(name, (left - _GAP, top + row * down + height / 2), "rm", font)
        boxes.append(
            [
                sheet.paste(image, (left + k * across, top + row * down), (width, height))
                for k, image in enumerate(images[row])
            ]
        )
    if len(points) > 0:
        sheet.text = parts_text(points, boxes, column_labels, images.shape[:-3:-1])
    sheet.save(path)


def sample_grid(images: np.ndarray, captions: Sequence[str], path: Path) -> None:
    """Write a PNG of images, uint8 [N, K, H, W], about as many per line as there are lines, with N
    captions under them, such as "seed 12 · class 7". Sizes are as in `image_grid`."""
    columns = math.ceil(math.sqrt(len(images)))
    font = _font(_CAPTION_SIZE)
    width, height = _cell_size(images, columns, captions, font)
    texts = [_wrap(text, width, font) for text in captions]
    across = width + _GAP
    down = height + sum(font.getmetrics()) * max(map(len, texts)) + 2 * _GAP
    sheet = _Sheet(columns * across - _GAP, math.ceil(len(images) / columns) * down - _GAP)
    for number, (image, text) in enumerate(zip(images, texts, strict=True)):
        x, y = number % columns * across, number // columns * down
        sheet.paste(image, (x, y), (width, height))
        sheet.write(text, (x + width / 2, y + height + _GAP), "ma", font)
    sheet.save(path)


class _Sheet:
    """White paper of some width and height, with a margin."""

    def __init__(self, width: int, height: int) -> None:
        size = (width + 2 * _MARGIN, height + 2 * _MARGIN)
        self._image = Image.new("RGB", size, "white")
        self._draw = ImageDraw.Draw(self._image)
        self.text: dict[str, str] = {}

    def write(
        self,
        lines: Sequence[str],
        place: tuple[float, float],
        anchor: str,
        font: ImageFont.FreeTypeFont,
    ) -> None:
        """Lines of text; the anchor as Pillow spells it."""
        x, y = place
        options = {"anchor": anchor, "align": "center", "fill": (40, 40, 40), "font": font}
        self._draw.multiline_text((x + _MARGIN, y + _MARGIN), "\n".join(lines), **options)

    def paste(self, image: np.ndarray, place: tuple[int, int], size: tuple[int, int]) -> Box:
        """uint8 [K, H, W] at a place, in a size (width, height); returns where that is."""
        pixels = np.broadcast_to(image, (3, *image.shape[1:])).transpose(1, 2, 0)
        picture = Image.fromarray(np.ascontiguousarray(pixels))
        method = Image.Resampling.NEAREST if picture.width <= size[0] else Image.Resampling.LANCZOS
        x, y = place[0] + _MARGIN, place[1] + _MARGIN
        self._image.paste(picture.resize(size, method), (x, y))
        return x, y, x + size[0], y + size[1]

    def save(self, path: Path) -> None:
        info = PngInfo()
        for key, text in self.text.items():
            info.add_text(key, text)
        atomic_write(path, lambda file: self._image.save(file, format="PNG", pnginfo=info))


def _cell_size(
    images: np.ndarray, count: int, labels: Sequence[str], font: ImageFont.FreeTypeFont
) -> tuple[int, int]:
    """Width and height at which to show images, `count` of which lie along the longer side."""
    height, width = images.shape[-2:]
    longest = max(height, width)
    largest = min(_LARGEST_CELL, max(_SMALLEST_CELL, _LARGEST_SIDE // count - _GAP))
    scale = min(1, largest / longest)
    if longest < _SMALLEST_CELL:
        needed = max(font.getlength(one_line(label)) for label in labels)
        wanted = min(largest, max(_SMALLEST_CELL, min(_LABELLED_CELL, needed)))
        scale = math.ceil(wanted / longest)
    return max(1, round(width * scale)), max(1, round(height * scale))


@cache
def _font(size: int, bold: bool = False) -> ImageFont.FreeTypeFont:
    """DejaVu Sans, as shipped with matplotlib: Pillow's own font lacks σ, ×, –, ≤ and ∞."""
    name = "DejaVuSans-Bold.ttf" if bold else "DejaVuSans.ttf"
    return ImageFont.truetype(Path(matplotlib.get_data_path(), "fonts", "ttf", name), size)


def _wrap(text: str, width: int, font: ImageFont.FreeTypeFont) -> list[str]:
    """Lines of at most a width, broken at dots, else at spaces, else anywhere; "…" for what is
    cut."""
    # Where no line is to be broken, a hard space.
    whole = " · ".join(
        part.replace(" ", "\u00a0") if font.getlength(part) <= width else part
        for part in one_line(text).split(" · ")
    )
    lines: list[str] = []
    for letters in range(len(whole), 0, -1):
        lines = [line.strip(" ·").replace("\u00a0", " ") for line in textwrap.wrap(whole, letters)]
        if len(lines) > _LABEL_LINES:
            lines = [*lines[: _LABEL_LINES - 1], lines[_LABEL_LINES - 1] + "…"]
        if all(font.getlength(line) <= width for line in lines):
            break
    return lines
