"""The training state, its optimizer, and how it starts."""

from functools import cache, partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax.training import train_state
from flax.traverse_util import flatten_dict, unflatten_dict

from jaxcifar.core.models import INPUT_SHAPE, head


class TrainState(train_state.TrainState):
    """Flax's state (``step, params, opt_state``, static ``apply_fn, tx``) and ``batch_stats``.

    ``batch_stats`` are BatchNorm's running statistics, a tree like ``params``.
    ``step`` counts the updates since the beginning. A state goes into ``train_step`` whole
    and comes out whole; nothing else changes during training.
    """

    batch_stats: Any


# Cached: jit knows its program again only by the same optimizer and model, not by equal ones.
@cache
def make_schedule(learning_rate: float, *, decay_rate: float, decay_steps: int) -> optax.Schedule:
    """``learning_rate * decay_rate ** floor(step / decay_steps)``: torch's ``StepLR``, by steps."""
    # Whole decays are counted here, in integers: optax divides in float32, and under jit by a
    # product, which can land just below a whole number. np.float64 keeps x64 in float64.
    by_decay = optax.exponential_decay(learning_rate, 1, np.float64(decay_rate), staircase=True)
    return lambda count: by_decay(count // decay_steps)


@cache
def make_optimizer(schedule: optax.ScalarOrSchedule) -> optax.GradientTransformation:
    """Adam with torch's defaults (b1 0.9, b2 0.999, eps 1e-8; Kingma and Ba, 2014)."""
    return optax.adam(schedule, b1=0.9, b2=0.999, eps=1e-8)


def create_state(
    key: jax.Array, model: nn.Module, optimizer: optax.GradientTransformation
) -> TrainState:
    """A fresh state: parameters drawn with ``key``, running statistics 0 and 1, step 0.

    Args:
      key: a PRNG key; the same key, model and device give the same parameters.
      model: from ``create_model``.
      optimizer: ``make_optimizer``'s, or any other of optax.
    """

    def init(key: jax.Array) -> TrainState:
        variables = model.init(key, jnp.zeros((1, *INPUT_SHAPE)), train=False)
        return state_from(variables, model, optimizer)

    # Only the drawing remains of the forward pass; plain convolutions are traced faster.
    with jax.default_matmul_precision("highest"):
        return jax.jit(init)(key)


def state_from(
    variables: Any,
    model: nn.Module,
    optimizer: optax.GradientTransformation,
    *,
    adam: optax.ScaleByAdamState | None = None,
) -> TrainState:
    """A state at step 0 with given weights.

    Args:
      variables: ``{"params": ..., "batch_stats": ...}``, jax or numpy; they are copied.
      model: what they belong to.
      optimizer: ``make_optimizer``'s, or any other if ``adam`` is None.
      adam: moments and count to go on with. The state's own step, from which the order of the
        images and the decays follow, is 0 all the same, as when a torch program loads its
        optimizer.
    """
    variables, adam = jax.tree.map(jnp.array, (variables, adam))  # copies: a step donates them
    state = TrainState.create(
        apply_fn=model.apply,
        params=variables["params"],
        batch_stats=variables["batch_stats"],
        tx=optimizer,
    )
    if adam is not None:
        state = state.replace(opt_state=(adam, *state.opt_state[1:]))
    return state.replace(step=jnp.zeros((), jnp.int32))


def with_new_head(
    key: jax.Array, variables: Any, adam: optax.ScaleByAdamState | None, model: nn.Module
) -> tuple[dict[str, Any], optax.ScaleByAdamState | None]:
    """Given weights of a network but for its last layer, which is drawn with ``key``.

    Args:
      key: a PRNG key.
      variables: ``{"params": ..., "batch_stats": ...}`` of the same network with any number of
        classes.
      adam: moments and count, or None. The head's moments become 0; the others stay: without
        them each weight's first step is as long as the learning rate, whatever it had learned
        (where measured, twice the loss after the first epoch at 0.001).
      model: with the wanted number of classes.
    """
    last = head(model)

    def draw(key: jax.Array) -> dict[tuple[str, ...], jax.Array]:
        params = model.init(key, jnp.zeros((1, *INPUT_SHAPE)), train=False)["params"]
        leaves = flatten_dict(params).items()
        return {path: leaf for path, leaf in leaves if path[:-1] == last}

    def put(tree: Any, leaves: Any) -> Any:
        return unflatten_dict({**flatten_dict(tree), **leaves})

    with jax.default_matmul_precision("highest"):
        drawn = jax.tree.map(np.asarray, jax.jit(draw)(key))
    if adam is not None:
        zeros = jax.tree.map(np.zeros_like, drawn)
        adam = adam._replace(mu=put(adam.mu, zeros), nu=put(adam.nu, zeros))
    return {**variables, "params": put(variables["params"], drawn)}, adam


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
