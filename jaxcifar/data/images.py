"""Image files of any size and mode as the networks' 32x32 RGB."""

import contextlib
import warnings
from functools import partial
from pathlib import Path
from typing import IO

import numpy as np
from PIL import Image, ImageOps

from jaxcifar.errors import UserError

SIZE = (32, 32)
quiet = partial(warnings.catch_warnings, action="ignore")  # of the process: enter outside threads
FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF", "PPM")  # none that starts a program
_SUFFIXES = ".png .jpg .jpeg .webp .bmp .gif .tif .tiff .ppm .pgm .pbm"
SUFFIXES = tuple(_SUFFIXES.split())


def is_image_name(name: str) -> bool:
    """Return whether a file name has an image's suffix and is not hidden."""
    return name[0] != "." and name.lower().endswith(SUFFIXES)


def below(folder: Path) -> list[Path]:
    """Return the images in a folder and its subfolders, sorted, without hidden ones."""
    paths = (path for path in folder.rglob("*") if is_image_name(path.name) and path.is_file())
    return sorted(path for path in paths if "/." not in f"/{path.relative_to(folder).as_posix()}")


def open_image(file: Path | IO[bytes]) -> Image.Image:
    """Read an image's pixels, or its first frame's; ``UserError`` if they are bad or too many."""
    if isinstance(file, Path):
        with file.open("rb") as opened:
            return open_image(opened)
    name = getattr(file, "name", "the input")
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
        raise UserError(f"{name} is not an image: use {', '.join(FORMATS)}") from error
    except Exception as error:  # each format's reader raises others on bad bytes
        raise UserError(f"{name} is damaged or not an image ({error}): save it again") from error


def to_rgb32(image: Image.Image) -> np.ndarray:
    """Return uint8 ``(32, 32, 3)``: the whole image, upright, its transparent parts white."""
    with contextlib.suppress(Exception):
        image = ImageOps.exif_transpose(image)  # the pixels are good even if the EXIF is damaged
    if image.mode.startswith("I"):  # Pillow's convert would clip at 255
        wide = np.asarray(image).clip(0, 65535)
        image = Image.fromarray(np.round(wide / 257).astype(np.uint8))
    if image.mode in ("F", "LAB"):
        raise UserError(f"an image of mode {image.mode} has no known range: save it as RGB")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return np.array(image.convert("RGB").resize(SIZE, Image.Resampling.LANCZOS))
