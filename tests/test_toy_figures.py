"""The figures of toys, checked against what they should show."""

import math

import matplotlib
import numpy as np
import pytest
from matplotlib.collections import LineCollection
from matplotlib.colors import to_rgba
from matplotlib.contour import QuadContourSet
from PIL import Image

from guidex.models.mixture import GaussianMixture
from guidex.models.toys import mixture1d
from guidex.reports import toy_figures as toys
from guidex.reports.toy_figures import (
    BINS,
    MODE_COLOURS,
    ToyPanel,
    figure_1d,
    figure_2d,
    modes_of,
)


@pytest.fixture
def square_mixture() -> GaussianMixture:
    """Two classes of one round bump each, at (-1, 0) and (1, 0)."""
    means, covariances = [[-1.0, 0.0], [1.0, 0.0]], [[[0.04, 0.0], [0.0, 0.04]]] * 2
    return GaussianMixture([1.0, 3.0], means, covariances, [0, 1], [0, 0], conditional=True)


@pytest.fixture
def true_samples() -> np.ndarray:
    """Of both modes of mixture1d, at 0.5 and 1.5, [400, 1]."""
    generator = np.random.default_rng(0)
    return generator.choice([0.5, 1.5], (400, 1)) + 0.25 * generator.standard_normal((400, 1))


@pytest.fixture(autouse=True)
def few_pixels(monkeypatch):
    """Densities are costly."""
    monkeypatch.setattr(toys, "PIXELS", 48)


@pytest.fixture
def drawn(monkeypatch, tmp_path):
    """Draw with figure_1d or figure_2d; the figure instead of a file."""
    figures = []
    save = toys.save

    def remember(figure, path, *text) -> None:
        save(figure, path, *text)
        figures.append(figure)

    monkeypatch.setattr(toys, "save", remember)

    def draw(function, *arguments, **options):
        function(*arguments, tmp_path / "figure.png", **options)
        return figures.pop()

    return draw


def panel(samples, labels=None, path=None, title="a point", sigmas=(4.0, 0.5, 0.0)) -> ToyPanel:
    """A panel of two steps, the first of them guided; by default, all samples are of class 0."""
    samples = np.asarray(samples, dtype=np.float64)
    labels = np.zeros(len(samples), int) if labels is None else labels
    path = np.zeros((3, 0, samples.shape[1])) if path is None else path
    return ToyPanel(title, samples, labels, path, np.array(sigmas), np.array([True, False]))


def columns(figure) -> list[tuple]:
    """The upper and the lower axes of each panel of a 1D figure."""
    parts = ([], [])
    for axes in figure.axes:
        parts[axes.get_subplotspec().rowspan.start % 2].append(axes)
    return list(zip(*parts, strict=True))


def titles(figure) -> list[str]:
    return [title for axes in figure.axes if (title := axes.get_title(loc="left"))]


def note(axes) -> str:
    """The line above axes."""
    return "".join(text.get_text() for text in axes.texts)


def lines_of(axes) -> LineCollection:
    (lines,) = (artist for artist in axes.collections if type(artist) is LineCollection)
    return lines


def test_modes_are_named_with_their_shares(drawn, true_samples):
    points = [panel(true_samples, title="both"), panel(np.full((400, 1), 1.7), title="one")]
    figure = drawn(figure_1d, points, mixture1d(), reference=mixture1d(conditional=False))
    titles = [upper.get_title(loc="left") for upper, _ in columns(figure)]
    assert titles == ["(a) densities", "(b) both", "(c) one"]
    reference, both, one = (note(lower) for _, lower in columns(figure))
    assert reference.split() == ["conditional", "unconditional"]
    assert both.startswith(f"modes  {100 * (true_samples < 1.0).mean():.0f} %  ")
    assert one == "modes  0 %  100 %"


def test_trajectories_are_the_path_in_the_colour_of_their_end(drawn, true_samples):
    path = np.stack([4 * true_samples[:30], 2 * true_samples[:30], true_samples[:30]])
    one = panel(true_samples, path=path)
    lines = lines_of(columns(drawn(figure_1d, [one], mixture1d()))[1][0])
    assert len(lines.get_segments()) == 30
    for index, segment in enumerate(lines.get_segments()):
        np.testing.assert_array_equal(segment, np.stack([path[:, index, 0], one.sigmas], axis=1))
        # The modes are equal but for their place, so their border lies in the middle.
        mode = int(path[-1, index, 0] > 1.0)
        colour = to_rgba(MODE_COLOURS[mode], 0.8)
        np.testing.assert_allclose(lines.get_edgecolors()[index], colour)


def test_bars_mark_the_guided_steps(drawn, true_samples):
    levels = [(0.8, 0.7, 0.0), (0.6, 0.1, 0.0), (0.8, 0.0, 0.0), (3.0, 2.0, 0.0)]
    points = [panel(true_samples, sigmas=sigmas) for sigmas in levels]
    figure = drawn(figure_1d, points, mixture1d(), sigma_range=(0.0, 0.75))
    bars, bounds = (
        [[tuple(line.get_ydata()) for line in upper.lines if line.get_linewidth() == width]
         for upper, _ in columns(figure)]
        for width in (2.5, 0.6)
    )  # fmt: skip
    assert bars == [[], [(0.7, 0.75)], [(0.1, 0.6)], [(0.0, 0.75)], []]
    assert [[y for y, _ in lines] for lines in bounds] == [[], [0.7], [0.1, 0.6], [], []]


def test_guided_ranges_of_a_hole():
    sigmas = np.array([8.0, 4.0, 2.0, 1.0, 0.5, 0.0])
    guided = np.array([True, True, False, False, True])
    one = ToyPanel("", np.zeros((1, 1)), None, np.zeros((6, 0, 1)), sigmas, guided)
    assert one.guided_ranges() == [(2.0, 8.0), (0.0, 0.5)]


def test_density_is_the_closed_form_at_every_noise_level(drawn, true_samples):
    ranges = {"x_range": (-1.0, 3.0), "sigma_range": (0.0, 0.96)}
    figure = drawn(figure_1d, [panel(true_samples)], mixture1d(), **ranges)
    (upper, lower) = columns(figure)[1]
    image = np.asarray(upper.images[0].get_array())
    assert image.shape == (48, 48)
    assert upper.images[0].get_extent() == [-1.0, 3.0, 0.0, 0.96]
    x = -1 + 4 * (np.arange(48) + 0.5) / 48
    sigma = 0.96 * (np.arange(48)[:, None] + 0.5) / 48
    exponents = [-((x - mean) ** 2) / (2 * (0.25**2 + sigma**2)) for mean in (0.5, 1.5)]
    density = np.exp(exponents[0]) + np.exp(exponents[1])
    np.testing.assert_allclose(image, density / density.max(axis=1, keepdims=True), atol=1e-12)

    (curve,) = lower.lines
    bumps = [np.exp(-((x - mean) ** 2) / (2 * 0.25**2)) for mean in (0.5, 1.5)]
    true = sum(bumps) / (2 * 0.25 * math.sqrt(2 * math.pi))
    np.testing.assert_allclose(curve.get_ydata(), true, atol=1e-12)


def test_histogram_is_the_density_of_all_samples_stacked_by_mode(drawn, true_samples):
    figure = drawn(figure_1d, [panel(true_samples)], mixture1d(), x_range=(0.0, 2.0))
    lower = columns(figure)[1][1]
    left, right = (patch.get_data() for patch in lower.patches)
    np.testing.assert_array_equal(right.baseline, left.values)
    inside = (true_samples >= 0) & (true_samples <= 2)
    assert inside.mean() < 1
    width = 2.0 / BINS
    assert right.values.sum() * width == pytest.approx(inside.mean())
    assert left.values.sum() * width == pytest.approx((inside & (true_samples < 1)).mean())
    assert note(lower).endswith(f"  {(~inside).sum()} outside")


def test_runaway_samples_leave_the_truth_to_be_seen(drawn, true_samples):
    good = true_samples[:40]
    usual = drawn(figure_1d, [panel(good)], mixture1d()).axes[0].get_xlim()
    for far in (-1e300, np.inf, np.nan):
        figure = drawn(figure_1d, [panel(np.append(good, [[far]], axis=0))], mixture1d())
        assert figure.axes[0].get_xlim() == pytest.approx(usual, abs=0.3)
        assert note(columns(figure)[1][1]).endswith("  1 outside")
    figure = drawn(figure_1d, [panel(np.full((50, 1), 1e6))], mixture1d())
    left, right = figure.axes[0].get_xlim()
    assert left < 0 < 2 < right < 6
    assert note(columns(figure)[1][1]) == "modes  0 %  100 %  50 outside"


def test_modes_go_from_left_to_right_and_are_distinct_in_each_class():
    means, wide = [[5.0], [-5.0], [0.0]], [[[1.0]]] * 3
    truth = GaussianMixture([1.0, 2.0, 1.0], means, wide, [0, 1, 1], [0, 0, 1], conditional=True)
    x = np.array([[5.2], [-4.0], [0.3], [9.0]])
    every, count = modes_of(x, truth, {0: 0.5, 1: 0.5})
    assert every.tolist() == [2, 0, 1, 2] and count == 3
    one, count = modes_of(x, truth, {1: 1.0})
    assert one.tolist() == [1, 0, 1, 1] and count == 2
    # Of weights 3 : 1 and variances 1, at distance 4: the border moves by log(3) / 4.
    truth = GaussianMixture([3.0, 1.0], [[-2.0], [2.0]], [[[1.0]]] * 2, [0, 0], [0, 1], False)
    border = math.log(3) / 4
    around = np.array([[border - 1e-9], [border + 1e-9]])
    assert modes_of(around, truth, None)[0].tolist() == [0, 1]


def test_classes_are_mixed_as_they_were_asked_for(drawn):
    narrow = [[[0.01]]] * 2
    truth = GaussianMixture([1.0, 1.0], [[-1.0], [1.0]], narrow, [0, 1], [0, 0], conditional=True)
    samples, labels = np.array([[-1.0]] * 3 + [[1.0]]), np.array([0, 0, 0, 1])
    figure = drawn(figure_1d, [panel(samples, labels)], truth, x_range=(-2.0, 2.0))
    (curve,) = columns(figure)[1][1].lines
    x, y = curve.get_data()
    assert y[x < 0].sum() == pytest.approx(3 * y[x > 0].sum())


def test_square_holds_truth_and_samples_and_those_outside_are_counted(drawn, square_mixture):
    samples = [[-1.0, 0.0], [1.0, 0.0], [np.nan, 0.0], [1.0, 0.4]]
    one = panel(samples, np.array([0, 1, 0, 1]), title="one")
    (axes,) = drawn(figure_2d, [one], square_mixture).axes
    (left, right), (bottom, top) = axes.get_xlim(), axes.get_ylim()
    assert axes.get_title(loc="left") == "one"
    assert right - left == pytest.approx(top - bottom)
    assert left < -1.4 and bottom < -0.4 and right > 1.0 and top > 0.4
    given = {"center": (1.0, 0.25), "half_extent": 0.5}
    (axes,) = drawn(figure_2d, [panel(samples)], square_mixture, **given).axes
    assert (axes.get_xlim(), axes.get_ylim()) == ((0.5, 1.5), (-0.25, 0.75))
    assert [text.get_text() for text in axes.texts] == ["2 outside"]
    # Where there is no truth, none is drawn.
    given = {"center": (9.0, 9.0), "half_extent": 0.1}
    (axes,) = drawn(figure_2d, [panel([[9.0, 9.0]])], square_mixture, **given).axes
    assert not any(isinstance(c, QuadContourSet) for c in axes.collections)


def test_classes_have_colours_and_guided_steps_are_black(drawn, square_mixture):
    samples, labels = np.array([[-1.0, 0.0], [1.0, 0.0], [1.1, 0.0]]), np.array([0, 1, 1])
    path = np.array([[[3.0, 3.0], [2.0, 2.0]], [[0.0, 1.0], [1.0, 1.0]], samples[:2]])
    figure = drawn(figure_2d, [panel(samples, labels, path)], square_mixture)
    (axes,) = figure.axes
    dots = [c for c in axes.collections if type(c).__name__ == "PathCollection"]
    assert [len(one.get_offsets()) for one in dots] == [1, 2]
    assert len({tuple(one.get_facecolor()[0]) for one in dots}) == 2
    unguided, guided = (c for c in axes.collections if type(c) is LineCollection)
    np.testing.assert_array_equal(guided.get_segments(), np.stack([path[0], path[1]], axis=1))
    np.testing.assert_array_equal(unguided.get_segments(), np.stack([path[1], path[2]], axis=1))
    np.testing.assert_allclose(guided.get_edgecolors(), [to_rgba("black", 0.7)])


def test_png_has_150_dpi_whatever_the_users_settings(tmp_path, true_samples):
    figure_1d([panel(true_samples)], mixture1d(), tmp_path / "one.png")
    with Image.open(tmp_path / "one.png") as image:
        assert image.info["dpi"] == pytest.approx((150, 150), abs=0.1)
        assert image.format == "PNG"
    with matplotlib.rc_context({"font.size": 30, "text.usetex": True, "savefig.bbox": "tight"}):
        figure_1d([panel(true_samples)], mixture1d(), tmp_path / "two.png")
    assert (tmp_path / "one.png").read_bytes() == (tmp_path / "two.png").read_bytes()


@pytest.mark.parametrize("title", ["$\\nonsense{$ 5 $", "猫", "w" * 300, ""])
def test_any_title_can_be_drawn(drawn, title):
    figure = drawn(figure_1d, [panel([[0.5]], title=title)], mixture1d())
    assert max(title.count("\n") for title in titles(figure)) <= 2
