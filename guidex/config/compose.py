"""From words on the command line to a configuration: Hydra's composition and override grammar.

Groups (`model=digits`) are composed by Hydra. Values (`guidance.schedule.w=3`) are then set one by
one, so that an unknown key is answered with the nearest valid ones, and a key may reach into a part
that is taken over from elsewhere (`guidance.reference.h=0.7`, where the reference is one of the
model's). References to other keys (`${model.h}`) are followed last.
"""

import copy
import functools
import itertools
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from hydra import compose as hydra_compose
from hydra import initialize
from hydra.conf import HydraConf
from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Glob, IntervalSweep, Override, ValueType
from hydra.errors import HydraException
from omegaconf import OmegaConf

from guidex.config import plugin
from guidex.config.presets import (
    contents,
    is_group,
    nearest,
    options,
    own_folder,
    preset,
    preset_text,
)
from guidex.errors import UsageError

Config = dict[str, Any]

LIST_GROUPS = ("metrics",)  # of which several presets may be chosen together
OPTIONAL_GROUPS = ("experiment", "protocol", "tracker")  # of which none may be chosen, as null
METRIC_NAMES = {  # what metrics are called elsewhere
    **dict.fromkeys(("fid", "sfid", "fd", "fdd", "fd_dinov2"), "frechet"),
    **dict.fromkeys(("precision", "recall", "density", "coverage", "pr"), "prdc"),
    "is": "inception_score",
}
PATH_KEYS = {"eval": "images", "ref": "data"}  # what the first word of a command may be
SHORT = re.compile(r"(prompts|negative)=")  # for model.prompts=… and model.negative=…
REFERENCE = re.compile(r"\$\{([\w.]+)\}")  # to another key


@dataclass(frozen=True)
class Composed:
    """A configuration as plain data, all references resolved, and the preset chosen in each group,
    such as {"guidance": "cfg"}; "None" for none."""

    config: Config
    choices: dict[str, str]


@dataclass(frozen=True)
class Axis:
    """One swept key and its values, as override texts."""

    key: str
    values: tuple[str, ...]


def compose(command: str, words: Sequence[str], complete: bool = True) -> Composed:
    """The configuration of a command (sample, sweep, eval or ref) under overrides such as
    "model=digits" and "guidance.schedule.w=3".

    Raises:
        UsageError: unknown key, group or preset, several values where one is wanted, or (where it
            is to be complete) a value that must be given and is not.
    """
    groups, values = [], []
    for override in map(parse, words):
        key = override.key_or_group
        if override.is_sweep_override():
            raise UsageError(
                f"{override.input_line}: choose one {key}; several values make a sweep (guidex "
                f"sweep); for a list, write {key}=[…]"
            )
        (groups if is_group(key) else values).append(override)
    config, choices = _choose(command, groups)
    _require_one_way([*groups, *values], choices)
    results = _set_published(config, choices)
    if config.get("plugin") is not None:
        raise UsageError("a preset names a plugin, which runs code; say plugin=… yourself")
    # A part taken over from elsewhere is copied once a key inside it is set, so that comes last.
    for override in sorted(values, key=lambda one: _is_taken_over(config, one)):
        _set(config, override, choices)
    if complete:
        _require_all(config, choices)
    try:
        config = _resolved(config, config)
    except RecursionError as error:
        raise UsageError("a reference leads back to itself by way of others") from error
    if complete:
        _require_all(config, choices)
    if config.get("plugin") is not None:
        config["plugin"] = plugin.register(str(config["plugin"]))
    if config.get("published") == {} and results and _is_as_published(config, choices):
        config["published"] = results
    return Composed(config, choices)


def check_words(command: str, words: Sequence[str]) -> None:
    """Refuse typing errors as the command itself would, after the seconds that torch takes."""
    if command in PATH_KEYS:
        compose(command, path_first(command, words))
    elif not {"eval", "experiment"} & {word.partition("=")[0] for word in words}:
        compose(command, _first_point(command, words))  # the points of others have other keys


def _first_point(command: str, words: Sequence[str]) -> list[str]:
    """The words of a command, of several values the first."""
    fixed, axes = split_axes(path_first(command, words) if command in PATH_KEYS else words)
    return [*fixed, *(f"{axis.key}={axis.values[0]}" for axis in axes)]


def _choose(command: str, groups: Iterable[Override]) -> tuple[Config, dict[str, str]]:
    """What the presets say that a command and its words choose, with references as they stand, and
    the preset taken in each group."""
    words, optional = [], {}
    for one in groups:
        _check_choice(one.key_or_group, one.value())
        if one.key_or_group in OPTIONAL_GROUPS:
            optional[one.key_or_group] = one
        else:
            words.append(one.input_line)
    # To choose none is what roots say by themselves; Hydra has no way to say it again.
    words += [one.input_line for one in optional.values() if one.value() is not None]
    text, choices = _composed(command, tuple(words), own_folder())
    config = copy.deepcopy(text)
    if "protocol" in optional and optional["protocol"].value() is None:
        config.pop("protocol", None)  # an experiment may choose one
        choices = {**choices, "protocol": "None"}
    return config, choices


@functools.lru_cache(maxsize=1)
def _store_presets(own: Path | None) -> None:
    """Show Hydra all presets, once for each folder of the user's own, and none of Hydra's own:
    files that are read for each configuration would take most of the time."""
    store = ConfigStore.instance()
    store.__deepcopy__ = lambda memo: store  # Hydra would copy all presets for each configuration
    store.store("config", HydraConf(defaults=[]), group="hydra")
    for group, name, content in contents():
        package = "_global_" if group == "experiment" else None
        parents, _, last = f"{group}/{name}".strip("/").rpartition("/")
        store.store(last, content, group=parents or None, package=package)


@functools.lru_cache(maxsize=4096)
def _composed(
    command: str, words: tuple[str, ...], own: Path | None
) -> tuple[Config, dict[str, str]]:
    _store_presets(own)
    GlobalHydra.instance().clear()
    try:
        with initialize(version_base="1.3", config_path=None):
            cfg = hydra_compose(command, overrides=list(words), return_hydra_config=True)
    except HydraException as error:
        first = str(error).splitlines()[0]
        for word, key in ((word, word.partition("=")[0]) for word in words):
            if f"Could not override '{key}'" in first:
                first = f"{word}: the presets chosen here have no {key} to replace"
        raise UsageError(first) from error
    choices = OmegaConf.to_container(cfg.hydra.runtime.choices)
    config = OmegaConf.to_container(cfg, resolve=False)
    del config["hydra"]
    return config, {k: str(v) for k, v in choices.items() if not k.startswith("hydra")}


def _own(root: Config, part: Config, key: str) -> None:
    """Copy a part that is taken over from elsewhere, so that it can be changed."""
    reference = REFERENCE.fullmatch(str(part.get(key)))
    if reference and isinstance(found := _select(root, reference[1], key), dict):
        part[key] = copy.deepcopy(found)


def _select(root: Config, path: str, key: str) -> Any:
    """What is at a path to which a key refers, all references on the way followed."""
    node: Any = root
    for name in path.split("."):
        if not isinstance(node, dict) or name not in node:
            there = nearest(name, node if isinstance(node, dict) else ())
            raise UsageError(f"{key} refers to {path}, which is not there{there}")
        node = node[name]
        if reference := REFERENCE.fullmatch(str(node)):
            node = _select(root, reference[1], key)
    return node


def _resolved(root: Config, node: Any, key: str = "") -> Any:
    """A copy with all references followed: to keys of the configuration, and to nothing else."""
    if isinstance(node, dict):
        return {k: _resolved(root, v, f"{key}.{k}".strip(".")) for k, v in node.items()}
    if isinstance(node, list):
        return [_resolved(root, item, f"{key}[{n}]") for n, item in enumerate(node)]
    if not isinstance(node, str) or "${" not in node:
        return node
    if "${" in REFERENCE.sub("", node):
        raise UsageError(f"{key}: only references to other keys, as ${{model.h}}, are followed")
    if whole := REFERENCE.fullmatch(node):
        return _resolved(root, _select(root, whole[1], key), key)
    return REFERENCE.sub(lambda part: str(_resolved(root, part[0], key)), node)


def _set_published(config: Config, choices: dict[str, str]) -> Config:
    """Set what was published for the model under the guidance chosen (`model.published`: keys with
    dots), but for what an experiment sets; returns what came out."""
    published, guidance = config.get("model", {}).get("published", {}), choices.get("guidance")
    known = guidance in published
    found = _select(config, f"model.published.{guidance}", "model.published") if known else {}
    config.get("model", {}).pop("published", None)
    own = _keys(preset("experiment", choices.get("experiment", "None")))
    for key, value in found.items():
        if "." in key and key in _keys(config) and key not in own:
            parent, _, name = key.rpartition(".")
            _select(config, parent, key)[name] = value
    results = {key: value for key, value in found.items() if "." not in key}
    is_other = isinstance(published.get(guidance), str)  # the settings of another guidance
    about = {"source", "protocol", "images", "repeats", "statistic", "labels"}
    return {} if is_other or results.keys() <= about else results


def _is_as_published(config: Config, choices: dict[str, str]) -> bool:
    """Whether model, guidance and sampler are what their presets alone make."""
    words = tuple(f"{key}={choices[key]}" for key in ("model", "guidance"))
    parts = [_method(config[part]) for part in _METHOD_PARTS]
    return config["labels"] == "random" and parts == _parts_alone(words, own_folder())


_METHOD_PARTS = ("model", "guidance", "sampler")


@functools.lru_cache(maxsize=256)
def _parts_alone(words: tuple[str, ...], own: Path | None) -> list[Any]:
    """What presets make by themselves; `own` is the folder of the user's own."""
    config = compose("sample", words).config
    return [_method(config[part]) for part in _METHOD_PARTS]


def _method(part: Any) -> Any:
    """A part, but for arithmetic and the place of files."""
    if not isinstance(part, dict):
        return part
    aside = ("dtype", "root", "compile", "references")
    return {key: _method(value) for key, value in part.items() if key not in aside}


def _require_one_way(words: Sequence[Override], choices: dict[str, str]) -> None:
    """Refuse to choose or change what a protocol replaces."""
    protocol = choices.get("protocol", "None")
    for word in words if protocol != "None" else ():
        if word.key_or_group.partition(".")[0] in ("detector", "metrics"):
            raise UsageError(
                f"{word.input_line}: protocol={protocol} has detectors and metrics of its own; "
                "change them there (protocol.…, as --cfg shows them), or say protocol=null"
            )


def _require_all(data: Any, choices: dict[str, str]) -> None:
    """Refuse what must be given and is not, but in references that nothing takes over."""
    if missing := list(_missing(data)):
        text = f"{missing[0]} must be given, for example {' '.join(f'{key}=…' for key in missing)}"
        if missing[0].startswith("guidance."):
            model, guidance = choices["model"], choices["guidance"]
            text += f"; model={model} comes with no network of its own for guidance={guidance}"
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
    for word in words:
        override = parse(word)
        if override.is_sweep_override():
            axes.append(_axis(word.partition("=")[0], _sweep_values(override)))
        else:
            fixed.append(override.input_line)
    return fixed, axes


def axes_from_yaml(table: dict[str, Any]) -> list[Axis]:
    """Axes as an experiment writes them: key -> a list, or text in Hydra's sweep grammar, or one
    value."""
    axes = []
    for key, values in table.items():
        if isinstance(values, str) and (override := parse(f"{key}={values}")).is_sweep_override():
            axes.append(_axis(key, _sweep_values(override)))
        else:
            axes.append(_axis(key, map(as_text, values if isinstance(values, list) else [values])))
    return axes


def _axis(key: str, values: Iterable[str]) -> Axis:
    axis = Axis(key, tuple(values))
    if key == "plugin":
        raise UsageError("plugin is no axis; give one plugin=… on the command line")
    if not axis.values:
        raise UsageError(f"the axis {key} has no values")
    return axis


@functools.lru_cache(maxsize=4096)
def parse(word: str) -> Override:
    """One override in Hydra's grammar. A value that the grammar can't read (a path, say) is taken
    as text."""
    word = f"model.{word}" if SHORT.match(word) else word
    key, equals, value = word.partition("=")
    if not equals or not key:
        raise UsageError(f"{word!r} is not an override; they look like key=value")
    if key[0] in "+~":
        raise UsageError(f"{word}: keys are fixed; write {key.lstrip('+~')}=… without {key[0]!r}")
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


def _sweep_values(override: Override) -> Iterator[str]:
    value, word = override.value(), override.input_line
    if isinstance(value, Glob):
        return iter(value.filter(options(override.key_or_group)))
    if isinstance(value, IntervalSweep) or override.value_type == ValueType.INTERVAL_SWEEP:
        raise UsageError(f"{word}: an interval has no values to try; use range(…)")
    if getattr(value, "shuffle", False):
        raise UsageError(f"{word}: the order would be another at each start; write the values")
    return override.sweep_string_iterator()


def as_text(value: Any) -> str:
    """A value as it is typed behind key=."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list):
        return f"[{','.join(as_text(item) for item in value)}]"
    return str(value)


def _check_choice(group: str, value: Any) -> None:
    """Refuse what is no preset of a group."""
    if isinstance(value, list) and group not in LIST_GROUPS:
        raise UsageError(f"{group}={as_text(value)}: choose one {group}")
    for name in value if isinstance(value, list) else [value]:
        if str(name) not in options(group) and not (name is None and group in OPTIONAL_GROUPS):
            given = as_text(name)
            meant = METRIC_NAMES.get(given.lower(), given) if group == "metrics" else given
            raise UsageError(f"there is no {group}={given}{nearest(meant, options(group))}")


def _set(config: Config, override: Override, choices: dict[str, str]) -> None:
    """Set one value; the key must exist."""
    path = override.key_or_group.split(".")
    node, value, leaf = config, override.value(), path[-1]
    for depth, name in enumerate(path, 1):
        _check_key(config, node, path[:depth], path, choices)
        if depth < len(path):
            _own(config, node, name)
            node = node[name]
    if value in (".inf", "-.inf"):  # as YAML, and so --cfg, writes it
        value = float(value.replace(".", ""))
    group = "/".join(path)
    if is_group(group) and not isinstance(value, dict):
        raise UsageError(f"{override.input_line}: to choose a preset, write {group}={value}")
    if isinstance(node[leaf], bool) and not isinstance(value, bool):
        raise UsageError(f"{'.'.join(path)} must be true or false, not {as_text(value)!r}")
    node[leaf] = value


def _is_taken_over(config: Config, override: Override) -> bool:
    """Whether a key lies in a part that refers to another part."""
    node: Any = config
    for name in override.key_or_group.split("."):
        if isinstance(node, str):
            return REFERENCE.fullmatch(node) is not None
        node = node.get(name) if isinstance(node, dict) else None
    return False


def _check_key(
    config: Config, node: Any, path: list[str], whole: list[str], choices: dict[str, str]
) -> None:
    """Refuse a path, the beginning of a whole key, whose last name is not in its part."""
    if isinstance(node, dict) and path[-1] in node:
        return
    preset = f" with {path[0]}={choices[path[0]]}" if path[0] in choices else ""
    allowed = [key for key in _keys(config) if key.split(".")[-1] == whole[-1]]
    if isinstance(node, dict) and not allowed:
        allowed = [".".join([*path[:-1], key]) for key in node if key != "_target_"]
        whole = path
    raise UsageError(f"there is no key {'.'.join(path)}{preset}{nearest('.'.join(whole), allowed)}")


def _keys(node: Config, prefix: str = "") -> list[str]:
    """All keys of a configuration, as they are overridden."""
    found = []
    for key, value in node.items():
        if key != "_target_":
            found.append(f"{prefix}{key}")
            found += _keys(value, f"{prefix}{key}.") if isinstance(value, dict) else []
    return found


def points(axes: Sequence[Axis], mode: str) -> list[dict[str, str]]:
    """The points of a table, as values by key: of all combinations, the last axis fastest (mode
    "grid"), or of values of equal position ("zip"), of which all axes need as many."""
    keys, values = [axis.key for axis in axes], [axis.values for axis in axes]
    if mode == "zip" and len(set(map(len, values))) > 1:
        shown = ", ".join(f"{axis.key} {len(axis.values)}" for axis in axes)
        raise UsageError(f"sweep.mode=zip pairs values, so axes need equal lengths; not {shown}")
    paired = mode == "zip" and len(axes) > 0
    combinations = zip(*values, strict=True) if paired else itertools.product(*values)
    return [dict(zip(keys, combination, strict=True)) for combination in combinations]


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
    composed = compose(command, _first_point(command, words), complete=False)
    comments = _comments("", command, "")
    for choice, names in composed.choices.items():
        group, _, package = choice.partition("@")
        own = "" if group == "experiment" else group.replace("/", ".")
        for name in names.split(","):
            comments |= _comments(group, name, package or own)
    text = yaml.safe_dump(composed.config, sort_keys=False, allow_unicode=True)
    lines = _lines_with_keys(text, "")
    return "".join(line + comments.get(key, "") + "\n" for line, key in lines)


def _comments(group: str, name: str, package: str) -> dict[str, str]:
    """What a YAML, and the preset that it builds on, say behind their keys, by the whole key."""
    found: dict[str, str] = {}
    for base in preset(group, name).get("defaults", []):
        if isinstance(base, str) and base != "_self_":
            found |= _comments(group, base, package)
    for line, key in _lines_with_keys(preset_text(group, name), package):
        if key and (comment := re.match(r" *\w+:.*?\s# *(.+)", line)):
            found[key] = f"  # {comment[1]}"
    return found


def _lines_with_keys(text: str, package: str) -> Iterator[tuple[str, str]]:
    """The lines of a YAML, and the whole key that each gives a value to, or nothing."""
    path = [package] if package else []
    top = len(path)
    for line in text.splitlines():
        if key := re.match(r"( *)(\w+):", line):
            path[top + len(key[1]) // 2 :] = [key[2]]
        yield line, ".".join(path) if key else ""
