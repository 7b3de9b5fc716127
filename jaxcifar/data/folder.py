"""The user's own images, below ``PATH/train/CLASS`` and ``PATH/test/CLASS``."""

from collections.abc import Sequence
from multiprocessing.pool import ThreadPool
from pathlib import Path
from typing import Any
from unicodedata import normalize

import numpy as np
from tqdm import tqdm

from jaxcifar.data import images
from jaxcifar.data.dataset import Dataset, Examples
from jaxcifar.errors import UserError, difference, first_few, one_line


def load(path: Path, *, test_only: bool = False) -> Dataset:
    """Load images at 32x32 pixels; the classes are the folders, sorted by name."""
    train = {} if test_only else _image_files(path / "train")
    test = _image_files(path / "test")
    if train and (differ := difference(list(train), list(test), "train", "test")):
        raise UserError(f"{path}/train and {path}/test have different classes: {differ}")
    if len(test) < 2:
        raise UserError(f"{path} has the class {', '.join(test)} only: add another one")
    pixels = _read([file for split in (train, test) for files in split.values() for file in files])
    labels = [
        np.array([label for label, files in enumerate(split.values()) for _ in files], np.int32)
        for split in (train, test)
    ]
    first, second = map(Examples, np.split(pixels, [len(labels[0])]), labels)
    return Dataset(first, second, tuple(one_line(name) for name in test))


def _image_files(split: Path) -> dict[str, list[Path]]:
    layout = f"put the images into {split.parent}/train/CLASS and {split.parent}/test/CLASS"
    if not split.is_dir():
        raise UserError(f"there is no folder {split}: {layout}")
    classes, skipped = dict[str, list[Path]](), list[Path]()
    for path in sorted(split.iterdir(), key=_class_name):
        if path.is_dir() and not path.name.startswith("."):
            files, others = images.below(path)
            classes.setdefault(_class_name(path), []).extend(files)
            skipped += others
        else:
            skipped.append(path)
    images.log_skipped(split, skipped)
    if not classes:
        raise UserError(f"{split} has no folders: {layout}")
    if empty := [name for name, files in classes.items() if not files]:
        raise UserError(f"{split / empty[0]} has no images ({', '.join(images.SUFFIXES)})")
    return classes


def _class_name(folder: Path) -> str:  # composed, since macOS writes é as e and an accent
    return normalize("NFC", folder.name)


def _read(paths: Sequence[Path]) -> np.ndarray:
    """Return all images, uint8 ``(N, 32, 32, 3)``, with a progress bar if it takes long."""
    with images.quiet(), ThreadPool() as pool:  # Pillow decodes without the interpreter's lock
        results = pool.imap(_read_one, paths, chunksize=16)
        pixels = list(tqdm(results, "reading images", len(paths), False, delay=2, disable=None))
    # Skipping them would hide what a run was trained on.
    failed = [(file, each) for file, each in zip(paths, pixels, strict=True) if type(each) is str]
    if failed:
        names = first_few([str(file) for file, _ in failed])
        count = f"{len(failed)} of {len(paths)} images cannot be read ({names})"
        raise UserError(f"{failed[0][1]}; {count}: repair or remove them")
    return np.stack(pixels)


def _read_one(path: Path) -> Any:  # the pixels, or the reason why there are none
    try:
        return images.to_rgb32(images.open_image(path))
    except (UserError, OSError) as error:
        return one_line(str(error))
