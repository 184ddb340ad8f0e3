"""The words of commands that need no configuration: files, and a few key=value settings."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from guidex.config.compose import parse
from guidex.config.presets import nearest
from guidex.errors import UsageError


def split_words(words: Sequence[str], keys: Sequence[str]) -> tuple[list[str], dict[str, Any]]:
    """Files and settings: a word with "=" is a setting, unless there is a file of that name.

    Raises:
        UsageError: an unknown key, one that is set twice, or several values.
    """
    files: list[str] = []
    settings: dict[str, Any] = {}
    for word in words:
        if "=" not in word or Path(word).exists():
            files.append(word)
            continue
        override = parse(word)
        key = override.key_or_group
        if key not in keys:
            raise UsageError(f"there is no key {key}{nearest(key, keys)}")
        if key in settings or override.is_sweep_override():
            raise UsageError(f"{word}: {key} takes one value")
        settings[key] = override.value()
    return files, settings


def flag(settings: dict[str, Any], key: str) -> bool:
    """A setting that is true or false; false where it is not given."""
    value = settings.get(key, False)
    if not isinstance(value, bool):
        raise UsageError(f"{key} must be true or false, not {value!r}")
    return value


def required(settings: dict[str, Any], key: str, example: str) -> Any:
    """A setting that must be given."""
    if settings.get(key) is None:
        raise UsageError(f"{key} must be given, for example {key}={example}")
    return settings[key]
