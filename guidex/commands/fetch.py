"""`guidex fetch`: bring every file that a run will need, for a job without network."""

from collections.abc import Callable, Iterator, Sequence
from functools import partial

from guidex.config.instantiate import Models, instantiate
from guidex.features.references import place_of
from guidex.files.cache import cache_dir, cached, fetch
from guidex.files.progress import megabytes
from guidex.models.decoders import Decoder
from guidex.models.spec import load
from guidex.runs.measure import parts_of
from guidex.runs.plans import detectors
from guidex.runs.points import Planned
from guidex.runs.points_table import plan_table

Need = tuple[str, str, Callable[[], object]]  # role, place, and what brings it


def fetch_command(words: Sequence[str], plan_only: bool) -> None:
    """Run the command; with `plan_only`, say what is needed, and what of it is here."""
    print(f"Files are kept in {cache_dir()} (GUIDEX_CACHE), those of hubs in their own cache.\n")
    points, total = plan_table(words, default=None).planned, 0
    needs = {place: (role, get) for point in points for role, place, get in _needs(point)}
    for place, (role, get) in needs.items():
        if not plan_only:
            get()
        path = cached(place)
        size = 0 if path is None else path.stat().st_size
        state = "-" if plan_only else "hub or folder"
        print(f"{megabytes(size) if path else state:>13}  {role:<9}  {place}")
        total += size
    print(f"{megabytes(total):>13}  in all{' that is here' if plan_only else ''}")


def _needs(planned: Planned) -> Iterator[Need]:
    """What a point needs."""
    for model in (planned.model, *planned.guidance.networks):
        for place, sha256, *_ in getattr(model, "sources", ()):
            is_file = "://" in place or cached(place) is not None
            get = partial(fetch, place, sha256=sha256) if is_file else partial(load, model, "cpu")
            yield "model", place, get
    config, space = planned.settings.decoder, planned.model.space
    config = config if "_target_" in config else config.get(space, {})
    if space != "pixels" and "path" in config:
        get = partial(instantiate, config, "decoder", Models(), Decoder)
        yield "decoder", config["path"], get
    for detector in detectors(planned):
        if (weights := getattr(detector, "weights", None)) is not None:
            yield "detector", weights.source, lambda weights=weights: weights.sha256
    for part in parts_of(planned.config):
        place = place_of(str(part.ref)) if part.metrics else None
        if place is not None and "://" in place:
            yield "reference", place, partial(fetch, place)
