"""A data set in memory."""

from typing import NamedTuple

import numpy as np

from jaxcifar.core.state import short_repr
from jaxcifar.core.steps import Examples

__all__ = ["NO_EXAMPLES", "Dataset", "Examples"]

NO_EXAMPLES = Examples(np.empty((0, 32, 32, 3), np.uint8), np.empty(0, np.int32))


@short_repr
class Dataset(NamedTuple):
    """The splits, with uint8 images ``(N, 32, 32, 3)``, and the class names by label."""

    train: Examples
    test: Examples
    class_names: tuple[str, ...]
