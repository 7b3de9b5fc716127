"""The forward pass in evaluation mode."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh
from jax.typing import ArrayLike

from jaxcifar.core import sharding
from jaxcifar.core.augment import normalize
from jaxcifar.core.models import INPUT_SHAPE
from jaxcifar.core.state import TrainState


@jax.jit
def forward(state: TrainState, images: jax.Array) -> jax.Array:
    """Return logits ``(N, classes)``, float32 or wider, of uint8 images ``(N, 32, 32, 3)``."""
    variables = {"params": state.params, "batch_stats": state.batch_stats}
    images = normalize(images, jax.tree.leaves(state.params)[0].dtype)
    logits = state.apply_fn(variables, images, train=False)
    return logits.astype(jnp.promote_types(logits.dtype, jnp.float32))


def logits(
    state: TrainState,
    images: ArrayLike,
    *,
    batch_size: int,
    mesh: Mesh | None = None,
    on_batch: Callable[[int], object] | None = None,
) -> np.ndarray:
    """Return the logits of any number of images on the host, by one compiled program.

    ``state`` is replicated over the devices of ``mesh``, which share each batch; with several
    processes, each passes the same ``images``. ``batch_size`` is rounded up to a multiple of the
    devices and does not change the result. ``on_batch`` is called after each batch with its
    number of images; without it, no batch waits for the one before.
    """
    images = np.asarray(images)
    if images.dtype != np.uint8 or images.shape[1:] != INPUT_SHAPE:
        raise ValueError(f"expected uint8 images (N, 32, 32, 3), got {images.dtype} {images.shape}")
    total = len(images)
    batch_size = min(batch_size, 1 << max(total - 1, 0).bit_length())  # the next power of 2
    if mesh is not None:
        batch_size += -batch_size % mesh.size
    parts = []
    for start in range(0, max(total, 1), batch_size):  # of no images, one empty batch
        count = min(batch_size, total - start)
        padding = ((0, batch_size - count), (0, 0), (0, 0), (0, 0))
        batch: ArrayLike = np.pad(images[start : start + count], padding)
        if mesh is not None:
            batch = sharding.put(batch, sharding.split(mesh))
        parts.append(forward(state, batch))
        if on_batch is not None:
            jax.block_until_ready(parts[-1])
            on_batch(count)
    if jax.process_count() > 1:
        parts = multihost_utils.process_allgather(parts, tiled=True)
    return np.concatenate(jax.device_get(parts))[:total]
