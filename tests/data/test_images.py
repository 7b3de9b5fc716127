"""Image files of every kind become the same 32x32 RGB, and hostile ones a UserError."""

import contextlib
import io

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from jaxcifar import UserError
from jaxcifar.data.images import FORMATS, below, open_image, to_rgb32
from tests.data.cifar_files import encode, refusal

SIZES = [(1, 1), (1, 500), (31, 33), (32, 64), (640, 480)]
BOMBS = [(10_000, 10_000), (60_000, 60_000)]
OTHER_FILES = [b"", b"hello", b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0"]
GREY16 = np.full((9, 9), 257 * 130, np.uint16)
QUARTER_TURN = Image.Exif()
QUARTER_TURN[0x0112] = 6  # to be turned a quarter clockwise
DAMAGED_EXIF = b"Exif\0\0MM\0*\xff\xff\xff\xff"
RED_PALETTE = Image.new("P", (9, 9), 1)
RED_PALETTE.putpalette([0, 0, 0, 255, 0, 0])


def read(content):
    return to_rgb32(open_image(io.BytesIO(content)))


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
    result = to_rgb32(Image.fromarray(pixels))[2:-2]
    assert np.abs(result[:, :14].astype(int) - 100).max() <= 3
    assert np.abs(result[:, 18:].astype(int) - 50).max() <= 3


@pytest.mark.parametrize(
    ("content", "colour"),
    [
        *((encode(Image.new("RGB", size, (9, 8, 7)), "PNG"), [9, 8, 7]) for size in SIZES),
        (encode(Image.new("1", (9, 9), 1), "PNG"), [255, 255, 255]),
        (encode(Image.new("L", (9, 9), 77), "PNG"), [77, 77, 77]),
        (encode(Image.new("RGBA", (9, 9), (200, 0, 0, 51)), "PNG"), [244, 204, 204]),
        (encode(Image.new("LA", (9, 9), (0, 51)), "PNG"), [204, 204, 204]),
        (encode(Image.new("RGB", (9, 9), (1, 2, 3)).quantize(), "PNG"), [1, 2, 3]),
        (encode(RED_PALETTE, "PNG", transparency=1), [255, 255, 255]),
        (encode(Image.fromarray(GREY16), "PNG"), [130, 130, 130]),
        (encode(Image.fromarray(GREY16.astype(">u2")), "TIFF"), [130, 130, 130]),
        (encode(Image.new("CMYK", (9, 9), (255, 0, 0, 0)), "JPEG", quality=100), [0, 255, 255]),
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
        (encode(Image.new("F", (9, 9)), "TIFF"), "mode F has no known range"),
        (encode(Image.new("LAB", (9, 9)), "TIFF"), "mode LAB has no known range"),
        *((b"P6 %d %d 255\n" % size, "x.png is refused: Image size") for size in BOMBS),
        *((content, "x.png is not an image: use PNG, JPEG") for content in OTHER_FILES),
    ],
)
def test_what_cannot_be_shown_is_refused(content, reason, tmp_path):
    path = tmp_path / "x.png"
    path.write_bytes(content)
    assert reason in refusal(lambda: to_rgb32(open_image(path)))
    with pytest.raises(OSError, match="No such file"):
        open_image(tmp_path / "y.png")


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


def test_images_below_a_folder_are_sorted(tmp_path):
    for name in ("b.PNG", "a.jpg", "sub/c.webp", ".hidden.png", ".git/d.png", "notes.txt", "e"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "folder.png").mkdir()
    names = [str(path.relative_to(tmp_path)) for path in below(tmp_path)]
    assert names == ["a.jpg", "b.PNG", "sub/c.webp"]
