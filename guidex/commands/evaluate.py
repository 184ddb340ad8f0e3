"""`guidex eval`: metrics of images that exist, against a reference."""

import time
from collections.abc import Sequence
from pathlib import Path

from guidex.commands.sweep import show
from guidex.config.compose import Config, compose, path_first
from guidex.config.presets import options
from guidex.errors import UsageError
from guidex.features.detectors import detector_record
from guidex.features.references import describe
from guidex.features.samples import PassSettings, Samples, open_samples
from guidex.features.statistics_files import read_statistics
from guidex.files.progress import Progress
from guidex.reports.rows import Row
from guidex.reports.tables import write_tables
from guidex.runs.folder import run_folder
from guidex.runs.measure import Measures, are_metrics_chosen, settings_of, warn
from guidex.runs.provenance import made_by, output_folder, provenance
from guidex.runs.ranks import this_rank
from guidex.runs.settings import VOLATILE, resolve_device, whole


def evaluate(words: Sequence[str]) -> None:
    """Run the command. The first word may be where the images are."""
    config = compose("eval", path_first("eval", words)).config
    images = str(Path(str(config["images"])).expanduser())
    repeats = whole(config, "repeats")
    exists = Path(images).exists()
    if exists and (file := read_statistics(Path(images))):  # the two sides have been exchanged
        raise UsageError(
            f"{images} is a reference ({file.kind}), not images to measure; did you mean "
            f"guidex eval {config['ref'] or 'IMAGES'} ref={images}?"
        )
    rank, (samples, settings) = this_rank(), opened(config, images)
    _check_repeats(samples, repeats)
    count = samples.count // repeats
    measured = Measures(settings)
    measures = measured.get(
        config,
        count=count,
        chosen=are_metrics_chosen(words),
        labelled=samples.has_labels,
        points=samples.images is None,
    )
    if not any(measure.metrics for measure in measures):
        known = ", ".join(options("metrics"))
        raise UsageError(f"no metrics chosen, or none that can be computed; there are {known}")
    doubts = []
    for measure in measures:
        measure.check_samples(samples.blank())
        doubts += measure.doubts({**samples.about, "count": count})
    if rank.first:
        record = detector_record(measures[0].detector) if len(measures) == 1 else {}
        print(f"fake: {describe(samples.about | record)}")
        warn(doubts)
    volatile = (*VOLATILE, "device", "cache")
    identity = {"command": "eval", **{k: v for k, v in config.items() if k not in volatile}}
    folder = output_folder(config["out"], "eval", Path(images).resolve().name, identity)
    with run_folder(folder, identity, bool(config["overwrite"])):
        measured.make_features()
        began = time.perf_counter()
        fakes = samples.features([measure.detector for measure in measures], settings)
        if not rank.first:
            return  # this process has done its share; the first one measures
        values: dict[str, float] = {}
        with Progress("measuring", len(measures), unit="parts", delay=2) as bar:
            for measure, fake in zip(measures, fakes, strict=True):
                values |= measure.measured(fake, repeats, blockwise=False)[0]
                bar.update(1)
        row = Row(
            point=0,
            images=count,
            repeats=repeats,
            metrics=values,
            settings=settings_of(measures) | _settings(config, samples),
            seconds=time.perf_counter() - began,
            config={
                **config,
                "reals": [measure.about_real for measure in measures],
                "source": samples.about,
                "detectors": [detector_record(measure.detector) for measure in measures],
                "warnings": list(dict.fromkeys(doubts)),
            },
            provenance=provenance(config) | made_by("eval", words),
            unit="samples" if samples.images is None else "images",
        )
        write_tables([row], folder)
    print(f"{images} against {row.settings.get('reference', 'nothing')}")
    show([row], folder)


def _check_repeats(samples: Samples, repeats: int) -> None:
    """Refuse images that are no ranges of seeds, one after the other."""
    told = f"repeats={repeats} cuts images into equal parts, in the order of their names"
    if samples.count % repeats != 0:
        raise UsageError(f"{told}, and there are {samples.count}")
    if repeats > 1 and samples.images is not None and samples.images.class_names is not None:
        raise UsageError(f"{told}, and these are sorted by class; measure the parts one by one")


def _settings(config: Config, samples: Samples) -> dict[str, str]:
    """How images were read, where not as they are."""
    settings = {}
    if config["resize"] is not None:
        what = "central squares" if config["crop"] else "images"
        settings["read as"] = f"{what} resized to {config['resize']}x{config['resize']}"
    if count := samples.about["skipped"]:
        settings["left out"] = f"{count} unreadable image{'s' * (count != 1)}"
    return settings


def opened(config: Config, images: str) -> tuple[Samples, PassSettings]:
    """Images, and how they go through detectors: on the device of the configuration, which is
    resolved."""
    config["device"], rank = resolve_device(config["device"]), this_rank()
    if rank.count > 1 and not config["cache"]:
        raise UsageError("cache=false: several processes share their work by way of the cache")
    settings = PassSettings(whole(config, "batch"), config["cache"], rank.index, rank.count)
    reading = {key: config[key] for key in ("resize", "crop", "bad")}
    return open_samples(images, **reading), settings
