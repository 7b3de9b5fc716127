"""The checkpoints of a run, with Orbax: the state, the epoch's running sums, the options."""

import dataclasses
import hashlib
import json
import re
import shutil
import sys
from collections.abc import Mapping
from contextlib import AbstractContextManager, suppress
from functools import partial
from operator import itemgetter
from pathlib import Path
from typing import Any

import jax
import numpy as np
import tensorstore
from jax.experimental import multihost_utils
from jax.tree_util import keystr, tree_leaves_with_path
from orbax.checkpoint import v1 as ocp

from jaxcifar.config.train import TrainConfig
from jaxcifar.core.state import TrainState
from jaxcifar.core.steps import Metrics
from jaxcifar.errors import UserError, log, one_line, regular_file
from jaxcifar.files.atomic import explained

DIGEST = "sha256_of_values"  # in a checkpoint's metadata
METADATA_FILE = "_CHECKPOINT_METADATA"


class Checkpoints(AbstractContextManager["Checkpoints"]):
    """The last ``keep`` checkpoints, and the best by validation; on exit all are on disk."""

    def __init__(self, directory: Path, metadata: Mapping[str, Any], *, keep: int) -> None:
        advice = "earlier checkpoints are intact; free some space, then rerun with --resume"
        self._explained = partial(explained, directory, Exception, advice)
        self._metadata, policies = metadata, ocp.training.preservation_policies
        self._saving: ocp.AsyncResponse[bool] | None = None
        best = policies.BestN(
            get_metric_fn=itemgetter("val_accuracy"), n=1, keep_checkpoints_without_metrics=False
        )
        self._checkpointer = ocp.training.Checkpointer(
            directory.absolute(),
            save_decision_policy=ocp.training.save_decision_policies.FixedIntervalPolicy(1),
            preservation_policy=policies.AnyPreservationPolicy([policies.LatestN(keep), best]),
            cleanup_tmp_directories=True,
        )

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        with suppress(Exception) if kind else self._explained():  # one error is enough
            self._checkpointer.close()

    def save(self, state: TrainState, totals: Metrics, val_accuracy: float | None = None) -> None:
        """Copy the values, and write them under the state's step while training continues."""
        self.finish()
        tree = jax.tree.map(np.array, _tree(state, totals))  # the next step takes its memory
        with self._explained():
            self._saving = self._checkpointer.save_async(
                int(tree["step"]),
                tree,
                metrics=None if val_accuracy is None else {"val_accuracy": val_accuracy},
                custom_metadata={**self._metadata, DIGEST: digest(tree)},
            )

    def finish(self) -> None:
        """Wait until everything saved is on disk, or raise ``UserError``."""
        with self._explained():
            if self._saving is not None:
                self._saving.result()  # which ends the threads of this save, as waiting would not


def restore(directory: Path, state: TrainState, totals: Metrics) -> tuple[TrainState, Metrics]:
    """Load the last intact checkpoint, shaped and placed like the arguments.

    Corrupt ones, which Orbax must not see, are moved to ``damaged-STEP`` unless none is intact.
    """
    tree, corrupt = None, dict[int, str]()
    for step in steps(directory):
        folder = directory.absolute() / str(step)
        try:
            if tree is None:
                tree, _ = read(folder, _tree(state, totals))
            else:
                read_info(folder)  # because Orbax reads it, too
        except Exception as error:  # whatever Orbax raises on bad bytes or shapes
            corrupt[step] = one_line(str(error))[:120]
    if tree is None:
        reasons = "; ".join(f"{step}: {reason}" for step, reason in corrupt.items())
        problem = f"no checkpoint in {directory} can be read ({reasons})"
        raise UserError(f"{problem}: restore one from a backup, or start in another --workdir")
    for step, reason in corrupt.items():
        folder, aside = directory / str(step), directory.parent / f"damaged-{step}"
        log.warning("%s is corrupt (%s); moved to %s", folder, reason, aside)
        if jax.process_index() == 0:
            shutil.rmtree(aside, ignore_errors=True)
            folder.rename(aside)
    if corrupt:
        multihost_utils.sync_global_devices("jaxcifar: corrupt checkpoints moved aside")
        log.warning("resuming from step %d", tree["step"])
    totals = tree.pop("totals")
    return state.replace(**tree), totals


def read(folder: Path, like: Any = None) -> tuple[Any, dict[str, Any]]:
    """Return values, in numpy or ``like`` others, and metadata; raises if anything is damaged."""
    info = read_info(folder)
    for manifest in folder.glob("*/manifest.ocdbt"):  # Orbax reports each bad read with noise
        store = tensorstore.KvStore.open(f"{manifest.parent.as_uri()}/|ocdbt:").result()
        if not all(store.read(key).result().value for key in store.list().result()):
            raise ValueError("a file is missing")
    tree = ocp.load(folder, like)
    if digest(tree) != info[DIGEST]:
        raise ValueError("its values do not have the digest of its metadata")
    return tree, info


def digest(tree: Any) -> str:
    """Return the SHA-256 of the paths, dtypes, shapes and bytes of a tree's leaves."""
    total = hashlib.sha256()
    leaves = {keystr(p, simple=True, separator="/"): x for p, x in tree_leaves_with_path(tree)}
    for name, leaf in sorted(leaves.items()):  # so that a dataclass is as its dict
        array = np.asarray(leaf)
        total.update(f"{name} {array.dtype} {array.shape}\n".encode())
        total.update(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)
    return total.hexdigest()


def steps(directory: str | Path) -> list[int]:
    """Return the steps of the checkpoints in a directory, the newest first."""
    names = [path.name for path in Path(directory).glob("*") if path.is_dir()]
    return sorted((int(n) for n in names if re.fullmatch("0|[1-9][0-9]*", n)), reverse=True)


def read_info(folder: Path) -> dict[str, Any]:
    """Return what a checkpoint of ours says of itself; raise ``ValueError`` if it is not whole."""
    for path in folder.rglob("*"):
        is_text = path.name.startswith(("_", "manifest"))
        regular_file(path, 2**26 if is_text else sys.maxsize)
    try:
        info = {**json.loads((folder / METADATA_FILE).read_text("utf-8"))["custom_metadata"]}
        options = {field.name for field in dataclasses.fields(TrainConfig)}
        TrainConfig(**{name: value for name, value in info.items() if name in options})
        TrainConfig(learning_rate=info.get("learning_rate_of_torch") or None)
        np.dtype([(key, name) for key, name in info.get("torch_dtypes", {}).items() if name])
        "".join([info[DIGEST], *(info.get("class_names") or ())])  # raises if one is no text
    except Exception as error:  # it can be anything
        raise ValueError(f"its metadata cannot be read: {error!r:.80}") from error
    return info


def _tree(state: TrainState, totals: Metrics) -> dict[str, Any]:
    names = ("step", "params", "batch_stats", "opt_state")
    return {name: getattr(state, name) for name in names} | {"totals": totals}
