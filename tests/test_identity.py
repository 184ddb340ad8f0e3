"""Every key of a configuration decides the results, and so the identity of a run, or stands on a
short list here."""

import copy
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest

from guidex.config.compose import compose
from guidex.runs.points import check
from guidex.runs.settings import Settings

# What may change while a run is resumed: where it goes, how much at once, what is drawn or told.
VOLATILE = {"out", "overwrite", "batch", "eval", "figure", "published", "shard", "sort", "baseline"}
# What all points of a cohort have in common: they start from the same noise.
STARTS = {"model", "sampler", "seeds", "labels", "rng", "device", "repeats"}
# Where the results of a point lie says nothing of how many seeds there are, in which table, and how
# they are measured; nor of the classes asked for, which stand with the seeds.
EXTENT = {"seeds", "repeats", "block", "sweep", "labels"}
EXTENT |= {"gallery", "metrics", "detector", "protocol", "ref"}


def leaves(config: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The way to every value of a configuration."""
    if not isinstance(config, dict) or not config:
        yield path
        return
    for key, value in config.items():
        yield from leaves(value, (*path, key))


def changed(settings: Settings, path: tuple[Any, ...]) -> Settings:
    """The same settings, but for one value."""
    config = copy.deepcopy(settings.config)
    part = config
    for key in path[:-1]:
        part = part[key]
    part[path[-1]] = "cuda:0" if path == ("device",) else [part[path[-1]], "other"]
    return replace(settings, config=config)


@pytest.fixture(scope="module", params=["sample", "sweep"])
def settings(request: pytest.FixtureRequest) -> Settings:
    return check(compose(request.param, ["device=cpu"]), {}).settings


def test_every_key_is_of_the_identity_of_run_cohort_and_point_or_not(settings):
    tops = {path[0] for path in leaves(settings.config)}
    assert tops - VOLATILE and tops >= {"model", "guidance", "sampler", "labels", "seeds"}
    for path in leaves(settings.config):
        other = changed(settings, path)
        assert (other.identity != settings.identity) == (path[0] not in VOLATILE), path
        starts = path[0] in STARTS and path[:2] != ("model", "references")
        assert (other.cohort != settings.cohort) == starts, path
        assert (other.name != settings.name) == (path[0] not in VOLATILE | EXTENT), path


def test_the_number_of_a_gpu_changes_nothing(settings):
    first, second = (
        replace(settings, config={**settings.config, "device": f"cuda:{n}"}) for n in (0, 1)
    )
    assert first.identity == second.identity and first.name == second.name
