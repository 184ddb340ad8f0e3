"""Images in NumPy files: .npz as ADM writes them, and plain .npy."""

import math
import struct
import zipfile
from pathlib import Path
from typing import IO

import numpy as np
from numpy.lib import format as npy
from numpy.typing import NDArray

from guidex.errors import GuidexError, reason_of


def open_array(path: Path) -> tuple[NDArray[np.uint8], NDArray[np.int64] | None]:
    """The images uint8 [N,H,W,C], C = 1 or 3, and labels int64 [N] or None, of a .npy or .npz file.

    In an .npz, the images are `images` or else `arr_0` (np.savez's name for a first array, used by
    ADM), the labels `labels` or else `arr_1`. Nothing is unpickled. Arrays are mapped and not
    loaded, but for those of np.savez_compressed. All of an .npz is read for its checksums.

    Raises:
        GuidexError: the file is damaged, or its arrays are of another name, type or shape.
    """
    try:
        if path.suffix.lower() == ".npy":
            with open(path, "rb") as file:
                images, labels = _map(path, 0, file, path.stat().st_size), None
        else:
            with zipfile.ZipFile(path) as archive:
                images = read_entry(path, archive, "images", "arr_0")
                labels = read_entry(path, archive, "labels", "arr_1")
        _check(images, labels)
        return images, None if labels is None else labels.astype(np.int64)
    except GuidexError as error:
        raise GuidexError(f"{path}: {error}") from error
    # Damaged zips and headers raise many types, struct.error and SyntaxError among them.
    except Exception as error:
        raise GuidexError(f"cannot read {path}: {reason_of(error)}") from error


def read_entry(path: Path, archive: zipfile.ZipFile, *names: str) -> np.ndarray | None:
    """The first of these arrays that is in a zip, mapped where its bytes are stored as they are."""
    entries = {entry.filename.removesuffix(".npy"): entry for entry in archive.infolist()}
    entry = next((entries[name] for name in names if name in entries), None)
    if entry is None:
        return None
    with archive.open(entry) as file:
        if entry.compress_type != zipfile.ZIP_STORED:
            array = npy.read_array(file, allow_pickle=False)
        else:
            with open(path, "rb") as whole:  # a local header has 30 bytes, a name and an extra
                whole.seek(entry.header_offset + 26)
                lengths = struct.unpack("<HH", whole.read(4))
            array = _map(path, entry.header_offset + 30 + sum(lengths), file, entry.file_size)
        while file.read(2**24):  # up to the end, where zipfile compares the checksum
            pass
    return array


def _map(path: Path, start: int, file: IO[bytes], size: int) -> np.ndarray:
    """An array of `size` bytes, its header among them, that begins at `start` of a file."""
    version = npy.read_magic(file)
    read_header = npy.read_array_header_1_0 if version[0] == 1 else npy.read_array_header_2_0
    shape, by_column, dtype = read_header(file)
    if dtype.hasobject:
        raise GuidexError("it holds Python objects, which are never loaded.")
    if file.tell() + math.prod(shape) * dtype.itemsize != size:
        raise GuidexError(f"it is too short or too long for an array {dtype} {shape}.")
    order = "F" if by_column else "C"
    return np.memmap(path, dtype, "r", start + file.tell(), shape, order)


def _check(images: np.ndarray | None, labels: np.ndarray | None) -> None:
    if images is None:
        raise GuidexError(
            "it holds no images, neither 'images' nor 'arr_0'. Of latents there are no metrics: "
            "sample again to another folder, with decoder=sd_vae decoder.path=FOLDER."
        )
    right = images.dtype == np.uint8 and images.ndim == 4 and images.shape[3] in (1, 3)
    if not right or images.size == 0:
        raise GuidexError(
            f"it holds {images.dtype} {images.shape}, yet images are uint8 [N,H,W,C] with C = 1 or "
            "3, at least one of at least 1x1 pixel. Convert [-1, 1] by (x * 127.5 + 128)"
            ".clip(0, 255).astype('uint8'), and [N,C,H,W] by transpose(0, 2, 3, 1)."
        )
    if labels is None:
        return
    if labels.dtype.kind not in "iu" or labels.shape != images.shape[:1] or labels.min() < 0:
        raise GuidexError(
            f"its labels are {labels.dtype} {labels.shape}, yet labels are ({len(images)},) "
            "integers, 0 and above. Remove the array to do without them."
        )
