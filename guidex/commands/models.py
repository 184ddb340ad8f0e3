"""`guidex models`: which checkpoints the presets load, and which of them are on this machine."""

from collections.abc import Sequence

from torch import nn

from guidex.config.compose import compose
from guidex.config.instantiate import Models, instantiate
from guidex.config.presets import nearest, options
from guidex.errors import UsageError
from guidex.files.cache import cache_dir, cached
from guidex.files.progress import megabytes
from guidex.models.spec import ModelSpec, Source


def models_command(words: Sequence[str]) -> None:
    """Print the checkpoints of all presets, or of those named."""
    known = {name: checkpoints(name) for name in words or options("model")}
    for name in words:
        if not known[name]:
            others = nearest(name, (name for name in options("model") if checkpoints(name)))
            raise UsageError(f"no preset with checkpoints is called {name!r}{others}")
    print(f"Checkpoints are kept in {cache_dir()} (GUIDEX_CACHE); sizes are of those on disk.\n")
    for name, roles in known.items():
        for role, source in roles.items():
            path = cached(source.place)
            place = f"{source.place}  ({source.licence})" if source.licence else source.place
            state = "-" if path is None else megabytes(path.stat().st_size)
            print(f"{name if role == 'main' else f'  {role}':<26}  {state:>9}  {place}")


def checkpoints(name: str) -> dict[str, Source]:
    """The checkpoints of a model preset: "main", and under each guidance what it loads instead;
    empty where no file is named."""
    roles: dict[str, Source] = {}
    for guidance in ("none", "cfg", "autoguidance"):
        try:
            config = compose("sample", [f"model={name}", f"guidance={guidance}"]).config
        except UsageError:  # it needs a value: a file of the user's own
            continue
        main, reference = config["model"], config["guidance"].get("reference", {})
        for role, part in ((guidance, main), (f"{guidance} reference", reference)):
            model = instantiate(part, "model", Models(), nn.Module | ModelSpec)
            for source in getattr(model, "sources", ()):
                if source not in roles.values():
                    roles["main" if role == "none" else role] = source
    return roles
