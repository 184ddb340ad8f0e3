"""Presets of published EDM2 networks and results, against the published tables.

The tables are written out here once more, by hand from the papers and their code, and every preset
has to compose to them.
"""

import pytest

from guidex.config.compose import Config, compose
from guidex.config.instantiate import Models, instantiate
from guidex.config.presets import options
from guidex.errors import UsageError
from guidex.models.spec import Model
from guidex.runs.points import Planned, check
from guidex.runs.points_table import plan_table

ROOT = "https://nvlabs-fi-cdn.nvidia.com/edm2/posthoc-reconstructions"

# Of each size: training; then, for FID and FD_DINOv2, value and EMA without guidance, and value, w
# and EMA with CFG. arXiv 2312.02696, 2406.02507 (table 1) and the presets of their code.
IMG512 = {
    "xs": ("2147483", "3.53 0.135  2.91 1.4 0.045", "103.39 0.200  79.94 1.7 0.150"),
    "s": ("2147483", "2.56 0.130  2.23 1.4 0.025", "68.64 0.190  52.32 1.9 0.085"),
    "m": ("2147483", "2.25 0.100  2.01 1.2 0.030", "58.44 0.155  41.98 2.0 0.015"),
    "l": ("1879048", "2.06 0.085  1.88 1.2 0.015", "52.25 0.155  38.20 1.7 0.035"),
    "xl": ("1342177", "1.96 0.085  1.85 1.2 0.020", "45.96 0.155  35.67 1.7 0.030"),
    "xxl": ("0939524", "1.91 0.070  1.81 1.2 0.015", "42.84 0.150  33.09 1.7 0.015"),
}
IMG64 = {
    "s": ("1.58", "edm2-img64-s-1073741-0.075"),
    "m": ("1.43", "edm2-img64-m-2147483-0.060"),
    "l": ("1.33", "edm2-img64-l-1073741-0.040"),
    "xl": ("1.33", "edm2-img64-xl-0671088-0.040"),
}
# Without guidance, main network and value; with autoguidance, main network, guide, w and value.
AUTOGUIDANCE = {
    "img512-s": ("s-2147483-0.130", 2.56, "s-2147483-0.070", "xs-0134217-0.125", 2.10, 1.34),
    "img512-xxl": ("xxl-0939524-0.070", 1.91, "xxl-0939524-0.075", "m-0268435-0.155", 2.05, 1.25),
    "img512-s-dino": ("s-2147483-0.190", 68.64, "s-2147483-0.120", "xs-0134217-0.165", 2.45, 36.67),
    "img512-xxl-dino": (
        "xxl-0939524-0.150", 42.84, "xxl-0939524-0.130", "m-0268435-0.205", 2.30, 24.18,
    ),
    "img512-s-uncond": (
        "s-uncond-2147483-0.145", 11.67, "s-uncond-2147483-0.070", "xs-uncond-0134217-0.110", 2.85,
        3.86,
    ),
    "img512-s-uncond-dino": (
        "s-uncond-2147483-0.170", 209.53, "s-uncond-2147483-0.090", "xs-uncond-0134217-0.125", 2.9,
        90.39,
    ),
    "img64-s": ("s-1073741-0.075", 1.58, "s-1073741-0.045", "xs-0134217-0.110", 1.70, 1.01),
    "img64-s-dino": ("s-1073741-0.160", 58.52, "s-1073741-0.105", "xs-0134217-0.175", 2.20, 31.85),
}  # fmt: skip
# One EMA for both, less training alone, less capacity alone.
ABLATIONS = [
    ("s-2147483-0.050", "xs-0134217-0.050", 1.95, "FID 1.53"),
    ("s-2147483-0.090", "s-0134217-0.130", 2.20, "FID 1.51"),
    ("s-2147483-0.120", "xs-2147483-0.160", 1.80, "FID 2.13"),
    ("s-2147483-0.115", "xs-0134217-0.115", 2.25, "FD_DINOv2 40.81"),
    ("s-2147483-0.130", "s-0134217-0.170", 2.55, "FD_DINOv2 42.27"),
    ("s-2147483-0.140", "xs-2147483-0.085", 1.90, "FD_DINOv2 59.89"),
]
# arXiv 2404.07724, table 1: value, network, EMA of both networks, w, bounds, guided steps of 32.
INTERVAL = {
    "s": ("1.68", "s-2147483", "0.025", 2.1, (0.28, 2.9), range(15, 22)),
    "xxl": ("1.40", "xxl-0939524", "0.015", 2.0, (0.19, 1.61), range(17, 23)),
    "s-dino": ("46.25", "s-2147483", "0.085", 3.2, (0.6, 5.0), range(13, 20)),
    "xxl-dino": ("29.16", "xxl-0939524", "0.015", 2.9, (0.6, 5.0), range(13, 20)),
}
# Class and seed of each image, in the paper's numbering of version 2.
FIGURES = {
    6: [(64, s) for s in (6, 16, 12, 29)] + [(959, s) for s in (7, 8, 3, 4)],
    7: [(483, 8), (933, 9)],
    9: [(483, 17)],
    11: [(17, s) for s in (19, 25, 7, 12, 16, 22)]
    + [(33, s) for s in (13, 8, 6, 10, 15, 17)]
    + [(497, s) for s in (29, 28, 27, 24, 23, 22)],
    13: [(324, 2), (360, 0), (105, 3), (555, 14), (397, 21), (698, 3), (849, 21), (970, 21)],
    16: [(33, 19), (64, 25), (1, 13), (504, 6)],
}
# (w, guided steps) of the figures' columns; w 1 is no guidance.
SHORT, ALL = range(17, 23), range(32)
COLUMNS = {
    6: [(1, ()), (5, SHORT), (5, ALL)],
    7: [(1, ()), (3, SHORT), (5, SHORT)],
    9: [(1, ()), (3, ALL), (5, ALL), (3, SHORT), (5, SHORT)],
    11: [(1, ()), (5, SHORT), (5, ALL)],
    13: [(1, ()), (3, SHORT), (5, SHORT)],
    16: [(1, ()), (3, ALL), (5, ALL), (3, SHORT), (5, SHORT)],
}


def url(name: str) -> str:
    return f"{ROOT}/{name}.pkl"


def checkpoints(config: Config) -> tuple[str | None, str | None]:
    """Of the main network and of the reference."""
    reference = config["guidance"].get("reference")
    return source(config["model"]), reference and source(reference)


def source(config: Config) -> str:
    """Path or URL of the file of a network."""
    [found] = instantiate(config, "model", Models(), Model).sources
    return found.place


def published(size: str, metric: str) -> list[str]:
    """Training, value and EMA without guidance, value, w and EMA with CFG."""
    kimg, *rows = IMG512[size]
    return [kimg, *rows[("FID", "FD_DINOv2").index(metric)].split()]


def sampled(*words: str) -> Planned:
    return check(compose("sample", words), {})


def value_of(model: str, guidance: str, *words: str) -> tuple[float | None, str | None]:
    """What came out for a model under a guidance, of either metric, and where it stands."""
    found = compose("sweep", [f"model={model}", f"guidance={guidance}", *words]).config["published"]
    values = [found[key] for key in ("fid", "fd_dinov2") if key in found]
    assert len(values) == bool(found)
    return (values[0], found["source"]) if found else (None, None)


# Models, under the guidance that something was published for


@pytest.mark.parametrize("metric, suffix", [("FID", ""), ("FD_DINOv2", "-dino")])
@pytest.mark.parametrize("size", IMG512)
def test_networks_of_imagenet_512(size, metric, suffix):
    kimg, value, ema, guided_value, w, guided_ema = published(size, metric)
    name = f"edm2-img512-{size}{suffix}"
    none, cfg, interval = (
        sampled(f"model={name}", f"guidance={one}") for one in ("none", "cfg", "interval")
    )
    assert checkpoints(none.config) == (url(f"edm2-img512-{size}-{kimg}-{ema}"), None)
    assert none.config["decoder"]["_target_"] == "guidex.models.decoders.StabilityVAE"
    key = "fid" if metric == "FID" else "fd_dinov2"
    about = {"source": "arXiv 2312.02696", "protocol": "edm2", "images": 50000, "repeats": 3}
    found = compose("sweep", [f"model={name}", "guidance=none"]).config["published"]
    assert found == {**about, "statistic": "min", key: float(value)}
    assert checkpoints(cfg.config) == checkpoints(interval.config)
    assert checkpoints(cfg.config) == (
        url(f"edm2-img512-{size}-{kimg}-{guided_ema}"),
        url(f"edm2-img512-xs-uncond-2147483-{guided_ema}"),
    )
    assert set(cfg.plan.weights[cfg.plan.guided]) == {float(w)}
    assert value_of(name, "cfg") == (float(guided_value), "arXiv 2312.02696")
    # Of other sizes no interval is published; they take that of S.
    key = f"{size if size == 'xxl' else 's'}{suffix}"
    check_interval(interval, key)
    best = (float(INTERVAL[key][0]), "arXiv 2404.07724, table 1")
    assert value_of(name, "interval") == (best if size in ("s", "xxl") else (None, None))


def check_interval(settings: Planned, key: str) -> None:
    _, _, _, w, bounds, steps = INTERVAL[key]
    schedule = settings.config["guidance"]["schedule"]
    assert (schedule["lo"], schedule["hi"], schedule["w"]) == (*bounds, w)
    assert settings.plan.guided_steps == list(steps)
    assert settings.plan.evaluations_ref == [2 * len(steps)]


@pytest.mark.parametrize("model", AUTOGUIDANCE)
def test_networks_of_autoguidance(model):
    alone, value, main, reference, w, guided_value = AUTOGUIDANCE[model]
    none, guided = (
        sampled(f"model=edm2-{model}", f"guidance={g}") for g in ("none", "autoguidance")
    )
    data = model.partition("-")[0]
    assert checkpoints(none.config) == (url(f"edm2-{data}-{alone}"), None)
    expected = url(f"edm2-{data}-{main}"), url(f"edm2-{data}-{reference}")
    assert checkpoints(guided.config) == expected
    assert set(guided.plan.weights[guided.plan.guided]) == {w}
    assert value_of(f"edm2-{model}", "none")[0] == value
    source = "arXiv 2406.02507, table 1"
    assert value_of(f"edm2-{model}", "autoguidance") == (guided_value, source)


@pytest.mark.parametrize("size", IMG64)
def test_networks_of_imagenet_64(size):
    value, file = IMG64[size]
    config = compose("sample", [f"model=edm2-img64-{size}", "guidance=none"]).config
    assert checkpoints(config) == (url(file), None)
    assert config["decoder"]["pixels"]["_target_"] == "guidex.models.decoders.Pixels"
    assert value_of(f"edm2-img64-{size}", "none") == (float(value), "arXiv 2312.02696")


@pytest.mark.parametrize(
    ("words", "same"),
    [
        (["sampler.dtype=float32", "model.dtype=float32", "model.root=/data", "seeds=0-3"], True),
        (["guidance.schedule.w=1.4", "guidance.reference.ema=0.025"], True),
        (["guidance.schedule.w=1.5"], False),
        (["guidance.reference.ema=0.05"], False),
        (["guidance/schedule=linear"], False),
        (["labels=7"], False),
    ],
)
def test_published_values_stand_beside_what_they_are_of(words, same):
    value, _ = value_of("edm2-img512-s", "cfg", *words)
    assert value == (2.23 if same else None)
    assert value_of("edm2-img512-s", "cfg_pag") == (None, None)


def test_what_is_given_goes_before_what_was_published():
    words = ["model=edm2-img512-s", "guidance=interval", "guidance.schedule.hi=1"]
    config = compose("sample", [*words, "model.ema=0.05"]).config
    assert (
        config["guidance"]["schedule"] | {"w": 2.1, "lo": 0.28, "hi": 1}
        == (config["guidance"]["schedule"])
    )
    assert checkpoints(config) == (
        url("edm2-img512-s-2147483-0.050"),
        url("edm2-img512-xs-uncond-2147483-0.050"),
    )
    # Other schedules take what they have keys for.
    ramp = compose("sample", [*words[:1], "guidance=interval", "guidance/schedule=linear"]).config
    assert ramp["guidance"]["schedule"]["w"] == 2.1 and "lo" not in ramp["guidance"]["schedule"]
    words = [*words[:1], "model.ema=0.05", "model.root=/data", "guidance=cfg"]
    assert checkpoints(compose("sample", [*words, "guidance.reference.ema=0.1"]).config) == (
        "/data/edm2-img512-s-2147483-0.050.pkl",
        "/data/edm2-img512-xs-uncond-2147483-0.100.pkl",
    )
    # And so does an experiment: figure 6 says the EMA, and its points say the rest.
    config = compose("sweep", ["experiment=interval/fig6", "guidance=none"]).config
    assert checkpoints(config)[0] == url("edm2-img512-xxl-0939524-0.015")
    assert "published" not in config["model"]


def test_plans_name_the_networks():
    text = sampled("model=edm2-img512-s", "guidance=cfg").describe()
    assert text.endswith(
        "; edm2-img512-s-2147483-0.025 against edm2-img512-xs-uncond-2147483-0.025"
    )


def test_a_preset_for_every_network_and_no_other():
    sizes = [f"img512-{size}{suffix}" for size in IMG512 for suffix in ("", "-dino")]
    sizes += ["img512-xs-uncond", "img512-s-uncond", "img512-s-uncond-dino"]
    sizes += [f"img64-{size}" for size in IMG64] + ["img64-s-dino"]
    expected = {"edm2", "edm2-tiny", "edm2-img512", "edm2-img64", *(f"edm2-{s}" for s in sizes)}
    assert {name for name in options("model") if name.startswith("edm2")} == expected
    for name in expected - {"edm2"}:  # each chooses guidance and decoder that it can have
        settings = sampled(f"model={name}")
        assert settings.choices["decoder"] == ("sd_vae" if "img512" in name else "auto")
        assert (checkpoints(settings.config)[1] is None) == (settings.method == "none")


def test_a_network_of_ones_own():
    words = ["model=edm2", "model.checkpoint=a.pkl"]
    assert sampled(*words).method == "none"
    config = compose("sample", [*words, "guidance=cfg", "guidance.reference.checkpoint=b.pkl"])
    assert checkpoints(config.config) == ("a.pkl", "b.pkl")
    with pytest.raises(UsageError, match="^model.checkpoint must be given"):
        compose("sample", ["model=edm2"])
    with pytest.raises(UsageError, match="^guidance.reference.checkpoint must be given"):
        compose("sample", [*words, "guidance=autoguidance"])


@pytest.mark.parametrize(
    "model, guidance",
    [
        ("edm2-img512-m", "autoguidance"),
        ("edm2-img512-xs-uncond", "autoguidance"),
        ("edm2-img64-s", "cfg"),
    ],
)
def test_a_reference_that_is_not_published_is_asked_for(model, guidance):
    with pytest.raises(UsageError, match="guidance.reference.size must be given"):
        compose("sample", [f"model={model}", f"guidance={guidance}"])
    assert compose("sample", [f"model={model}", "guidance=none"]).config


# Experiments

ROWS = {
    "edm2/img512": [(m + s, g) for s in ("", "-dino") for m in IMG512 for g in ("none", "cfg")],
    "edm2/img64": [(model, "none") for model in IMG64],
    "autoguidance/img512": [
        (m, g) for m in INTERVAL for g in ("none", "cfg", "autoguidance")
    ],
    "autoguidance/img512-uncond": [
        (m, g) for m in ("s-uncond", "s-uncond-dino") for g in ("none", "autoguidance")
    ],
    "autoguidance/img64": [(m, g) for m in ("s", "s-dino") for g in ("none", "autoguidance")],
    "interval/table1": [(m, g) for m in INTERVAL for g in ("cfg", "interval")],
}  # fmt: skip


@pytest.mark.parametrize("name", ROWS)
def test_published_tables(name):
    """All rows are presets as they are, made as the paper's code makes them."""
    table = plan_table([f"experiment={name}"])
    data = "img64" if "img64" in name else "img512"
    assert [(entry.values["model"], entry.values["guidance"]) for entry in table.entries] == [
        (f"edm2-{data}-{model}", guidance) for model, guidance in ROWS[name]
    ]
    for entry in table.entries:
        assert set(entry.values) == {"model", "guidance"}
        check_protocol(entry.planned, data, "float64" if name.startswith("int") else "float32")
    parts = table.base.config["protocol"]
    assert [part for part, content in parts.items() if content] == ["fid", "fd_dinov2"]
    [one] = plan_table(
        [f"experiment={name}", *(f"{k}={v}" for k, v in entry.values.items())]
    ).entries
    assert checkpoints(one.planned.config) == checkpoints(entry.planned.config)


def check_protocol(settings: Planned, data: str, dtype: str) -> None:
    """50,000 seeds, three times, 32 steps."""
    config = settings.config
    assert settings.seeds == list(range(150_000)) and config["repeats"] == 3
    assert settings.solver.dtype == dtype and settings.plan.evaluations_main == 63
    assert config["ref"].endswith(f"/dataset-refs/{data}.pkl")


def test_ablations_of_autoguidance():
    entries = plan_table(["experiment=autoguidance/ablations"]).entries
    for entry, row in zip(entries, ABLATIONS, strict=True):
        main, reference, w, value = row
        expected = url(f"edm2-img512-{main}"), url(f"edm2-img512-{reference}")
        assert checkpoints(entry.planned.config) == expected
        weights = entry.planned.plan.weights
        assert set(weights[entry.planned.plan.guided]) == {w}
        key, number = value.split()
        assert entry.planned.config["published"][key.lower()] == float(number)
        check_protocol(entry.planned, "img512", "float32")


@pytest.mark.parametrize("number", FIGURES)
def test_figures_of_the_interval_paper(number):
    table = plan_table([f"experiment=interval/fig{number}"])
    assert table.base.config["metrics"] == {}
    columns = []
    for entry in table.entries:
        settings = entry.planned
        # The published code seeds by Python's hash, the same since CPython 3.8, on 64 bits.
        assert settings.seeds == [hash(pair) % 2**31 for pair in FIGURES[number]]
        assert settings.labels == [label for label, _ in FIGURES[number]]
        assert source(settings.config["model"]) == url("edm2-img512-xxl-0939524-0.015")
        weights = set(settings.plan.weights[settings.plan.guided]) or {1}
        columns.append((weights.pop(), tuple(settings.plan.guided_steps)))
        assert not weights
    assert columns == [(w, tuple(steps)) for w, steps in COLUMNS[number]]
    assert table.base.config["gallery"] == len(FIGURES[number])


def test_figures_3_to_5():
    entries = plan_table(["experiment=interval/fig3"]).entries
    assert len(entries) == 4 * 13
    for k, (_, network, ema, _, _, steps) in enumerate(INTERVAL.values()):
        none, *guided = entries[13 * k : 13 * (k + 1)]
        assert source(none.planned.config["model"]) == url(f"edm2-img512-{network}-{ema}")
        assert none.planned.plan.guided_steps == []
        for j, entry in enumerate(guided):
            plan = entry.planned.plan
            assert plan.guided_steps == list(range(32) if j < 6 else steps)
            assert set(plan.weights[plan.guided]) == {1.5 + 0.5 * (j % 6)}
    entries = plan_table(["experiment=interval/fig4"]).entries
    weights = [entry.planned.plan.weights[entry.planned.plan.guided] for entry in entries]
    assert [w[0] for w in weights[1:]] == 2 * [round(1 + 0.1 * k, 1) for k in range(1, 31)]
    assert list(entries[0].planned.config["metrics"]) == ["prdc"] and len(weights[0]) == 0
    # The bounds that the axes of figure 5 show are boundaries between steps.
    entries = plan_table(["experiment=interval/fig5"]).entries
    steps = [entry.planned.plan.guided_steps for entry in entries]
    assert [(s[0], s[-1] + 1) for s in steps[:5]] == [(i, 22) for i in (20, 15, 10, 5, 0)]
    assert [(s[0], s[-1] + 1) for s in steps[5:9]] == [(15, i) for i in (31, 27, 23, 19)]
    assert steps[9] == []
