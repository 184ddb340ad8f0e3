"""`guidex ema`: averaged weights of any length from the snapshots of a training run ("post-hoc
EMA").

Karras et al. 2024 (arXiv 2312.02696), section 3.2. A training run stores, now and then, averages of
a few lengths. An average of any other length, at any time up to the last snapshot, is a weighted
sum of them.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from guidex.commands.words import flag, required, split_words
from guidex.errors import GuidexError, UsageError
from guidex.files.progress import Progress
from guidex.models.edm2.checkpoints import Checkpoint, read_checkpoint, write_checkpoint
from guidex.models.edm2.posthoc_ema import (
    gamma_of_sigma_rel,
    images_of,
    profile_product,
    reconstruction_coefficients,
)

# network-snapshot-1342177-0.050.pkl: thousands of images, then the length of the average.
NAME = re.compile(r".*-(\d{1,9})-(0\.\d{1,6})\.(?:pkl|safetensors)")

# What two snapshots of one training run have in common.
SAME = ("network", "dtype", "dataset_kwargs", "encoder")


@dataclass(frozen=True)
class Snapshot:
    """A stored average.

    Attributes:
        path: of the file.
        kimg: training time, thousands of images, rounded down.
        ema: length of the average, sigma_rel.
    """

    path: Path
    kimg: int
    ema: float


def ema_command(words: Sequence[str]) -> None:
    """Run the command.

    Arguments:
        words: snapshots, or folders of them, whose names end in -<kimg>-<length>.pkl (or
            .safetensors); ema=LENGTH, out=PATH.safetensors; maybe kimg=TIME (the last snapshot's
            if not given) and overwrite=true. Snapshots after the first one at or past this time
            are not needed, and not read.

    Raises:
        UsageError: before any weights are read where possible.
        GuidexError: a snapshot is damaged, or not of the same training run.
    """
    files, settings = split_words(words, ("ema", "out", "kimg", "overwrite"))
    ema = required(settings, "ema", "0.1")
    if type(ema) not in (int, float):
        raise UsageError(f"ema is the length of the average (sigma_rel), a number, not {ema!r}")
    out = Path(str(required(settings, "out", "network.safetensors")))
    if out.suffix != ".safetensors" or not out.parent.is_dir():
        raise UsageError(f"out={out} must be PATH.safetensors in a folder that exists")
    overwrite = flag(settings, "overwrite")
    for path in (out, out.with_suffix(".json")):
        if path.exists() and not overwrite:
            raise UsageError(f"{path} is already there; give another out, or overwrite=true")
    snapshots = find_snapshots(files)
    last = max(snapshot.kimg for snapshot in snapshots)
    kimg = settings.get("kimg", last)
    if type(kimg) is not int or not 0 < kimg <= last:
        raise UsageError(
            f"kimg is a training time, a whole number above 0 and at most the last snapshot's "
            f"{last}, not {kimg!r}"
        )
    used = _until(snapshots, kimg)
    checkpoint = reconstruct(used, kimg, float(ema))
    write_checkpoint(checkpoint, out, overwrite=overwrite)
    about = checkpoint.metadata["ema"]
    print(f"{out}: length {ema} at {kimg} kimg, of {len(used)} snapshots")
    print(
        f"its profile differs from the exact one by {100 * about['error']:.2g} % (in the L2 norm)"
    )


def find_snapshots(paths: Sequence[str]) -> list[Snapshot]:
    """Snapshots named one by one or by their folders, in order of time, then length.

    Raises:
        UsageError: nothing there, or a file whose name does not tell time and length.
    """
    found = []
    for path in map(Path, paths):
        inside = path.is_dir()
        for file in sorted(path.iterdir()) if inside else [path]:
            match = NAME.fullmatch(file.name)
            if match is not None and file.is_file():
                found.append(Snapshot(file, int(match[1]), float(match[2])))
            elif not inside:
                raise UsageError(
                    f"{file} is no file, or its name does not end in -<kimg>-<length>.pkl, such as "
                    "network-snapshot-1342177-0.050.pkl, which tells what it holds"
                )
    if not found:
        raise UsageError(
            "no snapshots given: guidex ema FOLDER ema=0.1 out=network.safetensors, where the "
            "folder has files such as network-snapshot-1342177-0.050.pkl"
        )
    return sorted(found, key=lambda snapshot: (snapshot.kimg, snapshot.ema))


def reconstruct(snapshots: Sequence[Snapshot], kimg: int, ema: float) -> Checkpoint:
    """The average of a length at a time, in the dtypes of the snapshots.

    The sum is in float32, and one snapshot at a time is in memory.

    Raises:
        UsageError: a length or time out of range, or a snapshot given twice.
        GuidexError: a snapshot cannot be read, or is of another network than the first.
    """
    times, lengths = [images_of(s.kimg) for s in snapshots], [s.ema for s in snapshots]
    coefficients = reconstruction_coefficients(times, lengths, [images_of(kimg)], [ema])[:, 0]
    total = _Sum()
    with Progress("reading", len(snapshots), unit="snapshots") as progress:
        for snapshot, coefficient in zip(snapshots, coefficients.tolist(), strict=True):
            total.add(snapshot, coefficient)
            progress.update(1)
    error = profile_error(times, lengths, coefficients, images_of(kimg), ema)
    about = {"kimg": kimg, "length": ema, "error": error, "snapshots": total.records}
    source = f"post-hoc EMA {ema} at {kimg} kimg of {len(snapshots)} snapshots"
    return total.checkpoint({"source": source, "ema": about})


class _Sum:
    """A weighted sum of snapshots of one training run."""

    def __init__(self) -> None:
        self.first: Checkpoint | None = None  # without its weights
        self.tensors: dict[str, Tensor] = {}
        self.records: list[dict[str, Any]] = []

    def add(self, snapshot: Snapshot, coefficient: float) -> None:
        checkpoint = read_checkpoint(snapshot.path)
        if self.first is None:
            shapes = {name: tensor.to("meta") for name, tensor in checkpoint.tensors.items()}
            self.first = replace(checkpoint, tensors=shapes)
            self.tensors = {name: torch.zeros(v.shape) for name, v in shapes.items()}
        _require_same(checkpoint, self.first, snapshot.path)
        for name, tensor in checkpoint.tensors.items():
            self.tensors[name].add_(tensor.float(), alpha=coefficient)
        self.records.append(
            {
                "file": snapshot.path.name,
                "sha256": checkpoint.metadata.get("sha256"),
                "kimg": snapshot.kimg,
                "length": snapshot.ema,
                "coefficient": coefficient,
            }
        )

    def checkpoint(self, about: dict[str, Any]) -> Checkpoint:
        """The sum in the dtypes of the snapshots, described as they are."""
        dtypes = {name: tensor.dtype for name, tensor in self.first.tensors.items()}
        tensors = {name: total.to(dtypes[name]) for name, total in self.tensors.items()}
        kept = {key: self.first.metadata[key] for key in SAME if key in self.first.metadata}
        return Checkpoint(self.first.config, tensors, {**about, **kept})


def profile_error(
    times: Sequence[float],
    lengths: Sequence[float],
    coefficients: np.ndarray,
    time: float,
    length: float,
) -> float:
    """Distance of the sum's profile from the one wanted, as a share of the latter (L2 norms)."""
    t = np.array([*times, time], dtype=np.float64)
    gamma = gamma_of_sigma_rel([*lengths, length])
    products = profile_product(t[:, None], gamma[:, None], t, gamma)
    weights = np.append(coefficients, -1.0)
    squared = weights @ products @ weights / products[-1, -1]
    return float(np.sqrt(max(squared, 0.0)))


def _until(snapshots: Sequence[Snapshot], kimg: int) -> list[Snapshot]:
    """Those up to the first time that is not before `kimg`; later ones say nothing about it."""
    last = min((s.kimg for s in snapshots if s.kimg >= kimg), default=kimg)
    return [snapshot for snapshot in snapshots if snapshot.kimg <= last]


def _require_same(checkpoint: Checkpoint, first: Checkpoint, path: Path) -> None:
    """Refuse a snapshot of another network than the first one."""
    shapes = [{k: (v.shape, v.dtype) for k, v in c.tensors.items()} for c in (checkpoint, first)]
    about = [{key: c.metadata.get(key) for key in SAME} for c in (checkpoint, first)]
    if checkpoint.config != first.config or shapes[0] != shapes[1] or about[0] != about[1]:
        raise GuidexError(
            f"{path} is not of the same training run as the snapshots before it: its network, "
            "tensors or data set differ"
        )
