import io
import json
import os
import struct
import threading
import zipfile
import zlib
from pathlib import Path

import numpy as np
import PIL
import pytest
import torch
from helpers import golden
from PIL import Image

from guidex.data.codec import decode, examine, to_float, to_uint8, write_png
from guidex.data.image_set import array_images, default_workers
from guidex.data.images import digits, open_images
from guidex.errors import GuidexError, UsageError


def random_pixels(*shape, seed=0):
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def encoded(pixels, kind="PNG", **options):
    """An image file of [H,W] or [H,W,C] pixels, or of a PIL image."""
    file = io.BytesIO()
    image = pixels if isinstance(pixels, Image.Image) else Image.fromarray(pixels)
    image.save(file, format=kind, **options)
    return file.getvalue()


def put(path, data):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return path


def folder_of(root, names, shape=(5, 4, 3)):
    """PNGs of random pixels below a folder; returns the pixels [C,H,W] by name."""
    content = {}
    for seed, name in enumerate(names):
        pixels = random_pixels(*shape, seed=seed)
        put(root / name, encoded(pixels))
        content[name] = pixels.transpose(2, 0, 1)
    return content


def zip_of(path, entries, compression=zipfile.ZIP_DEFLATED):
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, data in entries:
            archive.writestr(name, data)
    return path


def chunk(name, data):
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def png_claiming(width, height):
    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    data = zlib.compress(b"\0" * 100)
    chunks = chunk(b"IHDR", header) + chunk(b"IDAT", data) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + chunks


def test_a_folder_comes_back_sorted_and_as_written(tmp_path):
    content = folder_of(tmp_path, ["b/2.png", "a/1.png", "b/10.png", "a/deep/er/3.PNG"])
    images = open_images(tmp_path)
    assert images.names == ["a/1.png", "a/deep/er/3.PNG", "b/10.png", "b/2.png"]
    assert images.shape == (3, 5, 4)
    assert images.labels.tolist() == [0, 0, 1, 1]
    assert images.labels.dtype == np.int64
    assert images.class_names == ["a", "b"]
    assert images.kinds == {"png"}
    assert images.skipped == []
    expected = np.stack([content[name] for name in images.names])
    np.testing.assert_array_equal(images.read(range(4)), expected)
    np.testing.assert_array_equal(images.read(np.array([3, 0, 3])), expected[[3, 0, 3]])


def test_all_formats_are_read_in_any_case(tmp_path):
    pixels = np.full((8, 8, 3), 128, dtype=np.uint8)
    kinds = {"a.JPEG": "JPEG", "b.jpg": "JPEG", "c.Png": "PNG", "d.webp": "WEBP", "e.BMP": "BMP"}
    for name, kind in kinds.items():
        put(tmp_path / name, encoded(pixels, kind))
    put(tmp_path / "notes.txt", b"no image")
    put(tmp_path / ".hidden.png", b"no image")
    put(tmp_path / ".cache" / "f.png", b"no image")
    images = open_images(tmp_path)
    assert images.names == list(kinds)
    assert images.kinds == {"jpeg", "png", "webp", "bmp"}
    assert np.abs(images.read(range(5)).astype(int) - 128).max() <= 2


def test_without_two_classes_there_are_no_labels(tmp_path):
    for name in ("a/1.png", "a/2.png", "3.png", "b/4.png"):  # the last beside one that is outside
        folder_of(tmp_path, [name])
        images = open_images(tmp_path)
        assert images.labels is images.class_names is None


def test_links_are_followed_and_loops_end(tmp_path):
    content = folder_of(tmp_path / "elsewhere", ["x.png"])
    root = tmp_path / "set"
    folder_of(root, ["b/1.png"])
    (root / "a").symlink_to(root / "b")
    (root / "b" / "up").symlink_to(root)
    (root / "c").symlink_to(tmp_path / "elsewhere")
    images = open_images(root)
    # "b" is another name of the folder "a", "a/up" of the root.
    assert images.names == ["a/1.png", "c/x.png"]
    np.testing.assert_array_equal(images.read([1])[0], content["x.png"])


def test_what_is_no_file_is_told_and_not_opened(tmp_path):
    folder_of(tmp_path, ["good.png"])
    os.mkfifo(tmp_path / "pipe.png")
    (tmp_path / "broken.png").symlink_to(tmp_path / "absent")
    (tmp_path / "self.png").symlink_to(tmp_path / "self.png")
    images = open_images(tmp_path, bad="skip")
    assert images.names == ["good.png"]
    assert dict(images.skipped) == {
        "broken.png": "No such file or directory",
        "pipe.png": "not a regular file",
        "self.png": "Too many levels of symbolic links",
    }


def test_pipes_are_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "run.json")
    folder_of(tmp_path, ["a.png"])
    assert len(open_images(tmp_path)) == 1
    for name in ("x.npz", "x.npy", "x.zip"):
        os.mkfifo(tmp_path / name)
        with pytest.raises(UsageError, match="is not a folder of images"):
            open_images(tmp_path / name)


def test_a_folder_that_may_not_be_entered_is_told(tmp_path, monkeypatch):
    folder_of(tmp_path, ["a/1.png", "b/2.png"])
    scandir = os.scandir

    def guarded(path):
        if Path(path).name == "b":
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    # By patch, since no folder is closed to the administrator who may run the tests.
    monkeypatch.setattr(os, "scandir", guarded)
    with pytest.raises(GuidexError, match="cannot look into .*/b: Permission denied"):
        open_images(tmp_path, bad="skip")


def test_what_holds_no_images_is_told(tmp_path):
    put(tmp_path / "a" / "x.npy", b"")
    put(tmp_path / "b" / "README", b"")
    with pytest.raises(UsageError, match=r"holds no images.*; there is a/x\.npy, b/README"):
        open_images(tmp_path)
    with pytest.raises(UsageError, match="absent does not exist; give a folder of images, a .zip"):
        open_images(tmp_path / "absent")
    with pytest.raises(UsageError, match="README is not a folder of images"):
        open_images(tmp_path / "b" / "README")


def test_options_out_of_range_are_usage_errors(tmp_path):
    for options in ({"bad": "ignore"}, {"resize": 0}, {"resize": 10**6}, {"crop": True}):
        with pytest.raises(UsageError, match=f"{next(iter(options))}(=true)? (is|must|needs)"):
            open_images(tmp_path, **options)


def damaged_folder(root):
    whole = encoded(random_pixels(32, 32, 3))
    put(root / "a" / "good.png", whole)
    put(root / "a" / "half.png", whole[: len(whole) // 2])
    put(root / "b" / "good.png", whole)
    put(root / "b" / "half.jpg", encoded(random_pixels(32, 32, 3), "JPEG")[:900])
    put(root / "b" / "nothing.png", b"")
    put(root / "b" / "text.png", b"this is not an image")
    put(root / "c" / "huger.png", png_claiming(10**5, 10**5))
    return root


BAD = ["a/half.png", "b/half.jpg", "b/nothing.png", "b/text.png", "c/huger.png"]


def test_unreadable_images_are_listed_or_skipped_without_moving_classes(tmp_path):
    put(tmp_path / "d" / "good.png", encoded(random_pixels(32, 32, 3)))
    with pytest.raises(GuidexError, match="5 of 8 images.*\n(.*\n)+.*bad=skip") as caught:
        open_images(damaged_folder(tmp_path))
    assert "b/nothing.png: the file is empty" in str(caught.value)
    assert "b/text.png: not a PNG, JPEG, WebP or BMP file" in str(caught.value)
    assert "decompression bomb" in str(caught.value)
    images = open_images(tmp_path, bad="skip")
    assert images.names == ["a/good.png", "b/good.png", "d/good.png"]
    assert [name for name, _ in images.skipped] == BAD
    assert all(f"\n  {name}: " in str(caught.value) for name in BAD)
    assert images.class_names == ["a", "b", "c", "d"]
    assert images.labels.tolist() == [0, 1, 3]


def test_wrong_pixels_behind_right_checksums_are_told(tmp_path):
    folder_of(tmp_path, ["a.png"], shape=(64, 64, 3))
    put(tmp_path / "b.png", png_claiming(64, 64))
    images = open_images(tmp_path)
    images.read([0])
    with pytest.raises(GuidexError, match="b.png cannot be decoded, although its checksums"):
        list(images.stacks([[0, 1]]))


@pytest.mark.parametrize("mode", ["L", "P"])
def test_no_flipped_bit_of_a_png_changes_its_pixels_unnoticed(mode):
    pixels = np.add.outer(np.arange(12), np.arange(12)).astype(np.uint8)
    image = Image.fromarray(pixels)
    if mode == "P":
        image.putpalette([255, 0, 0] * 9 + [0, 200, 1] * 20)
    whole = encoded(image)
    pixels = decode(whole)
    for bit in range(8 * len(whole)):
        data = bytearray(whole)
        data[bit // 8] ^= 1 << bit % 8
        try:
            examine(bytes(data))
        except ValueError:
            continue
        np.testing.assert_array_equal(decode(bytes(data)), pixels)


def test_names_are_printed_without_their_control_characters(tmp_path):
    put(tmp_path / "a\x1b[2J\n.png", b"x")
    put(Path(os.fsdecode(os.fsencode(tmp_path) + b"/\xff.png")), b"x")
    with pytest.raises(GuidexError) as caught:
        open_images(tmp_path)
    text = str(caught.value)
    assert "a\\x1b[2J\\n.png" in text
    assert text.replace("\n", "").isprintable()


def test_a_file_that_changes_later_is_noticed(tmp_path):
    folder_of(tmp_path, ["a.png", "b.png"])
    images = open_images(tmp_path)
    put(tmp_path / "b.png", encoded(random_pixels(5, 4, 3, seed=9)))
    images.read([0])
    with pytest.raises(GuidexError, match="b.png has changed.*content is another"):
        images.read([1])
    (tmp_path / "b.png").unlink()
    with pytest.raises(GuidexError, match="b.png has changed.*No such file"):
        list(images.stacks([[0, 1]]))


def test_several_sizes_are_counted_with_examples(tmp_path):
    folder_of(tmp_path, ["a.png", "b.png", "d.png"])
    put(tmp_path / "c.png", encoded(random_pixels(7, 6, 3)))
    with pytest.raises(GuidexError) as caught:
        open_images(tmp_path)
    text = str(caught.value)
    assert "2 sizes (width x height)" in text and "resize=N" in text
    assert "4x5: 3 images, such as a.png" in text and "6x7: 1 images, such as c.png" in text


def test_resize_is_pillows_bicubic_of_the_whole_image(tmp_path):
    pixels = random_pixels(30, 20, 3)
    put(tmp_path / "a.png", encoded(pixels))
    put(tmp_path / "b.png", encoded(random_pixels(8, 8, 3)))
    images = open_images(tmp_path, resize=8)
    assert images.shape == (3, 8, 8)
    expected = Image.fromarray(pixels).resize((8, 8), Image.Resampling.BICUBIC)
    np.testing.assert_array_equal(images.read([0])[0], np.asarray(expected).transpose(2, 0, 1))
    np.testing.assert_array_equal(images.read([1])[0], random_pixels(8, 8, 3).transpose(2, 0, 1))


def central_square(image, side):
    """ADM's preparation of ImageNet, as its paper's authors tell it, on arrays."""
    while min(image.size) >= 2 * side:
        half = (image.width // 2, image.height // 2)
        image = image.resize(half, Image.Resampling.BOX)
    scale = side / min(image.size)
    image = image.resize([round(x * scale) for x in image.size], Image.Resampling.BICUBIC)
    pixels = np.asarray(image)
    top, left = (pixels.shape[0] - side) // 2, (pixels.shape[1] - side) // 2
    return pixels[top : top + side, left : left + side].transpose(2, 0, 1)


@pytest.mark.parametrize("size", [(40, 64), (17, 23), (8, 8), (5, 9)])
def test_crop_takes_the_central_square(tmp_path, size):
    picture = Image.fromarray(random_pixels(*size, 3))
    put(tmp_path / "a.png", encoded(picture))
    images = open_images(tmp_path, resize=8, crop=True)
    assert images.shape == (3, 8, 8)
    np.testing.assert_array_equal(images.read([0])[0], central_square(picture, 8))
    assert images.fingerprint() != open_images(tmp_path, resize=8).fingerprint()


def palette():
    image = Image.fromarray(np.array([[0, 1]], dtype=np.uint8)).convert("P")
    image.putpalette([10, 20, 30, 40, 50, 60])
    return image


BRIGHT = np.array([[0, 128, 129, 257], [32767, 32768, 65406, 65535]], dtype=np.uint16)
RGBA = np.array([[[1, 2, 3, 0]]], dtype=np.uint8)
ORIENTED = Image.Exif()
ORIENTED[0x0112] = 6


@pytest.mark.parametrize(
    ("image", "options", "expected"),
    [
        pytest.param(BRIGHT, {}, [[[0, 0, 1, 1], [127, 128, 254, 255]]], id="16 bits"),
        pytest.param(palette(), {"transparency": 0}, [[[10, 40]], [[20, 50]], [[30, 60]]], id="P"),
        pytest.param(palette(), {"transparency": b"\0\x80"}, [[[10, 40]], [[20, 50]], [[30, 60]]]),
        pytest.param(RGBA, {}, [[[1]], [[2]], [[3]]], id="alpha is dropped"),
        pytest.param(Image.new("LA", (2, 1), (7, 0)), {}, [[[7, 7]]], id="grey with alpha"),
        pytest.param(Image.new("1", (1, 1), 1), {}, [[[255]]], id="1 bit"),
    ],
)
def test_every_mode_becomes_8_bits(tmp_path, image, options, expected):
    put(tmp_path / "a.png", encoded(image, **options))
    assert open_images(tmp_path).read([0])[0].tolist() == expected


def test_cmyk_jpegs_become_rgb_and_exif_orientation_is_ignored(tmp_path):
    red = Image.new("CMYK", (8, 4), (0, 255, 255, 0))
    put(tmp_path / "a.jpg", encoded(red, "JPEG", quality=95, exif=ORIENTED))
    pixels = open_images(tmp_path).read([0])[0]
    assert pixels.shape == (3, 4, 8)
    assert np.abs(pixels.astype(int) - np.array([255, 0, 0])[:, None, None]).max() <= 3


def test_a_set_of_grey_and_colour_is_of_colour(tmp_path):
    grey = random_pixels(4, 4)
    put(tmp_path / "a.png", encoded(grey))
    assert open_images(tmp_path).shape == (1, 4, 4)
    put(tmp_path / "b.png", encoded(random_pixels(4, 4, 3)))
    np.testing.assert_array_equal(open_images(tmp_path).read([0])[0], [grey] * 3)


def labels_csv(rows):
    return ("seed,label,file\n" + "".join(f"{row}\n" for row in rows)).encode()


SAMPLED = ["images/000000/000000.png", "images/000000/000001.png", "images/001000/001000.png"]
TRIPLES = zip([0, 1, 1000], [7, 0, 7], SAMPLED, strict=True)
ROWS = [f"{seed},{label},{name}" for seed, label, name in TRIPLES]


@pytest.mark.parametrize("below", ["", "images"])
def test_what_guidex_has_sampled_is_labelled_by_its_table(tmp_path, below):
    folder_of(tmp_path, SAMPLED)
    put(tmp_path / "labels.csv", labels_csv(ROWS))
    put(tmp_path / "grid.png", encoded(random_pixels(20, 20, 3)))
    images = open_images(tmp_path / below)
    assert images.names == ["000000/000000.png", "000000/000001.png", "001000/001000.png"]
    assert images.labels.tolist() == [7, 0, 7]
    assert images.class_names is None


def test_a_table_may_lie_beside_the_images_or_in_the_zip(tmp_path):
    folder_of(tmp_path / "set", ["a/1.png", "b/2.png"])
    table = labels_csv(["0,5,b\\2.png", "1,6,a/1.png"])
    put(tmp_path / "set" / "labels.csv", table)
    entries = [(name, (tmp_path / "set" / name).read_bytes()) for name in ("a/1.png", "b/2.png")]
    zip_of(tmp_path / "set.zip", [*entries, ("labels.csv", table)])
    for name in ("set", "set.zip"):
        assert open_images(tmp_path / name).labels.tolist() == [6, 5]


def test_folders_of_seeds_are_no_classes_even_without_the_table(tmp_path):
    folder_of(tmp_path, ["000000/000000.png", "000000/000999.png", "001000/001000.png"])
    assert open_images(tmp_path).labels is None


@pytest.mark.parametrize(
    ("rows", "match"),
    [
        (ROWS[:2], "no label for 1 of 3 images, the first of them images/001000/001000.png"),
        ([*ROWS[:2], "1000,,images/001000/001000.png"], "no label for 1 of 3"),
        ([*ROWS[:2], "1000,-1,images/001000/001000.png"], "'-1', which is not a class"),
        ([*ROWS[:2], "1000"], "has the label None"),
        ([*ROWS, f"1,5,{SAMPLED[0]}"], "two different labels"),
        ([*ROWS, '"'], "cannot be read as CSV"),
    ],
)
def test_a_damaged_table_is_an_error(tmp_path, rows, match):
    folder_of(tmp_path, SAMPLED)
    put(tmp_path / "labels.csv", labels_csv(rows))
    with pytest.raises(GuidexError, match=match):
        open_images(tmp_path)


def test_tables_of_others_are_left_alone(tmp_path):
    folder_of(tmp_path / "set", ["a/1.png", "b/2.png"])
    put(tmp_path / "set" / "labels.csv", b"id,breed\n1,collie\n")
    put(tmp_path / "labels.csv", labels_csv(["0,5,train/1.png"]))
    assert open_images(tmp_path / "set").class_names == ["a", "b"]


def dataset_zip(path, labels, names=("00000/img0.png", "00000/img1.png")):
    entries = [(name, encoded(random_pixels(4, 4, 3, seed=i))) for i, name in enumerate(names)]
    return zip_of(path, [*entries, ("dataset.json", json.dumps({"labels": labels}))])


def test_labels_of_edm2_data_sets(tmp_path):
    pairs = [["00000/img1.png", 4], ["00000/img0.png", 0], ["00000/absent.png", 2]]
    images = open_images(dataset_zip(tmp_path / "a.zip", pairs))
    assert images.names == ["00000/img0.png", "00000/img1.png"]
    assert images.labels.tolist() == [0, 4]
    names = ("00000/img0.png", "00001/img1.png")
    unlabelled = open_images(dataset_zip(tmp_path / "b.zip", None, names))
    assert unlabelled.labels is None, "null outweighs the sub-folders"


@pytest.mark.parametrize(
    ("labels", "match"),
    [
        ([["00000/img0.png", 1]], "no label for 1 of 2"),
        ([["00000/img0.png", True]], "not a class"),
        ([["00000/img0.png"]], "cannot be read as JSON"),
        ({"00000/img0.png": 1}, "cannot be read as JSON"),
        (1, "cannot be read as JSON"),
    ],
)
def test_damaged_labels_of_data_sets_are_errors(tmp_path, labels, match):
    with pytest.raises(GuidexError, match=match):
        open_images(dataset_zip(tmp_path / "a.zip", labels))
    folder_of(tmp_path / "set", ["a.png"])
    put(tmp_path / "set" / "dataset.json", b"[" * 100_000)
    with pytest.raises(GuidexError, match="cannot be read as JSON"):
        open_images(tmp_path / "set")


def test_a_zip_is_the_folder_it_was_made_of(tmp_path):
    folder_of(tmp_path / "set", ["a/1.png", "b/2.JPG"])
    entries = [
        (name, (tmp_path / "set" / name).read_bytes()) for name in ("b/2.JPG", "a/1.png")
    ] + [("__MACOSX/a/1.png", b"no image"), ("a/.1.png", b"no image"), ("readme.txt", b"")]
    images = open_images(zip_of(tmp_path / "set.ZIP", entries))
    folder = open_images(tmp_path / "set")
    assert images.names == folder.names
    assert images.labels.tolist() == folder.labels.tolist()
    assert images.fingerprint() == folder.fingerprint()


@pytest.mark.parametrize(
    "name", ["../x.png", "a/../../x.png", "/etc/x.png", "a\\..\\x.png", "C:/x.png", "../d/"]
)
def test_entries_that_would_escape_are_refused_by_name(tmp_path, name):
    good = encoded(random_pixels(4, 4, 3))
    path = zip_of(tmp_path / "set.zip", [("a.png", good), (name, b"" if name[-1] == "/" else good)])
    with pytest.raises(GuidexError, match="refused for its entry") as caught:
        open_images(path, bad="skip")
    assert ascii(name) in str(caught.value)
    assert os.listdir(tmp_path) == ["set.zip"]


def test_entries_below_the_folder_itself_are_no_hidden_files(tmp_path):
    pixels = random_pixels(4, 4, 3)
    table = b"file,label\n./a.png,3\n"
    path = zip_of(tmp_path / "set.zip", [("./a.png", encoded(pixels)), ("./labels.csv", table)])
    images = open_images(path)
    assert images.names == ["a.png"] and images.labels.tolist() == [3]
    np.testing.assert_array_equal(images.read([0])[0], pixels.transpose(2, 0, 1))
    twice = [(name, encoded(pixels)) for name in ("a.png", "./a.png")]
    with pytest.raises(
        GuidexError, match="'./a.png': its name is absolute, has '..', or comes twice"
    ):
        open_images(zip_of(tmp_path / "twice.zip", twice))


def test_a_zip_bomb_that_lies_about_its_size_is_refused(tmp_path):
    path = zip_of(tmp_path / "set.zip", [("a.png", bytes(2**20))])
    data = bytearray(path.read_bytes())
    # The uncompressed size, in the local header and in the central directory.
    central = data.index(b"PK\x01\x02")
    data[22:26] = data[central + 24 : central + 28] = struct.pack("<I", 1000)
    path.write_bytes(data)
    with pytest.raises(GuidexError, match=r"a\.png: the zip entry is damaged: Bad CRC"):
        open_images(path)


def test_a_zip_bomb_of_overlapping_entries_is_refused(tmp_path):
    path = zip_of(tmp_path / "set.zip", [(f"{index}.png", bytes(2**20)) for index in range(3)])
    data = bytearray(path.read_bytes())
    second = data.rindex(b"PK\x01\x02")  # made to begin where the first one does
    data[second + 42 : second + 46] = struct.pack("<I", 0)
    path.write_bytes(data)
    with pytest.raises(GuidexError, match="2.png: the zip entry is damaged: File name in dir"):
        open_images(path)


def test_damaged_zips_are_told(tmp_path):
    good = encoded(random_pixels(4, 4, 3))
    path = zip_of(tmp_path / "a.zip", [("a.png", good)], zipfile.ZIP_STORED)
    data = bytearray(path.read_bytes())
    data[40] ^= 1
    path.write_bytes(data)
    with pytest.raises(GuidexError, match="a.png: the zip entry is damaged: Bad CRC-32"):
        open_images(path)
    path.write_bytes(data[:-10])
    with pytest.raises(GuidexError, match="cannot read .*a.zip as a zip"):
        open_images(path)


@pytest.mark.parametrize(
    ("save", "first", "second"),
    [(np.savez, "arr_0", "arr_1"), (np.savez_compressed, "images", "labels")],
)
def test_npz_files_hold_images_and_labels(tmp_path, save, first, second):
    pixels, labels = random_pixels(6, 5, 4, 3), np.array([3, 0, 0, 9, 1, 2], dtype=np.int32)
    save(tmp_path / "a.npz", **{"mu": np.zeros(4), first: pixels, second: labels})
    images = open_images(tmp_path / "a.npz")
    assert images.shape == (3, 5, 4) and images.kinds == {"array"}
    assert images.names == [f"{index:06d}" for index in range(6)]
    np.testing.assert_array_equal(images.read(range(6)), pixels.transpose(0, 3, 1, 2))
    np.testing.assert_array_equal(images.labels, labels)
    assert images.labels.dtype == np.int64
    for wrong in (labels[:5], -labels, labels / 2, np.array([Evil()] * 6)):
        save(tmp_path / "b.npz", **{first: pixels, second: wrong})
        with pytest.raises(GuidexError, match="its labels are|Python objects"):
            open_images(tmp_path / "b.npz")


@pytest.mark.parametrize("order", ["C", "F"])
def test_npy_files_are_mapped(tmp_path, order):
    pixels = random_pixels(6, 5, 4, 1)
    np.save(tmp_path / "a.npy", np.asarray(pixels, order=order))
    images = open_images(tmp_path / "a.npy")
    assert images.shape == (1, 5, 4)
    assert images.labels is None
    np.testing.assert_array_equal(images.read(range(6)), pixels.transpose(0, 3, 1, 2))
    assert open_images(tmp_path / "a.npy", resize=2).shape == (1, 2, 2)


class Evil:
    """Runs code when it is unpickled."""

    def __reduce__(self):
        return os._exit, (1,)


@pytest.mark.parametrize(
    ("array", "match"),
    [
        (np.array([Evil()], dtype=object), "Python objects, which are never loaded"),
        (random_pixels(2, 4, 4, 3).astype(np.float32), r"float32 \(2, 4, 4, 3\).*Convert"),
        (random_pixels(2, 3, 4, 4), r"\[N,C,H,W\] by transpose"),
        (random_pixels(2, 4, 4), "C = 1 or 3"),
        (random_pixels(0, 4, 4, 3), "at least one"),
    ],
)
def test_arrays_of_another_kind_are_refused(tmp_path, array, match):
    np.save(tmp_path / "a.npy", array)
    np.savez(tmp_path / "a.npz", array)
    np.savez_compressed(tmp_path / "b.npz", array)
    for name in ("a.npy", "a.npz", "b.npz"):
        with pytest.raises(GuidexError, match=match):
            open_images(tmp_path / name)


@pytest.mark.parametrize("name", ["a.npy", "a.npz", "b.npz"])
def test_damaged_arrays_are_told(tmp_path, name):
    pixels = random_pixels(50, 4, 4, 3)
    np.save(tmp_path / "a.npy", pixels)
    np.savez(tmp_path / "a.npz", pixels)
    np.savez_compressed(tmp_path / "b.npz", pixels)
    whole = (tmp_path / name).read_bytes()
    flipped = whole[:300] + bytes([whole[300] ^ 1]) + whole[301:]
    for damaged in (whole[:-50], b"", whole + b"more" if name == "a.npy" else flipped):
        (tmp_path / name).write_bytes(damaged)
        with pytest.raises(GuidexError, match=rf"{name}"):
            open_images(tmp_path / name)


def test_batches_can_be_left_early_and_run_only_a_little_ahead(tmp_path):
    images = array_images(random_pixels(200, 2, 2, 3))
    loaded = []
    load = images.load
    images.load = lambda index: (loaded.append(index), load(index))[1]
    threads = threading.active_count()
    iterator = images.stacks([range(k, k + 4) for k in range(0, 200, 4)])
    next(iterator)
    assert threading.active_count() > threads
    iterator.close()
    assert threading.active_count() == threads
    assert 4 <= len(loaded) <= 4 + 4 + default_workers()


def test_an_array_that_changes_while_it_is_read_is_noticed():
    array = random_pixels(3, 4, 5, 3)
    images = array_images(array)
    images.fingerprint()
    array[1] ^= 1
    with pytest.raises(GuidexError, match="000001 has changed since the images were opened"):
        images.read([0, 1])


def test_the_fingerprint_is_of_content_alone(tmp_path):
    pixels = random_pixels(3, 5, 4, 3)
    labels = np.array([0, 1, 1])
    for folder in ("a", "b"):
        for index, name in enumerate(["x/0.png", "y/1.png", "y/2.png"]):
            path = put(tmp_path / folder / name, encoded(pixels[index]))
            os.utime(path, (1, 1) if folder == "a" else None)
    prints = {open_images(tmp_path / name).fingerprint() for name in ("a", "b")}
    assert len(prints) == 1 and open_images(tmp_path / "a", resize=6).fingerprint() not in prints
    np.savez(tmp_path / "c.npz", pixels, labels)
    prints = {open_images(tmp_path / "c.npz").fingerprint()}
    assert array_images(pixels, labels=labels).fingerprint() in prints
    other = pixels.copy()
    other[2, 4, 3, 2] ^= 1
    for changed in (
        array_images(pixels),
        array_images(other, labels=labels),
        array_images(pixels, labels=labels[::-1]),
        array_images(pixels[[1, 0, 2]], labels=labels),
        array_images(pixels.reshape(3, 4, 5, 3), labels=labels),
        array_images(pixels, labels=labels, resize=4),
    ):
        prints.add(changed.fingerprint())
    assert len(prints) == 7


def test_a_change_of_decoder_changes_the_fingerprint_of_jpegs(tmp_path, monkeypatch):
    for kind in ("png", "jpeg"):
        put(tmp_path / kind / f"a.{kind}", encoded(random_pixels(5, 4, 3), kind))
    before = [open_images(tmp_path / kind).fingerprint() for kind in ("png", "jpeg")]
    monkeypatch.setattr(PIL, "__version__", "another")
    assert open_images(tmp_path / "png").fingerprint() == before[0]
    assert open_images(tmp_path / "jpeg").fingerprint() != before[1]


@pytest.mark.parametrize("channels", [1, 3])
def test_png_round_trip(tmp_path, channels):
    pixels = random_pixels(2, channels, 5, 4)
    for index, name in enumerate(["0.png", "1.png"]):
        write_png(tmp_path / name, pixels[index])
    assert sorted(os.listdir(tmp_path)) == ["0.png", "1.png"]
    np.testing.assert_array_equal(open_images(tmp_path).read([0, 1]), pixels)


def test_pixels_are_those_of_edm2():
    arrays = golden("encoders.npz")
    x = torch.from_numpy(arrays["rgb_in"])
    np.testing.assert_array_equal(to_uint8(x).numpy(), arrays["rgb_out"])


def test_every_pixel_value_survives_the_way_to_a_model_and_back():
    values = torch.arange(256, dtype=torch.uint8)
    assert to_float(values)[[0, 255]].tolist() == [-1, 1]
    assert torch.equal(to_uint8(to_float(values)), values)


def test_digits_are_scikit_learns():
    images = digits()
    assert len(images) == 1797
    assert images.shape == (1, 8, 8)
    assert np.bincount(images.labels)[:3].tolist() == [178, 182, 177]
    assert images.class_names == list("0123456789")
    pixels = images.read(range(1797))
    assert np.unique(pixels)[[0, 8, 16]].tolist() == [0, 128, 255]
    assert pixels[0, 0, 0].tolist() == [0, 0, 80, 207, 143, 16, 0, 0]
