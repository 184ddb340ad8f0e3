"""`guidex sample`: images of one point, to a folder."""

import csv
import io
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from guidex.assets.atomic import atomic_write
from guidex.config import compose, parse
from guidex.errors import UsageError
from guidex.instantiate import Models
from guidex.reports.grids import sample_grid
from guidex.runs.blocks import Batch, Block, cut, run_block
from guidex.runs.drawings import draw_toy, toy_panel
from guidex.runs.folder import (
    Finish,
    read_json,
    require_same_inputs,
    require_space,
    run_folder,
    write_json,
)
from guidex.runs.measure import warn
from guidex.runs.parallel import Tick, in_parallel
from guidex.runs.points import Point, check, load
from guidex.runs.progress import Progress
from guidex.runs.provenance import output_folder, provenance
from guidex.runs.ranks import Rank, this_rank
from guidex.runs.sweep import sweep
from guidex.runs.table import plan_table, print_plans
from guidex.runs.writers import FORMATS, Arriving, Jobs, Threads, image_name, stores

_KINDS = {"points": "points", "pixels": "images", "latents": "images"}
SHOWN = 64  # images, or trajectories of a toy, in grid.png
AUTOMATIC_VIEW = dict.fromkeys(("x_range", "sigma_range", "center", "half_extent"))


def sample(words: Sequence[str], plan_only: bool) -> None:
    """Run the command.

    Arguments:
        words: Hydra overrides. With `eval=true`, samples are measured instead of kept, and the
            other words are those of a sweep of one point.
        plan_only: print the plan and stop.

    Raises:
        UsageError, GuidexError: before any work where possible.
    """
    if _is_measured(words):
        others = [word for word in words if word.partition("=")[0] != "eval"]
        sweep(others, plan_only, default=None)
        return
    if _names_a_table(words):
        _plan_table(words, plan_only)
        return
    settings = check(compose("sample", words), {})
    config = settings.config
    if config["format"] not in FORMATS:
        raise UsageError(f"format must be one of {', '.join(FORMATS)}, not {config['format']!r}")
    rank = this_rank()
    if rank.first:
        print(settings.describe())
        warn(settings.doubts)
    if plan_only:
        return
    identity = {"command": "sample", **settings.identity}
    folder = output_folder(config["out"], "sample", settings.method, identity)
    with run_folder(folder, identity, bool(config["overwrite"]), rank):
        point = load(settings, Models(), latents_suffice=config["latents"])
        if config["latents"] and point.model.space != "latents":
            raise UsageError("latents=true: this model has none; its samples are its output")
        require_same_inputs(folder, point.origins.values())
        blocks = cut(settings.seeds, point.settings.labels, config["block"])
        finish = Finish(folder / "summary.json")
        make_blocks(point, blocks, folder, rank)
        if not all(block.path(folder / "blocks", ".json").exists() for block in blocks):
            return  # other processes are at work; the last one finishes
        with finish.turn() as mine:
            if mine:
                _finish(point, blocks, folder)
                print(f"{len(settings.seeds)} {_kind(point)} in {folder}")


def _is_measured(words: Sequence[str]) -> bool:
    """Whether the words say eval=true."""
    given = [parse(word).value() for word in words if word.partition("=")[0] == "eval"]
    for value in given:
        if not isinstance(value, bool):
            raise UsageError(f"eval must be true or false, not {value!r}")
    return given[-1:] == [True]


def _names_a_table(words: Sequence[str]) -> bool:
    """Whether the experiment asked for is a table of points, which is a sweep's to run."""
    chosen = [word for word in words if word.partition("=")[0] == "experiment"]
    return bool(chosen) and bool(compose("sweep", chosen).config["sweep"]["axes"])


def _plan_table(words: Sequence[str], plan_only: bool) -> None:
    """Plan a table as a sweep would; sampling it is refused."""
    table = plan_table(words)
    warn(table.doubts)
    if not plan_only:
        raise UsageError(
            f"{table.name} is a table of {len(table.entries)} points; run it with guidex sweep, "
            "or add --plan to see its plans"
        )
    print_plans(table)


def make_blocks(point: Point, blocks: Sequence[Block], folder: Path, rank: Rank) -> None:
    """Make every block of this process that is not there yet."""
    records = folder / "blocks"
    records.mkdir(exist_ok=True)
    own = [block for block in blocks if rank.takes(block.index)]
    missing = [block for block in own if not block.path(records, ".json").exists()]
    total, left = (sum(len(block.seeds) for block in some) for some in (own, missing))
    if left < total:
        print(f"{total - left} of {total} {_kind(point)} are there already")
    if not missing:
        return
    require_space(folder, left * point.bytes_per_sample)
    bar = Progress("sampling", total, total - left, _kind(point), quiet=not rank.first)
    with bar as progress, Threads() as threads:
        config = point.settings.config
        batch = Batch.of(config["batch"], missing)

        def work(block: Block, tick: Tick) -> None:
            _make_block(point, block, batch, folder, threads, tick)

        for _ in in_parallel(work, missing, point.model, config["device"], progress.update):
            pass  # a block's record says that it is done


def _make_block(
    point: Point, block: Block, batch: Batch, folder: Path, threads: Threads, tick: Tick
) -> None:
    """Sample a block and hand it to the threads; its record comes last and makes it count."""
    began = time.perf_counter()
    seeds: list[int] = []
    labels: list[int | None] = []
    shown = max(0, SHOWN - block.first)
    preview: list[Arriving] = []
    records, kept = folder / "blocks", stores(point.settings.config["format"], folder, point)
    jobs = Jobs(threads)
    are_points = point.model.space == "points"
    recorded = shown if are_points else 0
    for part, classes, [outcome] in run_block([point], block, batch, recorded, tick):
        left = max(0, shown - len(seeds))
        seeds += part
        labels += [None] * len(part) if classes is None else classes.tolist()
        images = point.decoded(outcome.x)
        arriving = Arriving(images)
        for store in kept:
            store.write(jobs, part, Arriving(outcome.x) if store.of_latents else arriving)
        if left > 0 and not point.latents_alone:
            preview.append(Arriving(outcome.path.transpose(0, 1) if are_points else images[:left]))
    record = {"seeds": seeds, "labels": labels, "seconds": time.perf_counter() - began}

    def finish() -> None:
        for store in kept:
            store.close(block.path(records, ".json"))
        if preview:
            whole = np.concatenate([part.numpy() for part in preview])
            atomic_write(block.path(records, ".preview.npy"), lambda file: np.save(file, whole))
        write_json(block.path(records, ".json"), record)

    jobs.close(finish)


def _finish(point: Point, blocks: Sequence[Block], folder: Path) -> None:
    """Everything that is made from all blocks together."""
    settings = point.settings
    paths = [block.path(folder / "blocks", ".json") for block in blocks]
    records = [read_json(path) for path in paths]
    labels = [label for record in records for label in record["labels"]]
    classes = None if None in labels else np.array(labels)
    for store in stores(settings.config["format"], folder, point):
        store.finish(paths, settings.seeds, classes)
    _write_labels(folder, point, labels)
    previews = [block.path(folder / "blocks", ".preview.npy") for block in blocks]
    if not point.latents_alone:
        _write_grid(point, folder, previews, labels)
    write_json(
        folder / "summary.json",
        {
            "plan": settings.plan.record(),
            "gflops": point.gflops,
            "seconds": sum(record["seconds"] for record in records),
            "config": settings.config,
            "provenance": {
                **provenance(settings.config),
                "origins": point.origins,
            },
        },
    )


def _write_labels(folder: Path, point: Point, labels: Sequence[int | None]) -> None:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["seed", "label", "file"])
    for seed, label in zip(point.settings.seeds, labels, strict=True):
        file = "" if point.decoder is None else f"images/{image_name(seed)}"
        writer.writerow([seed, "" if label is None else label, file])
    atomic_write(folder / "labels.csv", lambda file: file.write(text.getvalue().encode()))


def _write_grid(
    point: Point, folder: Path, previews: Sequence[Path], labels: Sequence[Any]
) -> None:
    """The first images, or the trajectories of a toy's first samples."""
    settings = point.settings
    preview = np.concatenate([np.load(path) for path in previews if path.exists()])
    if point.model.space == "points":
        with np.load(folder / "samples.npz") as arrays:
            samples = arrays["samples"]
            classes = arrays["labels"] if "labels" in arrays else None
        paths = preview.transpose(1, 0, 2)
        panel = toy_panel(settings.method, settings.plan, samples, classes, paths)
        draw_toy([panel], point.model, folder / "grid.png", view=AUTOMATIC_VIEW)
        return
    captions = []
    for seed, label in zip(settings.seeds[: len(preview)], labels, strict=False):
        captions.append(
            f"seed {seed}" + ("" if label is None else f" · class {point.model.name_of(label)}")
        )
    sample_grid(preview, captions, folder / "grid.png")


def _kind(point: Point) -> str:
    return "latents" if point.latents_alone else _KINDS[point.model.space]
