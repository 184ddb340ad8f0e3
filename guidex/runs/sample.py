"""`guidex sample`: images of one point, to a folder."""

import csv
import io
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from guidex.assets.atomic import atomic_write
from guidex.assets.codec import decode, write_png
from guidex.assets.pixels import to_uint8
from guidex.config import compose
from guidex.reports.grids import sample_grid
from guidex.runs.blocks import Block, cut, run_block
from guidex.runs.drawings import draw_toy, toy_panel
from guidex.runs.folder import read_json, require_space, run_folder, write_json
from guidex.runs.points import Point, check, load, models_on
from guidex.runs.progress import Progress
from guidex.runs.provenance import output_folder, provenance

GRID_IMAGES = 64  # images shown in grid.png
PATHS = 64  # trajectories shown for a toy
AUTOMATIC_VIEW = dict.fromkeys(("x_range", "sigma_range", "center", "half_extent"))


def sample(words: Sequence[str], plan_only: bool) -> None:
    """Run the command.

    Arguments:
        words: Hydra overrides.
        plan_only: print the plan and stop.

    Raises:
        UsageError, GuidexError: before any work where possible.
    """
    settings = check(compose("sample", words), {})
    print(settings.plan.describe())
    if plan_only:
        return
    identity = {"command": "sample", **settings.identity}
    folder = output_folder(settings.config["out"], "sample", settings.method, identity)
    config = settings.config
    with run_folder(folder, identity, bool(config["overwrite"])):
        point = load(settings, models_on(config["device"]))
        _make_blocks(point, folder)
        _finish(point, folder)
    print(f"{len(settings.seeds)} {_kind(point)} in {folder}")


def _make_blocks(point: Point, folder: Path) -> None:
    """Make every block that is not there yet."""
    settings = point.settings
    config = settings.config
    blocks = cut(settings.seeds, settings.labels, config["block"])
    records = folder / "blocks"
    records.mkdir(exist_ok=True)
    missing = [block for block in blocks if not block.path(records, ".json").exists()]
    done = len(settings.seeds) - sum(len(block.seeds) for block in missing)
    if done:
        print(f"{done} of {len(settings.seeds)} {_kind(point)} are there already")
    if not missing:
        return
    require_space(folder, (len(settings.seeds) - done) * int(np.prod(point.model.shape)) * 2)
    with Progress("sampling", len(settings.seeds), done, _kind(point)) as progress:
        for block in missing:
            _make_block(point, block, folder, progress)


def _make_block(point: Point, block: Block, folder: Path, progress: Progress) -> None:
    """Sample a block and write it; its record comes last and makes it count."""
    began = time.perf_counter()
    batch = point.settings.config["batch"]
    seeds, labels, samples = [], [], []
    for part, begin, [outcome] in run_block([point], block, batch, 0, progress.update):
        seeds += part
        labels += [None] * len(part) if begin.labels is None else begin.labels.tolist()
        if point.model.space == "points":
            samples.append(outcome.x.cpu())
        else:
            _write_images(folder, part, to_uint8(outcome.x).cpu())
    if samples:
        values = torch.cat(samples).numpy()
        path = block.path(folder / "blocks", ".npz")
        atomic_write(path, lambda file: np.savez(file, samples=values))
    record = {"seeds": seeds, "labels": labels, "seconds": time.perf_counter() - began}
    write_json(block.path(folder / "blocks", ".json"), record)


def image_name(seed: int) -> str:
    """Where the image of a seed lies under images/: a thousand to a folder."""
    return f"{seed // 1000 * 1000:06d}/{seed:06d}.png"


def _write_images(folder: Path, seeds: Sequence[int], images: Tensor) -> None:
    for seed, image in zip(seeds, images.numpy(), strict=True):
        path = folder / "images" / image_name(seed)
        path.parent.mkdir(parents=True, exist_ok=True)
        write_png(path, image)


def _finish(point: Point, folder: Path) -> None:
    """Everything that is made from all blocks together."""
    settings = point.settings
    blocks = cut(settings.seeds, settings.labels, settings.config["block"])
    records = [read_json(block.path(folder / "blocks", ".json")) for block in blocks]
    seeds = [seed for record in records for seed in record["seeds"]]
    labels = [label for record in records for label in record["labels"]]
    seconds = sum(record["seconds"] for record in records)
    summary = {"plan": settings.plan.record(), "config": settings.config, "seconds": seconds}
    write_json(folder / "summary.json", {**summary, "provenance": provenance(settings.config)})
    if point.model.space == "points":
        _finish_points(point, folder, blocks, labels)
    else:
        _write_labels(folder / "labels.csv", seeds, labels)
        _write_grid(folder, seeds, labels)


def _read_image(path: Path) -> np.ndarray:
    pixels, _ = decode(path.read_bytes(), channels="auto", resize=None)
    return pixels


def _write_labels(path: Path, seeds: Sequence[int], labels: Sequence[int | None]) -> None:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["seed", "label", "file"])
    for seed, label in zip(seeds, labels, strict=True):
        writer.writerow([seed, "" if label is None else label, f"images/{image_name(seed)}"])
    atomic_write(path, lambda file: file.write(text.getvalue().encode()))


def _write_grid(folder: Path, seeds: Sequence[int], labels: Sequence[int | None]) -> None:
    """A contact sheet of the first images."""
    shown = list(zip(seeds, labels, strict=True))[:GRID_IMAGES]
    pixels = np.stack([_read_image(folder / "images" / image_name(seed)) for seed, _ in shown])
    captions = [f"seed {seed}" + ("" if y is None else f" · class {y}") for seed, y in shown]
    sample_grid(pixels, captions, folder / "grid.png", columns=None)


def _finish_points(
    point: Point, folder: Path, blocks: Sequence[Block], labels: Sequence[int | None]
) -> None:
    parts = [np.load(block.path(folder / "blocks", ".npz"))["samples"] for block in blocks]
    samples = np.concatenate(parts)
    arrays = {"samples": samples, "seeds": np.array(point.settings.seeds)}
    if None not in labels:
        arrays["labels"] = np.array(labels)
    atomic_write(folder / "samples.npz", lambda file: np.savez(file, **arrays))
    first = cut(point.settings.seeds[:PATHS], point.settings.labels, PATHS)[0]
    [(_, _, [outcome])] = run_block([point], first, PATHS, PATHS, lambda amount: None)
    panel = toy_panel(
        point.settings.method,
        point.settings.plan,
        samples,
        arrays.get("labels"),
        outcome.path.cpu().numpy(),
    )
    draw_toy([panel], point.model, folder / "grid.png", view=AUTOMATIC_VIEW)


def _kind(point: Point) -> str:
    return "points" if point.model.space == "points" else "images"
