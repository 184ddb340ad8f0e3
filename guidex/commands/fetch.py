"""`guidex fetch`: bring every file that a run will need, for a job without network."""

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from guidex.config.compose import Config
from guidex.config.instantiate import Models, instantiate
from guidex.features.detectors import Detector
from guidex.features.weights import Weights
from guidex.files.cache import cache_dir, cached, fetch
from guidex.files.progress import download_bar, megabytes
from guidex.models.decoders import Decoder
from guidex.models.spec import Model, load
from guidex.runs.measure import parts_of
from guidex.runs.points import Planned
from guidex.runs.points_table import plan_table

Get = Callable[[], int | None]  # brings what is needed; its bytes, where that is one file


def fetch_command(words: Sequence[str], plan_only: bool) -> None:
    """Run the command; with `plan_only`, say what is needed, and what of it is here."""
    print(f"Files are kept in {cache_dir()} (GUIDEX_CACHE), those of hubs in their own cache.\n")
    needs: dict[tuple[str, str], Get] = {}
    for entry in plan_table(words, default=None).entries:
        if entry.planned is not None:
            needs |= {need: get for need, get in _needs(entry.planned).items() if need not in needs}
    total = 0
    for (role, place), get in needs.items():
        path = cached(place)
        size = (path and path.stat().st_size) if plan_only else get()
        known = megabytes(size) if size is not None else "-" if plan_only else "hub or here"
        print(f"{known:>12}  {role:<9}  {place}")
        total += size or 0
    print(f"{megabytes(total):>12}  in all{' that is here' if plan_only else ''}")


def _needs(planned: Planned) -> dict[tuple[str, str], Get]:
    """What a point needs, by role and place."""
    needs: dict[tuple[str, str], Get] = {}
    for model in (planned.model, *planned.guidance.networks):
        for source in getattr(model, "sources", ()):
            needs["model", source.place] = partial(_model, model, source.place, source.sha256)
    decoder = planned.settings.decoder
    decoder = decoder if "_target_" in decoder else decoder.get(planned.model.space, {})
    if planned.model.space != "pixels" and "path" in decoder:
        needs["decoder", decoder["path"]] = partial(_decoder, decoder)
    for part in parts_of(planned.config):
        if not part.metrics:
            continue
        detector = instantiate(part.detector, f"{part.key}detector", Models(), Detector)
        weights = getattr(detector, "weights", None)
        if weights is not None:
            needs["detector", weights.source] = partial(_weights, weights)
        if "://" in str(part.ref):
            needs["reference", part.ref] = partial(_file, part.ref)
    return needs


def _file(place: str, sha256: str | None = None) -> int:
    with download_bar(place.rpartition("/")[2]) as progress:
        return fetch(place, sha256=sha256, progress=progress).stat().st_size


def _model(model: Model, place: str, sha256: str | None) -> int | None:
    if "://" in place or Path(place).expanduser().is_file():
        return _file(place, sha256)
    load(model, "cpu")  # of a hub, or a folder
    return None


def _decoder(config: Config) -> None:
    instantiate(config, "decoder", Models(), Decoder)


def _weights(weights: Weights) -> int:
    weights.sha256  # noqa: B018 - downloads and verifies
    return cached(weights.source).stat().st_size
