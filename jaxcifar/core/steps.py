"""The pure steps: what one batch does to the state, and what the state says of one batch."""

import dataclasses
import math
from functools import partial
from typing import Any, NamedTuple, Self

import jax
import jax.numpy as jnp
import optax

from jaxcifar.core.augment import augment as augment_images
from jaxcifar.core.augment import normalize
from jaxcifar.core.state import TrainState


class Examples(NamedTuple):
    """Images and labels: numpy on the host, jax arrays on the device; a pytree.

    Attributes:
      images: uint8 ``(N, 32, 32, 3)``, RGB.
      labels: int32 ``(N,)``, from 0.
    """

    images: Any
    labels: Any


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Metrics:
    """Sums over images, on the device; divide them once, on the host.

    Attributes:
      loss_sum: of the cross-entropies, in nats, float32 (or wider) scalar.
      correct: images whose largest logit is the label's, int32 scalar.
      count: images, int32 scalar.
      nonfinite: updates with a loss that is not finite, or that were skipped; int32 scalar.
    """

    loss_sum: jax.Array
    correct: jax.Array
    count: jax.Array
    nonfinite: jax.Array

    @classmethod
    def zeros(cls) -> Self:
        """No images yet."""
        none = jnp.zeros((), jnp.int32)
        return cls(jnp.zeros(()), none, none, none)

    def means(self) -> tuple[float, float]:
        """Mean loss and accuracy, the latter from 0 to 1; waits for the device.

        Both are not a number where no image was counted.
        """
        sums = jax.device_get(self)
        if sums.count == 0:
            return math.nan, math.nan
        return float(sums.loss_sum) / int(sums.count), int(sums.correct) / int(sums.count)


def loss_fn(
    params: Any, state: TrainState, images: jax.Array, labels: jax.Array, key: jax.Array
) -> tuple[jax.Array, tuple[Metrics, Any]]:
    """Mean cross-entropy of a batch in training mode.

    Args:
      params: the parameters to differentiate by, as ``state.params``.
      state: for its ``apply_fn`` and ``batch_stats``.
      images: normalised, ``(N, 32, 32, 3)``.
      labels: int ``(N,)``.
      key: for dropout.

    Returns:
      The scalar loss, and beside it the batch's metrics and the new ``batch_stats``.
    """
    logits, updates = state.apply_fn(
        {"params": params, "batch_stats": state.batch_stats},
        images,
        train=True,
        rngs={"dropout": key},
        mutable=["batch_stats"],
    )
    losses = _cross_entropy(logits, labels)
    return jnp.mean(losses), (_sums(losses, logits, labels), updates["batch_stats"])


def train_step(
    state: TrainState,
    batch: Examples,
    key: jax.Array,
    *,
    augment: bool = False,
    flip: bool = True,
    skip_nonfinite: bool = False,
) -> tuple[TrainState, Metrics]:
    """One update: augment, forward, backward, Adam. Pure; jit it with ``donate_argnums=0``.

    Args:
      state: where training stands.
      batch: uint8 images ``(N, 32, 32, 3)`` and int labels ``(N,)``.
      key: the run's key; the step's own is folded from it and ``state.step``, so the same
        key serves all steps.
      augment: crop and flip at random (static under jit).
      flip: whether ``augment`` flips (static under jit).
      skip_nonfinite: where the loss or a gradient is not finite, count the step and leave
        everything else as it is (static under jit).

    Returns:
      The next state, and the batch's metrics under the old parameters; those of a skipped
      batch count no image.
    """
    augment_key, dropout_key = jax.random.split(jax.random.fold_in(key, state.step))
    images = augment_images(augment_key, batch.images, flip=flip) if augment else batch.images
    images = normalize(images, _param_dtype(state))
    grads, (metrics, batch_stats) = jax.grad(loss_fn, has_aux=True)(
        state.params, state, images, batch.labels, dropout_key
    )
    new_state = state.apply_gradients(grads=grads, batch_stats=batch_stats)
    finite = jnp.isfinite(metrics.loss_sum)
    if skip_nonfinite:
        finite &= all_finite(grads)
        select = partial(jax.tree.map, partial(jnp.where, finite))
        new_state = select(new_state, state.replace(step=new_state.step))
        metrics = select(metrics, Metrics.zeros())
    return new_state, dataclasses.replace(metrics, nonfinite=1 - finite.astype(jnp.int32))


def predict_step(state: TrainState, images: jax.Array) -> jax.Array:
    """What the network says in evaluation mode.

    Args:
      state: with the parameters and running statistics.
      images: uint8 ``(N, 32, 32, 3)``.

    Returns:
      Float32 (or wider) ``(N, classes)``.
    """
    logits = state.apply_fn(
        {"params": state.params, "batch_stats": state.batch_stats},
        normalize(images, _param_dtype(state)),
        train=False,
    )
    return _widened(logits)


def eval_step(state: TrainState, batch: Examples, mask: jax.Array) -> Metrics:
    """Metrics of one batch in evaluation mode, of the images where ``mask``, bool ``(N,)``."""
    return _eval_step(state, batch, mask)[0]


@partial(jax.jit, donate_argnums=0, static_argnames=("augment", "flip", "skip_nonfinite", "count"))
def train_steps_at(
    state: TrainState,
    totals: Metrics,
    examples: Examples,
    order: jax.Array,
    key: jax.Array,
    *,
    augment: bool,
    flip: bool = True,
    skip_nonfinite: bool = False,
    count: int = 1,
) -> tuple[TrainState, Metrics]:
    """``train_step`` on the batches that the state's step finds in the epoch's order.

    Args:
      state: donated.
      totals: the epoch's metrics so far; not donated, so that they can still be read.
      examples: the whole training set, on the device.
      order: the epoch's order, ``(steps, N)``.
      key: the run's key.
      augment: static.
      flip: static.
      skip_nonfinite: static.
      count: steps in this one dispatch (static). Leave it at 1 on a CPU, where XLA's own
        convolution is some 50 times slower inside a loop than outside.

    Returns:
      The next state and totals.
    """

    def step(carry: tuple[TrainState, Metrics], _: None) -> tuple[tuple[TrainState, Metrics], None]:
        state, totals = carry
        batch = _gather(examples, order[state.step % order.shape[0]])
        state, metrics = train_step(
            state, batch, key, augment=augment, flip=flip, skip_nonfinite=skip_nonfinite
        )
        return (state, jax.tree.map(jnp.add, totals, metrics)), None

    carry = (state, totals)
    return step(carry, None)[0] if count == 1 else jax.lax.scan(step, carry, length=count)[0]


@jax.jit
def eval_step_at(
    state: TrainState, totals: Metrics, examples: Examples, indices: jax.Array
) -> tuple[Metrics, jax.Array]:
    """Adds ``eval_step`` on ``indices``, ``(N,)``; one beyond the last image counts nothing.

    Returns:
      The totals, and the images' logits ``(N, classes)``.
    """
    mask = indices < examples.labels.shape[0]
    batch = _gather(examples, jnp.where(mask, indices, 0))
    metrics, logits = _eval_step(state, batch, mask)
    return jax.tree.map(jnp.add, totals, metrics), logits


@jax.jit
def all_finite(tree: Any) -> jax.Array:
    """Whether every value of a tree of floats is finite; a bool scalar."""
    return jnp.stack([jnp.all(jnp.isfinite(leaf)) for leaf in jax.tree.leaves(tree)]).all()


def _eval_step(state: TrainState, batch: Examples, mask: jax.Array) -> tuple[Metrics, jax.Array]:
    logits = predict_step(state, batch.images)
    return _sums(_cross_entropy(logits, batch.labels), logits, batch.labels, mask), logits


def _gather(examples: Examples, indices: jax.Array) -> Examples:
    return Examples(examples.images[indices], examples.labels[indices])


def _param_dtype(state: TrainState) -> jnp.dtype:
    return jax.tree.leaves(state.params)[0].dtype


def _widened(logits: jax.Array) -> jax.Array:
    return logits.astype(jnp.promote_types(logits.dtype, jnp.float32))


def _cross_entropy(logits: jax.Array, labels: jax.Array) -> jax.Array:
    return optax.softmax_cross_entropy_with_integer_labels(_widened(logits), labels)


def _sums(
    losses: jax.Array, logits: jax.Array, labels: jax.Array, mask: jax.Array | None = None
) -> Metrics:
    mask = jnp.ones(labels.shape, bool) if mask is None else mask
    correct = (jnp.argmax(logits, axis=-1) == labels) & mask
    return Metrics(
        jnp.sum(jnp.where(mask, losses, 0)),
        jnp.sum(correct, dtype=jnp.int32),
        jnp.sum(mask, dtype=jnp.int32),
        jnp.zeros((), jnp.int32),
    )
