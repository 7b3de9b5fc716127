"""Data sets as uint8 arrays in memory."""

import os
from pathlib import Path

import numpy as np

from jaxcifar.config.train import DATASETS, FOLDER_PREFIX, folder_path, is_dataset
from jaxcifar.data import archives, cifar, digits, folder
from jaxcifar.data.dataset import Dataset, Examples
from jaxcifar.errors import UserError, did_you_mean

__all__ = ["Dataset", "Examples", "hold_out", "load"]


def load(name: str, data_dir: str | Path | None = None, *, test_only: bool = False) -> Dataset:
    """Load ``cifar10``, ``cifar100``, ``digits`` or ``folder:PATH``, or raise ``UserError``.

    ``data_dir`` is CIFAR's; None means ``$TFDS_DATA_DIR``, else ``~/tensorflow_datasets``. With
    ``test_only`` the training images may be missing; they are not read.
    """
    if not is_dataset(name):
        hint = did_you_mean(name.lower(), DATASETS.split(", "))
        raise UserError(f"unknown dataset {name!r}: use one of {DATASETS}{hint}")
    if name == "digits":
        return digits.load()
    if name.startswith(FOLDER_PREFIX):
        return folder.load(folder_path(name), test_only=test_only)
    data_dir = data_dir or os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets"
    path = Path(os.path.expanduser(data_dir))
    if "~" in path.parts[:1]:
        raise UserError(f"there is no home directory for {path}: pass --data-dir")
    source = archives.CIFAR10 if name == "cifar10" else archives.CIFAR100
    return cifar.load(source, path, test_only=test_only)


def hold_out(examples: Examples, fraction: float) -> tuple[Examples, Examples | None]:
    """Return the remaining and ``round(fraction * N)`` held-out examples, always the same ones."""
    if fraction == 0:
        return examples, None
    total = len(examples.labels)
    count = round(fraction * total)
    if not 0 < count < total:
        raise UserError(f"--val-fraction {fraction} holds out {count} of {total} training images")
    held_out = np.isin(np.arange(total), np.random.default_rng(0).permutation(total)[:count])
    train, val = (Examples(*(array[mask] for array in examples)) for mask in (~held_out, held_out))
    return train, val
