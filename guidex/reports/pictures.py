"""Which part of a picture shows which point: written into PNGs where they are drawn, and read back
for the report, which shows points side by side."""

import base64
import io
import json
import warnings
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from guidex.reports.rows import Row, Value

_KEY = "guidex"  # of the text in a PNG
_PER_LINE = 5  # images of a point in the report
_CELL, _PANEL = 112, 480  # their longest side there in pixels, and that of a figure

# Left, upper, right, lower, in pixels.
Box = tuple[int, int, int, int]


@dataclass(frozen=True)
class Picture:
    """What a point made, for a page: an image as a data URI, its size in pixels, what is on it, and
    whether its pixels are to be seen as squares."""

    uri: str
    size: tuple[int, int]
    caption: str
    is_coarse: bool


def parts_text(
    points: Sequence[Mapping[str, Value]],
    boxes: Sequence[Sequence[Box]],
    captions: Sequence[str] = (),
    size: tuple[int, int] | None = None,
) -> dict[str, str]:
    """The text to be written into a PNG, by its key.

    Arguments:
        points: the swept values of each point.
        boxes: where the images of each point are, with a caption for each.
        size: width and height of these images as they were made; None for figures.
    """
    parts = [{"values": dict(v), "boxes": b} for v, b in zip(points, boxes, strict=True)]
    return {_KEY: json.dumps({"parts": parts, "captions": list(captions), "size": size})}


def pictures_of(rows: Sequence[Row], folder: Path) -> dict[int, Picture]:
    """What the PNGs of a folder show of each row, by its point; of several the last one by name."""
    found = {}
    for path in sorted(folder.glob("*.png")):
        # Whatever else lies in the folder is no picture of points.
        with suppress(OSError, ValueError, KeyError, TypeError), warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            with Image.open(path) as image:
                about = json.loads(image.info[_KEY])
                sheet = image.convert("RGB")
            for part in about["parts"]:
                for row in rows:
                    if row.values == part["values"]:
                        pieces = [sheet.crop(box) for box in part["boxes"]]
                        captions = "; ".join(map(str, about["captions"]))
                        found[row.point] = _picture(pieces, captions, about["size"])
    return found


def _picture(pieces: Sequence[Image.Image], caption: str, size: list[int] | None) -> Picture:
    """Images of equal size in lines, with a gap of a pixel between them."""
    most = _PANEL if size is None else _CELL
    is_coarse = size is not None and max(size) <= most
    width, height = size if is_coarse else pieces[0].size
    scale = min(1, most / max(width, height))
    cell = max(1, round(width * scale)), max(1, round(height * scale))
    method = Image.Resampling.NEAREST if is_coarse else Image.Resampling.LANCZOS
    columns, lines = min(_PER_LINE, len(pieces)), -(-len(pieces) // _PER_LINE)
    sheet = Image.new("RGB", (columns * (cell[0] + 1) - 1, lines * (cell[1] + 1) - 1), "white")
    for number, piece in enumerate(pieces):
        line, column = divmod(number, _PER_LINE)
        sheet.paste(piece.resize(cell, method), (column * (cell[0] + 1), line * (cell[1] + 1)))
    file = io.BytesIO()
    # Few pixels exactly; many in a form that all browsers know and that is a tenth as large.
    exact = is_coarse and sheet.width * sheet.height < 2**16
    sheet.save(file, "PNG", optimize=True) if exact else sheet.save(file, "WEBP", quality=80)
    kind = "png" if exact else "webp"
    content = base64.b64encode(file.getvalue()).decode()
    return Picture(f"data:image/{kind};base64,{content}", sheet.size, caption, is_coarse)
