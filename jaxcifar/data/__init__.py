"""Data sets as uint8 arrays in memory."""

import os
from pathlib import Path

import numpy as np
from etils import epy

from jaxcifar.config.train import FOLDER_PREFIX, TrainConfig
from jaxcifar.core.steps import Dataset, Examples
from jaxcifar.data import cifar, images
from jaxcifar.errors import UserError

with epy.lazy_imports():
    from sklearn import datasets, model_selection

__all__ = ["Dataset", "Examples", "hold_out", "load"]


def load(name: str, data_dir: str | Path | None = None, *, test_only: bool = False) -> Dataset:
    """Load ``cifar10``, ``cifar100``, ``digits`` or ``folder:PATH``, or raise ``UserError``.

    ``data_dir`` is CIFAR's; None means ``$TFDS_DATA_DIR``, else ``~/tensorflow_datasets``. With
    ``test_only`` the training images may be missing; they are not read.
    """
    TrainConfig(dataset=name)  # refuses an unknown name
    if name == "digits":
        return _digits()
    if name.startswith(FOLDER_PREFIX):
        path = Path(os.path.expanduser(name.removeprefix(FOLDER_PREFIX)))  # a shell leaves ~ alone
        return images.load(path, test_only=test_only)
    data_dir = data_dir or os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets"
    path = Path(os.path.expanduser(data_dir))
    if "~" in path.parts[:1]:
        raise UserError(f"there is no home directory for {path}: pass --data-dir")
    source = cifar.CIFAR10 if name == "cifar10" else cifar.CIFAR100
    return cifar.load(source, path, test_only=test_only)


def _digits() -> Dataset:
    """Load scikit-learn's digits (UCI, Alpaydin and Kaynak 1998), each 8x8 pixels enlarged."""
    digits = datasets.load_digits()
    gray = np.round(digits.images * (255 / 16)).astype(np.uint8)
    images = np.repeat(np.kron(gray, np.ones((4, 4), np.uint8))[..., None], 3, axis=-1)
    labels = digits.target.astype(np.int32)
    options = {"test_size": 360, "stratify": labels, "random_state": 0}
    parts = model_selection.train_test_split(images, labels, **options)
    train, test = Examples(*parts[::2]), Examples(*parts[1::2])
    return Dataset(train, test, tuple(map(str, digits.target_names)))


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
