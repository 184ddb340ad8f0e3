"""The one reader of image sets: folders, zips and NumPy arrays."""

import csv
import difflib
import hashlib
import json
import os
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from guidex.data.arrays import open_array
from guidex.data.classes import find_labels
from guidex.data.codec import decode, examine, require_size
from guidex.data.containers import SUFFIXES, Container, Folder, Zip, reason_of, shown
from guidex.data.image_set import ImageSet, array_images, map_ahead
from guidex.errors import GuidexError, UsageError
from guidex.files.progress import Progress

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
) -> ImageSet:
    """Open a set of images, and find out all that is wrong with it now rather than later.

    Arguments:
        path: a folder (with its sub-folders; .png .jpg .jpeg .webp .bmp in any case, hidden files
            ignored), a .zip of the same, a .npz or .npy of uint8 [N,H,W,C] (see
            `arrays.open_array`), or the folder of a run (see `sample_output`). Every file is
            examined (see `codec.examine`); none is trusted, unpickled or extracted. Labels come
            from labels.csv, dataset.json or the sub-folders (see `classes.find_labels`), of arrays
            from the .npz.
        bad: "error" refuses a set with unreadable images, listing them; "skip" leaves them out
            and records them in `skipped`. An array is readable as a whole or not at all.
        resize, crop: see `codec.to_pixels`, where colours are stated too.

    Returns:
        The set: grey if every image is grey, else RGB.

    Raises:
        UsageError: no such path, no images in it, a kind of file that is not read, or a run of
            `guidex sample` that is not finished.
        GuidexError: unreadable images, images of several sizes, a damaged or dangerous file.
    """
    if bad not in ("error", "skip"):
        raise UsageError(f"bad is {bad!r}; allowed are 'error' and 'skip'.")
    require_size(resize, crop)
    path = Path(path)
    if not os.path.exists(path):
        raise UsageError(_no_such_path(path))
    path = sample_output(path)
    if path.is_dir():
        return _open_files(Folder(path), bad, resize, crop)
    if not path.is_file():  # to open a pipe would be to wait for ever
        raise UsageError(f"{path} is neither a folder nor a regular file.")
    if path.suffix.lower() == ".zip":
        return _open_files(Zip(path), bad, resize, crop)
    if path.suffix.lower() in (".npz", ".npy"):
        images, labels = open_array(path)
        return array_images(images, labels=labels, resize=resize, crop=crop)
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
    command, columns = None, []
    try:
        if (path / "labels.csv").is_file():
            with open(path / "labels.csv", newline="") as file:
                columns = next(csv.reader(file), [])
        if (path / "run.json").is_file():
            mark = json.loads((path / "run.json").read_bytes())
            command = mark["command"] if "run" in mark else None
    except (OSError, ValueError, LookupError, TypeError, RecursionError, csv.Error):
        pass  # someone else's
    if command in ("sweep", "eval"):
        raise UsageError(
            f"{path} is what guidex {command} wrote: a table and its figures, and no images "
            "to measure. Its metrics are in table.csv; for images, give guidex sample the settings "
            "of a point"
        )
    finished = {"seed", "label", "file"} <= set(columns)
    outputs = [path / name for name in _OUTPUTS if (path / name).exists()]
    if finished and outputs:
        return outputs[0]
    if command != "sample":
        return path
    if finished:
        raise UsageError(f"{path} is a run of guidex sample, but has none of {', '.join(_OUTPUTS)}")
    ready = f", or read the images that are there already, as {path / 'images'}"
    raise UsageError(
        f"{path} is a run of guidex sample that is not finished; give its command again"
        + (ready if (path / "images").exists() else "")
    )


def _open_files(container: Container, bad: str, resize: int | None, crop: bool) -> ImageSet:
    """Examine every file, and make a set of those that can be read."""
    path = container.path
    if not container.names and not container.closed:
        others = ", ".join(sorted(shown(suffix) or "no suffix" for suffix in container.others))
        text = f"{path} holds no images: {', '.join(SUFFIXES)} are read, in sub-folders too"
        raise UsageError(text + (f", and only files with {others} are there." if others else "."))
    labels, class_names = find_labels(container)

    def record(name: str) -> tuple[str, tuple[int, int, int], bytes] | str:
        """Format, shape and digest of a file, or the reason why it cannot be read."""
        try:
            data = container.read(name)
            return *examine(data), hashlib.sha256(data).digest()
        except (OSError, ValueError) as error:
            return reason_of(error)

    records = []
    with Progress(f"checking {path}", len(container.names), delay=2) as progress:
        for result in map_ahead(record, container.names):
            records.append(result)
            progress.update(1)
    failures = container.closed + [
        (name, reason)
        for name, reason in zip(container.names, records, strict=True)
        if isinstance(reason, str)
    ]
    rows = [row for row, result in enumerate(records) if not isinstance(result, str)]
    if failures and (bad == "error" or not rows):
        title = f"{len(failures)} of {len(container.names)} images in {path} cannot be read:"
        lines = [f"{shown(name) or '.'}: {reason}" for name, reason in failures]
        advice = "Repair or remove them; guidex eval and guidex ref leave them out given bad=skip."
        raise GuidexError(_listed(title, lines, advice))
    kinds, shapes, digests = zip(*(records[row] for row in rows), strict=True)
    names = [container.names[row] for row in rows]
    # Images of one size differ in C alone, and one colour image makes a colour set.
    channels, height, width = max(shapes)
    if resize is None:
        _require_one_size(names, [shape[1:] for shape in shapes], path)
    return ImageSet(
        shape=(channels, resize or height, resize or width),
        names=names,
        read_bytes=lambda index: container.read(names[index]),
        decode=lambda data: decode(data, resize, crop),
        digests=dict(enumerate(digests)),
        kinds=set(kinds),
        labels=None if labels is None else labels[rows],
        class_names=class_names,
        skipped=failures,
        crop=crop,
    )


def _no_such_path(path: Path) -> str:
    """The complaint, with the nearest names in the deepest folder of the path that exists."""
    missing = path.absolute()
    while not os.path.exists(missing.parent):
        missing = missing.parent
    if missing.is_symlink():
        return f"{missing} is a link to {os.readlink(missing)}, which does not exist."
    parent = missing.parent
    # Not all of a folder of a million images, which would take long to compare with.
    names = sorted(os.listdir(parent))[:5000] if os.access(parent, os.R_OK | os.X_OK) else []
    near = difflib.get_close_matches(missing.name, names, n=3)
    hint = f"Did you mean {' or '.join(map(shown, near))}?" if near else "Check the path."
    return f"there is no {path}, for {parent} has no {shown(missing.name)}. {hint}"


def _require_one_size(names: list[str], sizes: list[tuple[int, ...]], path: Path) -> None:
    counts = Counter(sizes)
    if len(counts) == 1:
        return
    lines = [
        f"{size[1]}x{size[0]}: {count} images, such as {shown(names[sizes.index(size)])}"
        for size, count in counts.most_common()
    ]
    title = f"{path} holds images of {len(counts)} sizes (width x height), and one set has one:"
    advice = (
        "Bring all of them to NxN pixels, or remove those that are not meant. In guidex eval and "
        "guidex ref: resize=N (crop=true: their central squares); in a model's data: "
        "model.resize=N."
    )
    raise GuidexError(_listed(title, lines, advice))


def _listed(title: str, lines: Sequence[str], advice: str) -> str:
    more = [f"... and {len(lines) - _LISTED} more"] if len(lines) > _LISTED else []
    return "\n".join([title, *(f"  {line}" for line in [*lines[:_LISTED], *more]), advice])
