"""What one batch does to the training state."""

import math
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple, Self

import jax
import jax.numpy as jnp
import optax
from flax import struct

from jaxcifar.core.augment import Augmentation, normalize
from jaxcifar.core.augment import augment as augment_images
from jaxcifar.core.state import TrainState, short_repr


@short_repr
class Examples(NamedTuple):
    """Images, uint8 ``(N, 32, 32, 3)`` RGB, and labels, int32 ``(N,)``; numpy or jax arrays."""

    images: Any
    labels: Any


@short_repr
class Dataset(NamedTuple):
    """Examples to train and to test with, as numpy arrays, and the class names by label."""

    train: Examples
    test: Examples
    class_names: tuple[str, ...]


class Metrics(struct.PyTreeNode):
    """Sums over images, as scalars on the device."""

    loss_sum: jax.Array  # cross-entropy in nats; float32, or float64 for a float64 model
    correct: jax.Array  # images whose largest logit is the label's, int32
    count: jax.Array  # images, int32
    nonfinite: jax.Array  # updates whose loss was not finite or that were skipped, int32

    @classmethod
    def zeros(cls) -> Self:
        zero = jnp.zeros((), jnp.int32)
        return cls(jnp.zeros(()), zero, zero, zero)

    def means(self) -> tuple[float, float]:
        """Return mean loss and accuracy (0 to 1), NaN without images; waits for the device."""
        sums = jax.device_get(self)
        count = int(sums.count) or math.nan
        return float(sums.loss_sum) / count, int(sums.correct) / count


def loss_fn(
    params: Any, state: TrainState, images: jax.Array, labels: jax.Array, key: jax.Array
) -> tuple[jax.Array, tuple[Metrics, Any]]:
    """Return the mean cross-entropy of normalized images, beside it metrics and ``batch_stats``."""
    variables = {"params": params, "batch_stats": state.batch_stats}
    logits, updates = state.apply_fn(
        variables, images, train=True, rngs={"dropout": key}, mutable=["batch_stats"]
    )
    wide = logits.astype(jnp.promote_types(logits.dtype, jnp.float32))
    losses = optax.softmax_cross_entropy_with_integer_labels(wide, labels)
    correct = jnp.sum(jnp.argmax(logits, axis=-1) == labels, dtype=jnp.int32)
    count = jnp.asarray(labels.size, jnp.int32)
    metrics = Metrics(jnp.sum(losses), correct, count, nonfinite=jnp.zeros((), jnp.int32))
    return jnp.mean(losses), (metrics, updates.get("batch_stats", {}))


def train_step(
    state: TrainState,
    batch: Examples,
    key: jax.Array,
    *,
    augment: Augmentation = "none",
    skip_nonfinite: bool = False,
    loss_fn: Callable[..., Any] = loss_fn,
) -> tuple[TrainState, Metrics]:
    """Return the state after one update, and the metrics of the batch before it.

    Pure; jit it with static options. Pass the same ``key`` to all steps. With ``skip_nonfinite``, a
    batch whose loss or gradients are not finite changes only ``state.step`` and counts no image.
    """
    images, labels = batch
    integers = images.dtype == jnp.uint8 and jnp.issubdtype(labels.dtype, jnp.integer)
    if not integers or images.shape[:1] + images.shape[3:] != (*labels.shape, 3):
        given = " and ".join(f"{array.dtype} {array.shape}" for array in batch)
        raise ValueError(f"expected uint8 (N, H, W, 3), unscaled, and int32 (N,), got {given}")
    augment_key, dropout_key = jax.random.split(jax.random.fold_in(key, state.step))
    images = augment_images(augment_key, images, augment)
    images = normalize(images, jax.tree.leaves(state.params)[0].dtype)
    grads, (metrics, batch_stats) = jax.grad(loss_fn, has_aux=True)(
        state.params, state, images, labels, dropout_key
    )
    new_state = state.apply_gradients(grads=grads, batch_stats=batch_stats)
    finite = jnp.isfinite(metrics.loss_sum)
    if skip_nonfinite:
        finite &= all_finite(grads)
        select = partial(jax.tree.map, partial(jnp.where, finite))
        new_state = select(new_state, state.replace(step=new_state.step))
        metrics = select(metrics, Metrics.zeros())
    return new_state, metrics.replace(nonfinite=1 - finite.astype(jnp.int32))


# In XLA's usual order, a step of the ResNet takes 1.7 times the temporary memory.
FRUGAL: Any = {"xla_cpu_scheduler_type": "CPU_SCHEDULER_TYPE_MEMORY_OPTIMIZED"}
STATIC = "augment", "skip_nonfinite", "count"


@partial(jax.jit, donate_argnums=0, static_argnames=STATIC, compiler_options=FRUGAL)
def train_steps_at(
    state: TrainState,
    totals: Metrics,
    examples: Examples,
    order: jax.Array,
    key: jax.Array,
    *,
    augment: Augmentation,
    skip_nonfinite: bool = False,
    count: int = 1,
) -> tuple[TrainState, Metrics]:
    """Run ``train_step`` on the next ``count`` batches and add their metrics to ``totals``.

    Donates ``state``, whose ``step`` selects the batch in ``order``. On a CPU, loops are slow.
    """

    def step(carry: tuple[TrainState, Metrics], _: None) -> tuple[tuple[TrainState, Metrics], None]:
        state, totals = carry
        indices = order[state.step % order.shape[0]]
        batch = Examples(examples.images[indices], examples.labels[indices])
        state, sums = train_step(state, batch, key, augment=augment, skip_nonfinite=skip_nonfinite)
        return (state, jax.tree.map(jnp.add, totals, sums)), None

    carry = (state, totals)
    return step(carry, None)[0] if count == 1 else jax.lax.scan(step, carry, length=count)[0]


@jax.jit
def all_finite(tree: Any) -> jax.Array:
    """Return whether every value of a tree of floats is finite, as a bool scalar."""
    return jnp.stack([jnp.all(jnp.isfinite(leaf)) for leaf in jax.tree.leaves(tree)]).all()
