"""Image files of any size and mode as the networks' 32x32 RGB."""

import contextlib
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import IO

import numpy as np
from PIL import Image, ImageOps

from jaxcifar.errors import UserError

SIZE = (32, 32)
FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF", "PPM")  # none that starts other programs
SUFFIXES = (
    *(".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm", ".pbm"),
)


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Silences what Pillow says of odd files; around all threads, as filters are the process's."""
    with warnings.catch_warnings(action="ignore"):
        yield


def below(folder: Path) -> list[Path]:
    """The files below a folder that are named as images, sorted; hidden ones are left out."""
    return sorted(
        path
        for path in folder.rglob("*")
        if path.suffix.lower() in SUFFIXES
        and path.is_file()
        and not any(part.startswith(".") for part in path.relative_to(folder).parts)
    )


def open_image(file: str | Path | IO[bytes]) -> Image.Image:
    """Reads an image whole, with all its pixels; of an animation the first frame.

    Raises:
      UserError: it is none, is damaged, or so large that it could be meant to fill the memory.
      OSError: the file cannot be opened.
    """
    if isinstance(file, str | Path):
        with open(file, "rb") as opened:
            return _read(opened, str(file))
    return _read(file, "the input")


def _read(file: IO[bytes], name: str) -> Image.Image:
    try:
        image = Image.open(file, formats=FORMATS)  # reads no pixels yet
        pixels = image.width * image.height
        if Image.MAX_IMAGE_PIXELS is not None and pixels > Image.MAX_IMAGE_PIXELS:
            raise Image.DecompressionBombError(f"Image size ({pixels} pixels) exceeds the limit")
        image.load()
        return image
    except (Image.DecompressionBombWarning, Image.DecompressionBombError) as error:
        raise UserError(f"{name} is refused: {error}") from error
    except Image.UnidentifiedImageError as error:
        raise UserError(f"{name} is no image: give one of {', '.join(FORMATS)}") from error
    except Exception as error:  # each format's reader raises others on bad bytes
        raise UserError(f"{name} is damaged, or no image ({error}): save it again") from error


def to_rgb32(image: Image.Image) -> np.ndarray:
    """The whole image, upright, on white where it is transparent, resized to 32x32.

    Args:
      image: of any size. An image that is 32x32 RGB keeps its pixels. One of 16 bits a channel
        is brought to 8.

    Returns:
      uint8 ``(32, 32, 3)``.

    Raises:
      UserError: what its pixels mean cannot be told.
    """
    with contextlib.suppress(Exception):
        image = ImageOps.exif_transpose(image)  # damaged EXIF is no reason to refuse the pixels
    if image.mode.startswith("I"):  # PIL's convert would clip at 255
        wide = np.asarray(image).clip(0, 65535)
        image = Image.fromarray(np.round(wide / 257).astype(np.uint8))
    if image.mode in ("F", "LAB"):
        raise UserError(f"an image of mode {image.mode} has no known range: save it as RGB")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    image = image.convert("RGB")
    if image.size != SIZE:
        image = image.resize(SIZE, Image.Resampling.LANCZOS)
    return np.array(image)
