"""Image files of every kind become the same 32x32 RGB, and hostile ones a UserError."""

import contextlib
import io
import struct
import zlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from jaxcifar import UserError
from jaxcifar.data.images import below, open_image, to_rgb32


def through(image, format, **options):
    """Written to a file of the format and read back."""
    file = io.BytesIO()
    image.save(file, format, **options)
    return open_image(file)


def flat(pixels):
    """The one colour of an image."""
    assert pixels.dtype == np.uint8
    assert pixels.shape == (32, 32, 3)
    colours = np.unique(pixels.reshape(-1, 3), axis=0)
    assert len(colours) == 1
    return colours[0].tolist()


@pytest.mark.parametrize("format", ["PNG", "BMP", "TIFF", "PPM"])
def test_pixels_of_the_right_size_are_untouched(format, rng):
    pixels = rng.integers(0, 256, (32, 32, 3), np.uint8)
    np.testing.assert_array_equal(to_rgb32(through(Image.fromarray(pixels), format)), pixels)


@pytest.mark.parametrize("size", [(1, 1), (1, 500), (31, 33), (32, 64), (640, 480)])
def test_any_size(size):
    assert flat(to_rgb32(Image.new("RGB", size, (10, 20, 30)))) == [10, 20, 30]


def test_the_whole_image_is_resized_and_smoothed():
    pixels = np.zeros((64, 128, 3), np.uint8)
    pixels[::2] = 200  # stripes of one pixel become their mean
    pixels[:, 64:] //= 2
    result = to_rgb32(Image.fromarray(pixels))[2:-2]
    assert np.abs(result[:, :14].astype(int) - 100).max() <= 3
    assert np.abs(result[:, 18:].astype(int) - 50).max() <= 3


@pytest.mark.parametrize(
    ("image", "colour"),
    [
        (Image.new("1", (9, 9), 1), [255, 255, 255]),
        (Image.new("L", (9, 9), 77), [77, 77, 77]),
        (Image.new("RGBA", (9, 9), (255, 0, 0, 0)), [255, 255, 255]),
        (Image.new("RGBA", (9, 9), (255, 0, 0, 255)), [255, 0, 0]),
        (Image.new("RGBA", (9, 9), (200, 0, 0, 51)), [244, 204, 204]),
        (Image.new("LA", (9, 9), (0, 51)), [204, 204, 204]),
        (Image.new("RGB", (9, 9), (1, 2, 3)).quantize(), [1, 2, 3]),
        (Image.fromarray(np.full((9, 9), 65535, np.uint16)), [255, 255, 255]),
        (Image.fromarray(np.full((9, 9), 257 * 130, np.uint16)), [130, 130, 130]),
    ],
    ids=["1", "L", "transparent", "opaque", "a fifth", "LA", "P", "white 16", "grey 16"],
)
def test_any_mode(image, colour):
    assert flat(to_rgb32(through(image, "PNG"))) == colour


def test_16_bits_of_other_files():
    grey = np.full((9, 9), 257 * 130, np.uint16)
    for dtype in ("<u2", ">u2"):
        image = through(Image.fromarray(grey.astype(dtype)), "TIFF")
        assert flat(to_rgb32(image)) == [130, 130, 130]
    pgm = b"P5 9 9 65535\n" + grey.astype(">u2").tobytes()
    assert flat(to_rgb32(open_image(io.BytesIO(pgm)))) == [130, 130, 130]


def test_palette_with_transparency():
    image = Image.new("P", (9, 9), 1)
    image.putpalette([0, 0, 0, 255, 0, 0])
    for transparency, colour in ((0, [255, 0, 0]), (1, [255, 255, 255])):
        read = through(image, "PNG", transparency=transparency)
        assert read.mode == "P"
        assert flat(to_rgb32(read)) == colour


def test_cmyk():
    image = through(Image.new("CMYK", (32, 32), (255, 0, 0, 0)), "JPEG", quality=100)
    assert image.mode == "CMYK"
    red, green, blue = flat(to_rgb32(image))
    assert red < 5
    assert green > 250
    assert blue > 250


def test_exif_orientation_is_honoured(rng):
    pixels = rng.integers(0, 256, (32, 32, 3), np.uint8)
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned a quarter clockwise
    image = through(Image.fromarray(pixels), "PNG", exif=exif)
    np.testing.assert_array_equal(to_rgb32(image), np.rot90(pixels, -1))


def test_damaged_exif_is_passed_over(rng):
    pixels = rng.integers(0, 256, (32, 32, 3), np.uint8)
    image = through(Image.fromarray(pixels), "PNG", exif=b"Exif\0\0MM\0*\xff\xff\xff\xff")
    np.testing.assert_array_equal(to_rgb32(image), pixels)


@pytest.mark.parametrize("mode", ["F", "LAB"])
def test_pixels_without_a_known_range_are_refused(mode):
    with pytest.raises(UserError, match=f"mode {mode} has no known range"):
        to_rgb32(Image.new(mode, (9, 9)))


def test_a_decompression_bomb_is_refused(tmp_path):
    def chunk(kind, data):
        checksum = struct.pack(">I", zlib.crc32(kind + data))
        return struct.pack(">I", len(data)) + kind + data + checksum

    for side in (10_000, 60_000):
        header = struct.pack(">IIBBBBB", side, side, 8, 0, 0, 0, 0)
        path = tmp_path / "bomb.png"
        path.write_bytes(b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IEND", b""))
        with pytest.raises(UserError, match=r"bomb\.png is refused: Image size"):
            open_image(path)


@pytest.mark.parametrize("content", [b"", b"hello", b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0"])
def test_no_image(content, tmp_path):
    path = tmp_path / "x.png"
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"x\.png is no image: give one of PNG, JPEG"):
        open_image(path)
    with pytest.raises(OSError, match="No such file"):
        open_image(tmp_path / "y.png")


FILES = []
for _format in ("PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF", "PPM"):
    _file = io.BytesIO()
    Image.new("RGB", (20, 10), (90, 80, 70)).save(_file, _format)
    FILES.append(_file.getvalue())


@given(
    content=st.sampled_from(FILES),
    changes=st.lists(st.tuples(st.integers(0, 400), st.integers(0, 255)), max_size=5),
    end=st.integers(0, 2000),
)
def test_damaged_files_are_read_or_refused(content, changes, end):
    damaged = bytearray(content)
    for place, value in changes:
        damaged[place % len(damaged)] = value
    with contextlib.suppress(UserError):
        pixels = to_rgb32(open_image(io.BytesIO(damaged[:end])))
        assert (pixels.shape, pixels.dtype) == ((32, 32, 3), np.uint8)


def test_below_finds_images_in_order(tmp_path):
    for name in ("b.PNG", "a.jpg", "sub/c.webp", ".hidden.png", ".git/d.png", "notes.txt", "e"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "folder.png").mkdir()
    names = [str(path.relative_to(tmp_path)) for path in below(tmp_path)]
    assert names == ["a.jpg", "b.PNG", "sub/c.webp"]
