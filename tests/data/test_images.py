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
from tests.data.cifar_files import refusal

SIZES = [(1, 1), (1, 500), (31, 33), (32, 64), (640, 480)]
GREY16 = np.full((9, 9), 257 * 130, np.uint16)


def save(image, format, **options):
    file = io.BytesIO()
    image.save(file, format, **options)
    return file.getvalue()


def read(content):
    return to_rgb32(open_image(io.BytesIO(content)))


def one_colour(pixels):
    assert pixels.dtype == np.uint8
    assert pixels.shape == (32, 32, 3)
    colours = np.unique(pixels.reshape(-1, 3), axis=0)
    assert len(colours) == 1
    return colours[0].tolist()


@pytest.mark.parametrize("format", ["PNG", "BMP", "TIFF", "PPM"])
def test_pixels_of_the_right_size_are_unchanged(format, rng):
    pixels = rng.integers(0, 256, (32, 32, 3), np.uint8)
    np.testing.assert_array_equal(read(save(Image.fromarray(pixels), format)), pixels)


def test_the_whole_image_is_resized_and_smoothed():
    pixels = np.zeros((64, 128, 3), np.uint8)
    pixels[::2] = 200  # stripes of one pixel become their mean
    pixels[:, 64:] //= 2
    result = to_rgb32(Image.fromarray(pixels))[2:-2]
    assert np.abs(result[:, :14].astype(int) - 100).max() <= 3
    assert np.abs(result[:, 18:].astype(int) - 50).max() <= 3


def red_palette():
    image = Image.new("P", (9, 9), 1)
    image.putpalette([0, 0, 0, 255, 0, 0])
    return image


@pytest.mark.parametrize(
    ("content", "colour"),
    [
        *((save(Image.new("RGB", size, (9, 8, 7)), "PNG"), [9, 8, 7]) for size in SIZES),
        (save(Image.new("1", (9, 9), 1), "PNG"), [255, 255, 255]),
        (save(Image.new("L", (9, 9), 77), "PNG"), [77, 77, 77]),
        (save(Image.new("RGBA", (9, 9), (255, 0, 0, 0)), "PNG"), [255, 255, 255]),
        (save(Image.new("RGBA", (9, 9), (255, 0, 0, 255)), "PNG"), [255, 0, 0]),
        (save(Image.new("RGBA", (9, 9), (200, 0, 0, 51)), "PNG"), [244, 204, 204]),
        (save(Image.new("LA", (9, 9), (0, 51)), "PNG"), [204, 204, 204]),
        (save(Image.new("RGB", (9, 9), (1, 2, 3)).quantize(), "PNG"), [1, 2, 3]),
        (save(red_palette(), "PNG", transparency=0), [255, 0, 0]),
        (save(red_palette(), "PNG", transparency=1), [255, 255, 255]),
        (save(Image.fromarray(np.full((9, 9), 65535, np.uint16)), "PNG"), [255, 255, 255]),
        (save(Image.fromarray(GREY16), "PNG"), [130, 130, 130]),
        (save(Image.fromarray(GREY16.astype("<u2")), "TIFF"), [130, 130, 130]),
        (save(Image.fromarray(GREY16.astype(">u2")), "TIFF"), [130, 130, 130]),
        (b"P5 9 9 65535\n" + GREY16.astype(">u2").tobytes(), [130, 130, 130]),
    ],
)
def test_any_size_and_mode(content, colour):
    assert one_colour(read(content)) == colour


def test_cmyk():
    content = save(Image.new("CMYK", (32, 32), (255, 0, 0, 0)), "JPEG", quality=100)
    assert open_image(io.BytesIO(content)).mode == "CMYK"
    np.testing.assert_allclose(one_colour(read(content)), [0, 255, 255], atol=4)


@pytest.mark.parametrize("damaged", [False, True])
def test_exif_orientation_is_applied_unless_it_is_damaged(damaged, rng):
    pixels = rng.integers(0, 256, (32, 32, 3), np.uint8)
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned a quarter clockwise
    exif = b"Exif\0\0MM\0*\xff\xff\xff\xff" if damaged else exif
    result = read(save(Image.fromarray(pixels), "PNG", exif=exif))
    np.testing.assert_array_equal(result, pixels if damaged else np.rot90(pixels, -1))


@pytest.mark.parametrize("mode", ["F", "LAB"])
def test_pixels_without_a_known_range_are_refused(mode):
    assert f"mode {mode} has no known range" in refusal(to_rgb32, Image.new(mode, (9, 9)))


@pytest.mark.parametrize("side", [10_000, 60_000])
def test_a_decompression_bomb_is_refused(side, tmp_path):
    path = tmp_path / "bomb.ppm"
    path.write_bytes(f"P6 {side} {side} 255\n".encode())
    assert "bomb.ppm is refused: Image size" in refusal(open_image, path)


@pytest.mark.parametrize("content", [b"", b"hello", b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0"])
def test_other_files_are_refused(content, tmp_path):
    path = tmp_path / "x.png"
    path.write_bytes(content)
    assert "x.png is not an image: use PNG, JPEG" in refusal(open_image, path)
    with pytest.raises(OSError, match="No such file"):
        open_image(tmp_path / "y.png")


@given(
    content=st.sampled_from([save(Image.new("RGB", (20, 10), (90, 80, 70)), f) for f in FORMATS]),
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
