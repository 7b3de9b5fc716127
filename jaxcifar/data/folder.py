"""The user's own images: ``PATH/train/CLASS/*`` and ``PATH/test/CLASS/*``, of any size and mode."""

import sys
from collections.abc import Sequence
from multiprocessing.pool import ThreadPool
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from jaxcifar.data import images
from jaxcifar.data.dataset import Dataset, Examples
from jaxcifar.errors import UserError, difference, one_line


def load(path: Path) -> Dataset:
    """Load all but hidden images at 32x32 pixels; classes are the folders, sorted by name."""
    train, test = (_image_files(path / split) for split in ("train", "test"))
    if differ := difference(list(train), list(test), "train", "test"):
        raise UserError(f"{path}/train and {path}/test have different classes: {differ}")
    if len(train) < 2:
        raise UserError(f"{path}/train has the class {', '.join(train)} only: add another one")
    pixels = _read([file for split in (train, test) for files in split.values() for file in files])
    labels = [
        np.repeat(np.arange(len(split), dtype=np.int32), [len(files) for files in split.values()])
        for split in (train, test)
    ]
    first, second = map(Examples, np.split(pixels, [len(labels[0])]), labels)
    return Dataset(first, second, tuple(one_line(name) for name in train))


def _image_files(split: Path) -> dict[str, list[Path]]:
    layout = f"put the images into {split.parent}/train/CLASS and {split.parent}/test/CLASS"
    if not split.is_dir():
        raise UserError(f"there is no folder {split}: {layout}")
    classes = {}
    for folder in sorted(p for p in split.iterdir() if p.is_dir() and p.name[0] != "."):
        names = (path for path in folder.iterdir() if images.is_image_name(path.name))
        classes[folder.name] = sorted(path for path in names if not path.is_dir())
        if not classes[folder.name]:
            raise UserError(f"{folder} has no images ({', '.join(images.SUFFIXES)})")
    if not classes:
        raise UserError(f"{split} has no folders: {layout}")
    return classes


def _read(paths: Sequence[Path]) -> np.ndarray:
    """Return all images, uint8 ``(N, 32, 32, 3)``, with a progress bar if it takes long."""
    interval = 0.1 if sys.stderr.isatty() else 10  # few lines in a log
    with images.quiet(), ThreadPool() as pool:  # Pillow decodes without the interpreter's lock
        results = pool.imap(_read_one, paths, chunksize=16)
        bar = tqdm(results, "reading images", len(paths), False, mininterval=interval, delay=2)
        pixels = list(bar)
    # Skipping them would hide what a run was trained on.
    if failures := [each for each in pixels if isinstance(each, str)]:
        more = f" and {len(failures) - 1} more" if len(failures) > 1 else ""
        raise UserError(f"{failures[0]}{more}: repair or remove what cannot be read")
    return np.stack(pixels)


def _read_one(path: Path) -> Any:  # the pixels, or the reason why there are none
    try:
        return images.to_rgb32(images.open_image(path))
    except Exception as error:  # whatever a decoder raises on bad bytes
        reason = one_line(str(error))
        return reason if str(path) in reason else f"{path}: {reason}"
