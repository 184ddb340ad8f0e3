"""`guidex eval`: metrics of images that exist, against a reference."""

import time
from collections.abc import Sequence
from pathlib import Path

from guidex.config import compose
from guidex.errors import UsageError
from guidex.evaluation.features import check_comparable
from guidex.evaluation.sources import file_features
from guidex.instantiate import instantiate
from guidex.reports.rows import Row
from guidex.reports.tables import terminal_table, write_tables
from guidex.runs.folder import VOLATILE, run_folder
from guidex.runs.measure import (
    References,
    check_metrics,
    make_metrics,
    measure,
    reference_models,
    settings_of,
)
from guidex.runs.points import positive
from guidex.runs.provenance import output_folder, provenance


def evaluate(words: Sequence[str]) -> None:
    """Run the command.

    Arguments:
        words: where the images are (unless given as images=PATH), then Hydra overrides.

    Raises:
        UsageError, GuidexError: before any work where possible.
    """
    words = list(words)
    if words and ("=" not in words[0] or Path(words[0]).exists()):
        words[0] = _as_override("images", words[0])
    config = compose("eval", words).config
    images = str(config["images"])
    if not Path(images).exists():
        raise UsageError(f"there is nothing at {images}; give a folder, zip or npz of images")
    if config["bad"] not in ("error", "skip"):
        raise UsageError(f"bad must be error or skip, not {config['bad']!r}")
    if config["resize"] is not None:
        positive(config, "resize")
    batch = positive(config, "batch")
    models = reference_models()
    detector = instantiate(config["detector"], "detector", models)
    metrics = make_metrics(config)
    real, about_real = References(models, batch).get(config, detector, None)
    check_metrics(metrics, real)
    identity = {"command": "eval", **{k: v for k, v in config.items() if k not in VOLATILE}}
    folder = output_folder(config["out"], "eval", Path(images).resolve().name, identity)
    with run_folder(folder, identity, bool(config["overwrite"])):
        began = time.perf_counter()
        fake, about_fake = file_features(
            images, detector, resize=config["resize"], bad=config["bad"], batch=batch
        )
        check_comparable(real=real, fake=fake)
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
            config={**config, "source": about_fake},
            provenance=provenance(config),
        )
        files = write_tables([row], folder)
    print(f"{images} against {row.settings['reference']}\n{terminal_table([row])}\n")
    for file in files:
        print(file)


def _as_override(key: str, text: str) -> str:
    """An override whose value is exactly this text."""
    quoted = text.replace("\\", "\\\\").replace("'", "\\'")
    return f"{key}='{quoted}'"
