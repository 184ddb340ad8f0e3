"""Image files to uint8 pixels [C,H,W] and back."""

import contextlib
import io
import warnings
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from guidex.errors import UsageError
from guidex.files.atomic import atomic_write

Pixels = NDArray[np.uint8]
Channels = Literal["auto", 1, 3]

# Image files are not trusted: a file of a few kB may claim to hold gigabytes of pixels.
MAX_SIDE = 8192
MAX_PIXELS = MAX_SIDE**2

_FORMATS = ("PNG", "JPEG", "WEBP", "BMP")
_GREY = ("1", "L", "LA", "I", "I;16", "I;16B", "I;16L")


def quiet_pillow() -> None:
    """Silence Pillow's warnings, which are about metadata (EXIF, animation) that is not used here.

    Called again by everyone who is about to decode, since warning filters come and go.
    `warnings.catch_warnings` is no substitute: it is not thread-safe, and decoding is threaded.
    """
    warnings.filterwarnings("ignore", module=r"PIL\.")


@dataclass(frozen=True)
class Conversion:
    """What becomes of images as they are read; see `to_pixels`.

    Attributes:
        channels: 1 for grey (ITU-R 601 luma of colours), 3 for RGB (grey is repeated), "auto" for
            what the file holds; a palette counts as colour.
        resize: side N of the result, by PIL's bicubic filter (antialiased, on 8 bits), or None.
        crop: whether only the central square of an image is resized, as ADM and EDM2 prepared
            ImageNet; otherwise the whole of it is, which changes its aspect ratio.

    Raises:
        UsageError: other channels, a side out of range, or crop without resize.
    """

    channels: Channels = "auto"
    resize: int | None = None
    crop: bool = False

    def __post_init__(self) -> None:
        if self.channels not in ("auto", 1, 3):
            raise UsageError(
                f"channels is {self.channels!r}; allowed are 'auto', 1 (grey) and 3 (RGB)."
            )
        if self.resize is not None and not 1 <= self.resize <= MAX_SIDE:
            raise UsageError(
                f"resize is {self.resize}; allowed are 1 to {MAX_SIDE} pixels, and none."
            )
        if self.crop and self.resize is None:
            raise UsageError("crop needs the side of the square as resize=N.")

    def shape(self, grey: bool, width: int, height: int) -> tuple[int, int, int]:
        """(C, H, W) of what becomes of an image."""
        channels = (1 if grey else 3) if self.channels == "auto" else self.channels
        if self.resize is not None:
            width = height = self.resize
        return channels, height, width


class Header(NamedTuple):
    """What an image file holds.

    Attributes:
        kind: its format: "png", "jpeg", "webp" or "bmp".
        shape: (C, H, W) of what `decode` makes of it.
    """

    kind: str
    shape: tuple[int, int, int]


def examine(data: bytes, conversion: Conversion) -> Header:
    """Find out what an image file holds and whether it is whole, decoding as little as will do.

    Of a PNG file, the checksums are compared, in a fraction of the time that its pixels take; a
    JPEG is decoded at an eighth of its size, the others as they are. So a PNG that was written
    wrongly, yet with right checksums, fails in `decode` alone.

    Arguments:
        data, conversion: as for `decode`.

    Raises:
        ValueError: why the file cannot be decoded, in a few words.
    """
    with _opened(data) as image:
        header = Header(_kind(image), conversion.shape(image.mode in _GREY, *image.size))
        if header.kind != "png":
            image.draft(None, (max(image.width // 8, 1), max(image.height // 8, 1)))
            image.load()
        return header


def decode(data: bytes, conversion: Conversion) -> Pixels:
    """Decode one image file; see `to_pixels` for what becomes of colours and sizes.

    Arguments:
        data: a PNG, JPEG, WebP or BMP file, whatever its name says.
        conversion: what becomes of its pixels.

    Returns:
        Pixels [C,H,W].

    Raises:
        ValueError: why the file cannot be decoded, in a few words.
    """
    with _opened(data) as image:
        return to_pixels(image, conversion)


@contextlib.contextmanager
def _opened(data: bytes) -> Iterator[Image.Image]:
    """An image file, opened; all that goes wrong with it is a ValueError."""
    if len(data) == 0:
        raise ValueError("the file is empty")
    try:
        with Image.open(io.BytesIO(data), formats=_FORMATS) as image:
            if image.width * image.height > MAX_PIXELS:
                raise ValueError(
                    f"{image.width}x{image.height} pixels are more than the {MAX_PIXELS} allowed"
                )
            if image.format == "PNG":
                _check_png(data)
            yield image
    except MemoryError:
        raise
    except UnidentifiedImageError:
        raise ValueError("not a PNG, JPEG, WebP or BMP file") from None
    # Pillow's decoders answer damaged files with exceptions of more than ten types.
    except Exception as error:
        raise ValueError(str(error) or type(error).__name__) from error


def _check_png(data: bytes) -> None:
    """Compare the checksums of all chunks that pixels depend on (PNG specification, section 5.4),
    which decoders skip where the compressed data happen to make sense.

    Raises:
        ValueError: one is wrong, or the file does not come to its end.
    """
    view, at, kind = memoryview(data), 8, b""
    while kind != b"IEND":
        end = at + 12 + int.from_bytes(view[at : at + 4])
        kind = bytes(view[at + 4 : at + 8])
        if end > len(data):
            raise ValueError("the file is cut off or damaged")
        # Others have small first letters. A damaged name may look like one of theirs.
        vital = not kind[:1].islower() or kind.upper() in (b"IHDR", b"PLTE", b"IDAT", b"IEND")
        if vital and zlib.crc32(view[at + 4 : end - 4]) != int.from_bytes(view[end - 4 : end]):
            raise ValueError(f"damaged: the checksum of its {kind!a} is wrong")
        at = end


def _kind(image: Image.Image) -> str:
    return {"MPO": "jpeg"}.get(image.format, image.format.lower())


def to_pixels(image: Image.Image, conversion: Conversion) -> Pixels:
    """Bring an image to 8 bits, to grey or RGB, and to a size.

    16-bit grey is divided by 257 and rounded, so that 65535 becomes 255; Pillow has reduced 16-bit
    colour to its upper byte before. Palettes are expanded, CMYK is converted, and alpha is
    dropped, not composited, as by PIL's `convert("RGB")` in EDM2's data set tool and pytorch-fid.
    Like there, EXIF orientation is ignored. Of an animation, the first frame is taken.

    Arguments:
        image: any mode that PNG, JPEG, WebP or BMP can have.
        conversion: channels and size of the result.

    Returns:
        Pixels uint8 [C,H,W], C = 1 or 3, possibly read-only.
    """
    image = _grey(image) if image.mode in _GREY else _colour(image)
    if conversion.channels != "auto":
        image = image.convert("L" if conversion.channels == 1 else "RGB")
    if conversion.crop:
        image = _central_square(image, conversion.resize)
    elif conversion.resize is not None and image.size != (conversion.resize, conversion.resize):
        image = image.resize((conversion.resize, conversion.resize), Image.Resampling.BICUBIC)
    pixels = np.asarray(image)
    return pixels[None] if pixels.ndim == 2 else np.ascontiguousarray(pixels.transpose(2, 0, 1))


def _central_square(image: Image.Image, side: int) -> Image.Image:
    """The shorter side brought to `side`, the longer one cut on both ends.

    As in ADM (Dhariwal and Nichol 2021, arXiv 2105.05233), sides of twice that and more are halved
    by averaging before the bicubic filter.
    """
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
    """Write pixels uint8 [C,H,W], C = 1 (grey) or 3 (RGB), as a PNG file, whole or not at all.

    Raises:
        ValueError: the array is of another type or shape.
        GuidexError: the file system refuses, for instance because the disk is full.
    """
    if pixels.dtype != np.uint8 or pixels.ndim != 3 or pixels.shape[0] not in (1, 3):
        raise ValueError(
            f"a PNG is written from uint8 [1 or 3, H, W], not {pixels.dtype} {pixels.shape}"
        )
    encoded = io.BytesIO()
    from_pixels(pixels).save(encoded, format="PNG")
    atomic_write(path, lambda file: file.write(encoded.getbuffer()))


def _grey(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I"):
        values = np.asarray(image).astype(np.uint32)
        return Image.fromarray(((values + 128) // 257).astype(np.uint8))
    return image.convert("L")


def _colour(image: Image.Image) -> Image.Image:
    if image.mode == "P":
        # By way of RGBA: straight to RGB, Pillow warns about palettes with transparency.
        image = image.convert("RGBA")
    return image.convert("RGB")
