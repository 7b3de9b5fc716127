"""Image files of any size and mode, and folders of them, as the networks' 32x32 RGB."""

import contextlib
import os
import warnings
from functools import partial
from multiprocessing.pool import ThreadPool
from pathlib import Path
from typing import IO, Any
from unicodedata import normalize

import numpy as np
from PIL import Image, ImageOps
from tqdm import tqdm

from jaxcifar.core.steps import Dataset, Examples
from jaxcifar.errors import UserError, difference, first_few, log, one_line, regular_file

SIZE = (32, 32)
quiet = partial(warnings.catch_warnings, action="ignore")  # of the process: enter outside threads
FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF", "PPM", "AVIF")  # start no program
SUFFIXES = ".png .jpg .jpeg .jpe .jfif .webp .bmp .gif .tif .tiff .ppm .pgm .pbm .pnm .avif"


def below(folder: Path) -> tuple[list[Path], list[Path]]:
    """Return the images below a folder in torchvision's order, and what is skipped."""
    found, skipped, folders = list[Path](), list[Path](), [folder]
    seen = {os.path.realpath(folder)}  # links are followed, but no folder is read twice
    for current in folders:  # which grows meanwhile
        for path in sorted(current.iterdir()):
            if path.name.startswith(".") or (real := os.path.realpath(path)) in seen:
                skipped.append(path)
            elif path.is_dir():
                seen.add(real)
                folders.append(path)
            else:
                (found if path.suffix.lower() in SUFFIXES.split() else skipped).append(path)
    return sorted(found, key=lambda file: (str(file.parent), file.name)), sorted(skipped)


def log_skipped(folder: Path, paths: list[Path]) -> None:
    """Log how many files and folders in a folder are not read, and the first of them."""
    if paths:
        why = "hidden, no image's suffix, outside of a class, or linked twice"
        names = first_few([str(path.relative_to(folder)) for path in paths])
        log.info("%s: skipped %d (%s): %s", folder, len(paths), why, names)


def read(file: Path | IO[bytes]) -> np.ndarray:
    """Read an image, upright and on white, as uint8 RGB ``(32, 32, 3)``; else ``UserError``."""
    if isinstance(file, Path):
        with regular_file(file).open("rb") as opened:
            return read(opened)
    name = getattr(file, "name", "the input")
    try:
        image = Image.open(file, formats=FORMATS)
        image.load()
        with contextlib.suppress(Exception):  # the pixels are good even if the EXIF is damaged
            image = ImageOps.exif_transpose(image)
        return np.array(_to_rgb(image).resize(SIZE, Image.Resampling.LANCZOS))
    except Exception as error:  # each format's reader raises others on bad bytes
        reason = "" if isinstance(error, Image.UnidentifiedImageError) else f" ({error})"
        raise UserError(f"{name} is not a readable image{reason}: save it as RGB PNG") from error


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


def load(path: Path, *, test_only: bool = False) -> Dataset:
    """Load the images in ``PATH/train/CLASS`` and ``PATH/test/CLASS``, classes sorted by name."""
    train = {} if test_only else _by_class(path / "train")
    test = _by_class(path / "test")
    if train and (differ := difference(list(train), list(test), "train", "test")):
        raise UserError(f"{path}/train and {path}/test have different classes: {differ}")
    return Dataset(_read(train), _read(test), tuple(map(one_line, test)))


def _by_class(split: Path) -> dict[str, list[Path]]:
    classes, skipped = dict[str, list[Path]](), list[Path]()
    for path in sorted(split.iterdir()) if split.is_dir() else ():
        if path.is_dir() and not path.name.startswith("."):
            files, others = below(path)
            name = normalize("NFC", path.name)  # since macOS writes é as e and an accent
            classes.setdefault(name, []).extend(files)
            skipped += others
        else:
            skipped.append(path)
    log_skipped(split, skipped)
    if len(classes) < 2:
        layout = f"put the images into {split.parent}/train/CLASS and {split.parent}/test/CLASS"
        raise UserError(f"{split} is not a folder with two or more classes: {layout}")
    if empty := [name for name, files in classes.items() if not files]:
        raise UserError(f"{split / empty[0]} has no images ({SUFFIXES})")
    return dict(sorted(classes.items()))


def _read(classes: dict[str, list[Path]]) -> Examples:
    paths = [path for files in classes.values() for path in files]
    labels = [label for label, files in enumerate(classes.values()) for _ in files]
    with quiet(), ThreadPool() as pool:  # Pillow decodes without the interpreter's lock
        results = pool.imap(_read_one, paths, chunksize=16)
        pixels = list(tqdm(results, "reading images", len(paths), False, delay=2, disable=None))
    # Skipping them would hide what a run was trained on.
    if failed := [each for each in pixels if isinstance(each, str)]:
        count = f"{len(failed)} of {len(paths)} images cannot be read"
        raise UserError(f"{count}: {first_few(failed)}; repair or remove them")
    return Examples(np.array(pixels, np.uint8).reshape(-1, *SIZE, 3), np.array(labels, np.int32))


def _read_one(path: Path) -> Any:  # the pixels, or the reason why there are none
    try:
        return read(path)
    except (UserError, OSError) as error:
        return one_line(str(error))
