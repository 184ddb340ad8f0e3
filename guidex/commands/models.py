"""`guidex models`: which checkpoints the presets load, and which of them are on this machine."""

from collections.abc import Sequence

from torch import nn

from guidex.config.compose import compose
from guidex.config.instantiate import Models, instantiate
from guidex.config.presets import nearest, options, preset
from guidex.errors import UsageError
from guidex.files.cache import cache_dir, cached
from guidex.files.progress import megabytes
from guidex.models.spec import ModelSpec, Source

_REFERENCES = {"none": None, "cfg": "unconditional", "autoguidance": "weaker"}


def models_command(words: Sequence[str]) -> None:
    """Print the checkpoints of all presets, or of those named."""
    models = Models()
    known = {name: checkpoints(name, models) for name in words or options("model")}
    for name in words:
        if not known[name]:
            others = nearest(name, {*options("model")} - {name})
            raise UsageError(f"no preset with checkpoints is called {name!r}{others}")
    print(f"Checkpoints are kept in {cache_dir()} (GUIDEX_CACHE); sizes are of those on disk.\n")
    for name, roles in known.items():
        for source, role in roles.items():
            path = cached(source.place)
            place = f"{source.place}  ({source.licence})" if source.licence else source.place
            state = "-" if path is None else megabytes(path.stat().st_size)
            print(f"{name if role == 'main' else f'  {role}':<26}  {state:>9}  {place}")


def checkpoints(name: str, models: Models) -> dict[Source, str]:
    """The checkpoints of a model preset, with the first role of each: "main", or what a guidance
    loads instead or beside it; empty where no file is named."""
    roles: dict[Source, str] = {}
    for guidance, reference in _REFERENCES.items():
        published = preset("model", name).get("published", {}).get(guidance, {})
        words = [f"{key}={value}" for key, value in published.items() if key.startswith("model.")]
        try:
            model = compose("sample", [f"model={name}", "guidance=none", *words]).config["model"]
        except UsageError:  # it needs a value: a file of the user's own
            break
        guide = model["references"].get(reference, {})
        if "???" in guide.values():  # none is published
            continue
        main = "main" if guidance == "none" else guidance
        for role, part in ((main, model), (f"{guidance} reference", guide)):
            made = instantiate(part, "model", models, nn.Module | ModelSpec)
            for source in getattr(made, "sources", ()):
                roles.setdefault(source, role)
    return roles
