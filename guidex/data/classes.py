"""Classes of the images of a source: from labels.csv, from dataset.json, or from its folders."""

import csv
import io
import json
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from guidex.data.containers import MAX_BYTES, Source, reason_of, seed_of, shown
from guidex.errors import GuidexError

# Class by file; None where a file is listed without a class.
Table = dict[str, int | None]


class Labels(NamedTuple):
    """Classes [N], int64, in the order of the source's names, and the names of classes 0 ... K-1.

    `values` is None if the images have no classes, `class_names` if the classes have no names.
    """

    values: NDArray[np.int64] | None
    class_names: list[str] | None


def find_labels(source: Source, path: Path) -> Labels:
    """Labels of all images of a source, from the first of these that is there:

    1. `labels.csv` in the source, as `guidex sample` writes it: a table with the columns `file`
       (relative to the table, "/"-separated) and `label` (empty in all rows: no labels). A table
       without these columns is someone else's and is left alone.
    2. `dataset.json` in the source, as in the data sets of StyleGAN and EDM2:
       {"labels": [[file, class], ...]}, or null for no labels.
    3. `labels.csv` beside the folder or zip, if it has a row for at least one of the images. It
       names those of a folder with the folder, those of a zip as the zip does.
    4. Folders: the first-level sub-folders are the classes 0 ... K-1 in sorted order, provided
       that there are at least two and every image lies in one of them. The folders of a thousand
       seeds each that `guidex sample` writes are no classes. Else no labels.

    Arguments:
        source: the images.
        path: the folder or zip that they are in.

    Raises:
        GuidexError: the table is damaged or has no label for some image.
    """
    table = _csv_table(source.sidecar("labels.csv"), "labels.csv")
    if table is not None:
        return _select(table, source.names, "labels.csv")
    data = source.sidecar("dataset.json")
    if data is not None:
        table = _json_table(data)
        if table is None:
            return Labels(None, None)
        return _select(table, source.names, "dataset.json")
    beside = path.resolve().parent / "labels.csv"
    data = _content(beside)
    table = _csv_table(data, str(beside))
    inside = [f"{source.folder}/{name}" if source.folder else name for name in source.names]
    if table is not None and not table.keys().isdisjoint(inside):
        if data.startswith(b"seed,"):  # a run's own, which lists all that it has made
            _require_listed(table, inside, str(beside))
        return _select(table, inside, str(beside))
    return _from_folders(source.names)


def _select(table: Table, names: list[str], where: str) -> Labels:
    missing = [name for name in names if name not in table]
    if not missing:
        missing = [name for name in names if table[name] is None]
        if len(missing) == len(names):
            return Labels(None, None)
    if missing:
        raise GuidexError(
            f"{where} has no label for {len(missing)} of {len(names)} images, the first of them "
            f"{shown(missing[0])}. Complete it, or remove it to do without its labels."
        )
    return Labels(np.array([table[name] for name in names], dtype=np.int64), None)


def _require_listed(table: Table, names: list[str], where: str) -> None:
    gone = sorted(table.keys() - set(names))
    if gone:
        raise GuidexError(
            f"{where} lists {len(table)} images, and {len(gone)} of them are gone, the first "
            f"{shown(gone[0])}. Give the command of the run again to make them, or remove their "
            "rows to do without them."
        )


def _from_folders(names: list[str]) -> Labels:
    parts = [name.partition("/") for name in names]
    folders = sorted({folder for folder, _, _ in parts})
    if len(folders) < 2 or not all(separator for _, separator, _ in parts) or _are_seeds(names):
        return Labels(None, None)
    classes = {folder: index for index, folder in enumerate(folders)}
    values = np.array([classes[folder] for folder, _, _ in parts], dtype=np.int64)
    return Labels(values, folders)


def _are_seeds(names: list[str]) -> bool:
    """Whether files are named by seed, as 001000/001234.png. A stopped run has no table yet."""
    return not any(seed_of(name) is None or name.count("/") > 1 for name in names)


def _content(path: Path) -> bytes | None:
    """The bytes of a file, None if there is none."""
    if not path.is_file():
        return None
    try:
        with open(path, "rb") as file:
            data = file.read(MAX_BYTES + 1)
    except OSError as error:
        raise GuidexError(f"cannot read {path}: {reason_of(error)}") from error
    if len(data) > MAX_BYTES:
        raise GuidexError(f"{path} is larger than the {MAX_BYTES // 2**20} MiB allowed for it.")
    return data


def _csv_table(data: bytes | None, where: str) -> Table | None:
    """The table, or None if there is none with the columns of guidex."""
    if data is None:
        return None
    try:
        rows = csv.DictReader(io.StringIO(data.decode("utf-8-sig"), newline=""), strict=True)
        if not {"file", "label"} <= set(rows.fieldnames or ()):
            return None
        cells = [(row["file"], row["label"], f"line {rows.line_num}") for row in rows]
    except (csv.Error, UnicodeDecodeError) as error:
        raise GuidexError(f"{where} cannot be read as CSV: {error}") from error
    return _table(cells, where)


def _json_table(data: bytes) -> Table | None:
    """The table, or None if the file says that there are no labels."""
    try:
        content = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise GuidexError(f"dataset.json cannot be read as JSON: {error}") from error
    labels = content.get("labels") if isinstance(content, dict) else content
    if labels is None:
        return None
    if not isinstance(labels, list) or not all(
        isinstance(pair, list) and len(pair) == 2 for pair in labels
    ):
        raise GuidexError(
            'dataset.json is not as expected: allowed are {"labels": [[file, class], ...]} and '
            '{"labels": null}.'
        )
    cells = [(file, label, f"pair {index}") for index, (file, label) in enumerate(labels)]
    return _table(cells, "dataset.json")


def _table(cells: list[tuple[object, object, str]], where: str) -> Table:
    table: Table = {}
    for file, cell, place in cells:
        if not isinstance(file, str) or not _is_label(cell):
            raise GuidexError(
                f"{where}, {place}: {file!a:.100} has the label {cell!a:.100}, which is not a "
                "class 0, 1, 2, ..."
            )
        label = None if cell == "" else int(cell)
        name = file.replace("\\", "/").removeprefix("./")
        if table.setdefault(name, label) != label:
            raise GuidexError(f"{where}, {place}: {file!a:.100} has two different labels.")
    return table


def _is_label(cell: object) -> bool:
    """Whether this is a class: a JSON integer, or the digits, or nothing, of a CSV cell."""
    if isinstance(cell, str):
        return cell == "" or (cell.isascii() and cell.isdigit() and len(cell) < 10)
    # In JSON, true is an instance of int too.
    return type(cell) is int and 0 <= cell < 10**9
