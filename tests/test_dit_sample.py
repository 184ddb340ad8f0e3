"""A tiny SiT from its checkpoint file to images; plans of the published ones without theirs."""

import math
import runpy
import zipfile
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from guidex.cli import main
from guidex.config.instantiate import Models
from guidex.errors import UsageError
from guidex.models.condition import Conditions, parse_labels
from guidex.models.dit.denoiser import Velocity
from guidex.reports.published import published_notes
from guidex.runs.points import load
from guidex.runs.points_table import plan_table

SCRIPT = Path(__file__).parents[1] / "scripts" / "make_tiny_sit.py"
WORDS = ["sample", "model=sit-tiny", "device=cpu", "seeds=0-3", "block=2", "batch=2"]
WORDS += ["sampler.grid.steps=4"]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the tiny networks."""
    folder = tmp_path_factory.mktemp("tiny")
    runpy.run_path(str(SCRIPT))["main"](folder / "outputs" / "sit-tiny.pt")
    return folder


@pytest.fixture(autouse=True)
def inside(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(place)
    monkeypatch.setenv("GUIDEX_OFFLINE", "1")


def images(folder: str) -> dict[str, bytes]:
    return {
        file.name: file.read_bytes() for file in Path(folder).rglob("*.png") if file.stem != "grid"
    }


def test_every_format_and_a_run_that_was_interrupted(monkeypatch, capsys):
    for form in ("png", "zip", "npz"):
        assert main([*WORDS, f"format={form}", f"out={form}"]) == 0
    assert "guided steps 1–3 of 4, sigma 2.125 → 0, time 0.68 → 0" in capsys.readouterr().out
    whole = images("png")
    assert len(whole) == 4
    with zipfile.ZipFile("zip/images.zip") as archive:
        assert {Path(n).name: archive.read(n) for n in archive.namelist() if "png" in n} == whole
    assert np.load("npz/images.npz")["arr_0"].shape == (4, 16, 16, 3)
    calls, denoised = [], Velocity.denoised

    def interrupted(*args):
        calls.append(1)
        if len(calls) > 7:  # in the second block
            raise KeyboardInterrupt
        return denoised(*args)

    with monkeypatch.context() as patch:
        patch.setattr(Velocity, "denoised", interrupted)
        assert main([*WORDS, "out=cut"]) != 0
    assert len(images("cut")) < 4
    assert main([*WORDS, "out=cut"]) == 0 and images("cut") == whole


@pytest.mark.parametrize("guidance", ["none", "cfg", "autoguidance", "pag", "cfg_autoguidance"])
def test_every_kind_of_guidance(guidance):
    assert main([*WORDS, f"guidance={guidance}", f"out={guidance}"]) == 0
    assert guidance == "none" or images(guidance) != images("none")


def test_costs_are_known_once_networks_are():
    planned = plan_table(["model=sit-tiny", "guidance=cfg"], default=None).entries[0].planned
    assert math.isnan(planned.gflops) and load(planned, Models()).planned.gflops > 0


def test_balanced_labels_are_seeds_modulo_classes(capsys):
    words = ["labels=balanced", "seeds=[8,9,10,21]", "format=npz"]
    assert main([*WORDS, *words, "guidance=none", "out=balanced"]) == 0
    assert np.load("balanced/images.npz")["arr_1"].tolist() == [8, 9, 0, 1]
    with pytest.raises(UsageError, match="labels=balanced: the classes of this model are none"):
        Conditions().numbers(parse_labels("balanced", [3]))


def test_published_values_say_which_labels_they_are_of():
    about = {"fid": 1.12, "source": "arXiv 2504.10483"}
    row = {"images": 50000, "repeats": 1, "unit": "images", "provenance": {}}
    row["metrics"] = {"fd_inception": 1.2}
    for labels, here in (("balanced", "random"), ("random", "balanced")):
        config = {"labels": here, "published": {**about, "labels": labels}}
        [note] = published_notes([SimpleNamespace(**row, config=config)])
        assert note.endswith(f"published with {labels} labels, these are {here}.")


def test_what_does_not_fit_is_refused_before_anything_runs(capsys):
    for words in (["model=sit-tiny", "sampler=ddpm"], ["model=dit-xl-256", "sampler=flow_euler"]):
        assert main(["sample", *words, "--plan"]) == 2
    error = capsys.readouterr().err
    assert "has not learned a variance" in error and "leave the range of the model" in error


PLANS = {
    "repa-xl-256 interval": "sigma 2.325 → 0, time 0.6993 → 0; 250 + 172 evaluations",
    "repa-e-sdvae-256 interval": "250 + 159 evaluations per image; w 2.2",
    "repa-e-xl-256 interval": "250 + 185 evaluations per image; w 2.5",
    "lightningdit-xl-256 interval": "249 + 168 evaluations per image; w 6.7",
    "dit-xl-512 interval": "timestep 502 → 201; 250 + 75 evaluations per image; w 2.5",
    "dit-xl-512-dino interval": "timestep 562 → 261; 250 + 75 evaluations per image; w 4",
    "sit-xl-256 cfg": "250 + 250 evaluations per image; w 1.5; 118,621 GFLOP",
    "sit-xl-256 autoguidance": "SiT-XL-2-256 against SiT-B-2-256",
}


@pytest.mark.parametrize("names", PLANS)
def test_published_settings_are_planned_without_weights(names):
    model, guidance = names.split()
    table = plan_table([f"model={model}", f"guidance={guidance}"], default=None)
    planned = table.entries[0].planned
    assert PLANS[names] in planned.describe()
    assert planned.config["published"] == {} or planned.config["published"]["images"] == 50000


def test_one_network_serves_both_predictions_of_cfg():
    planned = plan_table(["model=sit-xl-256", "guidance=cfg"], default=None).entries[0].planned
    [query] = planned.guidance.terms["direction"].direction.queries
    assert query.network is planned.model and query.drop_labels
    assert planned.guidance.terms["direction"].direction.channels == 3
    torch.testing.assert_close(planned.model.gflops / 2, 118.6, rtol=1e-3, atol=0)
