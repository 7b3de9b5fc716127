"""The checkpoints of a run, with Orbax: the state, the epoch's running sums, the options."""

import dataclasses
import json
import logging
import math
import re
import shutil
import sys
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, suppress
from functools import cached_property
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from orbax.checkpoint import v1 as ocp

from jaxcifar.config.train import TrainConfig
from jaxcifar.core.state import TrainState
from jaxcifar.core.steps import Metrics
from jaxcifar.errors import UserError, one_line, regular_file
from jaxcifar.files.digest import digest

log = logging.getLogger(__name__)
VAL_ACCURACY = "val_accuracy"
DIGEST = "sha256_of_values"  # in a checkpoint's metadata
METADATA_FILE = "_CHECKPOINT_METADATA"
MAX_TEXT = 2**26  # bytes of metadata


class Checkpoints(AbstractContextManager["Checkpoints"]):
    """The last ``keep`` checkpoints, and the best by validation; on exit all are on disk."""

    def __init__(self, directory: str | Path, *, keep: int) -> None:
        for name in ("absl", "asyncio"):  # Orbax and its threads log there what we say in a line
            logging.getLogger(name).setLevel(logging.CRITICAL)
        self.directory, self._keep = Path(directory).absolute(), keep

    @cached_property
    def _checkpointer(self) -> ocp.training.Checkpointer:
        """Orbax's, which must not see a corrupt checkpoint."""
        policies = ocp.training.preservation_policies
        best = policies.BestN(
            get_metric_fn=lambda metrics: metrics[VAL_ACCURACY],
            n=1,
            keep_checkpoints_without_metrics=False,
        )
        return ocp.training.Checkpointer(
            self.directory,
            save_decision_policy=ocp.training.save_decision_policies.FixedIntervalPolicy(1),
            preservation_policy=policies.AnyPreservationPolicy(
                [policies.LatestN(self._keep), best]
            ),
            cleanup_tmp_directories=True,
        )

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        try:
            if kind is None:
                self.finish()
        finally:
            with suppress(Exception):  # what could not be written has been reported
                self._checkpointer.close()

    @property
    def steps(self) -> list[int]:
        """The steps of the checkpoints, in order."""
        return [checkpoint.step for checkpoint in self._checkpointer.checkpoints]

    def save(
        self,
        state: TrainState,
        totals: Metrics,
        metadata: Mapping[str, Any],
        *,
        val_accuracy: float | None = None,
    ) -> None:
        """Copy the values, and write them under the state's step while training continues.

        Raises ``UserError`` if this save or the one before failed.
        """
        step = int(state.step)
        if self.steps and self.steps[-1] >= step:
            return  # a resumed run saved it before
        tree = jax.tree.map(np.array, _tree(state, totals))  # the next step takes its memory
        with self._explained():
            self._checkpointer.save_async(
                step,
                tree,
                metrics=None if val_accuracy is None else {VAL_ACCURACY: val_accuracy},
                custom_metadata={**metadata, DIGEST: digest(tree)},
            )

    def finish(self) -> None:
        """Wait until everything saved is on disk, or raise ``UserError``."""
        with self._explained():
            self._checkpointer.wait()

    def restore(self, state: TrainState, totals: Metrics) -> tuple[TrainState, Metrics]:
        """Load the last intact checkpoint, shaped and placed like the arguments.

        Corrupt ones are moved to ``damaged-STEP``; raises ``UserError`` if none is intact.
        """
        tree, start, corrupt = None, 0, dict[int, str]()
        for step in sorted(_steps(self.directory), reverse=True):
            try:
                if tree is None:
                    tree, start = self._load(step, _tree(state, totals)), step
                else:
                    read_info(self.directory / str(step))  # which Orbax reads, too
            except Exception as error:  # whatever Orbax raises on bad bytes or shapes
                corrupt[step] = one_line(str(error))[:120]
        if tree is None:
            reasons = "; ".join(f"{step}: {reason}" for step, reason in corrupt.items())
            problem = f"no checkpoint in {self.directory} can be read ({reasons})"
            raise UserError(f"{problem}: restore one from a backup, or start in another --workdir")
        for step, reason in corrupt.items():
            self._move_aside(step, reason)
        if corrupt:
            log.warning("resuming from step %d", start)
        totals = tree.pop("totals")
        return state.replace(**tree), totals

    def _load(self, step: int, like: Any) -> Any:
        folder = self.directory / str(step)
        expected = read_info(folder)[DIGEST]
        tree = ocp.load(folder, like)
        if digest(tree) != expected:
            raise UserError("its values are not those that were saved")
        return tree

    def _move_aside(self, step: int, reason: str) -> None:
        corrupt = self.directory / str(step)
        aside = self.directory.parent / f"damaged-{step}"
        log.warning("%s is corrupt (%s); moved to %s", corrupt, reason, aside)
        if jax.process_index() == 0:
            shutil.rmtree(aside, ignore_errors=True)
            corrupt.rename(aside)
        multihost_utils.sync_global_devices("jaxcifar: corrupt checkpoint moved aside")

    @contextmanager
    def _explained(self) -> Iterator[None]:
        """Say what to do when a checkpoint, perhaps the one before, could not be written."""
        try:
            yield
        except Exception as error:  # of Orbax, tensorstore or the system, from another thread
            problem = f"a checkpoint could not be written to {self.directory} ({error!s:.120})"
            advice = "earlier checkpoints are intact; free some space, then rerun with --resume"
            raise UserError(f"{problem}: {advice}") from error


def last_step(directory: str | Path) -> int | None:
    """Return the step of the newest checkpoint in a directory of checkpoints."""
    return max(_steps(directory), default=None)


def read_info(folder: Path) -> dict[str, Any]:
    """Return what a checkpoint of ours says of itself; raise ``ValueError`` if it is not whole."""
    for path in folder.rglob("*"):
        is_text = path.name.startswith(("_", "manifest"))
        regular_file(path, MAX_TEXT if is_text else sys.maxsize)
    try:
        info = {**json.loads((folder / METADATA_FILE).read_text("utf-8"))["custom_metadata"]}
        options = {field.name for field in dataclasses.fields(TrainConfig)}
        TrainConfig(**{name: value for name, value in info.items() if name in options})
        np.dtype([(key, name) for key, name in info.get("torch_dtypes", {}).items() if name])
        texts = [info[DIGEST], *(info.get("class_names") or ())]
        rate = info.get("learning_rate_of_torch") or 0
        if not all(isinstance(text, str) for text in texts) or not 0 <= rate < math.inf:
            raise ValueError("impossible values")
    except Exception as error:  # it can be anything
        raise ValueError(f"its metadata cannot be read: {error!r:.80}") from error
    return {name: value for name, value in info.items() if (name, value) != ("class_names", None)}


def read_metadata(directory: str | Path) -> dict[str, Any]:
    """Return the metadata of the newest checkpoint whose metadata can be read; empty if none."""
    for step in sorted(_steps(directory), reverse=True):
        with suppress(ValueError):  # a corrupt one is restore's to report
            return read_info(Path(directory).absolute() / str(step))
    return {}


def _steps(directory: str | Path) -> list[int]:
    names = [path.name for path in Path(directory).glob("*") if path.is_dir()]
    return [int(name) for name in names if re.fullmatch("0|[1-9][0-9]*", name)]


def _tree(state: TrainState, totals: Metrics) -> dict[str, Any]:
    names = ("step", "params", "batch_stats", "opt_state")
    return {name: getattr(state, name) for name in names} | {"totals": totals}
