"""`guidex ref`: statistics of a set of images, to a file."""

from collections.abc import Sequence
from pathlib import Path

from guidex.commands.evaluate import opened
from guidex.config.compose import compose, path_first
from guidex.errors import UsageError
from guidex.features.references import describe
from guidex.features.statistics_files import write_statistics
from guidex.files.atomic import require_space
from guidex.runs.measure import make_detector
from guidex.runs.ranks import this_rank


def make_reference(words: Sequence[str]) -> None:
    """Run the command. The first word may be where the images are."""
    config = compose("ref", path_first("ref", words)).config
    data = str(Path(str(config["data"])).expanduser())
    dest = Path(str(config["dest"])).expanduser()
    if dest.suffix != ".npz":
        raise UsageError(f"dest={dest}: the name of a file of statistics ends in .npz")
    if not dest.parent.is_dir():
        raise UsageError(f"dest={dest}: there is no folder {dest.parent}; create it first")
    # Of several processes, one may start late: what is there by then, the first one has written.
    if this_rank().first and dest.exists() and not config["overwrite"]:
        raise UsageError(f"{dest} is already there; choose another name, or give overwrite=true")
    samples, settings = opened(config, data)
    detector = make_detector(config, points=samples.images is None)
    if samples.count < 2:
        raise UsageError(f"{data} has one image; statistics need at least 2")
    [features] = samples.features([detector], settings)
    if not this_rank().first:
        return  # this process has done its share
    singles = features.count * features.dim * 4 if config["features"] else 0
    require_space(dest.parent, features.dim**2 * 8 + singles, "choose another dest=FILE")
    write_statistics(dest, features, keep_features=config["features"])
    print(f"{describe(features.about)}\n{dest}")
