"""Differences of points with confidence: known truths, marks in tables, and joined tables."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import feature_set, normal
from report_rows import LO, W, row

from guidex.cli import main
from guidex.errors import GuidexError, UsageError
from guidex.features.features import FeatureSet
from guidex.features.statistics import GaussianStatistics
from guidex.metrics.accuracy import KNNAccuracy
from guidex.metrics.differences import among_best, block_means, difference
from guidex.metrics.frechet import Frechet
from guidex.metrics.kid import KID
from guidex.metrics.prdc import PRDC
from guidex.reports.baselines import baseline_of, with_differences
from guidex.reports.rows import read_rows
from guidex.reports.tables import csv_table, latex_table, markdown_table, terminal_table

SWEEP = [
    *("sweep", "experiment=null", "guidance=cfg", "sampler.grid.steps=4", "gallery=0"),
    *("seeds=0-159", "metrics=[frechet,prdc]"),
]


# Statistics


def test_intervals_hold_known_differences_of_distances_and_pairing_narrows_them() -> None:
    dim, count, sets, points = 5, 120, 80, ((0.2, 0.8), (0.21, 1.0), (0.0, 1.3))
    moments = GaussianStatistics.from_moments(
        count=9**9, mean=torch.zeros(dim), covariance=torch.eye(dim)
    )
    real = FeatureSet("d", given_statistics=moments)
    truth = [dim * (shift**2 + (scale - 1) ** 2) for shift, scale in points]
    held, paired, alone, centres = [], [], [], []
    for seed in range(sets):
        noise, own = normal(count, dim, seed=seed), normal(3, count, dim, seed=9**6 + seed)
        fakes = [
            feature_set(shift + scale * (0.95 * noise + (1 - 0.95**2) ** 0.5 * own[k]))
            for k, (shift, scale) in enumerate(points)
        ]
        values = [Frechet().measured(real=real, fake=fake)[1]["fd_d"] for fake in fakes]
        for a, b in ((0, 1), (0, 2), (1, 2)):
            found = difference(values[a], values[b])
            held.append(found.low <= truth[a] - truth[b] <= found.high)
        paired.append(np.ptp(difference(values[0], values[1])))
        alone.append(np.ptp(difference(values[0], values[1][1:] + values[1][:1])))
        centres.append(difference(values[2], values[0]).centre)
    assert 0.84 <= np.mean(held) <= 0.96
    assert np.mean(paired) < 0.7 * np.mean(alone)
    # Other variances have other biases; neither is left.
    assert abs(np.mean(centres) - (truth[2] - truth[0])) < 3 * np.std(centres) / sets**0.5


def test_of_means_over_fakes_the_blocks_are_known_without_further_work() -> None:
    values = normal(200)
    means = block_means(values)
    assert len(means) == 20 and np.mean(means) == pytest.approx(float(values.mean()))
    found = difference(means, np.zeros(20))
    assert (found.high - found.low) / 2 / 1.729 == pytest.approx(200**-0.5, rel=0.4)
    real = feature_set(normal(100, 3), torch.arange(100) % 2)
    fake = feature_set(normal(200, 3, seed=1), torch.arange(200) % 2)
    for metric, columns in (
        (PRDC(), {"precision_d", "density_d"}),
        (KNNAccuracy(), {"accuracy_d"}),
    ):
        numbers, blocks = metric.measured(real=real, fake=fake)
        assert set(blocks) == columns
        assert all(np.mean(blocks[name]) == pytest.approx(numbers[name]) for name in columns)
        assert metric(real=real, fake=fake) == numbers
    assert KID(subset_size=50).measured(real=real, fake=fake)[1] == {}


def test_shares_without_scatter_are_in_doubt_by_an_image() -> None:
    rows = [
        row(k, {W: k}, metrics={"precision_d": 1.0 - k / 64}, config={"seeds": "0-63"},
            pseudovalues={"precision_d": 20 * [1.0 - k / 64]})
        for k in range(5)
    ]  # fmt: skip
    first, second, third, *_, last = with_differences(rows, "best")
    assert all(each.among_best == ["precision_d"] for each in (first, second))
    assert third.among_best == ["precision_d"] and last.among_best == []
    reach = second.metrics["precision_d_difference_hi"] + 1 / 64
    assert reach == pytest.approx(1.729 / 64, rel=1e-3)  # of 64 images


def test_nothing_is_said_of_too_few_fakes() -> None:
    real = feature_set(normal(100, 30))
    for count in (39, 59):  # of 40 for blocks, 60 for 30 features
        found = Frechet().measured(real=real, fake=feature_set(normal(count, 30)))
        assert found[1] == {}
    assert block_means(normal(39)) == []
    few = feature_set(normal(160, 3), torch.arange(160) % 40)  # 4 of each class
    assert Frechet().measured(real=feature_set(normal(50, 3)), fake=few)[1] == {}


def test_the_truly_best_point_is_among_those_marked() -> None:
    among, better = 0, 0
    for seed in range(200):
        values = [*normal(8, 20, seed=seed).numpy(), 5 + normal(20, seed=seed).numpy()]
        best = int(np.argmin([value.mean() for value in values]))
        marked = among_best(list(range(9)), values, best, 1)
        assert best in marked and 8 not in marked
        among += 3 in marked  # all of the first eight are the best in truth
        mirrored = among_best(list(range(9)), [-value for value in values], best, -1)
        assert mirrored == marked
        better += len(marked) < 8
    assert among >= 180 and better > 0
    assert among_best([4], [[1.0]], 4, 1) == [4]


# Tables


def points() -> list:
    """Three points of FD 0.31, 0.30 and 0.5 with common and own scatter, and one of other seeds."""
    common, own = normal(20).numpy(), normal(4, 20, seed=3).numpy()
    rows = []
    for k, (fd, config) in enumerate([(0.31, 0), (0.30, 0), (0.5, 0), (0.4, 1)]):
        pseudo = fd + 0.1 * common + 0.03 * (own[k] - own[k].mean())
        metrics, swept = {"fd_pixels": fd, "kid_pixels": fd}, {W: float(k + 1), LO: 0.5}
        some = {"config": {"seeds": f"{config}-63", "baseline": "best"}, "metrics": metrics}
        rows.append(row(k, swept, pseudovalues={"fd_pixels": pseudo.tolist()}, **some))
    return rows


def test_what_cannot_be_told_from_the_best_is_marked() -> None:
    rows = with_differences(points(), "best")
    assert [each.among_best for each in rows] == [["fd_pixels"], ["fd_pixels"], [], []]
    apart = [each.metrics.get("fd_pixels_difference") for each in rows]
    assert apart == [pytest.approx(0.01), None, pytest.approx(0.2), None]
    assert rows[2].metrics["fd_pixels_difference_lo"] > 0.1
    assert "kid_pixels_difference" not in csv_table(rows)
    assert "fd_pixels,fd_pixels_difference,fd_pixels_difference_lo" in csv_table(rows)
    text = terminal_table(rows)
    assert "0.310~" in text and "0.300*" in text and "0.500 " in text
    assert "~ = not distinguishable from the best (90% confidence)" in text.replace("\n  ", " ")
    assert "| *0.310* |" in markdown_table(rows) and "italic = not" in markdown_table(rows)
    assert r"\textit{0.310}" in latex_table(rows) and r"\textbf{0.300}" in latex_table(rows)
    assert "baseline" not in text + markdown_table(rows)
    assert with_differences(rows, "best") == rows
    for plain in (terminal_table(points()), terminal_table(with_differences(points(), None))):
        assert "~" not in plain and "difference" not in plain
    other = [replace(each, settings={"detector": str(each.point)}) for each in points()]
    assert not any(each.among_best for each in with_differences(other, "best"))


def test_differences_to_a_baseline_have_a_column() -> None:
    chosen = [replace(each, config={**each.config, "baseline": "w=3"}) for each in points()]
    rows = with_differences(chosen, "w=3")
    text = markdown_table(rows)
    assert "| FD (pixels) less baseline |" in text and "| -0.190 \\[-0." in text
    assert "differences to the baseline, w=3, with 90% intervals;" in text
    assert rows[0].among_best == ["fd_pixels"]  # which does not depend on the baseline
    alone = with_differences(chosen, 3)
    assert "are not known: too few images, or none of the same seeds" in markdown_table(alone)


def test_a_baseline_is_one_point() -> None:
    swept = [{"guidance": "none"}, {"guidance": "cfg", W: 2.0}, {"guidance": "cfg", W: 3}, None]
    for baseline, number in (
        ("best", None), (None, None), (1, 1), ("0", 0), ("guidance=none", 0), ("w=2", 1),
        ("guidance=cfg w=3", 2), ("schedule.w=2.0", 1),
    ):  # fmt: skip
        assert baseline_of(baseline, swept) == number
    for baseline, why in (
        ("guidance=cfg", "names 2 of the points"), ("w=4", "names none"), (3, "from 0 to 3"),
        ("none", r"'baseline=guidance=cfg guidance.schedule.w=3'"), (-1, "none"), ("", "names 3"),
    ):  # fmt: skip
        with pytest.raises(UsageError, match=why):
            baseline_of(baseline, swept)


# Commands


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two sweeps on the same seeds, one on fewer, and one by other metrics."""
    folder = tmp_path_factory.mktemp("runs")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("guidex.runs.drawings.write_plots", lambda *_: [])
        for name, words in (
            ("a", ["guidance.schedule.w=1,2", "baseline=w=1"]),
            ("b", ["guidance.schedule.w=3"]),
            ("few", ["seeds=0-99"]),
            ("other", ["metrics.prdc.k=5"]),
        ):
            assert main([*SWEEP, *words, f"out={folder / name}"]) == 0
    return folder


def test_a_sweep_tells_differences_to_its_baseline(runs: Path, tmp_path: Path, capsys) -> None:
    one, two = read_rows(runs / "a")
    assert "fd_pixels_difference" in two.metrics and "fd_pixels_difference" not in one.metrics
    assert {name: len(each) for name, each in two.pseudovalues.items()} == {
        "fd_pixels": 20, "precision_pixels": 20, "density_pixels": 20,
    }  # fmt: skip
    again = [*SWEEP, "guidance.schedule.w=1,2", f"out={runs / 'a'}"]
    assert main([*again, "baseline=1"]) == 0
    assert "320 of 320 images are there already" in capsys.readouterr().out
    turned, _ = read_rows(runs / "a")
    for name in ("fd_pixels", "precision_pixels"):
        now, before = turned.metrics, two.metrics
        assert now[f"{name}_difference"] == pytest.approx(-before[f"{name}_difference"])
        assert now[f"{name}_difference_lo"] == pytest.approx(-before[f"{name}_difference_hi"])
    assert main([*SWEEP, "baseline=w=9", f"out={tmp_path / 'none'}"]) == 2
    assert "baseline=w=9 names none of the points" in capsys.readouterr().err
    assert not (tmp_path / "none").exists()


def test_repeats_are_paired_one_by_one(tmp_path: Path) -> None:
    words = [*SWEEP, "guidance=none,cfg"]
    assert main([*words, "repeats=3", f"out={tmp_path / 'all'}"]) == 0
    together, distances, recalls = read_rows(tmp_path / "all")[1], [], []
    for seeds in ("0-159", "160-319", "320-479"):
        assert main([*words, f"seeds={seeds}", f"out={tmp_path / seeds}"]) == 0
        single = read_rows(tmp_path / seeds)[1]
        distances += single.pseudovalues["fd_pixels"]
        recalls.append(single.metrics["recall_pixels"])
        assert "recall_pixels" not in single.pseudovalues
    assert together.pseudovalues["fd_pixels"] == pytest.approx(distances)
    # Of what blocks do not tell, repeats do.
    assert together.pseudovalues["recall_pixels"] == pytest.approx(recalls)
    assert "recall_pixels_difference" in together.metrics


def test_compare_joins_what_was_measured_alike(runs: Path, tmp_path: Path, capsys) -> None:
    a, b, out = str(runs / "a"), str(runs / "b"), tmp_path / "both"
    words = ["compare", a, b, "baseline=run=a w=2", f"out={out}"]
    assert main(words) == 0
    text = capsys.readouterr().out
    assert "b: guidex sweep" in text and "less baseline" in text
    rows = read_rows(out)
    assert [(r.values["run"], r.values[W]) for r in rows] == [("a", 1), ("a", 2), ("b", 3)]
    assert ["fd_pixels_difference" in each.metrics for each in rows] == [True, False, True]
    # Pairing across runs is pairing within one.
    assert main([*SWEEP, "guidance.schedule.w=2,3", "baseline=w=2", f"out={tmp_path / 'c'}"]) == 0
    assert read_rows(tmp_path / "c")[1].metrics == pytest.approx(rows[2].metrics)
    before = (out / "table.csv").read_bytes()
    assert main(words) == 0 and (out / "table.csv").read_bytes() == before


def test_compare_refuses_what_was_not_and_says_why(runs: Path, tmp_path: Path, capsys) -> None:
    a, few, other = (str(runs / name) for name in ("a", "few", "other"))
    (tmp_path / "damaged").mkdir()
    (tmp_path / "damaged" / "rows.jsonl").write_text('{"point": 0}\n')
    changed = [replace(each, provenance={"reals": [{"path": "x", "sha256": h}]}, settings={})
               for each, h in zip(points(), "abcd", strict=True)]  # fmt: skip
    for each in changed[:2]:
        folder = tmp_path / f"of-{each.point}"
        folder.mkdir()
        (folder / "rows.jsonl").write_text(json.dumps(vars(each)))
    for words, why in (
        ([a, few], "images: 160 in a; 100 in few"),
        ([a, other], "precision/recall: k=3, < in a; k=5, < in other"),
        ([str(tmp_path / "of-0"), str(tmp_path / "of-1")], "content of x: a in of-0; b in of-1"),
        ([a], "two or more runs"),
        ([a, a], "each once"),
        ([a, str(tmp_path)], "holds no table (rows.jsonl)"),
        ([a, few, "basline=best"], "did you mean baseline"),
    ):
        assert main(["compare", *words]) == 2
        assert why in capsys.readouterr().err
    assert main(["compare", a, str(tmp_path / "damaged")]) == 1
    with pytest.raises(GuidexError, match="is damaged"):
        read_rows(tmp_path / "damaged")
