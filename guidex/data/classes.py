"""Classes of images by their names: from labels.csv, from dataset.json, or from their folders."""

import csv
import functools
import io
import json
import re
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from guidex.data.containers import Container, read_file, seed_of
from guidex.errors import GuidexError, printable, reason_of

# Class by file; None where a file is listed without a class.
Classes = dict[str, int | None]
# Classes [N] of the images, in their order, and the names of classes 0 ... K-1, where there are.
Labels = tuple[NDArray[np.int64] | None, list[str] | None]


def find_labels(container: Container) -> Labels:
    """Labels of all images of a folder or zip, from the first of these that is there:

    1. `labels.csv` in it, with the columns `file` and `label` (empty in all rows: no labels).
    2. `dataset.json` in it, as in the data sets of StyleGAN and EDM2: {"labels": [[file, class],
       ...]}, or null for no labels.
    3. `labels.csv` beside it, as `guidex sample` writes it, with a row for one of the images or
       more. It names those of a folder with the folder, those of a zip as the zip does.
    4. Folders: at least two first-level sub-folders that hold all images are the classes
       0 ... K-1 in sorted order, but for those of a thousand seeds of `guidex sample`.

    Raises:
        GuidexError: the table is damaged or has no label for some image.
    """
    names = container.names
    for where in ("labels.csv", "dataset.json"):
        if where in container.others:
            classes = _read_classes(where, functools.partial(container.read, where), names)
            if classes is not None:
                return _select(classes, names, where), None
    beside = container.path.resolve().parent / "labels.csv"
    if beside.exists():
        paths = [container.prefix + name for name in names]
        classes = _read_classes(str(beside), lambda: read_file(beside), paths) or {}
        gone = sorted(classes.keys() - set(paths))
        # A run's own table lists all that it has made.
        if gone and len(gone) < len(classes) and seed_of(gone[0]) is not None:
            raise GuidexError(
                f"{beside} lists images that are gone, such as {printable(gone[0])}. Give the "
                "run's command again, or remove their rows."
            )
        if len(gone) < len(classes):
            return _select(classes, paths, str(beside)), None
    # A run that was stopped has no table yet.
    seeds = all(seed_of(name) is not None and name.count("/") == 1 for name in names)
    folders = [name.partition("/")[0] for name in names if "/" in name]
    if seeds or len(set(folders)) < 2 or len(folders) < len(names):
        return None, None
    class_names, labels = np.unique(folders, return_inverse=True)
    return labels.astype(np.int64), class_names.tolist()


def _select(classes: Classes, names: list[str], where: str) -> NDArray[np.int64] | None:
    missing = [name for name in names if classes.get(name) is None]
    if len(missing) == len(names) and classes.keys() >= set(names):
        return None
    if missing:
        raise GuidexError(
            f"{where} has no label for {len(missing)} of {len(names)} images, the first of them "
            f"{printable(missing[0])}. Complete it, or remove it to do without its labels."
        )
    return np.array([classes[name] for name in names], dtype=np.int64)


def _read_classes(where: str, read: Callable[[], bytes], names: list[str]) -> Classes | None:
    """Classes by file, or None of a CSV that has other columns than those of guidex."""
    classes: Classes = {}
    try:
        if where.endswith(".json"):
            pairs = dict(json.loads(read()))["labels"]
            pairs = [(name, "") for name in names] if pairs is None else pairs
        else:
            text = io.StringIO(read().decode("utf-8-sig"), newline="")
            rows = csv.DictReader(text, strict=True)
            if not {"file", "label"} <= set(rows.fieldnames or ()):
                return None
            pairs = [(row["file"], row["label"]) for row in rows]
        for file, cell in pairs:
            # The text of a CSV, or a JSON integer (of which true is none).
            digits = str(cell) if type(cell) in (str, int) else "no class"
            if not re.fullmatch("[0-9]{0,9}", digits):
                raise ValueError(f"{file!a} has the label {cell!a}, which is not a class 0, 1, ...")
            label = int(digits) if digits else None
            name = str(file).replace("\\", "/").removeprefix("./")
            if classes.setdefault(name, label) != label:
                raise ValueError(f"{file!a} has two different labels")
    # Of JSON in another form, all kinds of errors.
    except (OSError, csv.Error, ValueError, RecursionError, LookupError, TypeError) as error:
        kind = where[-4:].strip(".").upper()
        raise GuidexError(f"{where} cannot be read as {kind}: {reason_of(error)}") from error
    return classes
