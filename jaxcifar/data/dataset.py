"""A data set in memory."""

from typing import NamedTuple

from jaxcifar.core.steps import Examples

__all__ = ["Dataset", "Examples"]


class Dataset(NamedTuple):
    """The splits, with uint8 images ``(N, 32, 32, 3)``, and the class names by label."""

    train: Examples
    test: Examples
    class_names: tuple[str, ...]
