"""Sheets of images: same-seed grids over swept parameters, and contact sheets of samples."""

import math
import textwrap
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path

import matplotlib
import numpy as np
from PIL import Image, ImageDraw, ImageFont, ImageOps

from guidex.files.atomic import atomic_write
from guidex.reports.rows import one_line

# Images smaller than this are enlarged to it, or up to the second size where labels need the room.
_SMALLEST_CELL, _LABELLED_CELL = 48, 96
# Images larger than this are reduced to it, or further where the sheet would exceed the side.
_LARGEST_CELL, _LARGEST_SIDE = 256, 8192

_GAP, _MARGIN = 4, 12
_ROW_LABEL_WIDTH = 180
_LABEL_LINES = 3
_LABEL_SIZE, _CAPTION_SIZE, _TITLE_SIZE = 13, 11, 15

_HARD = "\u00a0"  # a space at which no line is broken
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
    font = _font(_LABEL_SIZE)
    size = _cell_size(images, max(images.shape[:2]), column_labels, font)
    headings = [_words(label, size[0], font) for label in column_labels]
    cells = [[_paper(1, 1), *headings]]
    for label, line in zip(row_labels, images, strict=True):
        cells.append([_words(label, _ROW_LABEL_WIDTH, font), *(_tile(i, size) for i in line)])
    # Row labels stand at the right and in the middle, headings at the bottom.
    sheet = _sheet(cells, lambda row, column: (0.5 if column else 1.0, 0.5 if row else 1.0))
    if title is not None:
        words = _words(title, sheet.width, _font(_TITLE_SIZE, bold=True))
        sheet = _sheet([[words], [sheet]], lambda row, column: (0.0, 0.0))
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
    cells = []
    for first in range(0, count, columns):
        cells.append([_tile(image, size) for image in images[first : first + columns]])
        cells.append([_words(text, size[0], font) for text in captions[first : first + columns]])
    _save(_sheet(cells, lambda row, column: (0.5, 0.0)), path)


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
    return picture.resize(size, method)


@cache
def _font(size: int, bold: bool = False) -> ImageFont.FreeTypeFont:
    """DejaVu Sans, as shipped with matplotlib: Pillow's own font lacks σ, ×, –, ≤ and ∞."""
    name = "DejaVuSans-Bold.ttf" if bold else "DejaVuSans.ttf"
    return ImageFont.truetype(Path(matplotlib.get_data_path(), "fonts", "ttf", name), size)


def _words(text: str, width: int, font: ImageFont.FreeTypeFont) -> Image.Image:
    """Text in lines of at most a width, each centred."""
    lines = _wrap(one_line(text), width, font) or [""]
    ascent, descent = font.getmetrics()
    longest = max(math.ceil(font.getlength(line)) for line in lines)
    block = _paper(max(1, longest), len(lines) * (ascent + descent))
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


def _sheet(
    cells: Sequence[Sequence[Image.Image]], anchor: Callable[[int, int], tuple[float, float]]
) -> Image.Image:
    """Images in rows, which may be shorter than the first, and columns, with gaps.

    Arguments:
        cells: the images; a column is as wide as its widest one, a row as high as its highest.
        anchor: where an image stands in its cell, by row and column: x, y from 0, left and top,
            to 1, right and bottom.
    """
    columns = [[line[k] for line in cells if k < len(line)] for k in range(len(cells[0]))]
    widths = [max(image.width for image in column) for column in columns]
    heights = [max(image.height for image in line) for line in cells]
    sheet = _paper(*(sum(sizes) + _GAP * (len(sizes) - 1) for sizes in (widths, heights)))
    for row, line in enumerate(cells):
        for column, image in enumerate(line):
            x, y = anchor(row, column)
            left = sum(widths[:column]) + _GAP * column + round(x * (widths[column] - image.width))
            top = sum(heights[:row]) + _GAP * row + round(y * (heights[row] - image.height))
            sheet.paste(image, (left, top))
    return sheet


def _paper(width: int, height: int) -> Image.Image:
    return Image.new("RGB", (width, height), "white")


def _save(sheet: Image.Image, path: Path) -> None:
    framed = ImageOps.expand(sheet, _MARGIN, "white")
    atomic_write(path, lambda file: framed.save(file, format="PNG"))
