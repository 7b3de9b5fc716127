"""Where arrays live: a batch is split over all devices, everything else is whole on each.

One device is a mesh of one. The programs do not mention devices: XLA splits the work as the
indices of a batch are split, and sums gradients and BatchNorm's statistics over all of them.
"""

from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

AXIS = "batch"


def make_mesh() -> Mesh:
    """All devices of all processes, in a row."""
    return jax.make_mesh((jax.device_count(),), (AXIS,), axis_types=(AxisType.Auto,))


def replicated(mesh: Mesh) -> NamedSharding:
    """The whole array on each device."""
    return NamedSharding(mesh, PartitionSpec())


def split(mesh: Mesh, *, axis: int = 0) -> NamedSharding:
    """An equal part of one axis on each device."""
    return NamedSharding(mesh, PartitionSpec(*[None] * axis, AXIS))


def put(tree: Any, sharding: jax.sharding.Sharding) -> Any:
    """Places arrays of which every process has the whole and the same values."""

    def place(leaf: Any) -> jax.Array:
        array = np.asarray(leaf)
        return jax.make_array_from_callback(array.shape, sharding, lambda index: array[index])

    return jax.tree.map(place, tree)


def require_divisible(batch_size: int, mesh: Mesh) -> None:
    """Checks that a batch can be split.

    Raises:
      ValueError: it cannot; the message has the nearest sizes that can.
    """
    left = batch_size % mesh.size
    if left:
        below, above = batch_size - left, batch_size - left + mesh.size
        nearest = f"{below} or {above}" if below else str(above)
        raise ValueError(
            f"batch_size {batch_size} cannot be split over {mesh.size} devices: take {nearest}"
        )
