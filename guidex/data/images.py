"""The one reader of image sets: folders, zips and NumPy arrays, and scikit-learn's digits."""

import hashlib
import json
from collections import Counter
from contextlib import suppress
from pathlib import Path

import numpy as np

from guidex.data.arrays import open_array
from guidex.data.classes import find_labels
from guidex.data.codec import decode, examine, require_size
from guidex.data.containers import SUFFIXES, Container, open_folder, open_zip, read_file
from guidex.data.image_set import ImageSet, array_images, map_ahead
from guidex.errors import GuidexError, UsageError, printable, reason_of
from guidex.files.progress import Progress

_LISTED = 10  # of a long list of complaints

# What `guidex sample` writes: images in one of three forms, points of a toy, or latents.
_OUTPUTS = ("images", "images.zip", "images.npz", "samples.npz", "latents.npz")


def open_images(
    path: str | Path, *, bad: str = "error", resize: int | None = None, crop: bool = False
) -> ImageSet:
    """Open a set of images, and find out all that is wrong with it now rather than later.

    Arguments:
        path: a folder (with its sub-folders; .png .jpg .jpeg .webp .bmp in any case, hidden files
            ignored), a .zip of the same, an array (see `open_array`), or the folder of a run (see
            `sample_output`). Every file is examined. For labels, see `find_labels`.
        bad: "error" refuses a set with unreadable images, listing them; "skip" leaves them out.
        resize, crop: see `codec.to_pixels`, where colours are stated too.

    Raises:
        UsageError: no such path, no images in it, or a run that is not finished.
        GuidexError: unreadable images, images of several sizes, a damaged or dangerous file.
    """
    if bad not in ("error", "skip"):
        raise UsageError(f"bad must be error or skip, not {bad!r}")
    require_size(resize, crop)
    path = sample_output(Path(path))
    kind = path.suffix.lower()
    if path.is_dir():
        return _open_files(open_folder(path), bad, resize, crop)
    if path.is_file() and kind == ".zip":
        return _open_files(open_zip(path), bad, resize, crop)
    if path.is_file() and kind in (".npz", ".npy"):
        images, labels = open_array(path)
        return array_images(images, labels=labels, resize=resize, crop=crop)
    state = "is not" if path.exists() else "does not exist; give"
    raise UsageError(f"{path} {state} a folder of images, a .zip, a .npz or a .npy file.")


def digits(resize: int | None = None) -> ImageSet:
    """1797 grey images 8x8, or resized, of the digits 0 ... 9, which are also their labels.

    The images are the test part of "Optical Recognition of Handwritten Digits" (Alpaydin and
    Kaynak 1998, UCI machine learning repository, CC BY 4.0). Their values 0 ... 16 are spread over
    0 ... 255 and rounded, so that the middle 8 becomes 128.
    """
    # Imported here: it takes a second, and few commands need it.
    from sklearn.datasets import load_digits

    values, labels = load_digits(return_X_y=True)
    pixels = np.rint(values * (255 / 16)).astype(np.uint8).reshape(-1, 8, 8, 1)
    names = [str(digit) for digit in range(10)]
    return array_images(pixels, labels=labels.astype(np.int64), class_names=names, resize=resize)


def sample_output(path: Path) -> Path:
    """What `guidex sample` wrote to a folder, or any other path as it is. Raises UsageError: the
    run is not finished, or its output is no longer there."""
    is_finished, command = False, None
    with suppress(OSError, ValueError):
        is_finished = read_file(path / "labels.csv").startswith(b"seed,label,file")
    # Of someone else, it may be anything.
    with suppress(OSError, ValueError, LookupError, TypeError, RecursionError):
        mark = json.loads(read_file(path / "run.json"))
        command = mark["command"] if "run" in mark else None
    outputs = [path / name for name in _OUTPUTS if (path / name).exists()]
    if is_finished and outputs:
        return outputs[0]
    if command in ("sweep", "eval"):
        raise UsageError(f"{path} is what guidex {command} wrote, and holds no images to measure")
    if command == "sample":
        raise UsageError(
            f"{path} is a run of guidex sample that is not finished, or has none of "
            f"{', '.join(_OUTPUTS)}; give its command again"
        )
    return path


def _open_files(container: Container, bad: str, resize: int | None, crop: bool) -> ImageSet:
    """Examine every file, and make a set of those that can be read."""
    path = container.path
    if not container.names:
        others = printable(", ".join(sorted(container.others)[:3])) or "nothing"
        raise UsageError(f"{path} holds no images ({', '.join(SUFFIXES)}); there is {others}.")
    labels, class_names = find_labels(container)

    def record(name: str) -> tuple[str, tuple[int, int, int], bytes] | str:
        """Format, shape and digest of a file, or the reason why it cannot be read."""
        try:
            data = container.read(name)
            return *examine(data), hashlib.sha256(data).digest()
        except (OSError, ValueError) as error:
            return reason_of(error)

    rows, records, skipped = [], [], []
    with Progress(f"checking {path}", len(container.names), delay=2) as progress:
        for row, result in enumerate(map_ahead(record, container.names)):
            progress.update(1)
            if isinstance(result, str):
                skipped.append((container.names[row], result))
            else:
                rows.append(row)
                records.append(result)
    if skipped and (bad == "error" or not rows):
        _refuse(
            f"{len(skipped)} of {len(container.names)} images in {path} cannot be read:",
            [f"{printable(name)}: {reason}" for name, reason in skipped],
            "Repair or remove them; guidex eval and guidex ref leave them out given bad=skip.",
        )
    kinds, shapes, digests = zip(*records, strict=True)
    names = [container.names[row] for row in rows]
    sizes = [f"{width}x{height}" for _, height, width in shapes]
    counts = Counter(sizes).most_common()
    if resize is None and len(counts) > 1:
        _refuse(
            f"{path} holds images of {len(counts)} sizes (width x height); a set has one:",
            [
                f"{size}: {n} images, such as {printable(names[sizes.index(size)])}"
                for size, n in counts
            ],
            "Remove those that are not meant, or bring all to NxN pixels: resize=N in guidex eval "
            "and guidex ref (crop=true: their central squares), model.resize=N in a model's data.",
        )
    # Images of one size differ in C alone, and one colour image makes a colour set.
    channels, height, width = max(shapes)
    return ImageSet(
        shape=(channels, resize or height, resize or width),
        names=names,
        read_bytes=lambda index: container.read(names[index]),
        decode=lambda data: decode(data, resize, crop),
        digests=dict(enumerate(digests)),
        kinds=set(kinds),
        labels=None if labels is None else labels[rows],
        class_names=class_names,
        skipped=skipped,
        crop=crop,
    )


def _refuse(title: str, lines: list[str], advice: str) -> None:
    more = [f"... and {len(lines) - _LISTED} more"] * (len(lines) > _LISTED)
    raise GuidexError("\n".join([title, *(f"  {line}" for line in lines[:_LISTED] + more), advice]))
