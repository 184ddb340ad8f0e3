"""Images in NumPy files: .npz as ADM writes them, and plain .npy."""

import math
import struct
import zipfile
from pathlib import Path
from typing import IO

import numpy as np
from numpy.typing import NDArray

from guidex.data.containers import reason_of
from guidex.errors import GuidexError


def open_array(path: Path) -> tuple[NDArray[np.uint8], NDArray[np.int64] | None]:
    """Open the images, and the labels if there are any, of a .npy or .npz file.

    In an .npz, the images are `images` or else `arr_0` (np.savez's name for a first array, used by
    ADM), the labels `labels` or else `arr_1`. Nothing is unpickled. A .npy, and an .npz written by
    np.savez, is mapped and not loaded; one by np.savez_compressed is loaded. The checksums of an
    .npz are compared here, for which all of it is read; a .npy has none.

    Returns:
        Images uint8 [N,H,W,C] with C = 1 or 3, read-only, and labels int64 [N] or None.

    Raises:
        GuidexError: the file is damaged, or its arrays are of another name, type or shape.
    """
    try:
        if path.suffix.lower() == ".npy":
            images = np.load(path, mmap_mode="r", allow_pickle=False)
            _check_images(images)
            return images, None
        with zipfile.ZipFile(path) as archive:
            return _open_npz(path, archive)
    except GuidexError as error:
        raise GuidexError(f"{path}: {error}") from error
    # Damaged zips and headers raise many types, struct.error and SyntaxError among them.
    except Exception as error:
        raise GuidexError(f"cannot read {path}: {reason_of(error)}") from error


def _open_npz(
    path: Path, archive: zipfile.ZipFile
) -> tuple[NDArray[np.uint8], NDArray[np.int64] | None]:
    entries = {entry.filename.removesuffix(".npy"): entry for entry in archive.infolist()}
    if not entries.keys() & {"images", "arr_0"}:
        if "latents" in entries:
            raise GuidexError(
                "holds latents and no images, and there are no metrics of latents. Sample again to "
                "another folder (out=FOLDER), with a decoder that is there: decoder=sd_vae "
                "decoder.path=FOLDER."
            )
        raise GuidexError(
            f"holds no images: they are looked for under 'images' and 'arr_0', and the file has "
            f"{sorted(entries)}."
        )
    images = _read_entry(path, archive, entries.get("images") or entries["arr_0"])
    _check_images(images)
    entry = entries.get("labels", entries.get("arr_1"))
    if entry is None:
        return images, None
    labels = _read_entry(path, archive, entry)
    if labels.dtype.kind not in "iu" or labels.shape != images.shape[:1] or labels.min() < 0:
        raise GuidexError(
            f"its labels are {labels.dtype} {labels.shape}, the least of them {labels.min()}, yet "
            f"labels of its {len(images)} images are integers ({len(images)},), 0 and above. "
            "Remove the array to do without labels."
        )
    return images, labels.astype(np.int64)


def _read_entry(path: Path, archive: zipfile.ZipFile, entry: zipfile.ZipInfo) -> np.ndarray:
    """An array in a zip, mapped where its bytes are stored as they are."""
    with archive.open(entry) as file:
        if entry.compress_type != zipfile.ZIP_STORED:
            array = np.lib.format.read_array(file, allow_pickle=False)
        else:
            array = _map_entry(path, file, entry)
        while file.read(2**24):  # up to the end, where zipfile compares the checksum
            pass
    return array


def _map_entry(path: Path, file: IO[bytes], entry: zipfile.ZipInfo) -> np.ndarray:
    version, form = np.lib.format.read_magic(file), np.lib.format
    read_header = form.read_array_header_1_0 if version[0] == 1 else form.read_array_header_2_0
    shape, by_column, dtype = read_header(file)
    if dtype.hasobject:
        raise GuidexError("holds Python objects, which are never loaded.")
    if file.tell() + math.prod(shape) * dtype.itemsize != entry.file_size:
        raise GuidexError(f"is damaged: it is too short or too long for an array {dtype} {shape}.")
    with open(path, "rb") as whole:  # a zip's local header is of 30 bytes, a name and an extra
        whole.seek(entry.header_offset + 26)
        offset = entry.header_offset + 30 + sum(struct.unpack("<HH", whole.read(4))) + file.tell()
    return np.memmap(path, dtype, "r", offset, shape, "F" if by_column else "C")


def _check_images(images: np.ndarray) -> None:
    shape, advice = images.shape, ""
    if images.dtype != np.uint8:
        advice = " Convert values in [-1, 1] by (x * 127.5 + 128).clip(0, 255)."
    elif len(shape) == 3:
        advice = " If these are grey images, add the last axis: x[..., None]."
    elif len(shape) == 4 and shape[3] not in (1, 3) and shape[1] in (1, 3):
        advice = " This looks like [N,C,H,W]: apply transpose(0, 2, 3, 1)."
    elif len(shape) == 4 and shape[3] in (1, 3) and images.size > 0:
        return
    raise GuidexError(
        f"holds {images.dtype} {shape}, yet images are uint8 [N,H,W,C] with C = 1 or 3, at least "
        f"one of them and of at least 1x1 pixel.{advice}"
    )
