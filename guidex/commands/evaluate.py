"""`guidex eval`: metrics of images that exist, against a reference."""

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from guidex.config.compose import Config, compose, path_first
from guidex.config.presets import options
from guidex.errors import UsageError
from guidex.features.features import FeatureSet, check_comparable
from guidex.features.references import describe
from guidex.features.samples import Looking, Samples, detector_record, open_samples
from guidex.features.statistics_files import read_statistics
from guidex.files.progress import Progress
from guidex.reports.rows import Row
from guidex.reports.tables import terminal_table, write_tables
from guidex.runs.folder import run_folder
from guidex.runs.measure import (
    Measure,
    Measures,
    are_metrics_chosen,
    repeats_of,
    settings_of,
    warn,
)
from guidex.runs.provenance import made_by, output_folder, provenance
from guidex.runs.ranks import this_rank
from guidex.runs.settings import VOLATILE, resolve_device, whole


def evaluate(words: Sequence[str]) -> None:
    """Run the command.

    Arguments:
        words: where the images are (unless given as images=PATH), then Hydra overrides.

    Raises:
        UsageError, GuidexError: before any work where possible.
    """
    config = compose("eval", path_first("eval", words)).config
    images = str(Path(str(config["images"])).expanduser())
    check_images(config, images)
    repeats = whole(config, "repeats")
    _check_side(images, config["ref"])
    config["device"] = resolve_device(config["device"])
    rank, how = this_rank(), looking(config)
    samples = open_samples(images, **reading(config))
    _check_repeats(samples, repeats)
    measured = Measures(how)
    measures = measured.get(
        config,
        count=samples.count // repeats,
        chosen=are_metrics_chosen(words),
        labelled=samples.has_labels,
    )
    if not any(one.metrics for one in measures):
        if any(one.config["metrics"] for one in measures):
            raise UsageError("none of the metrics can be computed: each is left out (see above)")
        raise UsageError(f"no metrics chosen; there are {', '.join(options('metrics'))}")
    warnings = _check(samples, measures, repeats, quiet=not rank.first)
    volatile = (*VOLATILE, "device", "cache")
    identity = {"command": "eval", **{k: v for k, v in config.items() if k not in volatile}}
    folder = output_folder(config["out"], "eval", Path(images).resolve().name, identity)
    with run_folder(folder, identity, bool(config["overwrite"]), rank):
        measured.look()
        began = time.perf_counter()
        fakes = samples.features([one.detector for one in measures], how)
        if not rank.first:
            return  # this process has done its share; the first one measures
        values = _values(measures, fakes, repeats)
        row = Row(
            point=0,
            values={},
            guidance="",
            images=fakes[0].count // repeats,
            repeats=repeats,
            metrics=values,
            settings=settings_of(measures) | _settings(config, samples),
            evals_main=0,
            evals_ref=0,
            gflops=0.0,
            seconds=time.perf_counter() - began,
            missing=None,
            plan={},
            config={
                **config,
                "reals": [one.about_real for one in measures],
                "source": samples.about,
                "detectors": [detector_record(one.detector) for one in measures],
                "warnings": warnings,
            },
            provenance=provenance(config) | made_by("eval", words),
            unit="samples" if samples.images is None else "images",
        )
        files = write_tables([row], folder)
    print(f"{images} against {row.settings.get('reference', 'nothing')}\n{terminal_table([row])}\n")
    for file in files:
        print(file)


def _check(samples: Samples, measures: Sequence[Measure], repeats: int, quiet: bool) -> list[str]:
    """Tell what is compared, refuse what cannot be, and doubt what should not be, before any image
    goes through a network; returns the doubts."""
    warnings = []
    for told in dict.fromkeys(describe(one.about_real) for one in measures if one.about_real):
        if not quiet:
            print(f"real: {told}")
    if not quiet:
        records = [detector_record(one.detector) for one in measures]
        print(f"fake: {describe(samples.about | (records[0] if len(records) == 1 else {}))}")
    for one in measures:
        one.check_samples(samples.one())
        warnings += one.concerns({**samples.about, "count": samples.count // repeats})
    if not quiet:
        warn(warnings)
    return list(dict.fromkeys(warnings))


def _check_repeats(samples: Samples, repeats: int) -> None:
    """Refuse images that are no ranges of seeds, one after the other."""
    if samples.count % repeats != 0:
        raise UsageError(
            f"repeats={repeats}: {samples.count} images cannot be cut into as many equal parts"
        )
    if repeats > 1 and samples.images is not None and samples.images.class_names is not None:
        raise UsageError(
            f"repeats={repeats} cuts images in the order of their names, and these are sorted by "
            "class; measure the parts one by one"
        )


def _settings(config: Config, samples: Samples) -> dict[str, str]:
    """How images were read, where not as they are."""
    settings = {}
    if config["resize"] is not None:
        what = "central squares" if config["crop"] else "images"
        settings["read as"] = f"{what} resized to {config['resize']}x{config['resize']}"
    if samples.about["skipped"]:
        count = samples.about["skipped"]
        settings["left out"] = f"{count} unreadable image{'s' * (count != 1)}"
    return settings


def _values(
    measures: Sequence[Measure], fakes: Sequence[FeatureSet], repeats: int
) -> dict[str, float]:
    values: dict[str, float] = {}
    with Progress("measuring", len(measures), unit="parts", delay=2) as bar:
        for one, fake in zip(measures, fakes, strict=True):
            if one.real is not None:
                check_comparable(real=one.real, fake=fake)
            values |= one.values(repeats_of(fake, repeats))
            bar.update(1)
    return values


def looking(config: Config) -> Looking:
    """How images get to detectors, from the keys batch and cache, and from torchrun."""
    rank = this_rank()
    if rank.count > 1 and not config["cache"]:
        raise UsageError("cache=false: several processes share their work by way of the cache")
    return Looking(
        batch=whole(config, "batch"), cache=config["cache"], rank=rank.index, ranks=rank.count
    )


def reading(config: Config) -> dict[str, Any]:
    """How files become images."""
    return {key: config[key] for key in ("resize", "crop", "bad")}


def _check_side(images: str, ref: object) -> None:
    """Refuse statistics where images are to be measured: the two sides have been exchanged."""
    file = read_statistics(Path(images))
    if file is not None:
        raise UsageError(
            f"{images} is a reference ({file.kind}), not images to measure; did you mean "
            f"guidex eval {ref or 'IMAGES'} ref={images}?"
        )


def check_images(config: Config, images: str) -> None:
    """Refuse what is wrong with the images asked for, and how to read them, at once."""
    if not Path(images).exists():
        raise UsageError(f"there is nothing at {images}; give a folder, zip or npz of images")
    if config["bad"] not in ("error", "skip"):
        raise UsageError(f"bad must be error or skip, not {config['bad']!r}")
    if config["resize"] is not None:
        whole(config, "resize")
    elif config["crop"]:
        raise UsageError("crop=true needs the side of the square: add resize=N")
