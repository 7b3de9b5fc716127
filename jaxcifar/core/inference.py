"""The forward pass in evaluation mode."""

from collections.abc import Callable

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh
from jax.typing import ArrayLike

from jaxcifar.core import sharding
from jaxcifar.core.augment import normalize
from jaxcifar.core.dtypes import widen
from jaxcifar.core.models import INPUT_SHAPE
from jaxcifar.core.state import TrainState


def forward(state: TrainState, images: jax.Array) -> jax.Array:
    """Compute the logits ``(N, classes)`` of one batch of uint8 images ``(N, 32, 32, 3)``.

    Pure. The logits are float32, or float64 for a float64 model.
    """
    variables = {"params": state.params, "batch_stats": state.batch_stats}
    return widen(state.apply_fn(variables, normalize(images, state.param_dtype), train=False))


_forward = jax.jit(forward)


def logits(
    state: TrainState,
    images: ArrayLike,
    *,
    batch_size: int,
    mesh: Mesh | None = None,
    on_batch: Callable[[int], object] | None = None,
) -> np.ndarray:
    """Compute the logits of any number of images, batch by batch; compiles one program.

    Args:
      state: replicated over ``mesh``, if there is one.
      images: uint8 ``(N, 32, 32, 3)``; with several processes, the same in each.
      batch_size: an upper limit, rounded up to a multiple of the devices; does not change
        the result.
      mesh: devices that share each batch.
      on_batch: called after each batch with its number of images. Without it, batches are
        dispatched without waiting for each other.

    Returns:
      ``(N, classes)`` on the host, in the dtype of ``forward``.

    Raises:
      ValueError: ``images`` has another shape or dtype.
    """
    images = np.asarray(images)
    if images.dtype != np.uint8 or images.shape[1:] != INPUT_SHAPE:
        raise ValueError(f"expected uint8 images (N, 32, 32, 3), got {images.dtype} {images.shape}")
    total = len(images)
    batch_size = min(batch_size, 1 << max(total - 1, 0).bit_length())  # few images: a small batch
    if mesh is not None:
        batch_size += -batch_size % mesh.size
    parts = []
    for start in range(0, max(total, 1), batch_size):  # of no images, one empty batch
        count = min(batch_size, total - start)
        padding = ((0, batch_size - count), (0, 0), (0, 0), (0, 0))
        batch: ArrayLike = np.pad(images[start : start + count], padding)
        if mesh is not None:
            batch = sharding.put(batch, sharding.split(mesh))
        parts.append(_forward(state, batch))
        if on_batch is not None:
            jax.block_until_ready(parts[-1])
            on_batch(count)
    if jax.process_count() > 1:
        parts = multihost_utils.process_allgather(parts, tiled=True)
    return np.concatenate(jax.device_get(parts))[:total]
