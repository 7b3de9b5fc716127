"""The forward pass in evaluation mode."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.experimental import multihost_utils
from jax.sharding import Mesh
from jax.typing import ArrayLike

from jaxcifar.core import sharding
from jaxcifar.core.augment import normalize
from jaxcifar.core.models import INPUT_SHAPE
from jaxcifar.core.state import TrainState

MIN_BATCH = 128  # one program, so the same bits, for any smaller number of images


@jax.jit
def forward(state: TrainState, images: jax.Array) -> jax.Array:
    """Return logits ``(N, classes)``, float32 or wider, of uint8 images ``(N, 32, 32, 3)``."""
    variables = {"params": state.params, "batch_stats": state.batch_stats}
    images = normalize(images, jax.tree.leaves(state.params)[0].dtype)
    logits = state.apply_fn(variables, images, train=False)
    return logits.astype(jnp.promote_types(logits.dtype, jnp.float32))


def rounded(state: TrainState, images: Any) -> TrainState:
    """Return the state with all that ``forward`` only rounds rounded, once for many batches."""
    # XLA leaves some of these roundings out, so logits can differ by as much.
    program, (leaves, tree) = forward.trace(state, images).jaxpr, jax.tree.flatten(state)

    def prepare(leaf: Any, variable: Any) -> Any:
        uses = [e for e in program.eqns if any(each is variable for each in e.invars)]
        dtypes = {e.primitive is lax.convert_element_type_p and e.params["new_dtype"] for e in uses}
        return leaf.astype(*dtypes) if len(dtypes) == 1 and False not in dtypes else leaf

    return jax.tree.unflatten(tree, map(prepare, leaves, program.jaxpr.invars))


def logits(
    state: TrainState,
    images: ArrayLike,
    *,
    batch_size: int,
    mesh: Mesh | None = None,
    on_batch: Callable[[int], object] | None = None,
) -> np.ndarray:
    """Return float32 logits ``(N, classes)`` of uint8 images on the host, by one program.

    The devices of ``mesh``, over which ``state`` is replicated, share each batch. All processes
    pass the same ``images``. ``on_batch`` gets the number of images of each batch that is ready.
    """
    images = np.asarray(images)
    if images.dtype != np.uint8 or images.shape[1:] != INPUT_SHAPE:
        raise ValueError(f"expected uint8 images (N, 32, 32, 3), got {images.dtype} {images.shape}")
    total = len(images)
    batch_size = min(batch_size, max(MIN_BATCH, total))
    if mesh is not None:
        batch_size += -batch_size % mesh.size
    parts = list[jax.Array]()
    for start in range(0, max(total, 1), batch_size):  # of no images, one empty batch
        part = images[start : start + batch_size]
        batch = np.pad(part, ((0, batch_size - len(part)), (0, 0), (0, 0), (0, 0)))
        if mesh is not None:
            batch = sharding.put(batch, sharding.split(mesh))
        state = state if parts else rounded(state, batch)
        parts.append(forward(state, batch))
        if on_batch is not None:
            jax.block_until_ready(parts[-1])
            on_batch(len(part))
    return np.concatenate(multihost_utils.process_allgather(parts, tiled=True))[:total]
