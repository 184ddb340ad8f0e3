"""Sheets of images: same-seed grids over swept parameters, and contact sheets of samples."""

import itertools
import math
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path

import matplotlib
import numpy as np
from PIL import Image, ImageDraw, ImageFont
from PIL.PngImagePlugin import PngInfo

from guidex.files.atomic import atomic_write
from guidex.reports.pictures import Box, parts_text
from guidex.reports.rows import Value, one_line

# Images are enlarged to the first size, so that their labels have room, and reduced to the second,
# or further where the sheet would exceed the side.
_SMALLEST_CELL, _LARGEST_CELL, _LARGEST_SIDE = 96, 256, 8192
_GAP, _MARGIN = 4, 12
_ROW_LABEL_WIDTH = 200
_LABEL_LINES = 3


def image_grid(
    images: np.ndarray,
    row_labels: Sequence[str],
    headings: Sequence[Sequence[str]],
    path: Path,
    *,
    title: str = "",
    points: Sequence[Mapping[str, Value]] = (),
) -> None:
    """Write a PNG of images in rows and columns, with both axes labelled.

    Images under 96 pixels are enlarged by a whole factor (nearest neighbour); those over 256 are
    reduced to 256 (Lanczos), or less in very large grids. Long labels are wrapped, then shortened.

    Arguments:
        images: uint8 [R, C, K, H, W], K = 1 (grey) or 3 (RGB).
        row_labels: R of them.
        headings: what stands above the images of the first rows, C for each.
        path: the PNG; GuidexError where it cannot be written.
        title: line above everything.
        points: the swept values of each row, for the report.
    """
    rows, columns = images.shape[:2]
    font, bold = _font("DejaVuSans", 13), _font("DejaVuSans-Bold", 15)
    width, height = _cell_size(images)
    names = [_wrap(label, _ROW_LABEL_WIDTH, font) for label in row_labels]
    above = [[_wrap(text, width, font) for text in texts] for texts in headings]
    left = _MARGIN + _GAP + math.ceil(max(_size(name, font)[0] for name in names))
    right = left + columns * (width + _GAP) - _GAP
    title = _wrap(title, right - left, bold)
    tops, y = [], _MARGIN + (_size(title, bold)[1] + _GAP if title else 0)
    for name, texts in itertools.zip_longest(names, above, fillvalue=()):
        y += max((_size(text, font)[1] + _GAP for text in texts if text), default=0)
        tops.append(y)
        y += max(height, _size(name, font)[1]) + _GAP
    sheet = Image.new("RGB", (right + _MARGIN, y - _GAP + _MARGIN), "white")
    draw = ImageDraw.Draw(sheet)
    style = {"align": "center", "fill": (40, 40, 40)}
    draw.multiline_text((_MARGIN, _MARGIN), title, font=bold, **style)
    boxes: list[list[Box]] = [[] for _ in tops]
    for row, column in np.ndindex(rows, columns):
        x, y = left + column * (width + _GAP), tops[row]
        sheet.paste(_picture(images[row, column], (width, height)), (x, y))
        boxes[row].append((x, y, x + width, y + height))
        text = above[row][column] if row < len(above) else ""
        draw.multiline_text((x + width / 2, y - _GAP), text, anchor="md", font=font, **style)
    for name, y in zip(names, tops, strict=True):
        place = (left - _GAP, y + height / 2)
        draw.multiline_text(place, name, anchor="rm", font=font, **style)
    info = PngInfo()
    if len(points) > 0:
        for key, text in parts_text(points, boxes, headings[0], images.shape[:-3:-1]).items():
            info.add_text(key, text)
    atomic_write(path, lambda file: sheet.save(file, format="PNG", pnginfo=info))


def sample_grid(images: np.ndarray, captions: Sequence[str], path: Path) -> None:
    """Write a PNG of images, uint8 [N, K, H, W], about as many per line as there are lines, with N
    captions above them, such as "seed 12 · class 7". Sizes are as in `image_grid`."""
    columns = math.ceil(math.sqrt(len(images)))
    rows = math.ceil(len(images) / columns)
    blank = rows * columns - len(images)
    cells = np.pad(images, [(0, blank), (0, 0), (0, 0), (0, 0)], constant_values=255)
    texts = np.reshape([*captions, *[""] * blank], (rows, columns)).tolist()
    image_grid(cells.reshape(rows, columns, *images.shape[1:]), [""] * rows, texts, path)


def _cell_size(images: np.ndarray) -> tuple[int, int]:
    """Width and height at which to show images."""
    height, width = images.shape[-2:]
    longest = max(height, width)
    largest = min(_LARGEST_CELL, max(1, _LARGEST_SIDE // max(images.shape[:2]) - _GAP))
    scale = min(1, largest / longest)
    if longest < _SMALLEST_CELL:
        scale = math.ceil(min(largest, _SMALLEST_CELL) / longest)
    return max(1, round(width * scale)), max(1, round(height * scale))


def _picture(image: np.ndarray, size: tuple[int, int]) -> Image.Image:
    """uint8 [K, H, W] in a size (width, height)."""
    pixels = np.broadcast_to(image, (3, *image.shape[1:])).transpose(1, 2, 0)
    picture = Image.fromarray(np.ascontiguousarray(pixels))
    method = Image.Resampling.NEAREST if picture.width <= size[0] else Image.Resampling.LANCZOS
    return picture.resize(size, method)


def _font(name: str, size: int) -> ImageFont.FreeTypeFont:
    """As shipped with matplotlib: Pillow's own font lacks σ, ×, –, ≤ and ∞."""
    return ImageFont.truetype(Path(matplotlib.get_data_path(), "fonts", "ttf", f"{name}.ttf"), size)


def _size(text: str, font: ImageFont.FreeTypeFont) -> tuple[float, int]:
    """Width and height of lines of text."""
    lines = text.splitlines()
    return max(map(font.getlength, lines), default=0), sum(font.getmetrics()) * len(lines)


def _wrap(text: str, width: int, font: ImageFont.FreeTypeFont) -> str:
    """Lines of about a width at most, "…" for what is cut."""
    letters = max(1, int(width / font.getlength("0")))
    text = one_line(text).replace(" = ", "\u00a0=\u00a0")
    lines = textwrap.wrap(text, letters, max_lines=_LABEL_LINES, placeholder="…")
    return "\n".join(line.strip(" ·") for line in lines)
