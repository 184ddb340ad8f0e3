"""Classes of images by their names: from labels.csv, from dataset.json, or from their folders."""

import csv
import io
import json
import re

import numpy as np
from numpy.typing import NDArray

from guidex.data.containers import Container, read_file, seed_of, shown
from guidex.errors import GuidexError

# Class by file; None where a file is listed without a class.
Table = dict[str, int | None]
# Classes [N] of the images, in their order, and the names of classes 0 ... K-1, where there are.
Labels = tuple[NDArray[np.int64] | None, list[str] | None]


def find_labels(container: Container) -> Labels:
    """Labels of all images of a folder or zip, from the first of these that is there:

    1. `labels.csv` in it, as `guidex sample` writes it: a table with the columns `file` (relative
       to the table, "/"-separated) and `label` (empty in all rows: no labels). A table without
       these columns is someone else's and is left alone.
    2. `dataset.json` in it, as in the data sets of StyleGAN and EDM2: {"labels": [[file, class],
       ...]}, or null for no labels.
    3. `labels.csv` beside it, if it has a row for at least one of the images. It names those of a
       folder with the folder, those of a zip as the zip does.
    4. Folders: the first-level sub-folders are the classes 0 ... K-1 in sorted order, provided
       that there are at least two and every image lies in one of them. The folders of a thousand
       seeds each that `guidex sample` writes are no classes. Else no labels.

    Raises:
        GuidexError: the table is damaged or has no label for some image.
    """
    names = container.names
    if (data := container.table("labels.csv")) is not None:
        if (table := _csv_table(data, "labels.csv")) is not None:
            return _select(table, names, "labels.csv")
    if (data := container.table("dataset.json")) is not None:
        return _select(_json_table(data, names), names, "dataset.json")
    beside = container.path.resolve().parent / "labels.csv"
    if beside.is_file():
        data, names = read_file(beside), [container.prefix + name for name in names]
        table = _csv_table(data, str(beside)) or {}
        gone = sorted(table.keys() - set(names))
        # A run's own table lists all that it has made.
        if gone and len(gone) < len(table) and data.startswith(b"seed,"):
            raise GuidexError(
                f"{beside} lists {len(table)} images, and {len(gone)} of them are gone, the first "
                f"{shown(gone[0])}. Give the command of the run again to make them, or remove "
                "their rows to do without them."
            )
        if len(gone) < len(table):
            return _select(table, names, str(beside))
    return _from_folders(container.names)


def _select(table: Table, names: list[str], where: str) -> Labels:
    missing = [name for name in names if table.get(name) is None]
    if len(missing) == len(names) and table.keys() >= set(names):
        return None, None
    if missing:
        raise GuidexError(
            f"{where} has no label for {len(missing)} of {len(names)} images, the first of them "
            f"{shown(missing[0])}. Complete it, or remove it to do without its labels."
        )
    return np.array([table[name] for name in names], dtype=np.int64), None


def _from_folders(names: list[str]) -> Labels:
    # A run that was stopped has no table yet.
    seeds = all(seed_of(name) is not None and name.count("/") == 1 for name in names)
    folders = [name.partition("/")[0] for name in names]
    classes = sorted(set(folders))
    if seeds or len(classes) < 2 or not all("/" in name for name in names):
        return None, None
    numbers = {folder: number for number, folder in enumerate(classes)}
    return np.array([numbers[folder] for folder in folders], dtype=np.int64), classes


def _csv_table(data: bytes, where: str) -> Table | None:
    """The table, or None if it has other columns than those of guidex."""
    try:
        rows = csv.DictReader(io.StringIO(data.decode("utf-8-sig"), newline=""), strict=True)
        if not {"file", "label"} <= set(rows.fieldnames or ()):
            return None
        cells = [(row["file"], row["label"], f"line {rows.line_num}") for row in rows]
    except (csv.Error, UnicodeDecodeError) as error:
        raise GuidexError(f"{where} cannot be read as CSV: {error}") from error
    return _table(cells, where)


def _json_table(data: bytes, names: list[str]) -> Table:
    try:
        content = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise GuidexError(f"dataset.json cannot be read as JSON: {error}") from error
    labels = content.get("labels") if isinstance(content, dict) else content
    if labels is None:
        return dict.fromkeys(names)
    try:
        cells = [(file, label, f"pair {index}") for index, (file, label) in enumerate(labels)]
    except (TypeError, ValueError) as error:
        raise GuidexError(
            'dataset.json is not as expected: allowed are {"labels": [[file, class], ...]} and '
            '{"labels": null}.'
        ) from error
    return _table(cells, "dataset.json")


def _table(cells: list[tuple[object, object, str]], where: str) -> Table:
    table: Table = {}
    for file, cell, place in cells:
        # The text of a CSV, or a JSON integer (of which true is none).
        digits = str(cell) if type(cell) in (str, int) else "no class"
        if not isinstance(file, str) or not re.fullmatch("[0-9]{0,9}", digits):
            raise GuidexError(
                f"{where}, {place}: {file!a:.100} has the label {cell!a:.100}, which is not a "
                "class 0, 1, 2, ..."
            )
        label = int(digits) if digits else None
        name = file.replace("\\", "/").removeprefix("./")
        if table.setdefault(name, label) != label:
            raise GuidexError(f"{where}, {place}: {file!a:.100} has two different labels.")
    return table
