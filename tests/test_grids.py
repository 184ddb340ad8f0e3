"""Sheets of images: what is where, and at what size."""

import numpy as np
import pytest
from PIL import Image

from guidex.errors import GuidexError
from guidex.reports.image_grids import _font, _size, _wrap, image_grid, sample_grid

COLOURS = np.array([[255, 0, 0], [0, 160, 0], [0, 0, 255], [255, 0, 255]], dtype=np.uint8)


def flat(colours: np.ndarray, side: int) -> np.ndarray:
    """Images of one colour each: uint8 [..., 3] -> [..., 3, side, side]."""
    return np.broadcast_to(colours[..., None, None], (*colours.shape, side, side)).copy()


def read(path) -> np.ndarray:
    with Image.open(path) as image:
        assert image.format == "PNG"
        return np.asarray(image.convert("RGB"))


def box(pixels: np.ndarray, colour: np.ndarray) -> tuple[int, int, int, int]:
    """Left, top, width, height of all pixels of exactly one colour, which must fill their box."""
    ys, xs = np.nonzero((pixels == colour).all(axis=-1))
    left, top = xs.min(), ys.min()
    width, height = xs.max() - left + 1, ys.max() - top + 1
    assert len(xs) == width * height
    return int(left), int(top), int(width), int(height)


@pytest.mark.parametrize("side, shown", [(8, 96), (60, 120), (256, 256), (400, 256)])
def test_cells_are_between_96_and_256_pixels(tmp_path, side, shown):
    image_grid(flat(COLOURS.reshape(2, 2, 3), side), ["a", "b"], [["c", "d"]], tmp_path / "x.png")
    boxes = [box(read(tmp_path / "x.png"), colour) for colour in COLOURS]
    assert {b[2:] for b in boxes} == {(shown, shown)}
    (x0, y0, *_), (x1, y1, *_), (x2, y2, *_), (x3, y3, *_) = boxes
    assert x0 == x2 < x1 == x3 and y0 == y1 < y2 == y3
    assert x1 - x0 == y2 - y0 >= shown


def test_enlarging_repeats_pixels_and_reducing_averages(tmp_path):
    random = np.random.default_rng(0).integers(0, 256, (1, 1, 1, 8, 8), dtype=np.uint8)
    image_grid(random, ["r"], [["c"]], tmp_path / "small.png")
    tile = read(tmp_path / "small.png")[-12 - 96 : -12, -12 - 96 : -12, 0]
    np.testing.assert_array_equal(tile, random[0, 0, 0].repeat(12, 0).repeat(12, 1))

    checks = (np.indices((1024, 1024)).sum(0) % 2 * 255).astype(np.uint8)
    image_grid(checks[None, None, None], ["r"], [["c"]], tmp_path / "large.png")
    tile = read(tmp_path / "large.png")[-12 - 256 : -12, -12 - 256 : -12]
    assert np.abs(tile[4:-4, 4:-4].astype(int) - 127).max() <= 2


def test_shapes_are_kept(tmp_path):
    image = flat(COLOURS[:1, None], 8)
    image_grid(image[..., :4], ["r"], [["c"]], tmp_path / "x.png")
    assert box(read(tmp_path / "x.png"), COLOURS[0])[2:] == (48, 96)


def test_a_title_takes_room_of_its_own(tmp_path):
    images = flat(COLOURS.reshape(2, 2, 3), 64)
    labels = (["0.05", "0.1"], [["0.3", "∞"]])
    image_grid(images, *labels, tmp_path / "plain.png")
    image_grid(images, *labels, tmp_path / "titled.png", title="t")
    plain, titled = read(tmp_path / "plain.png"), read(tmp_path / "titled.png")
    room = titled.shape[0] - plain.shape[0]
    assert room > 15 and titled.shape[1] == plain.shape[1]
    np.testing.assert_array_equal(titled[12 + room :], plain[12:])
    assert (titled[12 : 12 + room] < 200).any()


def test_labels_are_wrapped_then_shortened_in_a_font_with_the_signs_of_the_field():
    font = _font("DejaVuSans", 13)
    absent = bytes(font.getmask("\uffff"))
    for sign in "σ×–≤∞…·ä":
        assert bytes(font.getmask(sign)) != absent
    assert _wrap("seed 3 · class 7", 80, font) == "seed 3\nclass 7"
    assert _wrap("", 60, font) == ""
    lines = _wrap("one two three four five six seven eight nine ten eleven", 60, font).split("\n")
    assert len(lines) == 3 and lines[-1].endswith("…")
    for text in ("x" * 100, "a b " * 40, "· · · ·"):
        assert _size(_wrap(text, 60, font), font)[0] <= 60


@pytest.mark.parametrize("count, shape", [(1, (1, 1)), (2, (2, 1)), (3, (2, 2)), (4, (2, 2))])
def test_a_contact_sheet_goes_line_by_line_with_captions_above_images(tmp_path, count, shape):
    captions = [f"seed {k}" for k in range(count - 1)] + [""]
    sample_grid(flat(COLOURS[:count], 64), captions, tmp_path / "x.png")
    pixels = read(tmp_path / "x.png")
    boxes = [box(pixels, colour) for colour in COLOURS[:count]]
    xs, ys = sorted({b[0] for b in boxes}), sorted({b[1] for b in boxes})
    assert (len(xs), len(ys)) == shape
    places = [(ys.index(b[1]), xs.index(b[0])) for b in boxes]
    assert places == [divmod(number, shape[0]) for number in range(count)]
    for (left, top, width, _), caption in zip(boxes, captions, strict=True):
        above = pixels[top - 20 : top, left : left + width]
        assert bool((above.max(axis=-1) < 100).any()) == bool(caption)


def test_a_folder_that_is_not_there_is_told(tmp_path):
    with pytest.raises(GuidexError, match="cannot write"):
        sample_grid(flat(COLOURS, 8), list("abcd"), tmp_path / "none" / "x.png")
