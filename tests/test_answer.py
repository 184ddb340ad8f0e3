"""What a table answers: its best points, the commands that sample them, its order, and which
metrics tell nothing apart."""

import json
import re
import shlex
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from report_rows import W, row

from guidex.cli import main
from guidex.config.compose import compose
from guidex.reports.best_points import answers, command
from guidex.reports.rows import read_rows
from guidex.reports.tables import csv_table, markdown_table, terminal_table
from guidex.runs import drawings

FEW = ["seeds=0-19", "sampler.grid.steps=4", "gallery=2"]


def measured(*values: dict[str, float], **config) -> list:
    return [row(n, {W: n}, metrics=one, config=config) for n, one in enumerate(values)]


def test_the_best_of_each_metric_is_named():
    rows = measured(
        {"fd_a": 0.5, "recall_a": 0.9, "precision_a": 1.0},
        {"fd_a": 0.3, "recall_a": 0.8, "precision_a": 1.0},
        {"fd_a": 0.3, "recall_a": 0.7, "precision_a": 1.0},
        {"fd_a": 0.4, "recall_a": 0.6, "precision_a": 0.5},
    )
    rows[2] = replace(rows[2], evals_ref=10)
    assert [(one.text, one.row.point) for one in answers(rows)] == [
        ("Best FD (a) 0.300 (level with 1 more): w = 2", 2),  # the cheaper one
        ("Best Recall 0.900: w = 0", 0),
    ]  # in precision, most points are as good
    assert answers([replace(one, images=one.point + 2) for one in rows]) == []
    assert answers(rows[:1]) == []
    assert [one.command for one in answers(rows)] == [None, None]  # their record says too little


@pytest.fixture(scope="module")
def swept(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sweep")
    words = ["guidance=cfg", "guidance/schedule=constant,cosine", f"{W}=1.5,2", "sort=fd_pixels"]
    words += ["model.h=0.3", "labels=[1,2]", f"out={folder}"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(drawings, "write_plots", lambda *_: [])  # which take long
        assert main(["sweep", *FEW, *words]) == 0
    return folder


def test_the_command_samples_the_same_images(swept, tmp_path, capsys):
    rows = read_rows(swept)
    for one in rows:
        words = shlex.split(command(one))
        config = compose("sample", words[2:]).config
        for key in ("model", "guidance", "sampler", "seeds", "labels"):
            assert config[key] == one.config[key]
    assert "guidance/schedule=cosine" in words and "seeds=0-19" in words
    assert main([*words[1:], f"out={tmp_path}"]) == 0
    other = replace(rows[0], config={**rows[0].config, "model": {"_target_": "of.another.time"}})
    assert command(other) is None
    hostile = {**rows[0].provenance, "presets": {"guidance": "../../cfg", "model": "x\n"}}
    assert command(replace(rows[0], provenance=hostile)) is None


def test_tables_say_what_to_type_and_are_sorted(swept):
    rows = read_rows(swept)
    best = min(rows, key=lambda one: one.metrics["fd_pixels"])
    assert f"\n  {command(best)}\n" in terminal_table(rows, width=60)  # in one line, to be copied
    assert f"`` {command(best)} ``" in markdown_table(rows)
    order = [float(line.split(",")[4]) for line in csv_table(rows).splitlines()[1:]]
    assert order == sorted(order)
    points = [json.loads(line)["point"] for line in (swept / "rows.jsonl").read_text().splitlines()]
    assert points == [0, 1, 2, 3]
    report = (swept / "report.html").read_text(encoding="utf-8")
    lines = re.findall(r'<tr data-pick="(\d)"', report)
    assert [rows[int(k)].metrics["fd_pixels"] for k in lines] == order


def test_the_highest_may_be_the_best_and_what_has_no_value_is_last():
    values = [0.2, 0.9, np.nan, 0.5]
    rows = measured(*({"recall_a": value} for value in values), sort="recall_a")
    lines = csv_table(rows).splitlines()
    assert [line.split(",")[0] for line in lines] == [W, "1", "3", "0", "2"]


def test_an_order_that_will_not_be_is_refused_first(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("guidex.commands.sweep.load", None)  # no model is loaded
    words = ["sweep", *FEW, "guidance=cfg", f"{W}=1,2", f"out={tmp_path / 'new'}"]
    assert main([*words, "sort=fd_pixel"]) == 2
    assert "did you mean fd_pixels" in capsys.readouterr().err
    assert not list(tmp_path.rglob("*.record"))


def test_metrics_that_tell_nothing_apart_are_left_out_of_the_terminal():
    rows = measured(
        {"fd_a": 1.0, "precision_a": 0.999, "recall_a": 0.994},
        {"fd_a": 1.0, "precision_a": 0.996, "recall_a": 0.996},
    )
    text = terminal_table(rows)
    assert "Precision" not in text.splitlines()[0] and "Recall" in text.splitlines()[0]
    assert "FD (a)" in text  # the first one stays
    assert "all points agree to two digits: Precision 1.00." in " ".join(text.split())
    assert "Precision" in markdown_table(rows).splitlines()[0]
    sorted_by = [replace(one, config={"sort": "precision_a"}) for one in rows]
    assert "Precision" in terminal_table(sorted_by).splitlines()[0]
