"""scikit-learn's handwritten digits: real images that need no network."""

import numpy as np

from jaxcifar.data import Dataset, Examples

TEST_IMAGES = 360


def load() -> Dataset:
    """1,437 training and 360 test digits (UCI, Alpaydin and Kaynak 1998), stratified.

    The 8x8 images with values 0 to 16 become 32x32 uint8 RGB, each pixel a 4x4 square.
    """
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    digits = load_digits()
    gray = np.round(digits.images * (255 / 16)).astype(np.uint8)
    images = np.repeat(np.kron(gray, np.ones((4, 4), np.uint8))[..., None], 3, axis=-1)
    labels = digits.target.astype(np.int32)
    train, test = train_test_split(
        np.arange(len(labels)), test_size=TEST_IMAGES, stratify=labels, random_state=0
    )
    return Dataset(
        Examples(images[train], labels[train]),
        Examples(images[test], labels[test]),
        tuple(str(name) for name in digits.target_names),
    )
