"""Checkpoints with Orbax: the state, the epoch's running sums, and the configuration."""

import json
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jax
from orbax.checkpoint import v1 as ocp

from jaxcifar.config import TrainConfig
from jaxcifar.errors import UserError
from jaxcifar.state import TrainState
from jaxcifar.steps import Metrics

VAL_ACCURACY = "val_accuracy"


def has_checkpoint(workdir: Path) -> bool:
    """Whether there is something to resume in a run's folder."""
    folder = workdir / "checkpoints"
    return folder.is_dir() and any(child.name.isdigit() for child in folder.iterdir())


@contextmanager
def open_checkpoints(workdir: Path, *, keep: int) -> Iterator[ocp.training.Checkpointer]:
    """A run's checkpoints in ``workdir/checkpoints/STEP``.

    The last ``keep`` are kept, and the one with the best validation accuracy.
    """
    logging.getLogger("absl").setLevel(logging.ERROR)  # Orbax reports each save to the log
    policies = ocp.training.preservation_policies
    best = policies.BestN(
        get_metric_fn=lambda metrics: metrics[VAL_ACCURACY],
        n=1,
        keep_checkpoints_without_metrics=False,
    )
    with ocp.training.Checkpointer(
        (workdir / "checkpoints").absolute(),
        save_decision_policy=_Always(),
        preservation_policy=policies.AnyPreservationPolicy([policies.LatestN(keep), best]),
        cleanup_tmp_directories=True,
    ) as checkpointer:
        yield checkpointer


class _Always:
    """The training loop decides when to save."""

    def should_save(self, step: Any, previous_steps: Any, *, context: Any) -> bool:
        del step, previous_steps, context
        return True


def save(
    checkpointer: ocp.training.Checkpointer,
    state: TrainState,
    totals: Metrics,
    config: TrainConfig,
    *,
    val_accuracy: float | None = None,
) -> None:
    """Saves under the state's step; a step that is there already is left as it is."""
    step = int(state.step)
    if checkpointer.latest is not None and checkpointer.latest.step >= step:
        return
    checkpointer.save(
        step,
        _tree(state, totals),
        metrics=None if val_accuracy is None else {VAL_ACCURACY: val_accuracy},
        custom_metadata=json.loads(config.to_json()),
    )


def restore(
    checkpointer: ocp.training.Checkpointer, state: TrainState, totals: Metrics
) -> tuple[TrainState, Metrics]:
    """Loads the last checkpoint into the shape of a fresh state and totals.

    Raises:
      UserError: it is damaged, or of another model.
    """
    latest = checkpointer.latest
    if latest is None:
        raise UserError(
            f"there is no whole checkpoint in {checkpointer.directory}: start without --resume"
        )
    abstract = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), _tree(state, totals)
    )
    try:
        tree = checkpointer.load(latest, abstract)
    except Exception as error:  # whatever tensorstore and Orbax raise on bad bytes or shapes
        raise UserError(
            f"{checkpointer.directory / str(latest.step)} cannot be read ({error}); delete it to"
            " resume from the one before"
        ) from error
    totals = tree.pop("totals")
    return state.replace(**tree), totals


def _tree(state: TrainState, totals: Metrics) -> dict[str, Any]:
    return {
        "step": state.step,
        "params": state.params,
        "batch_stats": state.batch_stats,
        "opt_state": state.opt_state,
        "totals": totals,
    }
