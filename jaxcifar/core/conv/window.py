"""How a window moves over an image, and torch's ways to write it."""

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple, Self

import jax
import jax.numpy as jnp
import numpy as np

Pair = tuple[int, int]
Size = int | Pair  # one value, or rows and columns


def pair(size: Size) -> Pair:
    """Return the values for rows and columns."""
    rows, columns = np.broadcast_to(size, 2).tolist()
    return rows, columns


def slices(
    counts: Sequence[int], steps: Pair, lengths: Sequence[int], strides: Pair
) -> Iterator[list[slice]]:
    """Yield slices of rows and columns that begin at 0 to ``counts - 1`` times the steps."""
    for index in np.ndindex(*counts):
        axes = zip(index, steps, lengths, strides, strict=True)
        yield [slice(i * step, i * step + (n - 1) * s + 1, s) for i, step, n, s in axes]


class Window(NamedTuple):
    """Size, stride, padding before and after, and dilation of rows and columns; groups."""

    sizes: Pair
    strides: Pair
    paddings: tuple[Pair, Pair]
    dilations: Pair
    groups: int  # of channels

    @classmethod
    def of(
        cls, size: Size, stride: Size, padding: Size | str, dilation: Size = 1, groups: int = 1
    ) -> Self:
        """Create it from the arguments of ``torch.nn.Conv2d``."""
        sizes, strides, dilations = pair(size), pair(stride), pair(dilation)
        if not isinstance(padding, str):
            totals = [2 * number for number in pair(padding)]
        elif padding == "valid":
            totals = [0, 0]
        elif padding == "same" and strides == (1, 1):
            totals = [d * (n - 1) for d, n in zip(dilations, sizes, strict=True)]
        else:
            known = 'numbers, "valid", or "same" with stride 1'
            raise ValueError(f"padding {padding!r} with stride {stride}: use {known}")
        rows, columns = ((total // 2, total - total // 2) for total in totals)
        return cls(sizes, strides, (rows, columns), dilations, groups)

    def views(self, x: jax.Array) -> Iterator[jax.Array]:
        """Yield the ``(N, rows, columns, C)`` that each weight of a kernel meets, row by row."""
        padded = jnp.pad(x, ((0, 0), *self.paddings, (0, 0)))
        for view in slices(self.sizes, self.dilations, self.outputs(x), self.strides):
            yield padded[:, *view]

    def outputs(self, x: Any) -> list[int]:
        """Return how many rows and columns the result has for images ``x``."""
        axes = zip(x.shape[1:3], *self[:4], strict=True)
        return [(side + sum(p) - d * (size - 1) - 1) // s + 1 for side, size, s, p, d in axes]
