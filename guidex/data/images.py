"""The one reader of image sets: folders, zips and NumPy arrays."""

import difflib
import hashlib
import json
import os
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np

from guidex.data.arrays import open_array
from guidex.data.classes import find_labels
from guidex.data.codec import (
    Channels,
    Conversion,
    Header,
    Pixels,
    decode,
    examine,
    quiet_pillow,
)
from guidex.data.containers import SUFFIXES, FolderSource, Source, ZipSource, reason_of, shown
from guidex.data.image_set import (
    ImageSet,
    array_images,
    changed,
    default_workers,
    map_ahead,
)
from guidex.errors import GuidexError, UsageError
from guidex.files.progress import counted

# Of a long list of complaints, this many are told.
_LISTED = 10

# What `guidex sample` writes: images in one of three forms, points of a toy, or latents.
_OUTPUTS = ("images", "images.zip", "images.npz", "samples.npz", "latents.npz")


def open_images(
    path: str | Path,
    *,
    bad: Literal["error", "skip"] = "error",
    resize: int | None = None,
    crop: bool = False,
    channels: Channels = "auto",
) -> ImageSet:
    """Open a set of images, and find out all that is wrong with it now rather than later.

    Sources are a folder (with its sub-folders; .png .jpg .jpeg .webp .bmp in any case, hidden
    files ignored), a .zip of the same, and a .npz or .npy of uint8 [N,H,W,C] (see
    `arrays.open_array`). Of the folder of a run of `guidex sample`, what it wrote is read: see
    `sample_output`.

    Every file is read and examined here (see `codec.examine`), and decoded when it is asked for.
    Nothing in a source is trusted: no pickle is loaded, nothing is extracted, and files, zip
    entries and pixels have limits.

    Labels come from labels.csv, dataset.json or the sub-folders (see `labels.find_labels`), of
    arrays from the .npz. What becomes of 16-bit grey, palettes, alpha, CMYK and EXIF orientation
    is stated at `codec.to_pixels`.

    Arguments:
        path: the folder or file.
        bad: "error" refuses a set with unreadable images, listing them; "skip" leaves them out
            and records them in `skipped`. An array is readable as a whole or not at all.
        resize: if given, all images are resized to resize x resize pixels.
        crop: resize the central squares of images, and not the whole; see `codec.Conversion`.
        channels: 1 (grey), 3 (RGB), or "auto": 1 if every image is grey, else 3.

    Raises:
        UsageError: no such path, no images in it, a kind of file that is not read, or a run of
            `guidex sample` that is not finished.
        GuidexError: unreadable images, images of several sizes, a damaged or dangerous file.
    """
    if bad not in ("error", "skip"):
        raise UsageError(f"bad is {bad!r}; allowed are 'error' and 'skip'.")
    conversion = Conversion(channels, resize, crop)
    path = Path(path)
    if not os.path.exists(path):
        raise UsageError(_no_such_path(path))
    path = sample_output(path)
    if not path.is_dir() and not path.is_file():  # to open a pipe would be to wait for ever
        raise UsageError(f"{path} is neither a folder nor a regular file.")
    if path.is_dir():
        return _open_files(FolderSource(path), path, bad, conversion)
    if path.suffix.lower() == ".zip":
        return _open_files(ZipSource(path), path, bad, conversion)
    if path.suffix.lower() in (".npz", ".npy"):
        images, labels = open_array(path)
        return array_images(images, labels=labels, resize=resize, crop=crop, channels=channels)
    raise UsageError(
        f"{path} is neither a folder of images nor a .zip, .npz or .npy file. For a single image, "
        "give the folder that it is in."
    )


def sample_output(path: Path) -> Path:
    """What `guidex sample` wrote to a folder: its images/, images.zip or images.npz, the
    samples.npz of a toy, or else its latents.npz. Any other path is returned as it is.

    Raises:
        UsageError: the run is not finished, or its output is no longer there.
    """
    if _command(path) in ("sweep", "eval"):
        raise UsageError(
            f"{path} is what guidex {_command(path)} wrote: a table and its figures, and no images "
            "to measure. Its metrics are in table.csv; for images, give guidex sample the settings "
            "of a point"
        )
    finished = _has_table(path)
    if finished:
        for name in _OUTPUTS:
            if (path / name).exists():
                return path / name
    if _command(path) != "sample":
        return path
    if finished:
        raise UsageError(f"{path} is a run of guidex sample, but has none of {', '.join(_OUTPUTS)}")
    text = f"{path} is a run of guidex sample that is not finished; give its command again"
    if (path / "images").exists():
        text += f", or read the images that are there already, as {path / 'images'}"
    raise UsageError(text)


def _has_table(path: Path) -> bool:
    """Whether a folder has the labels.csv that `guidex sample` writes at its end."""
    table = path / "labels.csv"
    if not table.is_file():
        return False
    with open(table, "rb") as file:
        columns = file.readline(1000).strip().split(b",")
    return {b"seed", b"label", b"file"} <= set(columns)


def _command(path: Path) -> str | None:
    """The command whose run a folder holds, by the run.json that it writes at its beginning."""
    mark = path / "run.json"
    if not mark.is_file():
        return None
    try:
        with open(mark, "rb") as file:
            content = json.loads(file.read(2**24))
    except (OSError, ValueError, RecursionError):
        return None  # someone else's
    if not isinstance(content, dict) or "run" not in content:
        return None
    return str(content.get("command"))


class _Record(NamedTuple):
    """What is remembered of an image file after it was examined."""

    name: str
    header: Header
    digest: bytes


def _open_files(source: Source, path: Path, bad: str, conversion: Conversion) -> ImageSet:
    if not source.names and not source.closed:
        raise UsageError(_no_images(source, path))
    labels = find_labels(source, path)
    records, failures = _scan(source, path, conversion)
    failures = source.closed + failures
    if failures and (bad == "error" or not records):
        raise GuidexError(_unreadable(failures, len(source.names), path))
    if len({record.header.shape[1:] for record in records}) > 1:
        raise GuidexError(_mixed_sizes(records, path))
    names = [record.name for record in records]
    values = labels.values
    if values is not None:
        readable = set(names)
        values = values[[name in readable for name in source.names]]
    # Images of one size differ in C alone, and one colour image makes a colour set.
    shape = max(record.header.shape for record in records)
    return ImageSet(
        shape=shape,
        names=names,
        labels=values,
        class_names=labels.class_names,
        kinds={record.header.kind for record in records},
        skipped=failures,
        load=_loader(source, path, records, shape, conversion),
        digest=lambda index: records[index].digest,
        crop=conversion.crop,
    )


def _scan(
    source: Source, path: Path, conversion: Conversion
) -> tuple[list[_Record], list[tuple[str, str]]]:
    """Examine every image; records of those that can be read, and names and reasons of others."""

    def record(name: str) -> _Record | str:
        try:
            data = source.read(name)
            header = examine(data, conversion)
        except (OSError, ValueError) as error:
            return reason_of(error)
        return _Record(name, header, hashlib.sha256(data).digest())

    records, failures = [], []
    quiet_pillow()
    workers = default_workers()
    results = map_ahead(record, source.names, workers, ahead=2 * workers)
    for name, result in zip(counted(source.names, f"checking {path}"), results, strict=True):
        if isinstance(result, str):
            failures.append((name, result))
        else:
            records.append(result)
    return records, failures


def _loader(
    source: Source,
    path: Path,
    records: list[_Record],
    shape: tuple[int, int, int],
    conversion: Conversion,
) -> Callable[[int], Pixels]:
    """The pixels [C,H,W] of image k, from a file that is found to be the same as before."""

    def load(index: int) -> Pixels:
        name, _, digest = records[index]
        try:
            data = source.read(name)
        except (OSError, ValueError) as error:
            raise GuidexError(changed(name, reason_of(error))) from error
        if hashlib.sha256(data).digest() != digest:
            raise GuidexError(changed(name, "its content is another"))
        try:
            return np.broadcast_to(decode(data, conversion), shape)
        except ValueError as error:
            raise GuidexError(
                f"{shown(name)} in {path} cannot be decoded, although its checksums are right: "
                f"{reason_of(error)}. Repair or remove it."
            ) from error

    return load


def _no_such_path(path: Path) -> str:
    """The complaint, with the nearest names in the deepest folder of the path that exists."""
    missing = path.absolute()
    while not os.path.exists(missing.parent):
        missing = missing.parent
    if missing.is_symlink():
        return f"{missing} is a link to {os.readlink(missing)}, which does not exist."
    text = f"there is no {path}"
    if missing != path.absolute():
        text += f", for there is no {missing}"
    try:
        # Not all of a folder of a million images, which would take long to compare with.
        siblings = sorted(os.listdir(missing.parent))[:5000]
    except OSError:
        siblings = []
    near = difflib.get_close_matches(missing.name, siblings, n=3)
    if near:
        return f"{text}. Did you mean {' or '.join(shown(name) for name in near)}?"
    return f"{text}, and {missing.parent} has nothing of a similar name. Check the path."


def _no_images(source: Source, path: Path) -> str:
    text = f"{path} holds no images: {', '.join(SUFFIXES)} are read, in sub-folders too"
    others = sorted(shown(suffix) or "no suffix" for suffix in source.others)
    if others:
        text += f", and only files with {', '.join(others[:_LISTED])} are there"
    return text + "."


def _unreadable(failures: list[tuple[str, str]], count: int, path: Path) -> str:
    return _listed(
        f"{len(failures)} of {count} images in {path} cannot be read:",
        failures,
        "Repair or remove them; guidex eval and guidex ref go on without them given bad=skip.",
    )


def _listed(title: str, failures: list[tuple[str, str]], advice: str) -> str:
    lines = [f"  {shown(name) or '.'}: {reason}" for name, reason in failures[:_LISTED]]
    if len(failures) > _LISTED:
        lines.append(f"  ... and {len(failures) - _LISTED} more")
    return "\n".join([title, *lines, advice])


def _mixed_sizes(records: list[_Record], path: Path) -> str:
    sizes = Counter(record.header.shape[1:] for record in records)
    examples = {record.header.shape[1:]: record.name for record in reversed(records)}
    lines = [
        f"  {width}x{height}: {count} images, such as {shown(examples[height, width])}"
        for (height, width), count in sizes.most_common(_LISTED)
    ]
    if len(sizes) > _LISTED:
        lines.append(f"  ... and {len(sizes) - _LISTED} more sizes")
    return "\n".join(
        [
            f"{path} holds images of {len(sizes)} sizes (width x height), and one set has one:",
            *lines,
            "Bring all of them to NxN pixels, or remove those that are not meant. In guidex eval "
            "and guidex ref: resize=N (crop=true: their central squares); in a model's data: "
            "model.resize=N.",
        ]
    )
