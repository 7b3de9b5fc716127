"""Metrics of a state over a whole split."""

import jax.numpy as jnp
import numpy as np

from jaxcifar.data import Examples
from jaxcifar.state import TrainState
from jaxcifar.steps import Metrics, eval_step_at


def evaluate(state: TrainState, examples: Examples, *, batch_size: int) -> Metrics:
    """Sums the metrics over every image; the last batch is filled up and masked.

    Args:
      state: what is evaluated; it is not donated.
      examples: the split, on the host or, better, on the device.
      batch_size: images at a time; it does not change the result.
    """
    totals = Metrics.zeros()
    for start in range(0, len(examples.labels), batch_size):
        indices = jnp.asarray(np.arange(start, start + batch_size, dtype=np.int32))
        totals = eval_step_at(state, totals, examples, indices)
    return totals
