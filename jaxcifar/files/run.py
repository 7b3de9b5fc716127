"""The directory of a run."""

import dataclasses
import json
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any, Self

import filelock

from jaxcifar.config import CONFIG_FILE, FOLDER_PREFIX, TrainConfig, folder_path
from jaxcifar.errors import UserError
from jaxcifar.files import atomic, checkpoints, metrics


@dataclasses.dataclass(frozen=True)
class RunDirectory:
    """Where a run keeps its lock, options, environment, metrics, checkpoints and report."""

    path: Path

    @classmethod
    def for_run(cls, config: TrainConfig) -> Self:
        """Return the directory for a run, which is not created yet.

        Raises:
          UserError: it holds a run already, or none to resume.
        """
        name = f"{_name(config.dataset)}-{config.model}-{datetime.now():%Y%m%d-%H%M%S}"
        directory = cls(Path(config.workdir or Path("runs") / name))
        if config.resume and directory.last_step() is None:
            raise UserError(
                f"there is no checkpoint in {directory.checkpoints_dir}: start without --resume"
            )
        if not config.resume and directory.last_step() is not None:
            raise UserError(
                f"{directory.path} holds a run already: continue it with --resume, or choose"
                " another --workdir"
            )
        return directory

    @property
    def checkpoints_dir(self) -> Path:
        """The directory with one checkpoint per step."""
        return self.path / "checkpoints"

    @property
    def report_dir(self) -> Path:
        """The directory of the report."""
        return self.path / "report"

    def last_step(self) -> int | None:
        """Return the step of the newest checkpoint, or None."""
        return checkpoints.last_step(self.checkpoints_dir)

    def open_checkpoints(self, *, keep: int) -> checkpoints.Checkpoints:
        """Return the checkpoints, to save and restore."""
        return checkpoints.Checkpoints(self.checkpoints_dir, keep=keep)

    def read_metadata(self) -> dict[str, Any]:
        """Return what the newest readable checkpoint says of the run: options, classes, data."""
        return checkpoints.read_metadata(self.checkpoints_dir)

    def open_metrics(self, step: int, *, silent: bool = False) -> metrics.MetricWriter:
        """Return the writer of metrics for a run that stands at ``step``."""
        return metrics.MetricWriter(self.path, step, silent=silent)

    def read_metrics(self) -> list[dict[str, Any]]:
        """Return the records written so far."""
        return metrics.read_metrics(metrics.metrics_path(self.path))

    def write_config(self, config: TrainConfig, environment: dict[str, Any]) -> None:
        """Save the options, and beside them what the run runs on."""
        for name, values in ((CONFIG_FILE, config.to_dict()), ("environment.json", environment)):
            atomic.write_text(self.path / name, json.dumps(values, indent=2) + "\n")

    def read_config(self) -> TrainConfig:
        """Return the options that the run was started with.

        Raises:
          UserError: this is not a run's directory.
        """
        return TrainConfig.from_json(self.path / CONFIG_FILE)

    def read_environment(self) -> dict[str, Any]:
        """Return what the run ran on; empty if that is unknown."""
        try:
            values = json.loads((self.path / "environment.json").read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return {}
        return values if isinstance(values, dict) else {}

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Create the directory and keep other runs out; the lock of a dead process is free.

        Raises:
          UserError: another run uses it, or it cannot be written to.
        """
        lock = filelock.FileLock(self.path / "lock", timeout=0)
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            lock.acquire()
        except filelock.Timeout:
            raise UserError(
                f"another run writes to {self.path}: wait until it ends, or choose another"
                " --workdir"
            ) from None
        except OSError as error:
            raise UserError(
                f"{self.path} cannot be written to ({error.strerror}): choose another --workdir"
            ) from error
        try:
            yield
        finally:
            lock.release()


def _name(dataset: str) -> str:
    """Return a data set's name for a path; a folder's own name without unusual characters."""
    if not dataset.startswith(FOLDER_PREFIX):
        return dataset
    name = re.sub(r"[^\w.]+", "_", os.path.basename(os.path.abspath(folder_path(dataset))))
    return name.strip("._")[:40] or "folder"
