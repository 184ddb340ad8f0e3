"""Images in NumPy files: .npz as ADM writes them, and plain .npy."""

import os
import struct
import zipfile
from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np
from numpy.typing import NDArray

from guidex.data.containers import reason_of
from guidex.errors import GuidexError

# What a compressed array may need in memory. Arrays that are not compressed are mapped.
MAX_COMPRESSED = 16 * 2**30

_LABELS_LIMIT = 2**30
_CHUNK = 2**24


class _Header(NamedTuple):
    shape: tuple[int, ...]
    order: str
    dtype: np.dtype
    start: int

    @property
    def nbytes(self) -> int:
        return int(np.prod(self.shape, dtype=object)) * self.dtype.itemsize


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
            with open(path, "rb") as file:
                header = _header(file, os.fstat(file.fileno()).st_size)
            _check_images(header)
            return _map(path, header, 0), None
        with zipfile.ZipFile(path) as archive:
            return _open_npz(path, archive)
    except GuidexError as error:
        raise GuidexError(f"{path}: {error}") from error
    # Damaged zips and headers raise many types, struct.error and SyntaxError among them.
    except MemoryError:
        raise
    except Exception as error:
        raise GuidexError(f"cannot read {path}: {reason_of(error)}") from error


def _open_npz(
    path: Path, archive: zipfile.ZipFile
) -> tuple[NDArray[np.uint8], NDArray[np.int64] | None]:
    entries = {info.filename.removesuffix(".npy"): info for info in archive.infolist()}
    images = entries.get("images", entries.get("arr_0"))
    if images is None and "latents" in entries:
        raise GuidexError(
            "holds latents and no images, and there are no metrics of latents. Sample again to "
            "another folder (out=FOLDER), with a decoder that is there: decoder=sd_vae "
            "decoder.path=FOLDER."
        )
    if images is None:
        raise GuidexError(
            f"holds no images: they are looked for under 'images' and 'arr_0', and the file has "
            f"{sorted(entries)}."
        )
    header = _entry_header(archive, images)
    _check_images(header)
    if images.compress_type == zipfile.ZIP_STORED:
        with archive.open(images) as file:
            while file.read(_CHUNK):  # up to the end, where zipfile compares the checksum
                pass
        pixels = _map(path, header, _data_offset(path, images))
    else:
        pixels = _load(archive, images, header, MAX_COMPRESSED)
    labels = entries.get("labels", entries.get("arr_1"))
    if labels is None:
        return pixels, None
    header = _entry_header(archive, labels)
    _check_labels(header, len(pixels))
    values = _load(archive, labels, header, _LABELS_LIMIT).astype(np.int64)
    if values.min() < 0:
        raise GuidexError(f"its labels are classes 0, 1, 2, ..., yet the least is {values.min()}.")
    return pixels, values


def _entry_header(archive: zipfile.ZipFile, entry: zipfile.ZipInfo) -> _Header:
    # Other methods are rare, and Python's decompressors for them know no limit.
    if entry.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise GuidexError(f"{entry.filename} is compressed, but not by deflate.")
    with archive.open(entry) as file:
        return _header(file, entry.file_size)


def _header(file: BinaryIO, size: int) -> _Header:
    """Read the header of a .npy stream of `size` bytes, and check it against that size."""
    version = np.lib.format.read_magic(file)
    readers = {
        (1, 0): np.lib.format.read_array_header_1_0,
        (2, 0): np.lib.format.read_array_header_2_0,
    }
    if version not in readers:
        raise GuidexError(f"has version {version} of the .npy format; 1.0 and 2.0 can be read.")
    shape, fortran, dtype = readers[version](file)
    header = _Header(shape, "F" if fortran else "C", dtype, file.tell())
    if not dtype.hasobject and header.start + header.nbytes != size:
        raise GuidexError(
            f"is damaged: an array {dtype} {shape} of {header.nbytes} bytes is announced, and "
            f"{size - header.start} bytes are there. Copy or download the file again."
        )
    return header


def _check_images(header: _Header) -> None:
    given = f"holds {header.dtype} {header.shape}, yet images are uint8 [N,H,W,C] with C = 1 or 3"
    if header.dtype.hasobject:
        raise GuidexError(f"{given}. Arrays of Python objects are pickles and are never loaded.")
    if header.dtype != np.uint8:
        raise GuidexError(f"{given}. Convert values in [-1, 1] by (x * 127.5 + 128).clip(0, 255).")
    if len(header.shape) == 4 and header.shape[3] not in (1, 3) and header.shape[1] in (1, 3):
        raise GuidexError(f"{given}. This looks like [N,C,H,W]: apply transpose(0, 2, 3, 1).")
    if len(header.shape) == 3:
        raise GuidexError(f"{given}. If these are grey images, add the last axis: x[..., None].")
    if len(header.shape) != 4 or header.shape[3] not in (1, 3):
        raise GuidexError(f"{given}.")
    if header.nbytes == 0:
        raise GuidexError(f"{given}, at least one of them and of at least 1x1 pixel.")


def _check_labels(header: _Header, count: int) -> None:
    if header.dtype.kind not in "iu" or header.shape != (count,):
        raise GuidexError(
            f"its labels are {header.dtype} {header.shape}, yet labels of its {count} images are "
            f"integers ({count},). Remove the array to do without labels."
        )


def _data_offset(path: Path, entry: zipfile.ZipInfo) -> int:
    """Where the bytes of a stored zip entry begin: after its local header, of 30 bytes + n + m."""
    with open(path, "rb") as file:
        file.seek(entry.header_offset)
        local = file.read(30)
    if entry.flag_bits & 0x1 or local[:4] != b"PK\x03\x04":
        raise GuidexError("is damaged or encrypted.")
    name, extra = struct.unpack("<HH", local[26:30])
    return entry.header_offset + 30 + name + extra


def _map(path: Path, header: _Header, offset: int) -> NDArray[np.uint8]:
    return np.memmap(
        path, header.dtype, "r", offset + header.start, shape=header.shape, order=header.order
    )


def _load(
    archive: zipfile.ZipFile, entry: zipfile.ZipInfo, header: _Header, limit: int
) -> NDArray[np.generic]:
    if header.nbytes > limit:
        raise GuidexError(
            f"needs {header.nbytes / 2**30:.1f} GiB once decompressed, more than the "
            f"{limit // 2**30} GiB allowed. Write it with np.savez, which is read in place."
        )
    with archive.open(entry) as file:
        data = np.lib.format.read_array(file, allow_pickle=False)
        # Reading on to the end makes zipfile compare the checksum.
        file.read(1)
    return data
