"""The figures of toys, checked against what they should show."""

import math
from types import SimpleNamespace

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
from guidex.reports.toy_figures import BINS, ToyPanel, toy_figure
from guidex.runs.drawings import MOST_PANELS


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
    """Draw; the figure instead of a file."""
    figures = []
    save = toys.save

    def remember(figure, path, *text) -> None:
        save(figure, path, *text)
        figures.append(figure)

    monkeypatch.setattr(toys, "save", remember)

    def draw(panels, model, **options):
        assert toy_figure(panels, model, tmp_path / "figure.png", **options)
        return figures.pop()

    return draw


def plan(sigmas, guided) -> SimpleNamespace:
    """What figures read of a plan of one term."""
    timeline = SimpleNamespace(sigmas=np.array(sigmas))
    return SimpleNamespace(timeline=timeline, guided=np.array(guided)[None, :, None])


def panel(samples, labels=None, path=None, title="a point", sigmas=(4.0, 0.5, 0.0)) -> ToyPanel:
    """A panel of two steps, the first of them guided; by default, all samples are of class 0."""
    samples = np.asarray(samples, dtype=np.float64)
    labels = np.zeros(len(samples), int) if labels is None else labels
    path = np.zeros((0, 3, samples.shape[1])) if path is None else path
    return ToyPanel(title, samples, labels, path, plan(sigmas, [True, False]))


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


def test_every_point_has_a_panel_beside_the_densities(drawn, true_samples):
    points = [panel(true_samples, title="both"), panel(np.full((400, 1), 1.7), title="one")]
    figure = drawn(points, mixture1d(), reference=mixture1d(conditional=False))
    titles = [upper.get_title(loc="left") for upper, _ in columns(figure)]
    assert titles == ["(a) densities", "(b) both", "(c) one"]
    assert note(figure.axes[3]).split() == ["truth", "reference"]


def test_trajectories_are_the_path_in_the_colour_of_their_end(drawn, true_samples):
    path = np.stack([4 * true_samples[:30], 2 * true_samples[:30], true_samples[:30]], axis=1)
    one = panel(true_samples, path=path)
    upper, lower = columns(drawn([one], mixture1d(), x_range=(-0.5, 2.5)))[1]
    lines = lines_of(upper)
    assert len(lines.get_segments()) == 30
    bars = {round((bar.get_x() + 0.5) * BINS / 3): bar.get_facecolor() for bar in lower.patches}
    for x, segment, colour in zip(
        path[..., 0], lines.get_segments(), lines.get_colors(), strict=True
    ):
        np.testing.assert_array_equal(segment, np.stack([x, [4.0, 0.5, 0.0]], axis=1))
        # As in the histogram.
        np.testing.assert_allclose(colour[:3], bars[int((x[-1] + 0.5) * BINS / 3)][:3], atol=0.1)
    left, right = (bars[round((mode + 0.5) * BINS / 3)][:3] for mode in (0.5, 1.5))
    assert np.abs(np.subtract(left, right)).max() > 0.4


def test_bars_mark_the_guided_steps(drawn, true_samples):
    levels = [(0.8, 0.7, 0.0), (0.6, 0.1, 0.0), (0.8, 0.0, 0.0), (3.0, 2.0, 0.0)]
    points = [panel(true_samples, sigmas=sigmas) for sigmas in levels]
    figure = drawn(points, mixture1d(), sigma_range=(0.0, 0.75))
    bars, bounds = (
        [[tuple(line.get_ydata()) for line in upper.lines if line.get_linewidth() == width]
         for upper, _ in columns(figure)]
        for width in (2.5, 0.6)
    )  # fmt: skip
    assert bars == [[], [(0.7, 0.75)], [(0.1, 0.6)], [(0.0, 0.75)], []]
    seen = [[y for y, _ in lines if 0 < y < 0.75] for lines in bounds]
    assert seen == [[], [0.7], [0.1, 0.6], [], []]


def test_guided_ranges_of_a_hole():
    hole = plan([8.0, 4.0, 2.0, 1.0, 0.5, 0.0], [True, True, False, False, True])
    one = ToyPanel("", np.zeros((1, 1)), None, np.zeros((0, 6, 1)), hole)
    assert one.guided_ranges() == [(2.0, 8.0), (0.0, 0.5)]


def test_density_is_the_closed_form_at_every_noise_level(drawn, true_samples):
    ranges = {"x_range": (-1.0, 3.0), "sigma_range": (0.0, 0.96)}
    figure = drawn([panel(true_samples)], mixture1d(), **ranges)
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


def test_histogram_is_the_density_of_all_samples(drawn, true_samples):
    lower = columns(drawn([panel(true_samples)], mixture1d(), x_range=(0.0, 2.0)))[1][1]
    inside = (true_samples >= 0) & (true_samples <= 2)
    assert inside.mean() < 1
    heights = [bar.get_height() for bar in lower.patches]
    assert sum(heights) * 2.0 / BINS == pytest.approx(inside.mean())
    assert sum(heights[: BINS // 2]) * 2.0 / BINS == pytest.approx(
        (inside & (true_samples < 1)).mean()
    )
    assert note(lower) == f"{(~inside).sum()} outside"


def test_sigma_axis_reaches_to_where_modes_have_merged_but_not_beyond_sampling(drawn):
    for start, top in ((9.0, 1.6 * mixture1d().sigma_data), (0.6, 0.6)):
        figure = drawn([panel([[0.5]], sigmas=(start, 0.5, 0.0))], mixture1d())
        assert figure.axes[0].get_ylim()[1] == pytest.approx(top)


def test_runaway_samples_leave_the_truth_to_be_seen(drawn, true_samples):
    good = true_samples[:40]
    for far in (-1e300, np.inf, np.nan, 1e6):
        figure = drawn([panel(np.append(good, [[far]], axis=0))], mixture1d())
        left, right = figure.axes[0].get_xlim()
        assert -1 < left < 0 < 2 < right < 3
        assert note(columns(figure)[1][1]) == "1 outside"


def test_a_view_beside_the_truth_is_empty(drawn, true_samples):
    figure = drawn([panel(true_samples)], mixture1d(), x_range=(90.0, 91.0), sigma_range=(0.0, 0.1))
    assert note(columns(figure)[1][1]) == "400 outside"


def test_classes_are_mixed_as_they_were_asked_for(drawn):
    narrow = [[[0.01]]] * 2
    truth = GaussianMixture([1.0, 1.0], [[-1.0], [1.0]], narrow, [0, 1], [0, 0], conditional=True)
    samples, labels = np.array([[-1.0]] * 3 + [[1.0]]), np.array([0, 0, 0, 1])
    figure = drawn([panel(samples, labels)], truth, x_range=(-2.0, 2.0))
    (curve,) = columns(figure)[1][1].lines
    x, y = curve.get_data()
    assert y[x < 0].sum() == pytest.approx(3 * y[x > 0].sum())


def test_the_square_holds_the_truth_and_samples_outside_are_counted(drawn, square_mixture):
    samples = [[-1.0, 0.0], [1.0, 0.0], [np.nan, 0.0], [1.0, 9.0]]
    (axes,) = drawn([panel(samples, np.array([0, 1, 0, 1]), title="one")], square_mixture).axes
    (left, right), (bottom, top) = axes.get_xlim(), axes.get_ylim()
    assert axes.get_title(loc="left") == "one"
    assert right - left == pytest.approx(top - bottom)
    assert left < -1.4 and bottom < -0.4 and right > 1.4 and top > 0.4
    assert [text.get_text() for text in axes.texts] == ["2 outside"]


def test_levels_of_grey_hold_all_but_the_tail_of_the_truth(drawn, square_mixture):
    figure = drawn([panel([[1.0, 0.0]], np.array([1]))], square_mixture)
    (levels,) = (c for c in figure.axes[0].collections if isinstance(c, QuadContourSet))
    left, right = figure.axes[0].get_xlim()
    variance = 0.04 + ((right - left) / 48) ** 2
    # For a round Gaussian, -2 (log p - log p_max) is chi-squared with 2 degrees of freedom.
    largest = -math.log(2 * math.pi * variance)
    assert levels.levels[0] == pytest.approx(largest + math.log(0.01), abs=0.3)
    assert levels.levels[-1] == pytest.approx(largest, abs=0.01)
    np.testing.assert_allclose(np.diff(levels.levels, n=2), 0, atol=1e-12)
    # Class 0 is not there.
    assert figure.axes[0].get_xlim()[0] > -0.5


def test_classes_have_colours_and_guided_steps_are_black(drawn, square_mixture):
    samples, labels = np.array([[-1.0, 0.0], [1.0, 0.0], [1.1, 0.0]]), np.array([0, 1, 1])
    path = np.array([[[3.0, 3.0], [2.0, 2.0]], [[0.0, 1.0], [1.0, 1.0]], samples[:2]])
    (axes,) = drawn([panel(samples, labels, path.swapaxes(0, 1))], square_mixture).axes
    (dots,) = [c for c in axes.collections if type(c).__name__ == "PathCollection"]
    first, second, third = map(tuple, dots.get_facecolors())
    assert first != second == third
    unguided, guided = (c for c in axes.collections if type(c) is LineCollection)
    np.testing.assert_array_equal(guided.get_segments(), np.stack([path[0], path[1]], axis=1))
    np.testing.assert_array_equal(unguided.get_segments(), np.stack([path[1], path[2]], axis=1))
    np.testing.assert_allclose(guided.get_edgecolors(), [to_rgba("black", 0.7)])


def test_a_full_page_keeps_its_panels_apart(drawn, square_mixture):
    figure = drawn([panel([[1.0, 0.0]])] * MOST_PANELS, square_mixture)
    boxes = [axes.get_position() for axes in figure.axes]
    assert len(boxes) == MOST_PANELS
    assert not any(one.overlaps(other) for k, one in enumerate(boxes) for other in boxes[k + 1 :])
    assert len({round(box.x0, 9) for box in boxes}) == 4
    assert all(0 < box.x0 and box.x1 < 1 and 0 < box.y0 and box.y1 < 1 for box in boxes)


def test_png_has_150_dpi_whatever_the_users_settings(tmp_path, true_samples):
    toy_figure([panel(true_samples)], mixture1d(), tmp_path / "one.png")
    with Image.open(tmp_path / "one.png") as image:
        assert image.info["dpi"] == pytest.approx((150, 150), abs=0.1)
        assert image.format == "PNG"
    with matplotlib.rc_context({"font.size": 30, "text.usetex": True, "savefig.bbox": "tight"}):
        toy_figure([panel(true_samples)], mixture1d(), tmp_path / "two.png")
    assert (tmp_path / "one.png").read_bytes() == (tmp_path / "two.png").read_bytes()


@pytest.mark.parametrize("title", ["$\\nonsense{$ 5 $", "猫", "w" * 300, ""])
def test_any_title_can_be_drawn(drawn, title):
    figure = drawn([panel([[0.5]], title=title)], mixture1d())
    assert max(title.count("\n") for title in titles(figure)) <= 2
