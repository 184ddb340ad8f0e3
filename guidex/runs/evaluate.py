"""`guidex eval`: metrics of images that exist, against a reference."""

import sys
import time
from collections.abc import Sequence
from pathlib import Path

from guidex.config import Config, compose
from guidex.errors import UsageError
from guidex.evaluation.features import FeatureSet, check_comparable
from guidex.evaluation.protocol import concerns
from guidex.evaluation.references import describe
from guidex.evaluation.sources import file_features
from guidex.presets import options
from guidex.reports.rows import Row
from guidex.reports.tables import terminal_table, write_tables
from guidex.runs.folder import VOLATILE, run_folder
from guidex.runs.measure import (
    Detectors,
    References,
    check_metrics,
    make_metrics,
    measure,
    reference_models,
    settings_of,
)
from guidex.runs.points import positive, resolve_device
from guidex.runs.provenance import output_folder, provenance


def evaluate(words: Sequence[str]) -> None:
    """Run the command.

    Arguments:
        words: where the images are (unless given as images=PATH), then Hydra overrides.

    Raises:
        UsageError, GuidexError: before any work where possible.
    """
    config = compose("eval", path_first("images", words)).config
    images = str(config["images"])
    check_images(config, images)
    batch = positive(config, "batch")
    config["device"] = resolve_device(config["device"])
    detector = Detectors().get(config)
    metrics = make_metrics(config)
    if not metrics:
        raise UsageError(f"no metrics chosen; there are {', '.join(options('metrics'))}")
    real, about_real = References(reference_models(), batch).get(config, detector, None)
    print(f"real: {describe(about_real)}")
    check_metrics(metrics, real)
    volatile = (*VOLATILE, "device", "cache")
    identity = {"command": "eval", **{k: v for k, v in config.items() if k not in volatile}}
    folder = output_folder(config["out"], "eval", Path(images).resolve().name, identity)
    with run_folder(folder, identity, bool(config["overwrite"])):
        began = time.perf_counter()
        fake, about_fake = file_features(
            images,
            detector,
            resize=config["resize"],
            bad=config["bad"],
            batch=batch,
            cache=config["cache"],
        )
        print(f"fake: {describe(about_fake)}")
        check_comparable(real=real, fake=fake)
        warnings = _warn(fake, about_real, about_fake)
        values = measure(metrics, real, [fake])
        row = Row(
            point=0,
            values={},
            guidance="",
            images=fake.count,
            repeats=1,
            metrics=values,
            settings=settings_of(config, real, about_real),
            evals_main=0,
            evals_ref=0,
            gflops=0.0,
            seconds=time.perf_counter() - began,
            missing=None,
            plan={},
            config={
                **config,
                "reals": about_real,
                "source": about_fake,
                "warnings": warnings,
            },
            provenance=provenance(config),
        )
        files = write_tables([row], folder)
    print(f"{images} against {row.settings['reference']}\n{terminal_table([row])}\n")
    for file in files:
        print(file)


def _warn(
    fake: FeatureSet, about_real: dict[str, object], about_fake: dict[str, object]
) -> list[str]:
    """Say what keeps the numbers from being compared with published ones."""
    warnings = concerns(
        real=about_real,
        fake=about_fake,
        detector=fake.detector,
        dim=fake.dim,
        network="detector" in about_fake,
    )
    for warning in warnings:
        print(f"guidex: warning: {warning}", file=sys.stderr)
    return warnings


def check_images(config: Config, images: str) -> None:
    """Refuse what is wrong with the images asked for, and how to read them, at once."""
    if not Path(images).exists():
        raise UsageError(f"there is nothing at {images}; give a folder, zip or npz of images")
    if config["bad"] not in ("error", "skip"):
        raise UsageError(f"bad must be error or skip, not {config['bad']!r}")
    if config["resize"] is not None:
        positive(config, "resize")
    for key in ("cache", "features"):
        if not isinstance(config.get(key, False), bool):
            raise UsageError(f"{key} must be true or false, not {config[key]!r}")


def path_first(key: str, words: Sequence[str]) -> list[str]:
    """The words of a command as overrides, where the first one may be the path for `key`."""
    if len(words) == 0 or ("=" in words[0] and not Path(words[0]).exists()):
        return list(words)
    # Quoted, so that the value is exactly this text.
    quoted = words[0].replace("\\", "\\\\").replace("'", "\\'")
    return [f"{key}='{quoted}'", *words[1:]]
