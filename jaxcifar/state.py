"""The training state, its optimizer, and how it starts."""

from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax.training import train_state

from jaxcifar.models import INPUT_SHAPE


class TrainState(train_state.TrainState):
    """Flax's state (``step, params, opt_state``, static ``apply_fn, tx``) and running statistics.

    ``step`` counts the updates since the beginning. A state goes into ``train_step`` whole
    and comes out whole; nothing else changes during training.
    """

    batch_stats: Any


def make_schedule(learning_rate: float, *, decay_rate: float, decay_steps: int) -> optax.Schedule:
    """``learning_rate * decay_rate ** floor(step / decay_steps)``: torch's ``StepLR``, by steps."""
    # Whole decays are counted here, in integers: optax divides in float32, and under jit by a
    # product, which can land just below a whole number. np.float64 keeps x64 in float64.
    by_decay = optax.exponential_decay(learning_rate, 1, np.float64(decay_rate), staircase=True)
    return lambda count: by_decay(count // decay_steps)


def make_optimizer(schedule: optax.ScalarOrSchedule) -> optax.GradientTransformation:
    """Adam with torch's defaults (b1 0.9, b2 0.999, eps 1e-8; Kingma and Ba, 2014)."""
    return optax.adam(schedule, b1=0.9, b2=0.999, eps=1e-8)


def create_state(
    key: jax.Array, model: nn.Module, optimizer: optax.GradientTransformation
) -> TrainState:
    """A fresh state: parameters drawn with ``key``, running statistics 0 and 1, step 0."""

    def init(key: jax.Array) -> TrainState:
        variables = model.init(key, jnp.zeros((1, *INPUT_SHAPE)), train=False)
        return TrainState.create(
            apply_fn=model.apply,
            params=variables["params"],
            batch_stats=variables["batch_stats"],
            tx=optimizer,
        ).replace(step=jnp.zeros((), jnp.int32))

    return jax.jit(init)(key)


@partial(jax.jit, static_argnames=("examples", "batch_size"))
def epoch_order(key: jax.Array, epoch: int, *, examples: int, batch_size: int) -> jax.Array:
    """The order of one epoch's images, a function of the key and the epoch alone.

    Returns:
      int32 ``(examples // batch_size, batch_size)``; row ``i`` is step ``i``'s batch. The
      remainder is left out, another one in each epoch.
    """
    steps = examples // batch_size
    order = jax.random.permutation(jax.random.fold_in(key, epoch), examples)
    return order[: steps * batch_size].reshape(steps, batch_size)
