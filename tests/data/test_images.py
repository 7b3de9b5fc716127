"""Image files of every kind become the same 32x32 RGB, and hostile ones a UserError."""

import contextlib
import io
import os

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from jaxcifar import UserError
from jaxcifar.data import images
from jaxcifar.data.images import FORMATS, below
from tests.data.cifar_files import encode, refusal

SIZES = [(1, 1), (1, 500), (31, 33), (32, 64), (640, 480)]
BOMBS = [(20_000, 20_000), (60_000, 60_000)]
OTHER_FILES = [b"", b"hello", b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0"]
GREY16 = np.full((9, 9), 257 * 130, np.uint16)
NAN = np.full((9, 9), np.nan, np.float32)
QUARTER_TURN = Image.Exif()
QUARTER_TURN[0x0112] = 6  # to be turned a quarter clockwise
DAMAGED_EXIF = b"Exif\0\0MM\0*\xff\xff\xff\xff"
TWO_BANDS = encode(Image.new("LA", (9, 9)), "TIFF").replace(b"\x08\0\x08\0", b"\x10\0\x10\0")
RED_PALETTE = Image.new("P", (9, 9), 1)
RED_PALETTE.putpalette([0, 0, 0, 255, 0, 0])


def read(content):
    return images.read(io.BytesIO(content))


@pytest.mark.parametrize(
    ("format", "options", "turns"),
    [
        *((lossless, {}, 0) for lossless in ("PNG", "BMP", "TIFF", "PPM")),
        ("PNG", {"exif": QUARTER_TURN}, -1),
        ("PNG", {"exif": DAMAGED_EXIF}, 0),
    ],
)
def test_pixels_of_the_right_size_are_only_turned_upright(format, options, turns, rng):
    pixels = rng.integers(0, 256, (32, 32, 3), np.uint8)
    result = read(encode(Image.fromarray(pixels), format, **options))
    np.testing.assert_array_equal(result, np.rot90(pixels, turns))


def test_the_whole_image_is_resized_and_smoothed():
    pixels = np.zeros((64, 128, 3), np.uint8)
    pixels[::2] = 200  # stripes of one pixel become their mean
    pixels[:, 64:] //= 2
    result = read(encode(Image.fromarray(pixels), "PNG"))[2:-2]
    assert np.abs(result[:, :14].astype(int) - 100).max() <= 3
    assert np.abs(result[:, 18:].astype(int) - 50).max() <= 3


@pytest.mark.parametrize(
    ("content", "colour"),
    [
        *((encode(Image.new("RGB", size, (9, 8, 7)), "PNG"), [9, 8, 7]) for size in SIZES),
        (encode(Image.new("1", (9, 9), 1), "PNG"), [255, 255, 255]),
        (encode(Image.new("RGBA", (9, 9), (200, 0, 0, 51)), "PNG"), [244, 204, 204]),
        (encode(Image.new("LA", (9, 9), (0, 51)), "PNG"), [204, 204, 204]),
        (encode(RED_PALETTE, "PNG", transparency=1), [255, 255, 255]),
        (encode(Image.fromarray(GREY16), "PNG"), [130, 130, 130]),
        (encode(Image.fromarray(GREY16.astype(">u2")), "TIFF"), [130, 130, 130]),
        (encode(Image.new("CMYK", (9, 9), (255, 0, 0, 0)), "JPEG", quality=100), [0, 255, 255]),
        (encode(Image.new("F", (9, 9), 130 / 255), "TIFF"), [130, 130, 130]),
        (encode(Image.fromarray(NAN), "TIFF"), [0, 0, 0]),
        (encode(Image.new("I", (9, 9), 130), "TIFF"), [130, 130, 130]),
        (b"P5 9 9 65535\n" + GREY16.astype(">u2").tobytes(), [130, 130, 130]),
    ],
)
def test_any_size_and_mode(content, colour):
    pixels = read(content)
    assert pixels.dtype == np.uint8
    np.testing.assert_array_equal(pixels, np.broadcast_to(colour, (32, 32, 3)))


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (TWO_BANDS, "x.png is not a readable image: save it as RGB PNG"),
        *((b"P6 %d %d 255\n" % size, "image (Image size") for size in BOMBS),
        *((content, "x.png is not a readable image: save") for content in OTHER_FILES),
    ],
)
def test_what_cannot_be_shown_is_refused(content, reason, tmp_path):
    path = tmp_path / "x.png"
    path.write_bytes(content)
    assert reason in refusal(images.read, path)
    with pytest.raises(OSError, match="No such file"):
        images.read(tmp_path / "y.png")


@given(
    content=st.sampled_from([encode(Image.new("RGB", (20, 10), (90, 80, 70)), f) for f in FORMATS]),
    changes=st.lists(st.tuples(st.integers(0, 400), st.integers(0, 255)), max_size=5),
    end=st.integers(0, 2000),
)
def test_damaged_files_are_read_or_refused(content, changes, end):
    damaged = bytearray(content)
    for place, value in changes:
        damaged[place % len(damaged)] = value
    with contextlib.suppress(UserError):
        pixels = read(damaged[:end])
        assert (pixels.shape, pixels.dtype) == ((32, 32, 3), np.uint8)


def test_images_below_a_folder_are_sorted_and_what_is_skipped_is_named(tmp_path):
    files = "b.PNG", "a.jpg", "sub/c.webp", "sub-2/d.jfif", "sub/sub/e.tif"
    others = "notes.txt", "f", "g.heic", ".hidden.png", ".git/h.png"
    for name in (*files, *others, ".DS_Store"):
        (tmp_path / name).parent.mkdir(exist_ok=True, parents=True)
        (tmp_path / name).touch()
    (tmp_path / "folder.png").mkdir()
    (tmp_path / "sub" / "loop").symlink_to(tmp_path)
    names = [[str(path.relative_to(tmp_path)) for path in paths] for paths in below(tmp_path)]
    assert names[0] == ["a.jpg", "b.PNG", "sub/c.webp", "sub-2/d.jfif", "sub/sub/e.tif"]
    assert names[1] == [".DS_Store", ".git", ".hidden.png", "f", "g.heic", "notes.txt", "sub/loop"]


@pytest.mark.parametrize("kind", ["fifo", "/dev/zero", "/dev/tty", "large"])
def test_only_regular_files_of_a_bounded_size_are_opened(kind, tmp_path):
    path, reason = tmp_path / "x.png", "is not a regular file"
    if kind == "fifo":
        os.mkfifo(path)
    elif kind == "large":
        path.touch()
        os.truncate(path, 2**40)
        reason = "has more than 536870912"
    else:
        path.symlink_to(kind)
    assert f"{path} {reason}" in refusal(images.read, path)
