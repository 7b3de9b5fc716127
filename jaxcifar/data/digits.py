"""scikit-learn's handwritten digits: real images that need no network."""

import numpy as np
from etils import epy

from jaxcifar.data.dataset import Dataset, Examples

with epy.lazy_imports():
    from sklearn import datasets, model_selection


def load() -> Dataset:
    """Load 1,437 training and 360 test digits (UCI, Alpaydin and Kaynak 1998), stratified.

    Each of the 8x8 pixels, 0 to 16, becomes a 4x4 square of a 32x32 uint8 RGB image.
    """
    digits = datasets.load_digits()
    gray = np.round(digits.images * (255 / 16)).astype(np.uint8)
    images = np.repeat(np.kron(gray, np.ones((4, 4), np.uint8))[..., None], 3, axis=-1)
    labels = digits.target.astype(np.int32)
    split = model_selection.train_test_split
    splits = split(np.arange(len(labels)), test_size=360, stratify=labels, random_state=0)
    train, test = (Examples(images[indices], labels[indices]) for indices in splits)
    return Dataset(train, test, tuple(str(name) for name in digits.target_names))
