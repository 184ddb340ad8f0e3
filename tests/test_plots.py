"""Figures of a sweep: what is chosen from the rows, and where its numbers end up."""

import math
from dataclasses import replace

import matplotlib
import numpy as np
import pytest
import report_rows
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from report_rows import HI, LO, W

from guidex.reports import charts, heat_maps
from guidex.reports.plots import figure_of, write_plots
from guidex.reports.rows import Row


def row(point: int, values: dict, fd: float | None, guidance: str = "cfg", **changes) -> Row:
    metrics = {} if fd is None else {"fd_a": fd, "precision_a": 1 - fd, "recall_a": fd / 2}
    missing = "out of memory" if fd is None else None
    plain = {"metrics": metrics, "settings": {}, "missing": missing, "evals_ref": 0}
    return report_rows.row(point, values, guidance, **plain | changes)


def curves(rows: list[Row]) -> Figure | None:
    return figure_of(charts.curves(rows), rows)


def maps(rows: list[Row]) -> Figure | None:
    return figure_of(heat_maps.heat_maps(rows), rows)


def precision_recall(rows: list[Row]) -> Figure | None:
    return figure_of(charts.precision_recall(rows), rows)


FIGURES = ["curves", "heatmap", "precision_recall"]
BOUNDS = [(0.05, 0.3), (0.05, 1.0), (0.1, 0.3), (0.1, 1.0), (0.1, math.inf), (0.3, 1.0)]


@pytest.fixture
def rows() -> list[Row]:
    """No guidance; CFG over w, one point missing; intervals over (lo, hi] and w, one missing."""
    table = [({}, 0.8, "none")]
    for w, fd in ((3.0, 0.4), (1.5, 0.5), (2.0, None), (2.5, 0.35)):
        table.append(({W: w}, fd, "cfg"))
    for w in (2.0, 3.0):
        for lo, hi in BOUNDS:
            fd = None if (w, lo, hi) == (3.0, 0.1, 1.0) else lo + min(hi, 8.0) / 10
            table.append(({W: w, LO: lo, HI: hi}, fd, "interval"))
    return [
        row(n, {"guidance": name, **values}, fd, name) for n, (values, fd, name) in enumerate(table)
    ]


def labels(figure: Figure) -> list[str]:
    return [text.get_text() for text in figure.legends[0].get_texts()]


def curve(panel: Axes, label: str, figure: Figure):
    """The line drawn in the style that the legend gives to a label."""
    handle = figure.legends[0].legend_handles[labels(figure).index(label)]

    def style(line) -> tuple:
        return line.get_color(), line.get_linestyle(), line.get_marker()

    line, *_ = [line for line in panel.lines if style(line) == style(handle)]
    return line


def test_all_figures_are_written_whole_and_reproducibly(rows, tmp_path):
    paths = write_plots(rows, tmp_path)
    names = [f"{name}.{kind}" for name in FIGURES for kind in ("png", "pdf")]
    assert [path.name for path in paths] == names
    contents = [path.read_bytes() for path in paths]
    for path, content in zip(paths, contents, strict=True):
        assert content.startswith(b"\x89PNG" if path.suffix == ".png" else b"%PDF")
        assert b"/Type3" not in content
    # The user's settings neither matter nor change.
    with matplotlib.rc_context({"font.size": 30, "lines.linewidth": 9, "savefig.dpi": 10}):
        before = dict(matplotlib.rcParams)
        write_plots(rows[::-1], tmp_path)
        assert dict(matplotlib.rcParams) == before
    assert [path.read_bytes() for path in paths] == contents


def test_each_metric_has_a_panel_and_each_combination_of_other_values_a_curve(rows):
    figure = curves(rows)
    names = ["FD (a) ↓", "Precision (a) ↑", "Recall (a) ↑"]
    assert [panel.get_ylabel() for panel in figure.axes] == names
    assert {panel.get_xlabel() for panel in figure.axes} == {"guidance weight $w$"}
    title = " ".join(figure.get_suptitle().split())
    assert "against guidance weight $w$, 64 images" in title
    assert "2 of 17 points missing" in title
    assert labels(figure) == [
        "cfg",
        "interval (0.05, 0.3]", "interval (0.05, 1]",
        "interval (0.1, 0.3]", "interval (0.1, 1]", "interval (0.1, ∞]",
        "interval (0.3, 1]",
        "none",
    ]  # fmt: skip
    # In order of w, and interrupted where a point is missing.
    line = curve(figure.axes[0], "cfg", figure)
    np.testing.assert_array_equal(line.get_xdata(), [1.5, 2.0, 2.5, 3.0])
    np.testing.assert_array_equal(line.get_ydata(), [0.5, math.nan, 0.35, 0.4])
    # No guidance is a line across.
    line = curve(figure.axes[0], "none", figure)
    assert list(line.get_ydata()) == [0.8, 0.8]
    assert line.get_linestyle() == "--" and line.get_marker() == ""
    low, high = figure.axes[0].get_ylim()
    assert low < 0.8 < high
    # A distance far from the others makes its axis logarithmic.
    far = [replace(one, metrics={"fd_a": 10.0**one.point}) for one in rows if one.is_measured]
    near = [replace(one, metrics={"fd_a": 1.0 + one.point}) for one in rows[:5]]
    assert [curves(some).axes[0].get_yscale() for some in (near, far)] == ["linear", "log"]


def test_no_guidance_has_no_weight_even_where_one_is_written(rows):
    points = [("none", 2.0, 0.8), ("none", 3.0, 0.8), ("cfg", 2.0, 0.3), ("cfg", 3.0, 0.4)]
    product = [row(n, {"guidance": name, W: w}, fd, name) for n, (name, w, fd) in enumerate(points)]
    figure = curves(product)
    assert labels(figure) == ["cfg", "none"]
    assert list(curve(figure.axes[0], "none", figure).get_ydata()) == [0.8, 0.8]


@pytest.mark.parametrize(
    "ends, repeats, name",
    [(("_min", "_max"), 3, "min–max"), (("_lo", "_hi"), 1, "confidence interval")],
)
def test_bands_span_the_spread(ends, repeats, name):
    metrics = [{"fd_a": w / 10, f"fd_a{ends[0]}": w / 20, f"fd_a{ends[1]}": w} for w in (2.0, 3.0)]
    rows = [
        row(n, {W: n + 2.0}, 0.0, metrics=one, repeats=repeats) for n, one in enumerate(metrics)
    ]
    figure = curves(rows)
    assert f"band: {name}" in " ".join(figure.get_suptitle().split())
    (panel,) = figure.axes
    (band,) = panel.collections
    (path,) = band.get_paths()
    ends_of_band = {tuple(vertex) for vertex in path.vertices.tolist()}
    assert {(2.0, 0.1), (2.0, 2.0), (3.0, 0.15), (3.0, 3.0)} <= ends_of_band


def test_without_w_the_axis_is_the_number_with_most_values():
    points = [(8, 1.0), (16, 1.0), (32, 1.0), (8, 1.2), (16, 1.2), (32, 1.2)]
    rows = [
        row(n, {"sampler.steps": steps, "guidance.k": k}, 1 / steps)
        for n, (steps, k) in enumerate(points)
    ]
    figure = curves(rows)
    assert figure.axes[0].get_xlabel() == "steps"
    assert labels(figure) == ["k = 1", "k = 1.2"]


def test_weights_of_several_terms_share_an_axis():
    first, second = "guidance.terms.cfg.w", "guidance.terms.autoguidance.w"
    both = [{first: 1.5, second: 2.0}, {first: 1.5, second: 3.0}, {first: 1.5, second: 4.0}]
    rows = [row(n, values, 0.1 * n, "both") for n, values in enumerate(both)]
    rows += [row(3 + n, {W: w}, 0.5) for n, w in enumerate((2.0, 3.0))]
    figure = curves(rows)
    assert labels(figure) == ["both", "cfg"]
    assert list(curve(figure.axes[0], "both", figure).get_xdata()) == [2.0, 3.0, 4.0]


@pytest.mark.parametrize("unit, label", [("step", "steps 17–22"), ("sigma", "(17, 22]")])
def test_bounds_are_called_by_their_unit(unit, label):
    config = {"guidance": {"schedule": {"unit": unit}}}
    rows = [row(n, {W: w, LO: 17, HI: 22}, 0.1, config=config) for n, w in enumerate((1.5, 2.0))]
    assert labels(curves(rows)) == [label]
    # An infinite one is a line across.
    rows = [row(n, {HI: hi}, 0.1 * (n + 1)) for n, hi in enumerate((0.5, 1.0, math.inf))]
    assert curves(rows).axes[0].get_xlabel() == r"$\sigma_\mathrm{hi}$"
    assert labels(curves(rows)) == ["cfg", r"$\sigma_\mathrm{hi}$ = ∞"]


def test_nothing_is_cut_off_or_covered(rows):
    for draw in (curves, maps, precision_recall):
        figure = draw(rows)
        figure.draw_without_rendering()
        inside = figure.bbox.padded(1)
        parts = [panel.get_tightbbox() for panel in figure.axes]
        parts.append(figure._suptitle.get_window_extent())
        for part in parts:
            assert inside.x0 <= part.x0 and part.x1 <= inside.x1
            assert inside.y0 <= part.y0 and part.y1 <= inside.y1
        # Figures grow by their legends when they are saved.
        parts += [legend.get_window_extent() for legend in figure.legends]
        for number, part in enumerate(parts):
            for other in parts[number + 1 :]:
                assert not part.padded(-2).overlaps(other.padded(-2))


def map_cells(panel: Axes) -> dict[tuple[str, str], str]:
    """Written values by the labels of their place."""
    x = [label.get_text() for label in panel.figure.axes[0].get_xticklabels()]
    y = [label.get_text() for label in panel.figure.axes[0].get_yticklabels()]
    places = [(text.get_position(), text.get_text()) for text in panel.texts]
    return {(y[round(j)], x[round(i)]): text for (i, j), text in places}


def test_heat_maps_put_each_value_in_its_place(rows):
    figure = maps(rows)
    panels = [panel for panel in figure.axes if panel.get_title() != ""]
    assert [panel.get_title() for panel in panels] == ["interval $w$ = 2", "interval $w$ = 3"]
    assert {panel.get_xlabel() for panel in panels} == {r"$\sigma_\mathrm{hi}$"}
    assert panels[0].get_ylabel() == r"$\sigma_\mathrm{lo}$"
    assert map_cells(panels[0]) == {
        ("0.05", "0.3"): "0.080", ("0.05", "1"): "0.150",
        ("0.1", "0.3"): "0.130", ("0.1", "1"): "0.200", ("0.1", "∞"): "0.900",
        ("0.3", "1"): "0.400",
    }  # fmt: skip
    words = " ".join(figure.get_suptitle().split())
    assert "hatched: missing; better ones may lie beyond the edge" in words
    assert words.endswith("$ = 0.3; 2 of 17 points missing")
    assert ("0.1", "1") not in map_cells(panels[1]) and len(map_cells(panels[1])) == 5
    for panel, hatched in zip(panels, (0, 1), strict=True):
        assert len(panel.patches) == 6  # what is not in the table is blank
        assert sum(patch.get_hatch() is not None for patch in panel.patches) == hatched
        (frame,) = [patch for patch in panel.patches if patch.get_edgecolor() == (1, 0, 0, 1)]
        assert frame.get_xy() == (-0.5, -0.5)  # the best


def test_better_is_brighter():
    points = [(0.1, 1.0, 0.1), (0.1, 2.0, 0.5), (0.2, 1.0, 0.5), (0.2, 2.0, 0.9)]
    rows = [row(n, {LO: lo, HI: hi}, fd) for n, (lo, hi, fd) in enumerate(points)]
    for name, best in (("fd_a", (0, 0)), ("precision_a", (0, 0)), ("recall_a", (1, 1))):
        own = [replace(one, metrics={name: one.metrics[name]}) for one in rows]
        squares = maps(own).axes[0].patches
        brightest = max(squares, key=lambda square: sum(square.get_facecolor()[:3]))
        assert brightest.get_xy() == (best[0] - 0.5, best[1] - 0.5)


def test_any_two_numbers_that_form_a_grid_are_mapped():
    grid = [(w, k) for w in (1.5, 2.0, 3.0) for k in (1.0, 1.2)]
    rows = [row(n, {W: w, "guidance.k": k}, 0.5) for n, (w, k) in enumerate(grid)]
    panel = maps(rows).axes[0]
    assert (panel.get_xlabel(), panel.get_ylabel()) == ("guidance weight $w$", "k")
    assert set(map_cells(panel).values()) == {"0.500"}
    assert maps([replace(one, metrics={}, missing="lost") for one in rows]) is None
    cross = [(0.1, 1.0), (0.2, 1.0), (0.3, 1.0), (0.1, 2.0), (0.1, 3.0)]
    rows = [row(n, {LO: lo, HI: hi}, 0.1 * n + 0.1) for n, (lo, hi) in enumerate(cross)]
    assert maps(rows) is None


def test_precision_against_recall_joins_points_along_w(rows):
    figure = precision_recall(rows)
    (panel,) = figure.axes
    assert (panel.get_xlabel(), panel.get_ylabel()) == ("Recall (a) ↑", "Precision (a) ↑")
    line = curve(panel, "cfg", figure)
    np.testing.assert_array_equal(line.get_xdata(), [0.25, math.nan, 0.175, 0.2])
    np.testing.assert_array_equal(line.get_ydata(), [0.5, math.nan, 0.65, 0.6])
    none = curve(panel, "none", figure)
    assert none.get_linestyle() == "None" and list(none.get_xdata()) == [0.4]


def test_many_curves_become_panels_by_the_next_key():
    points = [(lo, hi, w) for lo in (0.1, 0.2) for hi in (1, 2, 3, 4, 5) for w in (1.5, 2.0)]
    rows = [
        row(n, {"guidance": "interval", LO: lo, HI: hi, W: w}, lo + hi / 10, "interval")
        for n, (lo, hi, w) in enumerate(points)
    ]
    rows.append(row(len(rows), {"guidance": "none"}, 0.9, "none"))
    figure = curves([replace(one, metrics={"fd_a": one.metrics["fd_a"]}) for one in rows])
    assert [panel.get_title() for panel in figure.axes] == [
        r"$\sigma_\mathrm{lo}$ = 0.1", r"$\sigma_\mathrm{lo}$ = 0.2",
    ]  # fmt: skip
    assert labels(figure) == [
        *(rf"interval $\sigma_\mathrm{{hi}}$ = {hi}" for hi in (1, 2, 3, 4, 5)), "none",
    ]  # fmt: skip
    assert [len(panel.lines) for panel in figure.axes] == [6, 6]
    assert len({panel.get_ylim() for panel in figure.axes}) == 1
    assert len(precision_recall(rows).axes) == 2


@pytest.mark.parametrize(
    "rows",
    [
        [],
        [row(0, {W: 1.5}, None), row(1, {W: 2.0}, None)],
        [row(n, {W: w}, 0.1, metrics={}) for n, w in enumerate((1.0, 2.0))],
    ],
)
def test_what_has_no_data_is_not_drawn(rows, tmp_path):
    assert write_plots(rows, tmp_path) == []
    assert list(tmp_path.iterdir()) == []


def test_names_are_shown_as_they_are(tmp_path):
    names = ["_hidden", "cost $5", "$x", "a_b^c\\d{e}", "日本"]
    points = [(name, w) for name in names for w in (1.0, 2.0)]
    rows = [
        row(n, {"guidance": name, W: w, LO: 0.1}, 0.1 * w, name)
        for n, (name, w) in enumerate(points)
    ]
    figure = curves(rows)
    assert labels(figure) == [" _hidden", r"cost \$5", r"\$x", "a_b^c\\d{e}", "日本"]
    distances = [replace(one, metrics={"fd_a": one.metrics["fd_a"]}) for one in rows]
    assert len(write_plots(distances, tmp_path)) == 2
