"""The directory of a run."""

import dataclasses
import json
import os
import re
import shlex
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any, Self

import filelock

from jaxcifar.config.train import CONFIG_FILE, FOLDER_PREFIX, TrainConfig, folder_path
from jaxcifar.errors import UserError
from jaxcifar.files import atomic
from jaxcifar.files.checkpoints import Checkpoints, last_step, read_metadata
from jaxcifar.files.metrics import METRICS_FILE, MetricWriter, read_metrics

ENVIRONMENT_FILE = "environment.json"


@dataclasses.dataclass(frozen=True)
class RunDirectory:
    """Where a run keeps its lock, options, environment, metrics, checkpoints and report."""

    path: Path

    @classmethod
    def for_run(cls, config: TrainConfig) -> Self:
        """Return the directory, which holds no run, or, to resume, a checkpoint."""
        name = f"{_name(config.dataset)}-{config.model}-{datetime.now():%Y%m%d-%H%M%S}"
        run = cls(Path(config.workdir or Path("runs") / name))
        if config.resume and run.last_step() is None:
            raise UserError(f"there is no checkpoint in {run.path}: start without --resume")
        if not config.resume and run.last_step() is not None:
            raise UserError(
                f"{run.path} holds a run already: continue it with --resume, or choose another"
                " --workdir"
            )
        return run

    @property
    def resume_command(self) -> str:
        return f"jaxcifar train --workdir {shlex.quote(str(self.path))} --resume"

    @property
    def checkpoints_dir(self) -> Path:
        return self.path / "checkpoints"

    @property
    def report_dir(self) -> Path:
        return self.path / "report"

    def last_step(self) -> int | None:
        return last_step(self.checkpoints_dir)

    def read_metadata(self) -> dict[str, Any]:
        """Return what the newest readable checkpoint says of the run: options, classes, data."""
        return read_metadata(self.checkpoints_dir)

    def open_checkpoints(self, *, keep: int) -> Checkpoints:
        return Checkpoints(self.checkpoints_dir, keep=keep)

    def open_metrics(self, step: int, *, silent: bool = False) -> MetricWriter:
        return MetricWriter(self.path, step, silent=silent)

    def read_metrics(self) -> list[dict[str, Any]]:
        return read_metrics(self.path / METRICS_FILE)

    def write_config(self, config: TrainConfig, environment: dict[str, Any]) -> None:
        """Save the options, and what the run runs on."""
        for name, values in ((CONFIG_FILE, config.to_dict()), (ENVIRONMENT_FILE, environment)):
            atomic.write_text(self.path / name, json.dumps(values, indent=2) + "\n")

    def read_config(self) -> TrainConfig:
        """Return the options that the run was started with, or raise ``UserError``."""
        return TrainConfig.from_json(self.path / CONFIG_FILE)

    def read_environment(self) -> dict[str, Any]:
        """Return what the run ran on; empty if that is unknown."""
        try:
            values = json.loads((self.path / ENVIRONMENT_FILE).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return {}
        return values if isinstance(values, dict) else {}

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Create the directory and keep other runs out; the lock of a dead process is free."""
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
