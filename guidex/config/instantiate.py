"""From configuration to objects, as hydra.utils.instantiate, but that equal models are made once;
that nothing is called but classes and functions of guidex, or of the user's plugin, whose declared
result is what belongs in the place, such as a Schedule; and that an error names the wrong key."""

import importlib
import inspect
import json
import re
import types
import typing
from collections.abc import Callable
from typing import Any

from guidex.config import plugin
from guidex.config.presets import nearest
from guidex.errors import UsageError

Models = dict[str, Any]  # made so far, by content: two equal model configurations are one object


def instantiate(config: Any, key: str, models: Models, hint: Any) -> Any:
    """Make the object that a configuration describes (dicts with `_target_` become objects), and
    everything inside it first. `key` is where this is in the whole, for error messages; models
    (`_target_` under guidex.models, or in a plugin) come from `models`; `hint` is the type that
    belongs here: Solver, or dict[str, Metric]."""
    if isinstance(config, list):
        inner = _inside(hint, list)
        return [instantiate(item, f"{key}[{i}]", models, inner) for i, item in enumerate(config)]
    if not isinstance(config, dict):
        return config
    if "_target_" not in config:
        inner = _inside(hint, dict)
        return {k: instantiate(item, f"{key}.{k}", models, inner) for k, item in config.items()}
    config = {name: item for name, item in config.items() if name != "references"}
    target = _locate(str(config.pop("_target_")), key, hint)
    if re.match(r"guidex\.(?!models\.)", target.__module__):
        return _make(target, config, key, models)
    content = content_key([f"{target.__module__}.{target.__qualname__}", config])
    if content not in models:
        models[content] = _make(target, config, key, models)
    return models[content]


def content_key(config: Any) -> str:
    """Equal for equal configurations, whatever the order of their keys."""
    return json.dumps(config, sort_keys=True, default=str)


def arguments_of(target: Callable[..., Any]) -> dict[str, inspect.Parameter]:
    """The named arguments of a class or function."""
    # A class without __init__ of its own shows its parent's (*args, **kwargs), which name nothing.
    variadic = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    signature = inspect.signature(target).parameters.items()
    return {name: one for name, one in signature if one.kind not in variadic}


def _make(target: Callable[..., Any], given: dict[str, Any], key: str, models: Models) -> Any:
    parameters = arguments_of(target)
    for name in given:
        if name not in parameters:
            raise UsageError(f"there is no key {key}.{name}{nearest(name, parameters)}")
    for name, parameter in parameters.items():
        if name not in given and parameter.default is inspect.Parameter.empty:
            raise UsageError(f"{key}.{name} must be given")
    hints = typing.get_type_hints(target.__init__ if inspect.isclass(target) else target)
    arguments = {}
    for name, item in given.items():
        hint, at = hints.get(name, Any), f"{key}.{name}"
        arguments[name] = _checked(instantiate(item, at, models, hint), hint, at)
    try:
        return target(**arguments)
    except UsageError as error:
        if str(error).startswith(key):
            raise
        raise type(error)(f"{key}: {error}") from error


def _locate(path: str, key: str, hint: Any) -> Callable[..., Any]:
    """What a `_target_` names, if that makes what belongs in the place."""
    module, _, name = path.rpartition(".")
    own = plugin.is_plugin(module)
    # Names with a leading underscore are nobody's business; to import __main__ is to run it.
    if not own and not re.fullmatch(r"guidex(\.[A-Za-z]\w*)+", path):
        raise UsageError(
            f"{key}._target_ must name something in guidex, not {path} (code of your own: plugin=…)"
        )
    try:
        target = getattr((plugin.load if own else importlib.import_module)(module), name)
    except (ImportError, AttributeError) as error:
        raise UsageError(f"{key}._target_: there is no {path}") from error
    # A module also holds what it imports.
    if not callable(target) or not _is_ours(target):
        raise UsageError(f"{key}._target_: {path} is no class or function of guidex or plugin=")
    made = target if inspect.isclass(target) else typing.get_type_hints(target).get("return")
    wanted = _alternatives(hint)
    if not inspect.isclass(made) or not any(_is_a(made, one) for one in wanted):
        names = " or ".join(_name(one) for one in wanted)
        hint = "" if made is not None else ", which has to be declared (-> …)"
        raise UsageError(f"{key} must be {names}, not what _target_={path} makes{hint}")
    if inspect.isabstract(target):
        raise UsageError(f"{key}._target_: {path} is an interface; name a class that has it")
    return target


def _is_ours(thing: Any) -> bool:
    """Whether a class or function is of guidex or of a plugin."""
    module = str(thing.__module__)
    return module.startswith("guidex.") or plugin.is_plugin(module)


def _is_a(made: type, hint: Any) -> bool:
    if not _is_ours(made):  # many a function returns a number
        return False
    if getattr(hint, "_is_protocol", False):  # classes need not name it as their parent
        return all(hasattr(made, k) for k in vars(hint) if k == "__call__" or not k.startswith("_"))
    return inspect.isclass(hint) and issubclass(made, hint)


def _inside(hint: Any, container: type) -> Any:
    """What a list, or a dict's values, are to be; None where neither belongs."""
    inner = (typing.get_args(h) for h in _alternatives(hint) if typing.get_origin(h) is container)
    return next(inner, (None,))[-1]


def _alternatives(hint: Any) -> tuple[Any, ...]:
    union = typing.get_origin(hint) in (types.UnionType, typing.Union)
    return typing.get_args(hint) if union else (hint,)


def _checked(value: Any, hint: Any, key: str) -> Any:
    """The value, a whole number turned into a float where a float is wanted, or an error."""
    allowed = _alternatives(hint)
    if float in allowed and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if any(_fits(value, one) for one in allowed):
        return value
    wanted = " or ".join(_name(one) for one in allowed)
    raise UsageError(f"{key} must be {wanted}, not {value!r}")


def _fits(value: Any, hint: Any) -> bool:
    if hint is Any:
        return True
    if typing.get_origin(hint) is typing.Literal:
        return value in typing.get_args(hint)
    if hint in (int, float) and isinstance(value, bool):
        return False
    return isinstance(value, typing.get_origin(hint) or hint)


def _name(hint: Any) -> str:
    if typing.get_origin(hint) is typing.Literal:
        return " or ".join(repr(option) for option in typing.get_args(hint))
    names = {float: "a number", int: "a whole number", str: "text", bool: "true or false"}
    names |= dict.fromkeys((None, type(None)), "null")
    return names.get(hint, getattr(hint, "__name__", str(hint)))
