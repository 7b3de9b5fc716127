"""The training state, its optimizer, and how they start."""

from functools import cache, partial
from typing import Any, TypeAlias

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax.training import train_state
from flax.traverse_util import flatten_dict, unflatten_dict

from jaxcifar.core.models import INPUT_SHAPE, head

EXAMPLE = np.zeros((1, *INPUT_SHAPE))
Optimizer: TypeAlias = optax.GradientTransformation
AdamState: TypeAlias = optax.ScaleByAdamState


class TrainState(train_state.TrainState):
    """Flax's ``TrainState`` (``step, params, opt_state``) with BatchNorm's running statistics."""

    batch_stats: Any


# Cached, because jit finds a compiled program only by the identical optimizer and model.
@cache
def make_schedule(learning_rate: float, *, decay_rate: float, decay_steps: int) -> optax.Schedule:
    """Return ``learning_rate * decay_rate ** (step // decay_steps)``, torch's ``StepLR``."""
    # Decays are counted here, in integers: optax divides in float32, and under jit by a
    # product, which can land just below a whole number. np.float64 keeps x64 in float64.
    by_decay = optax.exponential_decay(learning_rate, 1, np.float64(decay_rate), staircase=True)
    return lambda count: by_decay(count // decay_steps)


@cache
def make_optimizer(schedule: optax.ScalarOrSchedule) -> Optimizer:
    """Return Adam (Kingma and Ba, 2014) with torch's defaults."""
    return optax.adam(schedule, b1=0.9, b2=0.999, eps=1e-8)


def create_state(key: jax.Array, model: nn.Module, optimizer: Optimizer) -> TrainState:
    """Return a state at step 0 with parameters drawn from ``key``."""

    def init(key: jax.Array) -> TrainState:
        return state_from(model.init(key, jnp.asarray(EXAMPLE), train=False), model, optimizer)

    # jit removes the forward pass; the plain convolutions of "highest" are traced faster.
    with jax.default_matmul_precision("highest"):
        return jax.jit(init)(key)


def state_from(
    variables: Any, model: nn.Module, optimizer: Optimizer, *, adam: AdamState | None = None
) -> TrainState:
    """Return a state at step 0 with copies of ``{"params": ..., "batch_stats": ...}``.

    ``adam`` has moments and a count to continue with, for an optimizer of ``make_optimizer``. The
    state's step is 0 all the same, as when a torch program loads its optimizer.
    """
    variables, adam = jax.tree.map(jnp.array, (variables, adam))  # copies: a step donates them
    state = TrainState.create(apply_fn=model.apply, tx=optimizer, **variables)
    if adam is not None:
        state = state.replace(opt_state=(adam, *state.opt_state[1:]))
    return state.replace(step=jnp.zeros((), jnp.int32))


def replace_head(
    key: jax.Array, variables: Any, adam: AdamState | None, model: nn.Module
) -> tuple[dict[str, Any], AdamState | None]:
    """Replace the last layer by one drawn from ``key``, with the classes of ``model``.

    ``variables`` belong to the same network with any number of classes. The head's moments in
    ``adam`` become 0 and the others are kept: without them the first step of each weight is as
    long as the learning rate (twice the loss after the first epoch, where measured).
    """
    last = head(model)

    def draw(key: jax.Array) -> dict[tuple[str, ...], jax.Array]:
        params = flatten_dict(model.init(key, jnp.asarray(EXAMPLE), train=False)["params"])
        return {path: leaf for path, leaf in params.items() if path[:-1] == last}

    def update(tree: Any, leaves: Any) -> Any:
        return unflatten_dict({**flatten_dict(tree), **leaves})

    with jax.default_matmul_precision("highest"):
        drawn = jax.tree.map(np.asarray, jax.jit(draw)(key))
    if adam is not None:
        zeros = jax.tree.map(np.zeros_like, drawn)
        adam = adam._replace(mu=update(adam.mu, zeros), nu=update(adam.nu, zeros))
    return {**variables, "params": update(variables["params"], drawn)}, adam


@partial(jax.jit, static_argnames=("examples", "batch_size"))
def epoch_order(key: jax.Array, epoch: int, *, examples: int, batch_size: int) -> jax.Array:
    """Draw an epoch's batches of indices, int32 ``(steps, batch_size)``; drops a partial one."""
    steps = examples // batch_size
    order = jax.random.permutation(jax.random.fold_in(key, epoch), examples)
    return order[: steps * batch_size].reshape(steps, batch_size)
