"""`guidex models`: which checkpoints the presets load, and which of them are on this machine."""

from collections.abc import Iterator, Sequence
from typing import Any

from torch import nn

from guidex.assets.cache import cache_dir, cached
from guidex.assets.progress import megabytes
from guidex.config import compose
from guidex.errors import UsageError
from guidex.instantiate import Models, instantiate
from guidex.models.spec import ModelSpec
from guidex.presets import nearest, options


def models_command(words: Sequence[str]) -> None:
    """Print the checkpoints of all presets, or of those named.

    Raises:
        UsageError: no such preset, or one without checkpoints.
    """
    known = presets()
    for name in words:
        if name not in known:
            raise UsageError(f"no preset with checkpoints is called {name!r}{nearest(name, known)}")
    print(f"Checkpoints are kept in {cache_dir()} (GUIDEX_CACHE); sizes are of those on disk.\n")
    rows = [row for name in words or known for row in _rows(name, known[name])]
    for label, state, source in rows:
        print(f"{label:<{max(len(row[0]) for row in rows)}}  {state:>9}  {source}")


def presets() -> dict[str, dict[str, str]]:
    """The checkpoints of every model preset that has any, by preset and role.

    Roles are "main" and the names of references. Presets that name no file by themselves
    (model=edm2) are left out.
    """
    found = {}
    for name in options("model"):
        try:
            config = compose("sample", [f"model={name}", "guidance=none"]).config["model"]
        except UsageError:  # it needs a value: a file of the user's own
            continue
        roles = dict(_roles(config))
        if roles:
            found[name] = roles
    return found


def _roles(config: dict[str, Any]) -> Iterator[tuple[str, str]]:
    for role, part in {"main": config, **config.get("references", {})}.items():
        if "???" not in part.values():  # a reference that nobody has chosen
            model = instantiate(part, "model", Models(), nn.Module | ModelSpec)
            yield from ((role, source.place) for source in getattr(model, "sources", ()))


def _rows(name: str, roles: dict[str, str]) -> Iterator[tuple[str, str, str]]:
    """A preset's lines: what, how large on this machine or "-", from where."""
    for role, source in roles.items():
        path = cached(source)
        state = "-" if path is None else megabytes(path.stat().st_size)
        yield (name if role == "main" else f"  {role}"), state, source
