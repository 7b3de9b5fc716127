"""Checkpoints with Orbax: the state, the epoch's running sums, and the configuration."""

import hashlib
import json
import logging
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from types import MappingProxyType
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from orbax.checkpoint import v1 as ocp

from jaxcifar.config import TrainConfig
from jaxcifar.core.state import TrainState
from jaxcifar.core.steps import Metrics
from jaxcifar.errors import UserError, difference, one_line
from jaxcifar.runtime import process as runtime

FOLDER = "checkpoints"
VAL_ACCURACY = "val_accuracy"
DIGEST = "sha256_of_values"


@contextmanager
def open_checkpoints(workdir: Path, *, keep: int) -> Iterator[ocp.training.Checkpointer]:
    """A run's checkpoints in ``workdir/checkpoints/STEP``.

    The last ``keep`` are kept, and the one with the best validation accuracy.
    """
    for name in ("absl", "asyncio"):  # Orbax and its threads report there what we say in a line
        logging.getLogger(name).setLevel(logging.CRITICAL)
    policies = ocp.training.preservation_policies
    best = policies.BestN(
        get_metric_fn=lambda metrics: metrics[VAL_ACCURACY],
        n=1,
        keep_checkpoints_without_metrics=False,
    )
    checkpointer = ocp.training.Checkpointer(
        (workdir / FOLDER).absolute(),
        save_decision_policy=_Always(),
        preservation_policy=policies.AnyPreservationPolicy([policies.LatestN(keep), best]),
        cleanup_tmp_directories=True,
    )
    try:
        yield checkpointer
        finish(checkpointer)
    finally:
        with suppress(Exception):  # what cannot be written has been said
            checkpointer.close()


class _Always:
    """The training loop decides when to save."""

    def should_save(self, step: Any, previous_steps: Any, *, context: Any) -> bool:
        del step, previous_steps, context
        return True


@contextmanager
def _explained(checkpointer: ocp.training.Checkpointer) -> Iterator[None]:
    """Says what to do when a checkpoint could not be written, be it the one before."""
    try:
        yield
    except Exception as error:  # of Orbax, tensorstore or the system, from another thread
        raise UserError(
            f"a checkpoint could not be written to {checkpointer.directory}"
            f" ({one_line(str(error))[:120]}): those before"
            " it are whole; make room, then go on with --resume"
        ) from error


def save(
    checkpointer: ocp.training.Checkpointer,
    state: TrainState,
    totals: Metrics,
    config: TrainConfig,
    *,
    class_names: Sequence[str] = (),
    data: Mapping[str, Any] = MappingProxyType({}),
    val_accuracy: float | None = None,
) -> None:
    """Saves under the state's step; a step that is there already is left as it is.

    Returns when the values are copied; they are written while training goes on. ``data`` is
    ``data.identity``'s, and kept for ``require_data``.

    Raises:
      UserError: this or the save before failed.
    """
    step = int(state.step)
    if checkpointer.latest is not None and checkpointer.latest.step >= step:
        return
    # Copies: the next step takes the state's memory.
    tree = jax.tree.map(np.array, _tree(state, totals))
    with _explained(checkpointer):
        checkpointer.save_async(
            step,
            tree,
            metrics=None if val_accuracy is None else {VAL_ACCURACY: val_accuracy},
            custom_metadata={
                **json.loads(config.to_json()),
                "class_names": list(class_names),
                **data,
                DIGEST: digest(tree),
            },
        )


def finish(checkpointer: ocp.training.Checkpointer) -> None:
    """Waits until what was saved is whole.

    Raises:
      UserError: it could not be written.
    """
    with _explained(checkpointer):
        checkpointer.wait()


def digest(tree: Any) -> str:
    """SHA-256 of all values of a tree, with their paths, dtypes and shapes, in hexadecimal."""
    total = hashlib.sha256()
    leaves = {
        jax.tree_util.keystr(path, simple=True, separator="/"): np.asarray(leaf)
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
    }
    for name, array in sorted(leaves.items()):  # of a dict as of a dataclass
        total.update(f"{name} {array.dtype} {array.shape}\n".encode())
        total.update(array.tobytes())
    return total.hexdigest()


def require_data(
    checkpointer: ocp.training.Checkpointer,
    dataset: str,
    class_names: Sequence[str],
    data: Mapping[str, Any],
) -> None:
    """Checks that a run goes on with the data it began with, as far as its checkpoints tell.

    Raises:
      UserError: the classes, the number of training images or the images are others.
    """
    info: dict[str, Any] = {}
    for found in checkpointer.checkpoints:
        with suppress(Exception):  # a damaged one is restore's to name
            info = checkpointer.metadata(found.step).custom_metadata or info
    then = info.get("class_names") or list(class_names)
    changes = difference(class_names, then, "the data", "the checkpoint")
    now, count = data["train_images"], info.get("train_images", data["train_images"])
    if not changes and now != count:
        changes = f"it has {now} training images, and had {count}"
    if not changes and info.get("train_sha256", data["train_sha256"]) != data["train_sha256"]:
        changes = "it has as many training images, but other ones"
    if changes:
        raise UserError(
            f"{dataset} is not what the run was started with ({changes}): bring it back, or start"
            " another run with --init-from this one"
        )


def restore(
    checkpointer: ocp.training.Checkpointer, state: TrainState, totals: Metrics
) -> tuple[TrainState, Metrics]:
    """Loads the last whole checkpoint into the shape and the places of a state and totals.

    A damaged one is set aside as ``damaged-STEP`` in the run's folder, with a line about it.

    Raises:
      UserError: none is whole.
    """
    if checkpointer.latest is None:
        raise UserError(
            f"there is no whole checkpoint in {checkpointer.directory}: start without --resume"
        )
    damaged = []
    for found in reversed(checkpointer.checkpoints):
        try:
            tree = _load(checkpointer, found.step, _tree(state, totals))
        except Exception as error:  # whatever tensorstore and Orbax raise on bad bytes or shapes
            damaged.append((found.step, one_line(str(error))[:120]))
            continue
        for step, reason in damaged:
            _set_aside(checkpointer, step, reason)
        if damaged:
            runtime.note(f"Warning: resuming from step {found.step} instead")
        totals = tree.pop("totals")
        return state.replace(**tree), totals
    reasons = "; ".join(f"{step}: {reason}" for step, reason in damaged)
    raise UserError(
        f"no checkpoint in {checkpointer.directory} can be read ({reasons}): restore one from a"
        " copy, or start in another --workdir"
    )


def _load(checkpointer: ocp.training.Checkpointer, step: int, like: Any) -> Any:
    abstract = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), like
    )
    expected = (checkpointer.metadata(step).custom_metadata or {}).get(DIGEST)
    tree = checkpointer.load(step, abstract)
    if digest(tree) != expected:
        raise UserError("its values are not those that were saved")
    return tree


def _set_aside(checkpointer: ocp.training.Checkpointer, step: int, reason: str) -> None:
    folder = Path(checkpointer.directory) / str(step)
    aside = folder.parents[1] / f"damaged-{step}"
    runtime.note(f"Warning: {folder} is damaged ({reason}); it is now {aside}")
    if runtime.is_first_process():
        shutil.rmtree(aside, ignore_errors=True)
        folder.rename(aside)
    multihost_utils.sync_global_devices("jaxcifar: damaged checkpoint set aside")
    checkpointer.reload()


def _tree(state: TrainState, totals: Metrics) -> dict[str, Any]:
    return {
        "step": state.step,
        "params": state.params,
        "batch_stats": state.batch_stats,
        "opt_state": state.opt_state,
        "totals": totals,
    }
