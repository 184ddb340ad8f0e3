"""Sheets of images: same-seed grids over swept parameters, and contact sheets of samples."""

import math
import textwrap
from collections.abc import Sequence
from functools import cache
from pathlib import Path

import matplotlib
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from guidex.files.atomic import atomic_write
from guidex.reports.rows import one_line

# Images smaller than this are enlarged to it, or up to the second size where labels need the room.
_SMALLEST_CELL = 48
_LABELLED_CELL = 96

# Images larger than this are reduced to it, or further where the sheet would exceed the side.
_LARGEST_CELL = 256
_LARGEST_SIDE = 8192

_GAP = 4
_MARGIN = 12
_ROW_LABEL_WIDTH = 180
_LABEL_LINES = 3
_LABEL_SIZE = 13
_CAPTION_SIZE = 11
_TITLE_SIZE = 15

_HARD = "\u00a0"  # a space at which no line is broken
_PAPER = (255, 255, 255)
_INK = (40, 40, 40)


def image_grid(
    images: np.ndarray,
    row_labels: Sequence[str],
    column_labels: Sequence[str],
    path: Path,
    *,
    title: str | None = None,
) -> None:
    """Write a PNG of images in rows and columns, with both axes labelled.

    Images under 48 pixels are enlarged by a whole factor (nearest neighbour), to 48 or, where the
    column labels need it, up to 96; those over 256 are reduced to 256 (Lanczos), or less in very
    large grids. Long labels are wrapped, then shortened.

    Arguments:
        images: uint8 [R, C, K, H, W], K = 1 (grey) or 3 (RGB).
        row_labels: R labels.
        column_labels: C labels.
        path: the PNG; its folder must exist, an existing file is replaced.
        title: line above everything.

    Raises:
        GuidexError: the file cannot be written.
    """
    size = _cell_size(images, max(images.shape[:2]), column_labels, _font(_LABEL_SIZE))
    tiles = _join([_join([_tile(image, size) for image in line]) for line in images], down=True)
    header = _header(column_labels, size[0])
    margin = _row_margin(row_labels, size[1])
    corner = _paper(margin.width, header.height)
    sheet = _join([_join([corner, header]), _join([margin, tiles])], down=True)
    if title is not None:
        words = _words(title, sheet.width, _font(_TITLE_SIZE, bold=True))
        sheet = _join([words, sheet], down=True)
    _save(sheet, path)


def sample_grid(images: np.ndarray, captions: Sequence[str], path: Path) -> None:
    """Write a PNG of images, about as many per line as there are lines, with a caption under each.

    Sizes are as in `image_grid`.

    Arguments:
        images: uint8 [N, K, H, W], K = 1 (grey) or 3 (RGB).
        captions: N captions, such as "seed 12 · class 7".
        path: the PNG; its folder must exist, an existing file is replaced.

    Raises:
        GuidexError: the file cannot be written.
    """
    count = len(images)
    columns = math.ceil(math.sqrt(count))
    font = _font(_CAPTION_SIZE)
    size = _cell_size(images, max(columns, math.ceil(count / columns)), captions, font)
    below = _equal([_words(caption, size[0], font) for caption in captions], size[0], y=0.0)
    cells = [
        _join([_tile(image, size), caption], down=True)
        for image, caption in zip(images, below, strict=True)
    ]
    lines = [_join(cells[first : first + columns]) for first in range(0, count, columns)]
    _save(_join(lines, down=True), path)


def _cell_size(
    images: np.ndarray, count: int, labels: Sequence[str], font: ImageFont.FreeTypeFont
) -> tuple[int, int]:
    """Width and height at which to show images, `count` of which lie along the longer side."""
    height, width = images.shape[-2:]
    longest = max(height, width)
    largest = min(_LARGEST_CELL, max(_SMALLEST_CELL, _LARGEST_SIDE // count - _GAP))
    if longest > largest:
        scale = largest / longest
        return max(1, round(width * scale)), max(1, round(height * scale))
    if longest >= _SMALLEST_CELL:
        return width, height
    needed = max(font.getlength(one_line(label)) for label in labels)
    wanted = min(largest, max(_SMALLEST_CELL, min(_LABELLED_CELL, needed)))
    factor = math.ceil(wanted / longest)
    return factor * width, factor * height


def _tile(image: np.ndarray, size: tuple[int, int]) -> Image.Image:
    """uint8 [K, H, W] at a size (width, height)."""
    pixels = image[0] if len(image) == 1 else np.moveaxis(image, 0, -1)
    picture = Image.fromarray(np.ascontiguousarray(pixels)).convert("RGB")
    method = Image.Resampling.NEAREST if picture.width <= size[0] else Image.Resampling.LANCZOS
    return picture if picture.size == size else picture.resize(size, method)


def _header(labels: Sequence[str], width: int) -> Image.Image:
    """Labels above columns of a width, standing on the images."""
    return _join(_equal([_words(label, width) for label in labels], width, y=1.0))


def _row_margin(labels: Sequence[str], height: int) -> Image.Image:
    """Labels to the left of rows of a height."""
    words = [_words(label, _ROW_LABEL_WIDTH) for label in labels]
    width = max(block.width for block in words)
    return _join([_fit(block, (width, height), 1.0, 0.5) for block in words], down=True)


@cache
def _font(size: int, bold: bool = False) -> ImageFont.FreeTypeFont:
    """DejaVu Sans, as shipped with matplotlib: Pillow's own font lacks σ, ×, –, ≤ and ∞."""
    name = "DejaVuSans-Bold.ttf" if bold else "DejaVuSans.ttf"
    return ImageFont.truetype(Path(matplotlib.get_data_path(), "fonts", "ttf", name), size)


def _words(text: str, width: int, font: ImageFont.FreeTypeFont | None = None) -> Image.Image:
    """Text in lines of at most a width, each centred."""
    font = _font(_LABEL_SIZE) if font is None else font
    lines = _wrap(one_line(text), width, font)
    ascent, descent = font.getmetrics()
    block = _paper(
        max((math.ceil(font.getlength(line)) for line in lines), default=1),
        max(1, len(lines)) * (ascent + descent),
    )
    draw = ImageDraw.Draw(block)
    for number, line in enumerate(lines):
        place = (block.width / 2, number * (ascent + descent) + ascent)
        draw.text(place, line, fill=_INK, font=font, anchor="ms")
    return block


def _wrap(text: str, width: int, font: ImageFont.FreeTypeFont) -> list[str]:
    """Lines of at most a width, broken at dots, else at spaces, else anywhere; "…" for what is
    cut."""
    whole = " · ".join(
        part.replace(" ", _HARD) if font.getlength(part) <= width else part
        for part in text.split(" · ")
    )
    lines: list[str] = []
    for letters in range(len(whole), 0, -1):
        lines = [line.strip(" ·").replace(_HARD, " ") for line in textwrap.wrap(whole, letters)]
        if len(lines) > _LABEL_LINES:
            lines = [*lines[: _LABEL_LINES - 1], lines[_LABEL_LINES - 1] + "…"]
        if all(font.getlength(line) <= width for line in lines):
            break
    return lines


def _equal(blocks: Sequence[Image.Image], width: int, y: float) -> list[Image.Image]:
    """Blocks centred in a width, at the height of the tallest; y = 0 on top, 1 at the bottom."""
    height = max(block.height for block in blocks)
    return [_fit(block, (width, height), 0.5, y) for block in blocks]


def _fit(block: Image.Image, size: tuple[int, int], x: float, y: float) -> Image.Image:
    """A block on paper of a size; 0 is left and top, 1 right and bottom."""
    paper = _paper(*size)
    place = (round(x * (size[0] - block.width)), round(y * (size[1] - block.height)))
    paper.paste(block, place)
    return paper


def _join(blocks: Sequence[Image.Image], down: bool = False) -> Image.Image:
    """Blocks beside or below each other, with gaps."""
    sizes = np.array([block.size for block in blocks])
    along = 1 if down else 0
    extent = sizes.max(axis=0)
    extent[along] = sizes[:, along].sum() + _GAP * (len(blocks) - 1)
    paper = _paper(*extent.tolist())
    place = [0, 0]
    for block in blocks:
        paper.paste(block, tuple(place))
        place[along] += block.size[along] + _GAP
    return paper


def _paper(width: int, height: int) -> Image.Image:
    return Image.new("RGB", (width, height), _PAPER)


def _save(sheet: Image.Image, path: Path) -> None:
    framed = _paper(sheet.width + 2 * _MARGIN, sheet.height + 2 * _MARGIN)
    framed.paste(sheet, (_MARGIN, _MARGIN))
    atomic_write(path, lambda file: framed.save(file, format="PNG"))
