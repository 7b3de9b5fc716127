"""Image files of any size and mode as the networks' 32x32 RGB."""

import contextlib
import logging
import os
import warnings
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import IO

import numpy as np
from PIL import Image, ImageOps

from jaxcifar.errors import UserError, first_few, regular_file

log = logging.getLogger(__name__)
SIZE = (32, 32)
quiet = partial(warnings.catch_warnings, action="ignore")  # of the process: enter outside threads
FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF", "PPM", "AVIF")  # start no program
_SUFFIXES = ".png .jpg .jpeg .jpe .jfif .webp .bmp .gif .tif .tiff .ppm .pgm .pbm .pnm .avif"
SUFFIXES = tuple(_SUFFIXES.split())


def below(folder: Path) -> tuple[list[Path], list[Path]]:
    """Return the images below a folder in torchvision's order, and what is skipped.

    Links are followed, but no folder is read twice.
    """
    found, skipped, folders, seen = list[Path](), list[Path](), [folder], set[str]()
    for current in folders:  # which grows meanwhile
        if (real := os.path.realpath(current)) in seen:
            skipped.append(current)
            continue
        seen.add(real)
        for path in sorted(current.iterdir()):
            if path.name.startswith("."):
                skipped.append(path)
            elif path.is_dir():
                folders.append(path)
            else:
                (found if path.name.lower().endswith(SUFFIXES) else skipped).append(path)
    return sorted(found, key=lambda file: (str(file.parent), file.name)), sorted(skipped)


def log_skipped(folder: Path, paths: Sequence[Path]) -> None:
    """Log how many files and folders in a folder are not read, and the first of them."""
    if paths:
        why = "hidden, no image's suffix, outside of a class, or linked twice"
        names = first_few([str(path.relative_to(folder)) for path in paths])
        log.info("%s: skipped %d (%s): %s", folder, len(paths), why, names)


def open_image(file: Path | IO[bytes]) -> Image.Image:
    """Read an image, or its first frame, as RGB, upright and on white; else ``UserError``."""
    if isinstance(file, Path):
        with regular_file(file).open("rb") as opened:
            return open_image(opened)
    name = getattr(file, "name", "the input")
    try:
        image = Image.open(file, formats=FORMATS)
        image.load()
        with contextlib.suppress(Exception):  # the pixels are good even if the EXIF is damaged
            image = ImageOps.exif_transpose(image)
        return _to_rgb(image)
    except Exception as error:  # each format's reader raises others on bad bytes
        reason = "" if isinstance(error, Image.UnidentifiedImageError) else f" ({error})"
        problem = f"{name} is not a readable image{reason}"
        raise UserError(f"{problem}: use 8-bit RGB in {', '.join(FORMATS)}") from error


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode[0] in "IF":  # Pillow's convert would clip at 255
        wide = np.nan_to_num(np.asarray(image)).clip(0, 65535)
        limits = {"I;": [65535], "F": [1, 255, 65535]}.get(image.mode[:2], [255, 65535])
        limit = next(limit for limit in limits if wide.max() <= limit)
        image = Image.fromarray(np.round(wide * (255 / limit)).astype(np.uint8))
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image.convert("RGB")


def to_rgb32(image: Image.Image) -> np.ndarray:
    """Return the whole RGB image as uint8 ``(32, 32, 3)``."""
    return np.array(image.resize(SIZE, Image.Resampling.LANCZOS))
