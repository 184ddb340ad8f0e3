"""`guidex sample`: images of one point, to a folder."""

import csv
import io
import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from guidex.commands.sweep import sweep
from guidex.config.compose import compose, parse
from guidex.config.instantiate import Models
from guidex.errors import GuidexError, UsageError
from guidex.files.atomic import atomic_write
from guidex.files.cache import file_sha256
from guidex.files.progress import Progress
from guidex.reports.image_grids import sample_grid
from guidex.runs.blocks import Batch, Block, cut, run_block
from guidex.runs.drawings import captions, draw_toy, toy_panel
from guidex.runs.folder import (
    Finish,
    RunFolder,
    require_same_inputs,
    require_space,
    run_folder,
    write_json,
)
from guidex.runs.measure import warn
from guidex.runs.parallel import Tick, in_parallel
from guidex.runs.points import Point, check, load
from guidex.runs.points_table import plan_table, print_plans
from guidex.runs.provenance import merged, output_folder, provenance
from guidex.runs.ranks import Rank, this_rank
from guidex.runs.writers import FORMATS, Arriving, Jobs, Store, Threads, image_name, stores

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
    with run_folder(folder, identity, bool(config["overwrite"]), rank) as held:
        point = load(settings, Models(), latents_suffice=config["latents"])
        if config["latents"] and point.model.space != "latents":
            raise UsageError("latents=true: this model has none; its samples are its output")
        require_same_inputs(folder, point.inputs)
        blocks = cut(settings.seeds, point.settings.labels, config["block"])
        finish = Finish(folder / "summary.json")
        make_blocks(point, blocks, held, rank)
        if not all(held.holds(block.path(folder / "blocks", ".record")) for block in blocks):
            return  # other processes are at work; the last one finishes
        with finish.turn() as mine:
            if mine:
                _finish(point, blocks, held)
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


def make_blocks(point: Point, blocks: Sequence[Block], held: RunFolder, rank: Rank) -> None:
    """Make every block of this process that is not there yet, or no longer."""
    kept = stores(point.settings.config["format"], held.path, point)
    (held.path / "blocks").mkdir(exist_ok=True)
    own = [block for block in blocks if rank.takes(block.index)]
    missing = [block for block in own if not _is_whole(block, held, kept)]
    total, left = (sum(len(block.seeds) for block in some) for some in (own, missing))
    if left < total:
        print(f"{total - left} of {total} {_kind(point)} are there already")
    if not missing:
        return
    require_space(held.path, left * point.bytes_per_sample)
    bar = Progress("sampling", total, total - left, _kind(point), quiet=not rank.first)
    with bar as progress, Threads() as threads:
        config = point.settings.config
        batch = Batch.of(config["batch"], missing)

        def work(block: Block, tick: Tick) -> None:
            _make_block(point, block, batch, held, threads, tick)

        for _ in in_parallel(work, missing, point.model, config["device"], progress.update):
            pass  # a block's record says that it is done


def _is_whole(block: Block, held: RunFolder, kept: Sequence[Store]) -> bool:
    """Whether a block's record is there, and its files, in the sizes that they were written in.
    Parts are gone once there is the file that they were for."""
    record = held.read(path := block.path(held.path / "blocks", ".record"))
    if record is None:
        return False
    used = [store.part(path) for store in kept if store.is_finished]
    files = [(held.path / name, size) for name, size, _ in json.loads(record[0])["files"]]
    return all(
        file in used or file.is_file() and file.stat().st_size == size for file, size in files
    )


def _make_block(
    point: Point, block: Block, batch: Batch, held: RunFolder, threads: Threads, tick: Tick
) -> None:
    """Sample a block and hand it to the threads; its record comes last and makes it count."""
    began = time.perf_counter()
    seeds: list[int] = []
    labels: list[int | None] = []
    shown = max(0, SHOWN - block.first)
    preview: list[Arriving] = []
    record = block.path(held.path / "blocks", ".record")
    kept = stores(point.settings.config["format"], held.path, point)
    jobs = Jobs(threads)
    are_points = point.model.space == "points"
    recorded = shown if are_points else 0
    for part, classes, [outcome] in run_block([point], block, batch, recorded, tick):
        left = max(0, shown - len(seeds))
        seeds += part
        labels += [None] * len(part) if classes is None else classes.tolist()
        images = point.decoded(outcome.x)
        arriving = Arriving(images)
        held.check()
        for store in kept:
            store.write(jobs, part, Arriving(outcome.x) if store.of_latents else arriving)
        if left > 0 and not point.latents_alone:
            preview.append(Arriving(outcome.path.transpose(0, 1) if are_points else images[:left]))
    seconds = time.perf_counter() - began

    def finish() -> None:
        held.check()
        files = [path for store in kept for path in store.close(record)]
        if preview:
            files.append(path := record.with_suffix(".preview.npy"))
            whole = np.concatenate([part.numpy() for part in preview])
            atomic_write(path, lambda file: np.save(file, whole))
        about = {"seeds": seeds, "labels": labels, "seconds": seconds}
        about["files"] = []
        for path in files:  # of which images have checksums of their own
            sha256 = file_sha256(path) if path.parent == record.parent else None
            name = str(path.relative_to(held.path))
            about["files"].append((name, path.stat().st_size, sha256))
        held.write(record, json.dumps(about).encode())

    jobs.close(finish)


def _read(record: Path, held: RunFolder) -> tuple[dict[str, Any], dict[str, str]]:
    """A block's record and the versions that made it; what is damaged is left to be made again.

    Raises:
        GuidexError: the record, or a part beside it, is damaged.
    """
    found = held.read(record)
    if found is not None:
        about = json.loads(found[0])
        parts = [(held.path / name, sha256) for name, _, sha256 in about["files"] if sha256]
        if all(file_sha256(path) == sha256 for path, sha256 in parts if path.exists()):
            return about, found[1]
    record.unlink(missing_ok=True)
    raise GuidexError(f"{record} or what belongs to it is damaged; the same command makes it anew")


def _finish(point: Point, blocks: Sequence[Block], held: RunFolder) -> None:
    """Everything that is made from all blocks together."""
    settings, folder = point.settings, held.path
    paths = [block.path(folder / "blocks", ".record") for block in blocks]
    records, made_with = zip(*(_read(path, held) for path in paths), strict=True)
    labels = [label for record in records for label in record["labels"]]
    classes = None if None in labels else np.array(labels)
    held.check()
    for store in stores(settings.config["format"], folder, point):
        store.finish(paths, settings.seeds, classes)
    _write_labels(folder, point, labels)
    previews = [path.with_suffix(".preview.npy") for path in paths]
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
                **merged(made_with),
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
    seeds = settings.seeds[: len(preview)]
    classes = None if None in labels else labels
    sample_grid(preview, captions(seeds, classes, point.model), folder / "grid.png")


def _kind(point: Point) -> str:
    return "latents" if point.latents_alone else _KINDS[point.model.space]
