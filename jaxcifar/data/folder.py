"""The user's own images: ``PATH/train/CLASS/*`` and ``PATH/test/CLASS/*``, of any size and mode.

Unreadable files are errors: if they were skipped, a run could not tell what it was trained on.
"""

import os
import sys
from collections.abc import Sequence
from multiprocessing.pool import ThreadPool
from pathlib import Path

import numpy as np
from tqdm import tqdm

from jaxcifar.core.steps import Examples
from jaxcifar.data import images
from jaxcifar.data.dataset import Dataset
from jaxcifar.errors import UserError, difference, one_line


def load(path: Path) -> Dataset:
    """Load a folder's images at 32x32 pixels; its classes are the folders, sorted by name.

    Hidden files, and files without an image's suffix, are skipped.

    Raises:
      UserError: the folder has another layout, or an image cannot be read.
    """
    train, test = (_image_files(path / split) for split in ("train", "test"))
    differ = difference(list(train), list(test), "train", "test")
    if differ:
        raise UserError(f"{path}/train and {path}/test have different classes: {differ}")
    if len(train) < 2:
        raise UserError(f"{path}/train has the class {', '.join(train)} only: add another one")
    pixels = _read([file for split in (train, test) for files in split.values() for file in files])
    train_labels, test_labels = (
        np.repeat(np.arange(len(split), dtype=np.int32), [len(files) for files in split.values()])
        for split in (train, test)
    )
    train_pixels, test_pixels = np.split(pixels, [len(train_labels)])
    return Dataset(
        Examples(train_pixels, train_labels),
        Examples(test_pixels, test_labels),
        tuple(one_line(name) for name in train),
    )


def _image_files(split: Path) -> dict[str, list[Path]]:
    layout = f"put the images into {split.parent}/train/CLASS and {split.parent}/test/CLASS"
    if not split.is_dir():
        raise UserError(f"there is no folder {split}: {layout}")
    classes = {}
    for name in sorted(e.name for e in os.scandir(split) if e.is_dir() and e.name[0] != "."):
        entries = os.scandir(split / name)
        files = sorted(e.name for e in entries if images.is_image_name(e.name) and not e.is_dir())
        if not files:
            raise UserError(f"{split / name} has no images ({', '.join(images.SUFFIXES)})")
        classes[name] = [split / name / file for file in files]
    if not classes:
        raise UserError(f"{split} has no folders: {layout}")
    return classes


def _read(paths: Sequence[Path]) -> np.ndarray:
    """Return all images, uint8 ``(N, 32, 32, 3)``, with a progress bar if it takes long."""
    interval = 0.1 if sys.stderr.isatty() else 10  # few lines in a log
    with images.quiet(), ThreadPool() as pool:  # Pillow decodes without the interpreter's lock
        results = pool.imap(_read_one, paths, chunksize=16)
        outcomes = list(
            tqdm(results, "reading images", len(paths), False, mininterval=interval, delay=2)
        )
    failures = [outcome for outcome in outcomes if isinstance(outcome, str)]
    if failures:
        more = f" and {len(failures) - 1} more" if len(failures) > 1 else ""
        raise UserError(f"{failures[0]}{more}: repair or remove what cannot be read")
    return np.stack([outcome for outcome in outcomes if not isinstance(outcome, str)])


def _read_one(path: Path) -> np.ndarray | str:
    try:
        return images.to_rgb32(images.open_image(path))
    except Exception as error:  # whatever a decoder raises on bad bytes
        reason = one_line(str(error))
        return reason if str(path) in reason else f"{path}: {reason}"
