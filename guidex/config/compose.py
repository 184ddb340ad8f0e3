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
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from hydra import compose as hydra_compose
from hydra import initialize_config_dir
from hydra.conf import HydraConf
from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Glob, IntervalSweep, Override
from hydra.errors import HydraException
from omegaconf import OmegaConf

from guidex.config import plugin
from guidex.config.presets import (
    config_dir,
    is_group,
    nearest,
    options,
    own_folder,
    preset,
    preset_text,
    table_rows,
)
from guidex.errors import UsageError

Config = dict[str, Any]
Axes = dict[str, tuple[str, ...]]
"""Swept keys and their values, as override texts."""

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
METHOD = ("model", "guidance", "sampler")
NOT_METHOD = {"dtype", "root", "compile", "references"}  # arithmetic, places of files, guides
ABOUT_RESULTS = {"source", "protocol", "images", "repeats", "statistic", "labels"}

# Without the presets of Hydra's own launchers and logs, a composition takes half the time.
ConfigStore.instance().store("config", HydraConf(defaults=[]), group="hydra", provider="hydra")


@dataclass(frozen=True)
class Composed:
    """A configuration as plain data, all references resolved, and the preset chosen in each group,
    such as {"guidance": "cfg"}; "None" for none."""

    config: Config
    choices: dict[str, str]


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
    protocol = choices.get("protocol", "None")
    for override in [*groups, *values] if protocol != "None" else ():
        if override.key_or_group.partition(".")[0] in ("detector", "metrics"):
            raise UsageError(
                f"{override.input_line}: protocol={protocol} has detectors and metrics of its own; "
                "change them there (protocol.…, as --cfg shows them), or say protocol=null"
            )
    results = _set_published(config, choices)
    if config.get("plugin") is not None:
        raise UsageError("a preset names a plugin, which runs code; say plugin=… yourself")
    method = _method(config)
    for override in values:
        _set(config, override.key_or_group, override.value(), choices)
    is_untouched = method == _method(config) and _is_plain(groups, choices)
    try:
        config = _resolved(config, config)
    except RecursionError as error:
        raise UsageError("a reference leads back to itself by way of others") from error
    if complete:
        _require_all(config, choices)
    if config.get("plugin") is not None:
        config["plugin"] = plugin.register(str(config["plugin"]))
    if results and config.get("published") == {} and config["labels"] == "random":
        presets = choices["model"], choices["guidance"], own_folder()
        if is_untouched or _method(config) == _method_alone(*presets):
            config["published"] = results
    return Composed(config, choices)


def check_words(command: str, words: Sequence[str]) -> None:
    """Refuse typing errors as the command itself would, after the seconds that torch takes."""
    # The points of a sweep have other keys, which `guidex sample` also takes for these.
    if not {"eval", "experiment"} & {word.partition("=")[0] for word in words}:
        compose(command, _first_point(command, words))


def _first_point(command: str, words: Sequence[str]) -> list[str]:
    """The words of a command, of several values the first."""
    fixed, axes = split_axes(path_first(command, words))
    return [*fixed, *(f"{key}={values[0]}" for key, values in axes.items())]


def _choose(command: str, groups: Iterable[Override]) -> tuple[Config, dict[str, str]]:
    """What the presets say that a command and its words choose, with references as they stand, and
    the preset taken in each group."""
    words, nothing = {}, {}
    for one in groups:
        _check_choice(one.key_or_group, one.value())
        key = one.get_key_element()
        words[key] = one.input_line if one.value() is not None else f"~{key}"
        nothing |= {key: "None"} if one.value() is None else {}
    text, choices = _composed(command, tuple(words.values()), own_folder())
    return copy.deepcopy(text), nothing | choices


def _check_choice(group: str, value: Any) -> None:
    """Refuse what is no preset of a group."""
    if isinstance(value, list) and group not in LIST_GROUPS:
        raise UsageError(f"{group}={as_text(value)}: choose one {group}")
    for name in value if isinstance(value, list) else [value]:
        if str(name) not in options(group) and not (name is None and group in OPTIONAL_GROUPS):
            given = as_text(name)
            meant = METRIC_NAMES.get(given.lower(), given) if group == "metrics" else given
            raise UsageError(f"there is no {group}={given}{nearest(meant, options(group))}")


@functools.cache
def _store_rows(own: Path | None) -> None:
    """Show Hydra the presets that are rows of tables, once for each folder of the user's own."""
    store = ConfigStore.instance()
    store.__deepcopy__ = lambda memo: store  # Hydra would copy all rows for each configuration
    for group, name, row in table_rows():
        package = "_global_" if group == "experiment" else group.replace("/", ".")
        *parents, last = f"{group}/{name}".split("/")
        store.store(last, row, group="/".join(parents), package=package)


@functools.lru_cache(maxsize=4096)
def _composed(
    command: str, words: tuple[str, ...], own: Path | None
) -> tuple[Config, dict[str, str]]:
    _store_rows(own)
    path = [] if own is None else [f"hydra.searchpath=[{_quoted(f'file://{own}')}]"]
    GlobalHydra.instance().clear()
    try:
        with initialize_config_dir(version_base="1.3", config_dir=str(config_dir().resolve())):
            cfg = hydra_compose(command, overrides=[*words, *path], return_hydra_config=True)
    except HydraException as error:
        raise UsageError(f"{' '.join(words)}: {str(error).splitlines()[0]}") from error
    choices = OmegaConf.to_container(cfg.hydra.runtime.choices)
    config = OmegaConf.to_container(cfg, resolve=False)
    del config["hydra"]
    return config, {k: str(v) for k, v in choices.items() if not k.startswith("hydra")}


def flat(node: Config, prefix: str = "") -> Config:
    """The values of nested dicts by whole keys, as they are overridden."""
    leaves = {}
    for key, value in node.items():
        inner = isinstance(value, dict) and len(value) > 0
        leaves |= flat(value, f"{prefix}{key}.") if inner else {f"{prefix}{key}": value}
    return leaves


def value_at(config: Any, key: str, default: Any = None) -> Any:
    """What a configuration says at a key with dots, if anything."""
    for name in key.split("."):
        if not isinstance(config, dict) or name not in config:
            return default
        config = config[name]
    return config


def _set(config: Config, key: str, value: Any, choices: Mapping[str, str]) -> None:
    """Set one value; the key must exist. A part on the way that is taken over from elsewhere
    becomes references to the keys there, and so goes on to follow it, but for this value."""
    *parents, leaf = key.split(".")

    def inside(part: Any, name: str) -> Any:
        if isinstance(part, dict) and name in part:
            return part[name]
        chosen = f" with {parents[0]}={choices[parents[0]]}" if {*parents[:1]} & {*choices} else ""
        known = [each for each in (flat(config) if parents else config) if "_target_" not in each]
        raise UsageError(f"there is no key {key}{chosen}{nearest(key, known)}")

    part: Any = config
    for name in parents:
        if reference := REFERENCE.fullmatch(str(inside(part, name))):
            there = _select(config, reference[1], key)
            part[name] = {inner: f"${{{reference[1]}.{inner}}}" for inner in there}
        part = part[name]
    before, group = inside(part, leaf), key.replace(".", "/")
    if value in (".inf", "-.inf"):  # as YAML, and so --cfg, writes it
        value = float(value.replace(".", ""))
    if is_group(group) and not isinstance(value, dict):
        raise UsageError(f"{key}={as_text(value)}: to choose a preset, write {group}={value}")
    if isinstance(before, bool) and not isinstance(value, bool):
        raise UsageError(f"{key} must be true or false, not {as_text(value)!r}")
    part[leaf] = value


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


def _require_all(config: Config, choices: Mapping[str, str]) -> None:
    """Refuse what must be given and is not, but in references that nothing takes over."""
    keys = [key for key, value in flat(config).items() if value == "???"]
    missing = [key for key in keys if "references" not in key.split(".")]
    # What guidance or a decoder takes over from the model is given there.
    first = [key for key in missing if not key.startswith(("guidance.", "decoder."))] or missing
    if not first:
        return
    text = f"{first[0]} must be given, for example {' '.join(f'{key}=…' for key in first)}"
    if first[0].startswith("guidance."):
        model, guidance = choices["model"], choices["guidance"]
        text += f"; model={model} comes with no network of its own for guidance={guidance}"
    raise UsageError(text)


def _set_published(config: Config, choices: Mapping[str, str]) -> Config:
    """Set what was published for the model under the guidance chosen (`model.published`: keys with
    dots), but for what an experiment sets; returns what came out."""
    model, guidance = config.get("model", {}), choices.get("guidance")
    published = model.get("published", {})
    known = guidance in published
    found = _select(config, f"model.published.{guidance}", "model.published") if known else {}
    model.pop("published", None)
    aside = flat(preset("experiment", choices.get("experiment", "None")))
    for key in (flat(config).keys() & found.keys()) - aside.keys():
        if "." in key:
            _set(config, key, found[key], choices)
    results = {key: value for key, value in found.items() if "." not in key}
    is_other = isinstance(published.get(guidance), str)  # the settings of another guidance
    return {} if is_other or results.keys() <= ABOUT_RESULTS else results


def _is_plain(groups: Iterable[Override], choices: Mapping[str, str]) -> bool:
    """Whether words and experiment choose, of the method, a model and a guidance alone."""
    content = preset("experiment", choices.get("experiment", "None"))
    chosen = [f"override /{one.key_or_group}" for one in groups]
    chosen += itertools.chain.from_iterable(content.get("defaults", []))
    others = re.compile("override /(?!sampler|guidance/)")
    return all(map(others.match, chosen)) and not _method(content)


@functools.lru_cache(maxsize=256)
def _method_alone(model: str, guidance: str, own: Path | None) -> Config:
    """What presets make by themselves; `own` is the folder of the user's own."""
    return _method(compose("sample", [f"model={model}", f"guidance={guidance}"]).config)


def _method(config: Config) -> Config:
    """What a point is sampled with, but for arithmetic and the places of files."""
    leaves = flat({part: config[part] for part in METHOD if part in config})
    return {key: value for key, value in leaves.items() if NOT_METHOD.isdisjoint(key.split("."))}


def split_axes(words: Iterable[str]) -> tuple[list[str], Axes]:
    """Overrides with one value, and those with several (`w=1,2`, `range(1,5)`, `choice(a,b)`) as
    axes."""
    fixed, axes = [], {}
    for override in map(parse, words):
        if override.is_sweep_override():
            axes[override.get_key_element()] = _values(override)
        else:
            fixed.append(override.input_line)
    return fixed, axes


def axes_from_yaml(table: Mapping[str, Any]) -> Axes:
    """Axes as an experiment writes them: key -> a list, or text in Hydra's sweep grammar, or one
    value."""
    axes = {}
    for key, values in table.items():
        found = _values(parse(f"{key}={as_text(values)}"))
        axes[key] = tuple(map(as_text, values)) if values and isinstance(values, list) else found
    return axes


def _values(override: Override) -> tuple[str, ...]:
    """The values of an axis."""
    if override.key_or_group == "plugin":
        raise UsageError("plugin is no axis; give one plugin=… on the command line")
    value, texts = override.value(), (override.input_line.partition("=")[2],)
    if isinstance(value, IntervalSweep) or getattr(value, "shuffle", False):
        raise UsageError(f"{override.input_line}: write the values, in order, or range(…)")
    if isinstance(value, Glob):
        texts = tuple(value.filter(options(override.key_or_group)))
    elif override.is_sweep_override():
        texts = tuple(override.sweep_string_iterator())
    if not texts:
        raise UsageError(f"the axis {override.key_or_group} has no values")
    return texts


def points(axes: Axes, mode: str) -> list[dict[str, str]]:
    """The points of a table, as values by key: of all combinations, the last axis fastest (mode
    "grid"), or of values of equal position ("zip"), of which all axes need as many."""
    if mode == "zip" and len(set(map(len, axes.values()))) > 1:
        shown = ", ".join(f"{key} {len(values)}" for key, values in axes.items())
        raise UsageError(f"sweep.mode=zip pairs values, so axes need equal lengths; not {shown}")
    combined = zip if mode == "zip" and axes else itertools.product
    return [dict(zip(axes, values, strict=True)) for values in combined(*axes.values())]


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
        try:
            return parser.parse_override(f"{key}={_quoted(value)}")
        except HydraException as error:
            raise UsageError(f"cannot read {word!r}: {str(error).splitlines()[0]}") from error


def _quoted(text: str) -> str:
    """A text in Hydra's quotes, where backslashes count double only before a quotation mark."""
    quoted = re.sub(r"(\\*)('|$)", lambda end: end[1] * 2 + end[2].replace("'", r"\'"), text)
    return f"'{quoted}'"


def as_text(value: Any) -> str:
    """A value as it is typed behind key=."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list):
        return f"[{','.join(as_text(item) for item in value)}]"
    return str(value)


def path_first(command: str, words: Sequence[str]) -> list[str]:
    """The words of a command as overrides, of which eval's and ref's first one may be a path."""
    if command not in PATH_KEYS or not words or ("=" in words[0] and not Path(words[0]).exists()):
        return list(words)
    return [f"{PATH_KEYS[command]}={_quoted(words[0])}", *words[1:]]


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
