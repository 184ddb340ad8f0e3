"""The settings of `guidex sample` and `guidex sweep`: typed, checked, and what each decides."""

import math
from dataclasses import dataclass, field, fields
from typing import Any, Self

import torch

from guidex.config.compose import Config
from guidex.config.instantiate import content_key
from guidex.errors import UsageError
from guidex.runs.outputs import FORMATS
from guidex.runs.provenance import digest
from guidex.runs.ranks import this_rank
from guidex.sampling.seeds import SEED_LIMIT, check_count, check_seeds, parse_seeds


def _key(*roles: str, **options: Any) -> Any:
    """A key of the configuration: "volatile", if it changes no result; of the "start", if points
    that share noise, model and solver have it in common; of the "extent", if it says how much is
    made, but not what is made of a seed."""
    return field(metadata={"roles": roles}, **options)


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What a point is sampled with, beside the objects of its configuration.

    A key of the configuration that has no field here, or a field without a role, decides what is
    made of a seed.

    Attributes:
        config: the resolved configuration, as it is recorded.
        seeds: one per image, those of all repeats one after the other.
    """

    config: Config
    out: str | None = _key("volatile")
    overwrite: bool = _key("volatile")
    batch: int = _key("volatile")
    figure: Config = _key("volatile", default_factory=dict)
    eval: bool = _key("volatile", default=False)
    published: Any = _key("volatile", default=None)
    seeds: list[int] = _key("start", "extent")
    repeats: int = _key("start", "extent", default=1)
    labels: Any = _key("start")
    model: Config = _key("start")
    sampler: Config = _key("start")
    device: str = _key("start")
    rng: str = _key("start")
    block: int = _key("extent")
    sweep: Config = _key("extent", default_factory=dict)
    guidance: Config
    decoder: Config
    format: str = "png"
    latents: bool = False
    gallery: int = 0

    @classmethod
    def of(cls, config: Config) -> Self:
        """The settings in a configuration of either command.

        Raises:
            UsageError: naming the key.
        """
        config = {**config, "device": resolve_device(config["device"])}
        for key, least in {"batch": 1, "block": 1, "repeats": 1, "gallery": 0}.items():
            if key in config:
                whole(config, key, least)
        for key, values in {"rng": ("device", "cpu"), "format": FORMATS}.items():
            if config.get(key, values[0]) not in values:
                raise UsageError(f"{key} must be {' or '.join(values)}, not {config[key]!r}")
        if "figure" in config:
            _check_view(config["figure"])
        names = {each.name for each in fields(cls)}
        typed = {key: value for key, value in config.items() if key in names}
        return cls(**typed | {"config": config, "seeds": _all_seeds(config)})

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
        """Names what is made of a seed: equal for points that differ in their seeds alone, and in
        the tables that they are of."""
        extent = _keys("extent")
        return digest({k: v for k, v in self.identity.items() if k not in extent}, 16)


def _keys(role: str) -> tuple[str, ...]:
    return tuple(each.name for each in fields(Settings) if role in each.metadata.get("roles", ()))


# Keys that do not change results, so that a run may be resumed with others.
VOLATILE = _keys("volatile")


def resolve_device(device: str) -> str:
    """ "auto" to the device there is, "cuda" to the one of this process; any other as it is.

    Raises:
        UsageError: no such device.
    """
    if device == "auto":
        if not torch.cuda.is_available():
            return "cpu"
        _check_index(this_rank().local)
        return f"cuda:{this_rank().local}"
    try:
        given = torch.device(device)
    except RuntimeError as error:
        raise UsageError(f"device must be auto, cpu, cuda or cuda:N, not {device!r}") from error
    if given.type not in ("cpu", "cuda") or (
        given.type == "cuda" and not torch.cuda.is_available()
    ):
        raise UsageError(f"device={device} is not available here; use auto or cpu")
    if given.type == "cuda":
        index = this_rank().local if given.index is None else given.index
        _check_index(index)
        return f"cuda:{index}"
    return device


def _check_index(index: int) -> None:
    count = torch.cuda.device_count()
    if index >= count:
        raise UsageError(
            f"there is no GPU {index}: {count} can be seen here, from cuda:0 on; start one process "
            "for each (torchrun --nproc_per_node), or give device=cuda:0"
        )


def whole(config: Config, key: str, least: int = 1) -> int:
    """A whole number from the configuration."""
    value = config[key]
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise UsageError(f"{key} must be a whole number of at least {least}, not {value!r}")
    return value


def _check_view(figure: Config) -> None:
    """Refuse what figures of toys cannot show."""
    for key in ("x_range", "sigma_range", "center"):
        value = figure[key]
        if value is not None and not (
            isinstance(value, list) and len(value) == 2 and all(map(_is_finite, value))
        ):
            raise UsageError(f"figure.{key} must be two finite numbers or null, not {value!r}")
        if value is not None and key != "center" and not value[0] < value[1]:
            raise UsageError(f"figure.{key} must increase, unlike {value}")
    if figure["sigma_range"] is not None and figure["sigma_range"][0] < 0:
        raise UsageError(f"figure.sigma_range begins at 0 or above, not {figure['sigma_range']}")
    extent = figure["half_extent"]
    if extent is not None and not (_is_finite(extent) and extent > 0):
        raise UsageError(f"figure.half_extent must be a positive number or null, not {extent!r}")


def _is_finite(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _all_seeds(config: Config) -> list[int]:
    """The seeds and, for repeats, as many ranges of the same length after them."""
    first = parse_seeds(config["seeds"])
    repeats = whole(config, "repeats") if "repeats" in config else 1
    check_count(len(first) * repeats)
    stride = max(first) - min(first) + 1
    if max(first) + stride * (repeats - 1) >= SEED_LIMIT:
        raise UsageError(f"repeats={repeats} leaves the range of seeds, which end below 2^63")
    seeds = [seed + stride * r for r in range(repeats) for seed in first]
    check_seeds(seeds)
    return seeds
