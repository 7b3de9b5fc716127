"""How a kernel moves over an image, and torch's ways to write it."""

from typing import Any, NamedTuple, Self

import numpy as np
from jax import lax

Pair = tuple[int, int]
Size = int | Pair  # one value, or rows and columns


def pair(size: Size) -> Pair:
    """Return the values for rows and columns."""
    rows, columns = np.broadcast_to(size, 2).tolist()
    return rows, columns


class Window(NamedTuple):
    """Stride, padding before and after, and dilation of rows and columns; groups of channels."""

    strides: Pair
    paddings: tuple[Pair, Pair]
    dilations: Pair = (1, 1)
    groups: int = 1

    @classmethod
    def of(
        cls, kernel: Any, stride: Size, padding: Size | str, dilation: Size = 1, groups: int = 1
    ) -> Self:
        """Create it from the arguments of ``torch.nn.Conv2d``."""
        strides, dilations = pair(stride), pair(dilation)
        if not isinstance(padding, str):
            rows, columns = pair(padding)
            return cls(strides, ((rows, rows), (columns, columns)), dilations, groups)
        if padding not in ("same", "valid"):
            raise ValueError(f'unknown padding {padding!r}: use numbers, "same" or "valid"')
        if padding == "same" and strides != (1, 1):
            raise ValueError(f'padding "same" needs a stride of 1, got {stride}')
        sizes = [d * (k - 1) + 1 for d, k in zip(dilations, kernel.shape[:2], strict=True)]
        both = lax.padtype_to_pads(sizes, sizes, (1, 1), padding.upper())
        return cls(strides, (both[0], both[1]), dilations, groups)

    def outputs(self, x: Any, kernel: Any) -> list[int]:
        """Return how many rows and columns the convolution of ``x`` has."""
        sizes = zip(x.shape[1:3], kernel.shape[:2], *self[:3], strict=True)
        return [(side + sum(p) - d * (size - 1) - 1) // s + 1 for side, size, s, p, d in sizes]
