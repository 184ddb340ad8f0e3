"""From words on the command line to a configuration: Hydra's compose API and override grammar.

Groups (`model=digits`) are composed by Hydra. Values (`guidance.schedule.w=3`) are then set one by
one, so that an unknown key can be answered with the nearest valid ones, and so that a key may
reach into a part that a preset takes over from elsewhere (`guidance.reference.h=0.7`, where the
reference is one of the model's).
"""

import functools
import itertools
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hydra import compose as hydra_compose
from hydra import initialize_config_dir
from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Glob, IntervalSweep, Override, ValueType
from hydra.errors import HydraException
from omegaconf import AnyNode, DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from guidex.config import plugin
from guidex.config.presets import (
    config_dir,
    folders,
    is_group,
    nearest,
    options,
    preset_text,
    table_rows,
)
from guidex.errors import UsageError

Config = dict[str, Any]

LIST_GROUPS = ("metrics",)  # of which several presets may be chosen together
OPTIONAL_GROUPS = ("experiment", "protocol")  # of which none may be chosen, as null
METRIC_NAMES = {  # what metrics are called elsewhere
    **dict.fromkeys(("fid", "sfid", "fd", "fdd", "fd_dinov2"), "frechet"),
    **dict.fromkeys(("precision", "recall", "density", "coverage", "pr"), "prdc"),
    "is": "inception_score",
}
PATH_KEYS = {"eval": "images", "ref": "data"}  # what the first word of a command may be


@dataclass(frozen=True)
class Composed:
    """A resolved configuration.

    Attributes:
        config: plain data (dict, list, str, int, float, bool, None), all references resolved.
        choices: the preset chosen in each group, such as {"guidance": "cfg"}.
    """

    config: Config
    choices: dict[str, str]


@dataclass(frozen=True)
class Axis:
    """One swept key and its values, as override texts."""

    key: str
    values: tuple[str, ...]


def compose(command: str, words: Sequence[str], complete: bool = True) -> Composed:
    """The configuration of a command under overrides that each have one value.

    Arguments:
        command: name of the root YAML: sample, sweep or eval.
        words: overrides such as "model=digits" and "guidance.schedule.w=3".
        complete: whether to refuse values that must be given, and are not.

    Raises:
        UsageError: unknown key, group or preset, or several values where one is wanted.
    """
    groups, values = [], []
    for override in map(parse, words):
        if override.is_sweep_override():
            key = override.key_or_group
            if command in PATH_KEYS and _is_group(override) and key not in LIST_GROUPS:
                hint = f"choose one {key}, and run the command for each (features are kept)"
            else:
                hint = f"several values make a sweep (guidex sweep); for a list, write {key}=[…]"
            raise UsageError(f"{override.input_line}: {hint}")
        (groups if _is_group(override) else values).append(override)
    # To choose none is what roots say by themselves; Hydra has no way to say it again.
    last = {one.key_or_group: one for one in groups if one.key_or_group in OPTIONAL_GROUPS}
    groups = [one for one in groups if last.get(one.key_or_group, one) is one]
    none = [one for one in last.values() if one.value() is None]
    groups = [one for one in groups if one not in none]
    cfg, choices = _compose_groups(command, tuple(o.input_line for o in groups))
    for group in {one.key_or_group for one in none} & {"protocol"}:  # an experiment may choose one
        cfg.pop(group, None)
        choices[group] = "None"
    _require_one_way([*groups, *values], cfg, choices)
    results = _set_published(cfg, choices)
    if OmegaConf.is_interpolation(cfg, "plugin") or cfg.get("plugin") is not None:
        raise UsageError("a preset names a plugin, which runs code; say plugin=… yourself")
    # A part taken over from elsewhere is copied once a key inside it is set, so that comes last.
    try:
        for override in sorted(values, key=lambda one: _is_taken_over(cfg, one)):
            _set(cfg, override, choices)
        raw = OmegaConf.to_container(cfg, resolve=False)
        _require_plain_references(raw)
        if complete:
            _require_all(raw, choices)
        config = OmegaConf.to_container(cfg, resolve=True)
    except OmegaConfBaseException as error:
        raise UsageError(_unresolved(error, cfg, choices)) from error
    if complete:
        _require_all(config, choices)
    if config.get("plugin") is not None:
        config["plugin"] = plugin.register(str(config["plugin"]))
    if config.get("published") == {} and results and _is_as_published(config, choices):
        config["published"] = results
    return Composed(config, choices)


def check_words(command: str, words: Sequence[str]) -> None:
    """Refuse typing errors, as the command itself would; it imports torch first, which takes
    seconds.

    Raises:
        UsageError: as `compose`.
    """
    if command in PATH_KEYS:
        compose(command, path_first(command, words))
        return
    overrides = list(map(parse, words))
    if {"eval", "experiment"} & {one.key_or_group for one in overrides}:
        return  # whose points may be of other keys
    fixed, axes = split_axes(words)
    if command == "sample" or not axes:
        compose(command, words)
        return
    for word in (f"{axis.key}={value}" for axis in axes for value in axis.values):
        if _is_group(override := parse(word)):
            _check_choice(override)
    compose(command, fixed)
    compose(command, [*fixed, *(f"{axis.key}={axis.values[0]}" for axis in axes)])


def _unresolved(error: OmegaConfBaseException, cfg: DictConfig, choices: dict[str, str]) -> str:
    """The complaint about a reference to a key that is not there."""
    text = str(error).splitlines()[0]
    missing = re.search(r"Missing mandatory value: (\S+)", text)
    if missing is not None:
        return f"{missing[1]} must be given, for example {missing[1]}=…"
    lacking = re.search(r"'model\.references\.(\w+)", text)
    if lacking is None:
        return f"{error.full_key}: {text}"
    there = ", ".join(cfg.model.get("references", {})) or "none"
    return (
        f"guidance={choices['guidance']} is measured against a reference {lacking[1]!r}, which "
        f"model={choices['model']} does not have; it has {there}"
    )


def _set_published(cfg: DictConfig, choices: dict[str, str]) -> Config:
    """Set what was published for the model under the guidance chosen (`model.published`: keys with
    dots), where there is such a key and an experiment says nothing about it; returns what came
    out."""
    model, experiment = cfg.get("model", {}), choices.get("experiment", "None")
    own: list[str] = []
    if experiment != "None":
        own = _keys(OmegaConf.create(preset_text("experiment", experiment)))
    published, guidance = model.get("published", OmegaConf.create()), choices.get("guidance", "")
    settings, results = {}, {}
    for key, value in published.get(guidance, {}).items():
        (settings if "." in key else results)[key] = value
    # An interpolation takes the settings of another guidance, of which nothing came out.
    about = {"source", "protocol", "images", "repeats", "statistic", "labels"}
    if OmegaConf.is_interpolation(published, guidance) or results.keys() <= about:
        results = {}
    for key, value in settings.items():
        parent, _, name = key.rpartition(".")
        if name in (OmegaConf.select(cfg, parent) or ()) and key not in own:
            OmegaConf.update(cfg, key, value)
    model.pop("published", None)
    return results


def _is_as_published(config: Config, choices: dict[str, str]) -> bool:
    """Whether model, guidance and sampler are what their presets alone make."""
    words = tuple(f"{key}={choices[key]}" for key in ("model", "guidance"))
    alone = _methods_of_presets(words, tuple(folders()[1:]))
    return config["labels"] == "random" and _methods(config) == alone


@functools.lru_cache(maxsize=256)
def _methods_of_presets(words: tuple[str, ...], own: tuple[Path, ...]) -> Any:
    del own  # folders of presets, which decide what the words mean
    return _methods(compose("sample", words).config)


def _methods(part: Any) -> Any:
    """Model, guidance and sampler, but for arithmetic and the place of the files."""
    if not isinstance(part, dict):
        return part
    keys = ("model", "guidance", "sampler") if "sampler" in part else part
    aside = ("dtype", "root", "folded", "compile", "references")
    return {key: _methods(part[key]) for key in keys if key not in aside}


def _require_one_way(
    overrides: Sequence[Override], cfg: DictConfig, choices: dict[str, str]
) -> None:
    """Refuse to choose or change what a protocol replaces."""
    protocol = choices.get("protocol", "None")
    if protocol == "None":
        return
    for override in overrides:
        key = override.key_or_group
        if key.partition(".")[0] in ("detector", "metrics"):
            known = _keys(cfg.protocol, "protocol.")
            parts = " or ".join(name for name in known if name.endswith(f".{key}"))
            raise UsageError(
                f"{override.input_line}: protocol={protocol} has detectors and metrics of its own; "
                f"change them there ({parts or 'protocol.…'}), or say protocol=null"
            )


def _require_plain_references(data: Any, key: str = "") -> None:
    """Refuse resolvers, such as ${oc.env:…}: a YAML may take from itself, and from nowhere else."""
    if isinstance(data, str) and "${" in re.sub(r"\$\{[\w.]+\}", "", data):
        raise UsageError(f"{key}: only references to other keys, as ${{model.h}}, are followed")
    if isinstance(data, dict | list):
        for name, item in data.items() if isinstance(data, dict) else enumerate(data):
            _require_plain_references(item, f"{key}.{name}" if key else str(name))


def _require_all(data: Any, choices: dict[str, str]) -> None:
    """Refuse what must be given and is not, but in references that nothing takes over."""
    missing = list(_missing(data))
    if not missing:
        return
    text = f"{missing[0]} must be given, for example {' '.join(f'{key}=…' for key in missing)}"
    if missing[0].startswith("guidance."):
        text += (
            f". model={choices['model']} comes with no network of its own for "
            f"guidance={choices['guidance']}: where one is published, the preset names it"
        )
    raise UsageError(text)


def _missing(data: Any, key: str = "") -> Iterator[str]:
    if data == "???":
        yield key
    for name, item in data.items() if isinstance(data, dict) else ():
        if name != "references":
            yield from _missing(item, f"{key}.{name}" if key else name)


def split_axes(words: Sequence[str]) -> tuple[list[str], list[Axis]]:
    """Overrides with one value, and those with several (`w=1,2`, `range(1,5)`, `choice(a,b)`) as
    axes."""
    fixed, axes = [], []
    for override in map(parse, words):
        if override.is_sweep_override():
            axes.append(_axis(_full_key(override), _sweep_values(override)))
        else:
            fixed.append(override.input_line)
    return fixed, axes


def axes_from_yaml(table: dict[str, Any]) -> list[Axis]:
    """Axes as an experiment writes them: key -> a list, or text in Hydra's sweep grammar, or one
    value."""
    axes = []
    for key, values in table.items():
        if isinstance(values, list):
            axes.append(_axis(key, map(_as_text, values)))
            continue
        override = parse(f"{key}={_as_text(values)}")
        texts = _sweep_values(override) if override.is_sweep_override() else [_as_text(values)]
        axes.append(_axis(key, texts))
    return axes


def _axis(key: str, values: Iterable[str]) -> Axis:
    axis = Axis(key, tuple(values))
    if key == "plugin":
        raise UsageError("plugin is no axis; give one plugin=… on the command line")
    if not axis.values:
        raise UsageError(f"the axis {key} has no values")
    return axis


def parse(word: str) -> Override:
    """One override in Hydra's grammar. A value that the grammar can't read (a path, say) is taken
    as text."""
    key, equals, value = word.partition("=")
    if not equals or not key:
        raise UsageError(f"{word!r} is not an override; they look like key=value")
    if key[0] in "+~":
        raise UsageError(
            f"{word}: keys are fixed, so write {key.lstrip('+~')}=… without {key[0]!r}"
        )
    parser = OverridesParser.create()
    try:
        return parser.parse_override(word)
    except HydraException:
        # In Hydra's quotes, backslashes count double only before a quotation mark.
        quoted = re.sub(r"(\\*)('|$)", lambda end: end[1] * 2 + end[2].replace("'", r"\'"), value)
        try:
            return parser.parse_override(f"{key}='{quoted}'")
        except HydraException as error:
            raise UsageError(f"cannot read {word!r}: {str(error).splitlines()[0]}") from error


def _full_key(override: Override) -> str:
    package = f"@{override.package}" if override.package is not None else ""
    return override.key_or_group + package


def _is_group(override: Override) -> bool:
    return is_group(override.key_or_group)


def _sweep_values(override: Override) -> Iterator[str]:
    value = override.value()
    if isinstance(value, Glob):
        yield from value.filter(options(override.key_or_group))
        return
    if isinstance(value, IntervalSweep) or override.value_type == ValueType.INTERVAL_SWEEP:
        raise UsageError(f"{override.input_line}: an interval has no values to try; use range(…)")
    if getattr(value, "shuffle", False):
        raise UsageError(
            f"{override.input_line}: the order would be another at each start, and so would the "
            "table; write the values in the order that it is to have"
        )
    yield from override.sweep_string_iterator()


def _as_text(value: Any) -> str:
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list):
        return f"[{','.join(_as_text(item) for item in value)}]"
    return str(value)


@functools.cache
def _store_rows(own: tuple[Path, ...]) -> None:
    """Show Hydra the presets that are rows of tables, once for each folder of the user's own."""
    for group, name, row in table_rows():
        package = "_global_" if group == "experiment" else group.replace("/", ".")
        *parents, last = f"{group}/{name}".split("/")
        ConfigStore.instance().store(last, row, group="/".join(parents), package=package)


@functools.lru_cache(maxsize=4096)
def _composed(
    command: str, groups: tuple[str, ...], own: tuple[Path, ...]
) -> tuple[Config, tuple[tuple[str, str], ...]]:
    for word in groups:
        _check_choice(parse(word))
    _store_rows(own)
    found = [str(folder).replace("\\", "\\\\").replace("'", "\\'") for folder in own]
    overrides = [*groups, *(f"hydra.searchpath=['file://{folder}']" for folder in found)]
    GlobalHydra.instance().clear()
    try:
        with initialize_config_dir(version_base="1.3", config_dir=str(config_dir().resolve())):
            cfg = hydra_compose(command, overrides=overrides, return_hydra_config=True)
            choices = OmegaConf.to_container(cfg.hydra.runtime.choices)
    except HydraException as error:
        raise UsageError(_hydra_text(error, groups)) from error
    with_hydra = OmegaConf.to_container(cfg, resolve=False)
    del with_hydra["hydra"]
    chosen = tuple((k, str(v)) for k, v in choices.items() if not k.startswith("hydra"))
    return with_hydra, chosen


def _compose_groups(command: str, groups: tuple[str, ...]) -> tuple[DictConfig, dict[str, str]]:
    plain, choices = _composed(command, groups, tuple(folders()[1:]))
    return OmegaConf.create(plain), dict(choices)


def _check_choice(override: Override) -> None:
    group = override.key_or_group
    value = override.value()
    if isinstance(value, list) and group not in LIST_GROUPS:
        raise UsageError(f"{override.input_line}: choose one {group}")
    for name in value if isinstance(value, list) else [value]:
        if name is None and group in OPTIONAL_GROUPS:
            continue
        if str(name) not in options(group):
            given = _as_text(name)
            meant = METRIC_NAMES.get(given.lower(), given) if group == "metrics" else given
            raise UsageError(f"there is no {group}={given}{nearest(meant, options(group))}")


def _hydra_text(error: HydraException, groups: Sequence[str]) -> str:
    """Hydra's complaint about a group, in the user's terms."""
    first = str(error).splitlines()[0]
    for word in groups:
        key = word.partition("=")[0]
        if f"Could not override '{key}'" in first:
            return f"{word}: the presets chosen here have no {key} to replace"
    return first


def _set(cfg: DictConfig, override: Override, choices: dict[str, str]) -> None:
    """Set one value; the key must exist."""
    *parents, leaf = path = override.key_or_group.split(".")
    node = cfg
    for depth, name in enumerate(parents):
        _check_key(cfg, node, name, path[: depth + 1], override, choices)
        raw = node._get_node(name)
        if raw is not None and raw._is_interpolation() and OmegaConf.is_config(node[name]):
            node[name] = OmegaConf.to_container(node[name], resolve=False)
        node = node[name]
    _check_key(cfg, node, leaf, path, override, choices)
    group, value = "/".join(path), override.value()
    if value in (".inf", "-.inf"):  # as YAML, and so --cfg, writes it
        value = float(value.replace(".", ""))
    if is_group(group) and not isinstance(value, dict):
        raise UsageError(f"{override.input_line}: to choose a preset, write {group}={value}")
    raw = node._get_node(leaf)
    if isinstance(raw, AnyNode) and isinstance(raw._value(), bool) and not isinstance(value, bool):
        raise UsageError(f"{'.'.join(path)} must be true or false, not {_as_text(value)!r}")
    node[leaf] = value


def _is_taken_over(cfg: DictConfig, override: Override) -> bool:
    """Whether a key lies in a part that refers to another part."""
    node = cfg
    for name in override.key_or_group.split(".")[:-1]:
        node = node._get_node(name) if OmegaConf.is_dict(node) else None
        if node is None or node._is_interpolation():
            return node is not None
    return False


def _check_key(
    cfg: DictConfig,
    node: Any,
    name: str,
    path: list[str],
    override: Override,
    choices: dict[str, str],
) -> None:
    if OmegaConf.is_dict(node) and name in node.keys():
        return
    given, group = ".".join(path), path[0]
    preset = f" with {group}={choices[group]}" if group in choices else ""
    same_leaf = [
        key for key in _keys(cfg) if key.split(".")[-1] == override.key_or_group.split(".")[-1]
    ]
    hint = nearest(override.key_or_group, same_leaf)
    if OmegaConf.is_dict(node) and not same_leaf:
        prefix = ".".join(path[:-1])
        allowed = [f"{prefix}.{key}" if prefix else str(key) for key in node if key != "_target_"]
        hint = nearest(given, allowed)
    raise UsageError(f"there is no key {given}{preset}{hint}")


def _keys(node: Any, prefix: str = "") -> list[str]:
    """All keys of a config, as they are overridden."""
    found = []
    for key in node:
        if str(key) == "_target_":
            continue
        found.append(prefix + str(key))
        child = node._get_node(key)
        if OmegaConf.is_dict(child) and not child._is_interpolation():
            found.extend(_keys(child, f"{prefix}{key}."))
    return found


def points(axes: Sequence[Axis], mode: str) -> list[dict[str, str]]:
    """The points of a table: every combination of the axes' values, or the first, second, … of
    each.

    Arguments:
        axes: swept keys with their values.
        mode: "grid" for all combinations, the last axis fastest; "zip" to pair values of equal
            position.

    Raises:
        UsageError: axes of unequal length in mode zip.
    """
    if mode == "zip":
        lengths = {axis.key: len(axis.values) for axis in axes}
        if len(set(lengths.values())) > 1:
            shown = ", ".join(f"{key} {length}" for key, length in lengths.items())
            raise UsageError(
                f"sweep.mode=zip pairs values, so axes need equal lengths; they have {shown}"
            )
        combinations = zip(*(axis.values for axis in axes), strict=True) if axes else iter([()])
    else:
        combinations = itertools.product(*(axis.values for axis in axes))
    keys = [axis.key for axis in axes]
    return [dict(zip(keys, values, strict=True)) for values in combinations]


def path_first(command: str, words: Sequence[str]) -> list[str]:
    """The words of a command as overrides, where the first one may be a path."""
    if len(words) == 0 or ("=" in words[0] and not Path(words[0]).exists()):
        return list(words)
    # Quoted, so that the value is exactly this text.
    quoted = words[0].replace("\\", "\\\\").replace("'", "\\'")
    return [f"{PATH_KEYS[command]}='{quoted}'", *words[1:]]


def show(command: str, words: Sequence[str]) -> str:
    """The composed configuration as YAML, with the comments of the presets. Axes are shown with
    their first value, and what must be given and is not as ???."""
    fixed, axes = split_axes(path_first(command, words) if command in PATH_KEYS else words)
    first = [f"{axis.key}={axis.values[0]}" for axis in axes]
    composed = compose(command, [*fixed, *first], complete=False)
    comments = _comments("", command, "")
    metrics = [("metrics", name) for name in composed.config.get("metrics", {})]
    for choice, name in [*composed.choices.items(), *metrics]:
        group, _, package = choice.partition("@")
        if name in options(group):
            own = "" if group == "experiment" else group.replace("/", ".")
            comments |= _comments(group, name, package or own)
    lines, path = [], []
    for line in OmegaConf.to_yaml(OmegaConf.create(composed.config)).splitlines():
        key = re.match(r"( *)(\w+):", line)
        if key is not None:
            path[len(key[1]) // 2 :] = [key[2]]
            if ".".join(path) in comments:
                line += f"  # {comments['.'.join(path)]}"
        lines.append(f"{line}\n")
    return "".join(lines)


def _comments(group: str, name: str, package: str) -> dict[str, str]:
    """What a YAML, and the preset that it builds on, say behind their keys, by the whole key."""
    found: dict[str, str] = {}
    path = [package] if package else []
    top = len(path)
    text = preset_text(group, name)
    for line in text.splitlines():
        if base := re.fullmatch(r"  - ([\w-]+)", line):
            found |= _comments(group, base[1], package) if base[1] != "_self_" else {}
        elif key := re.match(r"( *)(\w+):(?:.*?\s# *(.+))?", line):
            path[top + len(key[1]) // 2 :] = [key[2]]
            if key[3]:
                found[".".join(path)] = key[3]
    return found
