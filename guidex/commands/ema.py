"""`guidex ema`: averaged weights of any length, at any time, as a weighted sum of those of a few
lengths that a training run has stored ("post-hoc EMA", Karras et al. 2024, arXiv 2312.02696,
section 3.2)."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch

from guidex.commands.words import flag, required, split_words
from guidex.errors import GuidexError, UsageError
from guidex.files.progress import Progress
from guidex.models.edm2.checkpoints import (
    Checkpoint,
    read_checkpoint,
    require_free,
    write_checkpoint,
)
from guidex.models.edm2.posthoc_ema import images_of, reconstruction

# network-snapshot-1342177-0.050.pkl: thousands of images, then the length of the average.
NAME = re.compile(r".*-(\d{1,9})-(0\.\d{1,6})\.(?:pkl|safetensors)")

# What two snapshots of one training run have in common.
SAME = ("network", "dtype", "dataset_kwargs")


class Snapshot(NamedTuple):
    """A stored average."""

    path: Path
    kimg: int  # training time in thousands of images, rounded down
    ema: float  # length (sigma_rel)


def ema_command(words: Sequence[str]) -> None:
    """Run the command: snapshots, or folders of them, whose names end in -<kimg>-<length>.pkl (or
    .safetensors), ema=LENGTH, out=PATH.safetensors, and maybe kimg=TIME (the last snapshot's if not
    given) and overwrite=true."""
    files, settings = split_words(words, ("ema", "out", "kimg", "overwrite"))
    ema = required(settings, "ema", "0.1")
    if type(ema) not in (int, float):
        raise UsageError(f"ema is the length of the average (sigma_rel), a number, not {ema!r}")
    out = str(required(settings, "out", "network.safetensors"))
    require_free(out, flag(settings, "overwrite"))
    snapshots = find_snapshots(files)
    last = max(snapshot.kimg for snapshot in snapshots)
    kimg = settings.get("kimg", last)
    if type(kimg) is not int or not 0 < kimg <= last:
        raise UsageError(
            f"kimg must be a whole number above 0, at most the last snapshot's {last}, not {kimg!r}"
        )
    # Those after the first one at or past this time say nothing about it.
    last = min(snapshot.kimg for snapshot in snapshots if snapshot.kimg >= kimg)
    used = [snapshot for snapshot in snapshots if snapshot.kimg <= last]
    checkpoint = reconstruct(used, kimg, float(ema))
    write_checkpoint(checkpoint, out)
    about = checkpoint.metadata["ema"]
    print(f"{out}: length {ema} at {kimg} kimg, of {len(used)} snapshots")
    print(f"its profile differs from the exact one by {100 * about['error']:.2g} % (L2 norm)")


def find_snapshots(paths: Sequence[str]) -> list[Snapshot]:
    """Snapshots named one by one or by their folders, in order of time, then length."""
    snapshots = []
    for path in map(Path, paths):
        for file in path.iterdir() if path.is_dir() else [path]:
            match = NAME.fullmatch(file.name)
            if match is not None and file.is_file():
                snapshots.append(Snapshot(file, int(match[1]), float(match[2])))
            elif not path.is_dir():
                raise UsageError(
                    f"{file} is no file, or its name does not end in -<kimg>-<length>.pkl"
                )
    if not snapshots:
        raise UsageError("no snapshots given; their names end in -<kimg>-<length>.pkl")
    return sorted(snapshots, key=lambda snapshot: (snapshot.kimg, snapshot.ema, snapshot.path))


def reconstruct(snapshots: Sequence[Snapshot], kimg: int, ema: float) -> Checkpoint:
    """The average of a length at a time, in the dtypes of the snapshots. The sum is in float32, and
    one snapshot at a time is in memory."""
    times, lengths = [images_of(s.kimg) for s in snapshots], [s.ema for s in snapshots]
    weights, error = reconstruction(times, lengths, images_of(kimg), ema)
    first, sums, records = None, {}, []
    with Progress("reading", len(snapshots), unit="snapshots") as progress:
        for snapshot, weight in zip(snapshots, weights.tolist(), strict=True):
            checkpoint = read_checkpoint(snapshot.path)
            about = checkpoint.metadata
            described = (
                checkpoint.config,
                {name: (t.shape, t.dtype) for name, t in checkpoint.tensors.items()},
                {key: about[key] for key in SAME if key in about},
            )
            first = first or described
            if described != first:
                raise GuidexError(
                    f"{snapshot.path} is not of the same training run as the snapshots before it: "
                    "its network, tensors or data set differ"
                )
            for name, tensor in checkpoint.tensors.items():
                part = sums.setdefault(name, torch.zeros(tensor.shape))
                part.add_(tensor.float(), alpha=weight)
            record = {"file": snapshot.path.name, "sha256": about.get("sha256")}
            record |= {"kimg": snapshot.kimg, "length": snapshot.ema, "coefficient": weight}
            records.append(record)
            checkpoint = tensor = None  # before the next one is read
            progress.update(1)
    config, tensors, same = first
    about = {
        "source": f"post-hoc EMA {ema} at {kimg} kimg of {len(snapshots)} snapshots",
        "ema": {"kimg": kimg, "length": ema, "error": error, "snapshots": records},
        **same,
    }
    return Checkpoint(config, {k: v.to(tensors[k][1]) for k, v in sums.items()}, about)
