"""Data sets as uint8 arrays in memory."""

import hashlib
import os
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from jaxcifar.config import FOLDER, folder_of, require_dataset
from jaxcifar.core.steps import Examples
from jaxcifar.errors import UserError


class Dataset(NamedTuple):
    """The splits of a data set and the names of its classes, in the order of the labels."""

    train: Examples
    test: Examples
    class_names: tuple[str, ...]


def load(name: str, data_dir: str | Path | None = None) -> Dataset:
    """Loads a data set.

    Args:
      name: ``cifar10``, ``cifar100``, ``digits`` or ``folder:PATH``.
      data_dir: for the first two: where it is, or will be downloaded to; None means
        ``$TFDS_DATA_DIR``, else ``~/tensorflow_datasets``.

    Raises:
      UserError: the data is missing, damaged, or cannot be downloaded.
    """
    require_dataset(name)
    if name == "digits":
        from jaxcifar.data import digits

        dataset = digits.load()
    elif name.startswith(FOLDER):
        from jaxcifar.data import folder

        dataset = folder.load(folder_of(name))
    else:
        from jaxcifar.data import cifar

        home = data_dir or os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets"
        source = {"cifar10": cifar.CIFAR10, "cifar100": cifar.CIFAR100}[name]
        dataset = cifar.load(source, Path(home).expanduser())
    for examples in (dataset.train, dataset.test):
        _check(name, examples, len(dataset.class_names))
    return dataset


def hold_out(examples: Examples, fraction: float) -> tuple[Examples, Examples | None]:
    """Splits off ``round(fraction * N)`` examples, always the same ones.

    Returns:
      The rest and the held-out examples, or None when none are.

    Raises:
      UserError: the fraction leaves nothing to hold out or nothing to train on.
    """
    if fraction == 0:
        return examples, None
    total = len(examples.labels)
    count = round(fraction * total)
    if not 0 < count < total:
        raise UserError(f"--val-fraction {fraction} holds out {count} of {total} training images")
    order = np.random.default_rng(0).permutation(total)
    held, rest = np.sort(order[:count]), np.sort(order[count:])
    return _take(examples, rest), _take(examples, held)


def identity(examples: Examples) -> dict[str, Any]:
    """What tells whether a resumed run has the images it began with: their number and SHA-256."""
    total = hashlib.sha256()
    for array in examples:
        total.update(np.ascontiguousarray(array).data)
    return {"train_images": len(examples.labels), "train_sha256": total.hexdigest()}


def _take(examples: Examples, indices: np.ndarray) -> Examples:
    return Examples(examples.images[indices], examples.labels[indices])


def _check(name: str, examples: Examples, num_classes: int) -> None:
    images, labels = examples
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[1:] != (32, 32, 3):
        raise UserError(
            f"{name}: expected uint8 images (N, 32, 32, 3), got {images.dtype} {images.shape}"
        )
    if labels.shape != images.shape[:1] or len(labels) == 0:
        raise UserError(f"{name}: {len(images)} images and {labels.shape} labels")
    if labels.min() < 0 or labels.max() >= num_classes:
        raise UserError(f"{name}: a label is outside 0 to {num_classes - 1}")
