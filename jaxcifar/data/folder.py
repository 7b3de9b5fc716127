"""Own images: ``PATH/train/CLASS/*`` and ``PATH/test/CLASS/*``, of any size and mode.

A file that cannot be read ends it all, with a line that names the first and counts the others:
left out in silence it would make other data of the same folder, and a run could no longer tell
what it was trained on.
"""

import os
import sys
from collections.abc import Sequence
from multiprocessing.pool import ThreadPool
from pathlib import Path

import numpy as np
from tqdm import tqdm

from jaxcifar.data import Dataset, Examples, images
from jaxcifar.errors import UserError, difference, one_line

SHOW_AFTER = 2.0  # seconds of reading before there is a bar


def load(path: Path) -> Dataset:
    """Loads a folder's images at 32x32 pixels; the classes are its folders, sorted by name.

    Hidden files and other suffixes than ``images.SUFFIXES`` are left out.

    Raises:
      UserError: the folder is not so made, a class has no image, ``test`` has other classes than
        ``train``, or an image cannot be read.
    """
    train, test = (_files(path / split) for split in ("train", "test"))
    differ = difference(list(train), list(test), "train", "test")
    if differ:
        raise UserError(f"the classes of {path}/test are not those of {path}/train: {differ}")
    if len(train) < 2:
        raise UserError(f"{path}/train has the one class {', '.join(train)}: it takes two or more")
    paths = [file for split in (train, test) for files in split.values() for file in files]
    pixels = _read(paths)
    labels = [
        np.repeat(np.arange(len(split), dtype=np.int32), [len(f) for f in split.values()])
        for split in (train, test)
    ]
    count = len(labels[0])
    return Dataset(
        Examples(pixels[:count], labels[0]),
        Examples(pixels[count:], labels[1]),
        tuple(one_line(name) for name in train),
    )


def _files(split: Path) -> dict[str, list[Path]]:
    """The images of each class, both sorted by name."""
    if not split.is_dir():
        raise UserError(
            f"there is no folder {split}: images go into {split.parent}/train/CLASS and"
            f" {split.parent}/test/CLASS"
        )
    classes = {}
    for name in sorted(e.name for e in os.scandir(split) if e.is_dir() and e.name[0] != "."):
        files = sorted(
            entry.name
            for entry in os.scandir(split / name)
            if entry.name[0] != "."
            and entry.name.lower().endswith(images.SUFFIXES)
            and not entry.is_dir()
        )
        if not files:
            raise UserError(f"{split / name} holds no image ({', '.join(images.SUFFIXES)})")
        classes[name] = [split / name / file for file in files]
    if not classes:
        raise UserError(f"{split} holds no folders: images go into {split}/CLASS")
    return classes


def _read(paths: Sequence[Path]) -> np.ndarray:
    """All images, uint8 ``(N, 32, 32, 3)``, decoded in threads; a bar where it takes long."""
    pixels = np.empty((len(paths), 32, 32, 3), np.uint8)
    failures = []
    with (
        images.quiet(),
        ThreadPool() as pool,  # Pillow decodes without Python's lock
        tqdm(
            total=len(paths),
            desc="reading images",
            delay=SHOW_AFTER,
            mininterval=0.1 if sys.stderr.isatty() else 10,  # a log gets few lines
            leave=False,
            dynamic_ncols=True,
            bar_format="{desc} {percentage:3.0f}% |{bar}| {n_fmt}/{total_fmt}, {remaining} left",
        ) as bar,
    ):
        for index, result in enumerate(pool.imap(_read_one, paths, chunksize=16)):
            if isinstance(result, str):
                failures.append(result)
            else:
                pixels[index] = result
            bar.update()
    if failures:
        more = f" and {len(failures) - 1} more" if len(failures) > 1 else ""
        raise UserError(f"{failures[0]}{more}: mend or remove what cannot be read")
    return pixels


def _read_one(path: Path) -> np.ndarray | str:
    """An image, or why there is none."""
    try:
        return images.to_rgb32(images.open_image(path))
    except Exception as error:  # whatever a decoder raises on bad bytes
        reason = one_line(str(error))
        return reason if str(path) in reason else f"{path}: {reason}"
