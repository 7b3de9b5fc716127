"""Image files as 32x32 RGB arrays."""

from pathlib import Path
from typing import IO

import numpy as np
from PIL import Image, ImageOps

from jaxcifar.errors import UserError


def open_image(path_or_file: str | Path | IO[bytes]) -> Image.Image:
    """Reads an image whole, turned as its EXIF orientation says.

    Raises:
      UserError: it is no image that can be read.
    """
    try:
        with Image.open(path_or_file) as image:
            return ImageOps.exif_transpose(image)
    except Exception as error:  # of whichever decoder, on bad bytes
        raise UserError(f"{path_or_file} is not an image that can be read ({error})") from error


def to_rgb32(image: Image.Image) -> np.ndarray:
    """The image at 32x32 pixels; uint8 ``(32, 32, 3)``."""
    return np.asarray(image.convert("RGB").resize((32, 32)))
