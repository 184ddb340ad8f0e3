"""From words to a configuration: what is accepted, and what the complaints say."""

import math
import os
import subprocess
import sys

import pytest
import yaml

from guidex.config.compose import axes_from_yaml, check_words, compose, points, show, split_axes
from guidex.errors import UsageError


@pytest.mark.parametrize(
    ("word", "value"),
    [
        ("out=a=b", "a=b"),
        ("out=/tmp/a b=c,d", "/tmp/a b=c,d"),
        ("out=C:\\runs\\it's", "C:\\runs\\it's"),
        ("out=it's \\'so\\\\' \\", "it's \\'so\\\\' \\"),
        ("out=null", None),
        ("seeds=0-63", "0-63"),
        ("seeds=[0-9,20]", ["0-9", 20]),
        ("guidance.schedule.hi=inf", math.inf),
        ("guidance.schedule.w=1e-3", 0.001),
        ("guidance.schedule.w=${model.h}", 0.25),
    ],
)
def test_values(word, value):
    """Of several, the last one counts."""
    config = compose("sample", [f"{word.partition('=')[0]}=5", word]).config
    for name in word.partition("=")[0].split("."):
        config = config[name]
    assert config == value and type(config) is type(value)


@pytest.mark.parametrize(
    ("words", "match"),
    [
        (["guidance=cfgg"], "there is no guidance=cfgg; did you mean cfg"),
        (["model=../model/digits"], "there is no model=../model/digits; "),
        (["model=null"], "there is no model=null; there are .*digits"),
        (["seed=3"], "there is no key seed; did you mean seeds"),
        (["guidence=cfg"], r"there is no key guidence; did you mean guidance\?"),
        (["zzz=3"], "there is no key zzz; there are batch, block, decoder, device, "),
        (["guidance.schedul.w=3"], "no key guidance.schedul.w .*did you mean guidance.schedule.w"),
        (["sampler.steps=3"], "no key sampler.steps .*; did you mean sampler.grid.steps"),
        (["guidance=cfg", "guidance.schedule.lo=3"], "schedule.lo with guidance=cfg; "),
        (["seeds.x=3"], "there is no key seeds.x"),
        (["hydra.run.dir=x"], "there is no key hydra"),
        (
            ["guidance=none", "guidance/schedule=linear"],
            "guidance/schedule=linear: Could not override",
        ),
        (["guidance=[cfg,none]"], "choose one guidance"),
        (["guidance=cfg", "guidance/rule@x=apg"], "guidance/rule@x=apg: Could not override"),
        (["sampler.grid=log"], "to choose a preset, write sampler/grid=log"),
        (["+seeds=3"], "keys are fixed; write seeds=… without '\\+'"),
        (["seeds"], "'seeds' is not an override; they look like key=value"),
        (["guidance.schedule.w=1,2"], "several values make a sweep"),
        (["model=kernel"], "model.data must be given, for example model.data=…"),
        (["model=diffusers"], "^model.path must be given, for example model.path=…$"),
        (["overwrite=1"], "overwrite must be true or false"),
        (["model.conditional=null"], "model.conditional must be true or false"),
        (
            ["model=edm2-tiny", "guidance=classifier"],
            "classifier, which is not there; there are unc",
        ),
        (["guidance=classifier", "model=edm2-tiny", "guidance.reference.h=2"], "is not there"),
        (
            ["model=edm2-img512", "guidance=autoguidance"],
            "size=… guidance.reference.kimg=… .*no net",
        ),
        (
            ["guidance.schedule.w=${model.hh}"],
            "guidance.schedule.w refers to model.hh, which is not there; did",
        ),
    ],
)
def test_complaints_name_what_is_nearest(words, match):
    with pytest.raises(UsageError, match=match) as caught:
        compose("sample", words)
    assert "\n" not in str(caught.value)


def test_a_reference_can_be_changed_without_the_model():
    plain = compose("sample", ["guidance=cfg"]).config
    assert plain["guidance"]["reference"] == plain["model"]["references"]["unconditional"]
    found = compose("sample", ["guidance=cfg", "guidance.reference.h=0.7"]).config
    assert found["guidance"]["reference"]["h"] == 0.7
    assert found["guidance"]["reference"] == {**plain["guidance"]["reference"], "h": 0.7}
    assert found["model"] == plain["model"]


def test_a_changed_reference_follows_the_model_in_all_else():
    """Whatever the order of the words."""
    words = ["model=kernel", "model.data=/a b", "guidance=sigma_scaling"]
    changes = ["guidance.reference.conditional=false", "model.h=0.1"]
    found = [compose("sample", words + both).config for both in (changes, changes[::-1])]
    for config in found:
        assert config["model"]["h"] == 0.1 and config["model"]["conditional"] is True
        reference = config["guidance"]["reference"]
        assert (reference["h"], reference["conditional"]) == (0.1, False)
        assert reference["data"] == "/a b"
    assert found[0] == found[1]


def test_composing_leaves_nothing_behind():
    plain = compose("sample", ["guidance=cfg"]).config
    changed = compose("sample", ["guidance=cfg", "guidance.schedule.w=9"]).config
    changed["guidance"]["schedule"]["w"] = 10
    changed["model"]["references"].clear()
    assert compose("sample", ["guidance=cfg"]).config == plain


def test_schedules_of_single_terms_can_be_chosen():
    at = "guidance/schedule@guidance.terms.cfg.schedule"
    config = compose("sample", ["guidance=cfg_autoguidance", f"{at}=linear"]).config
    terms = config["guidance"]["terms"]
    assert terms["cfg"]["schedule"]["_target_"] == "guidex.guidance.schedules.Linear"
    assert terms["autoguidance"]["schedule"]["_target_"] == "guidex.guidance.schedules.Constant"


@pytest.mark.parametrize(
    ("text", "values"),
    [
        ("1,1.50,1e-3", ["1", "1.5", "0.001"]),
        ("range(0,1,0.25)", ["0.0", "0.25", "0.5", "0.75"]),
        ("choice(a,b)", ["a", "b"]),
        ("null,1", ["null", "1"]),
        ("[1,2],[3]", ["[1,2]", "[3]"]),
        ("sort(3,1,2)", ["1", "2", "3"]),
    ],
)
def test_axes(text, values):
    fixed, axes = split_axes(["model=digits", f"guidance.schedule.w={text}", "seeds=0-3"])
    assert fixed == ["model=digits", "seeds=0-3"]
    assert axes == {"guidance.schedule.w": tuple(values)}
    assert axes_from_yaml({"guidance.schedule.w": text}) == axes
    table = {"a": [1, 2.5, "x", None, True, [1, 2]], "d": None, "e": 0.1}
    assert axes_from_yaml(table) == {
        "a": ("1", "2.5", "x", "null", "true", "[1,2]"),
        "d": ("null",),
        "e": ("0.1",),
    }


def test_axes_of_presets():
    fixed, axes = split_axes(["guidance=glob(c*)", "sampler/grid=log,karras"])
    assert fixed == [] and axes["sampler/grid"] == ("log", "karras")
    assert set(axes["guidance"]) >= {"cfg", "classifier"}
    assert all(name.startswith("c") for name in axes["guidance"])
    key = "guidance/schedule@guidance.terms.cfg.schedule"
    assert split_axes([f"{key}=linear,cosine"])[1] == {key: ("linear", "cosine")}


def test_values_of_axes_are_overrides_again():
    """Also such as hold spaces and commas."""
    for value in ("a b", "a,b", "it's"):
        quoted = value.replace("'", "\\'")
        _, axes = split_axes([f"out='{quoted}','x'"])
        found = [compose("sample", [f"out={text}"]).config["out"] for text in axes["out"]]
        assert found == [value, "x"]


def test_what_is_no_axis():
    with pytest.raises(UsageError, match="the axis guidance.schedule.w has no values"):
        split_axes(["guidance.schedule.w=glob(*)"])
    for text in ("interval(1,2)", "shuffle(1,2)", "shuffle(range(1,4))"):
        with pytest.raises(UsageError, match="write the values, in order, or range"):
            split_axes([f"guidance.schedule.w={text}"])


def test_what_a_protocol_replaces_is_changed_in_the_protocol():
    for word in ("metrics.prdc.k=7", "detector.weights=x", "detector=inception"):
        with pytest.raises(UsageError, match="protocol=fbg has detectors and metrics of its own"):
            compose("eval", ["images=x", "protocol=fbg", word])
    changed = compose("eval", ["images=x", "protocol=fbg", "protocol.pr.metrics.prdc.k=7"])
    assert changed.config["protocol"]["pr"]["metrics"]["prdc"]["k"] == 7


def test_typing_errors_are_found_by_words_alone():
    for command, word in (("sample", "seeeds=3"), ("sweep", "zzz=1,2"), ("eval", "detectr=pixels")):
        with pytest.raises(UsageError, match="there is no key"):
            check_words(command, [word] if command != "eval" else ["images", word])
    check_words("sample", ["eval=true", "repeats=2"])  # the points of others have other keys


@pytest.mark.parametrize(
    ("words", "chosen"),
    [
        (["protocol=null", "protocol=edm2"], "edm2"),
        (["protocol=edm2", "protocol=null"], "None"),
        (["protocol=edm2", "protocol=adm"], "adm"),
    ],
)
def test_the_last_word_counts(words, chosen):
    found = compose("eval", ["images=x", *words])
    assert found.choices["protocol"] == chosen and ("protocol" in found.config) == (
        chosen != "None"
    )


W, LO, HI = {"w": ("1", "2")}, {"lo": ("0", "0.1", "0.2")}, {"hi": ("3", "4")}


def test_grids_and_pairs():
    """Of a grid, the last axis is the fastest."""
    found = points(W | LO, "grid")
    assert [list(point.items()) for point in found[:4]] == [
        [("w", w), ("lo", lo)] for w, lo in (("1", "0"), ("1", "0.1"), ("1", "0.2"), ("2", "0"))
    ]
    assert points({}, "zip") == points({}, "grid") == [{}]
    assert points(W | HI, "zip") == [{"w": "1", "hi": "3"}, {"w": "2", "hi": "4"}]
    with pytest.raises(UsageError, match="axes need equal lengths; not w 2, lo 3"):
        points(W | LO, "zip")


@pytest.mark.parametrize(
    "text",
    ["${oc.env:SECRET}", "http://x/${oc.env:SECRET}", "${${rng}.env:SECRET}", "${oc.decode:'3'}"],
)
def test_nothing_is_taken_from_outside_the_configuration(text, monkeypatch):
    monkeypatch.setenv("SECRET", "sesame")
    for words in ([f"out='{text}'"], ["out=null", f"labels=['{text}']"]):
        with pytest.raises(UsageError, match="only references to other keys") as caught:
            compose("sample", words)
        assert "sesame" not in str(caught.value)
    with pytest.raises(UsageError, match="a reference leads back to itself"):
        compose("sample", ["model.h=${model.h}"])


def test_offline_is_offline_for_the_libraries_too():
    code = "import os, guidex; print(os.environ.get('HF_HUB_OFFLINE'))"
    environment = {k: v for k, v in os.environ.items() if k != "HF_HUB_OFFLINE"}
    for value, told in (("1", "1"), ("0", "None")):
        out = subprocess.run(
            [sys.executable, "-c", code],
            env={**environment, "GUIDEX_OFFLINE": value},
            capture_output=True,
            text=True,
            check=True,
        )
        assert out.stdout.strip() == told


def test_cfg_shows_the_comments_of_the_yamls():
    lines = show("sample", ["guidance=interval", "guidance/schedule=cosine_interval"]).splitlines()
    assert (
        "out: null  # output folder; null: outputs/sample/<guidance>-<hash of the settings>"
        in lines
    )
    # By way of a preset that another one builds on.
    assert "  drop_labels: false  # true: ask the reference without a class" in lines
    assert "  references:  # what guidance can be measured against; not a constructor argument" in (
        show("sample", ["model=fractal2d"]).splitlines()
    )
    assert yaml.safe_load(show("sweep", [])) == compose("sweep", []).config
