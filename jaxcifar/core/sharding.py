"""Data parallelism: XLA splits the work as a batch is split; everything else is replicated."""

from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec, Sharding

AXIS = "batch"


def make_mesh() -> Mesh:
    """Return a one-dimensional mesh of all devices of all processes."""
    return jax.make_mesh((jax.device_count(),), (AXIS,), axis_types=(AxisType.Auto,))


def replicated(mesh: Mesh) -> NamedSharding:
    """Return the sharding that keeps the whole array on each device."""
    return NamedSharding(mesh, PartitionSpec())


def split(mesh: Mesh, *, axis: int = 0) -> NamedSharding:
    """Return the sharding that keeps an equal part of one axis on each device."""
    return NamedSharding(mesh, PartitionSpec(*[None] * axis, AXIS))


def put(tree: Any, sharding: Sharding) -> Any:
    """Place a tree of arrays; every process passes the whole arrays, with equal values."""
    place = jax.make_array_from_callback
    return jax.tree.map(lambda x: place(np.shape(x), sharding, np.asarray(x).__getitem__), tree)
