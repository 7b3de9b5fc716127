"""The training state, its optimizer, and how they start."""

import math
import reprlib
from functools import cache, partial, reduce
from operator import getitem
from typing import Any, TypeAlias, TypeVar

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax.training import train_state
from flax.traverse_util import flatten_dict, unflatten_dict
from jax.extend.random import define_prng_impl

from jaxcifar.core.models import head, init

Optimizer: TypeAlias = optax.GradientTransformation
AdamState: TypeAlias = optax.ScaleByAdamState
Class = TypeVar("Class", bound=type)
SHORT = reprlib.Repr()
SHORT.maxlevel = 1


def short_repr(kind: Class) -> Class:
    """Give a named tuple a repr of one line, for notebooks."""

    def text(self: Any) -> str:
        values = (f"{name}={SHORT.repr(value)}" for name, value in self._asdict().items())
        return " ".join(f"{kind.__name__}({', '.join(values)})".split())

    kind.__repr__ = text  # type: ignore[method-assign, assignment]
    return kind


class TrainState(train_state.TrainState):
    """Flax's ``TrainState`` (``step, params, opt_state``) with BatchNorm's running statistics."""

    batch_stats: Any


# Cached, because jit finds a compiled program only by the identical optimizer and model.
@cache
def make_schedule(
    learning_rate: float, *, decay_rate: float, decay_steps: int, warmup_steps: int = 0
) -> optax.Schedule:
    """Return torch's ``StepLR``, over ``warmup_steps`` times ``(step + 1) / warmup_steps``."""
    # Decays are counted here, in integers: optax divides in float32, and can land just below a
    # whole number. np.float64 keeps x64 in float64.
    by_decay = optax.exponential_decay(learning_rate, 1, np.float64(decay_rate), staircase=True)
    warmup = optax.linear_schedule(1 / max(warmup_steps, 1), 1, warmup_steps - 1)
    return lambda count: by_decay(count // decay_steps) * warmup(count)


@cache
def make_optimizer(schedule: optax.ScalarOrSchedule, *, weight_decay: float = 0.0) -> Optimizer:
    """Return torch's Adam (Kingma and Ba, 2014), with decay AdamW (Loshchilov and Hutter, 2017)."""
    if not weight_decay:
        return optax.adam(schedule)
    return optax.adamw(schedule, weight_decay=weight_decay)  # of every parameter


def host_key(seed: int) -> jax.Array:
    """Return a key for ``jax.random`` with NumPy's numbers: XLA compiles a loop for each tensor."""
    return jax.random.key(seed, impl=_HOST)


def _draw(bits: int, shape: tuple[int, ...], *words: Any) -> jax.Array:
    """Return random unsigned integers that follow from 32-bit words (Salmon et al., 2011)."""
    of = jax.ShapeDtypeStruct(shape, f"uint{bits}")

    def draw(*words: Any) -> np.ndarray:
        raw = np.random.Philox(np.hstack(words)).random_raw(-(-math.prod(shape) * bits // 64))
        return raw.view(of.dtype)[: math.prod(shape)].reshape(shape)

    return jax.pure_callback(draw, of, *words, vmap_method="sequential")


_HOST = define_prng_impl(
    key_shape=(4,),  # words
    seed=lambda seed: _draw(32, (4,), seed.astype(np.uint32)),
    split=lambda key, shape: _draw(32, (*shape, 4), key),
    fold_in=lambda key, data: _draw(32, (4,), key, data),
    random_bits=lambda key, bits, shape: _draw(bits, shape, key),
    name="numpy",
)


def create_state(key: jax.Array, model: nn.Module, optimizer: Optimizer) -> TrainState:
    """Return a state at step 0 with parameters drawn from ``key``."""
    return jax.jit(lambda key: state_from(init(key, model), model, optimizer))(key)


def state_from(
    variables: Any, model: nn.Module, optimizer: Optimizer, *, adam: AdamState | None = None
) -> TrainState:
    """Return a state at step 0 with copies of the variables, and of Adam's moments and count."""
    variables, adam = jax.tree.map(jnp.array, (variables, adam))  # copies: a step donates them
    variables = {"batch_stats": {}} | variables  # without a batch norm there are none
    state = TrainState.create(apply_fn=model.apply, tx=optimizer, **variables)
    opt_state = state.opt_state if adam is None else (adam, *state.opt_state[1:])
    return state.replace(opt_state=opt_state, step=jnp.zeros((), jnp.int32))


def replace_head(
    key: jax.Array, variables: Any, adam: AdamState | None, model: nn.Module
) -> tuple[dict[str, Any], AdamState | None]:
    """Replace the last layer by one drawn from ``key`` for the classes of ``model``."""
    path = head(model)
    draw = jax.jit(lambda key: reduce(getitem, path, init(key, model)["params"]))
    drawn = {(*path, name): leaf for name, leaf in jax.device_get(draw(key)).items()}
    if adam is not None:
        # The others stay: without moments, a weight's first step is as long as the learning rate.
        zeros = jax.tree.map(np.zeros_like, drawn)
        mu, nu = (unflatten_dict(flatten_dict(tree) | zeros) for tree in (adam.mu, adam.nu))
        adam = adam._replace(mu=mu, nu=nu)
    return {**variables, "params": unflatten_dict(flatten_dict(variables["params"]) | drawn)}, adam


@partial(jax.jit, static_argnames=("examples", "batch_size"))
def epoch_order(key: jax.Array, epoch: int, *, examples: int, batch_size: int) -> jax.Array:
    """Draw an epoch's batches of indices, int32 ``(steps, batch_size)``; drops a partial one."""
    order = jax.random.permutation(jax.random.fold_in(key, epoch), examples)
    return order[: examples // batch_size * batch_size].reshape(-1, batch_size)
