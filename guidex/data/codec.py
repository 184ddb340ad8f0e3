"""Image files to uint8 pixels [C,H,W] and back; pixels to numbers in [-1, 1] and back."""

import contextlib
import io
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError
from torch import Tensor

from guidex.errors import UsageError
from guidex.files.atomic import atomic_write

Pixels = NDArray[np.uint8]

MAX_SIDE = 8192
_GREY = ("1", "L", "LA", "I", "I;16", "I;16B", "I;16L")


def require_size(resize: int | None, crop: bool) -> None:
    """Refuse, by a UsageError, sizes that images cannot be brought to."""
    if resize is not None and not (isinstance(resize, int) and 1 <= resize <= MAX_SIDE):
        raise UsageError(f"resize is {resize}; allowed are 1 to {MAX_SIDE} pixels, and none.")
    if crop and resize is None:
        raise UsageError("crop=true needs the side of the square: add resize=N")


def examine(data: bytes) -> tuple[str, tuple[int, int, int]]:
    """The format of an image file, "png", "jpeg", "webp" or "bmp", and (C, H, W).

    Whether it is whole is found out with as little decoding as will do: of a PNG, the checksums are
    compared; a JPEG is decoded at an eighth of its size. Raises ValueError: what is wrong.
    """
    with _opened(data) as image:
        kind = {"MPO": "jpeg"}.get(image.format, image.format.lower())
        shape = (1 if image.mode in _GREY else 3, image.height, image.width)
        if kind == "png":
            image.verify()
        else:
            image.draft(None, (max(image.width // 8, 1), max(image.height // 8, 1)))
            image.load()
        return kind, shape


def decode(data: bytes, resize: int | None = None, crop: bool = False) -> Pixels:
    """Pixels [C,H,W] of a file that was examined; see `to_pixels`. Raises ValueError."""
    with _opened(data) as image:
        return to_pixels(image, resize, crop)


@contextlib.contextmanager
def _opened(data: bytes) -> Iterator[Image.Image]:
    """An image file, opened; all that goes wrong with it is a ValueError."""
    try:
        with Image.open(io.BytesIO(data), formats=("PNG", "JPEG", "WEBP", "BMP")) as image:
            yield image
    except UnidentifiedImageError:
        what = "not a PNG, JPEG, WebP or BMP file" if data else "the file is empty"
        raise ValueError(what) from None
    # Pillow's decoders answer damaged files with exceptions of more than ten types.
    except Exception as error:
        raise ValueError(str(error) or type(error).__name__) from error


def to_pixels(image: Image.Image, resize: int | None, crop: bool) -> Pixels:
    """Bring an image to 8 bits, to grey or RGB, and to a size: uint8 [C,H,W], C = 1 or 3, possibly
    read-only.

    16-bit grey is divided by 257 and rounded, so that 65535 becomes 255; Pillow has reduced 16-bit
    colour to its upper byte before. Palettes are expanded to RGB, and alpha is dropped, not
    composited, as by PIL's `convert("RGB")` in EDM2's data set tool and pytorch-fid. Like there,
    EXIF orientation is ignored. Of an animation, the first frame is taken.

    Arguments:
        resize: side N of the result, by PIL's bicubic filter (antialiased, on 8 bits), or None.
        crop: resize only the central square, as ADM and EDM2 prepared ImageNet; otherwise the
            whole image, which changes its aspect ratio.
    """
    grey = image.mode in _GREY
    if image.mode.startswith("I"):
        values = np.asarray(image).astype(np.uint32)
        image = Image.fromarray(((values + 128) // 257).astype(np.uint8))
    elif image.mode == "P":
        image = image.convert("RGBA")  # straight to RGB, Pillow warns about transparency
    image = image.convert("L" if grey else "RGB")
    if crop:
        image = _central_square(image, resize)
    elif resize is not None and image.size != (resize, resize):
        image = image.resize((resize, resize), Image.Resampling.BICUBIC)
    pixels = np.asarray(image)
    return pixels[None] if grey else np.ascontiguousarray(pixels.transpose(2, 0, 1))


def _central_square(image: Image.Image, side: int) -> Image.Image:
    """The shorter side brought to `side`, the longer one cut on both ends. As in ADM (arXiv
    2105.05233), sides of twice that and more are halved by averaging before the bicubic filter."""
    while min(image.size) >= 2 * side:
        image = image.resize((image.width // 2, image.height // 2), Image.Resampling.BOX)
    scale = side / min(image.size)
    size = (round(image.width * scale), round(image.height * scale))
    if image.size != size:
        image = image.resize(size, Image.Resampling.BICUBIC)
    left, top = (image.width - side) // 2, (image.height - side) // 2
    return image.crop((left, top, left + side, top + side))


def from_pixels(pixels: Pixels) -> Image.Image:
    """The image, mode L or RGB, of uint8 pixels [C,H,W] with C = 1 or 3."""
    return Image.fromarray(pixels[0] if len(pixels) == 1 else pixels.transpose(1, 2, 0))


def write_png(path: str | Path, pixels: Pixels) -> None:
    """Write pixels uint8 [C,H,W], C = 1 or 3, as a PNG file; see `atomic_write`."""
    encoded = io.BytesIO()
    from_pixels(pixels).save(encoded, format="PNG")
    atomic_write(path, lambda file: file.write(encoded.getbuffer()))


def to_uint8(x: Tensor) -> Tensor:
    """Samples, nominally in [-1, 1], to uint8 pixels of the same shape: x * 127.5 + 128, clipped,
    truncated.

    That is rounding to the nearest pixel value, in the form that EDM and EDM2 published their
    images with.
    """
    return (x.float() * 127.5 + 128).clip(0, 255).to(torch.uint8)


def to_float(pixels: Tensor, dtype: torch.dtype = torch.float64) -> Tensor:
    """Pixels, uint8, to numbers in [-1, 1] of the same shape: u / 127.5 - 1."""
    return pixels.to(dtype) / 127.5 - 1
