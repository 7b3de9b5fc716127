"""A data set in memory."""

from pathlib import Path
from typing import NamedTuple

import numpy as np

from jaxcifar.core.state import short_repr
from jaxcifar.core.steps import Examples
from jaxcifar.errors import UserError

__all__ = ["NO_EXAMPLES", "Dataset", "Examples", "regular_file"]

NO_EXAMPLES = Examples(np.empty((0, 32, 32, 3), np.uint8), np.empty(0, np.int32))
MAX_BYTES = 2**29  # the largest image that Pillow opens, in RGB, and three times any archive


@short_repr
class Dataset(NamedTuple):
    """The splits, with uint8 images ``(N, 32, 32, 3)``, and the class names by label."""

    train: Examples
    test: Examples
    class_names: tuple[str, ...]


def regular_file(path: Path) -> Path:
    """Return the path, or raise ``UserError`` if reading it could wait or fill the memory."""
    size = path.stat().st_size
    if not path.is_file():
        raise UserError(f"{path} is not a regular file: copy its content to one")
    if size > MAX_BYTES:
        raise UserError(f"{path} has {size} bytes, more than {MAX_BYTES}: make it smaller")
    return path
