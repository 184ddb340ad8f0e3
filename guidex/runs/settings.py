"""The settings of `guidex sample` and `guidex sweep`: typed, checked, and what each decides."""

import functools
import json
import math
from dataclasses import dataclass, field, fields, replace
from typing import Any, Self

import torch

from guidex.config.compose import Config
from guidex.config.instantiate import content_key
from guidex.errors import UsageError
from guidex.runs.provenance import digest
from guidex.runs.ranks import this_rank
from guidex.sampling.seeds import SEED_LIMIT, check_count, parse_seeds

FORMATS = ("png", "zip", "npz")
_LEAST = {"batch": 1, "block": 1, "repeats": 1, "gallery": 0}
_CHOICES = {"rng": ("device", "cpu"), "format": FORMATS, "features": ("keep", "drop")}


def _key(*roles: str, **options: Any) -> Any:
    """A key of the configuration: "volatile", if it changes no result; of the "start", if points
    that share noise, model and solver have it in common; of the "extent", if it says how much is
    made, or what is kept of it, but not what is made of a seed and the class asked for."""
    return field(metadata={"roles": roles}, **options)


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What a point is sampled with, beside the objects of its configuration, which is recorded.

    A key of the configuration that has no field here, or a field without a role, decides what is
    made of a seed. Seeds are those of all repeats, one after the other.
    """

    config: Config
    out: str | None = _key("volatile")
    overwrite: bool = _key("volatile")
    batch: int = _key("volatile")
    figure: Config = _key("volatile", default_factory=dict)
    eval: bool = _key("volatile", default=False)
    published: Any = _key("volatile", default=None)
    shard: Any = _key("volatile", default=None)
    launcher: Any = _key("volatile", default=None)
    sort: str | None = _key("volatile", default=None)
    baseline: Any = _key("volatile", default="best")
    tracker: Config | None = _key("volatile", default=None)
    features: str = _key("volatile", default="keep")
    seeds: list[int] = _key("start", "extent")
    repeats: int = _key("start", "extent", default=1)
    labels: Any = _key("start", "extent")
    model: Config = _key("start")
    sampler: Config = _key("start")
    device: str = _key("start")
    rng: str = _key("start")
    block: int = _key("extent")
    sweep: Config = _key("extent", default_factory=dict)
    gallery: int = _key("extent", default=0)
    metrics: Any = _key("extent", default=None)
    detector: Any = _key("extent", default=None)
    protocol: Any = _key("extent", default=None)
    ref: Any = _key("extent", default=None)
    guidance: Config
    decoder: Config
    format: str = "png"
    latents: bool = False

    @classmethod
    def of(cls, config: Config) -> Self:
        """The settings in a configuration of either command, checked."""
        config = {**config, "device": resolve_device(config["device"])}
        for key in _LEAST.keys() & config:
            whole(config, key, _LEAST[key])
        for key in _CHOICES.keys() & config:
            if config[key] not in _CHOICES[key]:
                raise UsageError(f"{key} must be {' or '.join(_CHOICES[key])}, not {config[key]!r}")
        names = {each.name for each in fields(cls)}
        typed = {key: value for key, value in config.items() if key in names}
        for key, value in config.get("figure", {}).items():
            if value is not None and not _are_increasing(value):
                raise UsageError(
                    f"figure.{key} must be two increasing numbers or null, not {value!r}"
                )
        seeds = _all_seeds(json.dumps(config["seeds"]), config.get("repeats", 1))
        made = cls(**typed | {"config": config, "seeds": seeds})
        made.part  # noqa: B018 (it is checked)
        return made

    @classmethod
    def anywhere(cls, config: Config) -> Self:
        """Those of a run on another machine, whose device may be missing here."""
        is_here = config["device"] == "cuda" and torch.cuda.is_available()
        device = "cuda" if is_here else "cpu"
        return replace(cls.of({**config, "device": device}), config=config)

    @property
    def identity(self) -> Config:
        """What decides the results: the kind of a device, but not its number."""
        kept = {key: value for key, value in self.config.items() if key not in VOLATILE}
        return {**kept, "device": kept["device"].partition(":")[0]}

    @property
    def cohort(self) -> str:
        """Equal for points that start from the same noise under the same main model and solver."""
        parts = {key: self.config[key] for key in _keys("start") if key in self.config}
        parts["model"] = {k: v for k, v in parts["model"].items() if k != "references"}
        return content_key(parts)

    @property
    def name(self) -> str:
        """Names what is made of a seed: equal for points that differ in their seeds alone, in what
        is kept and measured, and in the tables that they are of."""
        extent = _keys("extent")
        return digest({k: v for k, v in self.identity.items() if k not in extent}, 16)

    @property
    def part(self) -> tuple[int, int]:
        """Which share of the blocks this process may make, from 0, and of how many."""
        if self.shard is None:
            return 0, 1
        number, _, count = str(self.shard).partition("/")
        if not (number.isdecimal() and count.isdecimal() and 1 <= int(number) <= int(count)):
            raise UsageError(f"shard must be i/n, from 1/n to n/n, not {self.shard!r}")
        return int(number) - 1, int(count)


def _keys(role: str) -> tuple[str, ...]:
    return tuple(each.name for each in fields(Settings) if role in each.metadata.get("roles", ()))


# Keys that do not change results, so that a run may be resumed with others.
VOLATILE = _keys("volatile")


def resolve_device(device: str) -> str:
    """ "auto" to the device there is, "cuda" to the one of this process; any other as it is.

    Raises:
        UsageError: no such device.
    """
    has_gpu = torch.cuda.is_available()
    try:
        given = torch.device(("cuda" if has_gpu else "cpu") if device == "auto" else device)
    except RuntimeError as error:
        raise UsageError(f"device must be auto, cpu, cuda or cuda:N, not {device!r}") from error
    if given.type not in (("cpu", "cuda") if has_gpu else ("cpu",)):
        raise UsageError(f"device={device} is not available here; use auto or cpu")
    if given.type == "cpu":
        return "cpu"
    index = this_rank().local if given.index is None else given.index
    count = torch.cuda.device_count()
    if index >= count:
        raise UsageError(
            f"there is no GPU {index}: {count} can be seen here, from cuda:0 on; start one process "
            "for each (torchrun --nproc_per_node), or give device=cuda:0"
        )
    return f"cuda:{index}"


def _are_increasing(value: Any) -> bool:
    """Whether a value is two finite numbers, the ends of an axis."""
    try:
        low, high = value
        return -math.inf < low < high < math.inf
    except (TypeError, ValueError):  # no numbers, or not two
        return False


def whole(config: Config, key: str, least: int = 1) -> int:
    """A whole number from the configuration."""
    value = config[key]
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise UsageError(f"{key} must be a whole number of at least {least}, not {value!r}")
    return value


@functools.lru_cache(maxsize=16)
def _all_seeds(text: str, repeats: int) -> list[int]:
    """The seeds, given as JSON, and, for repeats, as many ranges of the same length after them;
    made once for all points that have the same."""
    first = parse_seeds(json.loads(text))
    check_count(len(first) * repeats)
    stride = max(first) - min(first) + 1
    if max(first) + stride * (repeats - 1) >= SEED_LIMIT:
        raise UsageError(f"repeats={repeats} leaves the range of seeds, which end below 2^32")
    return [seed + stride * r for r in range(repeats) for seed in first]
