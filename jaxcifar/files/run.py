"""The directory of a run, and its metrics."""

import dataclasses
import json
import os
import re
from contextlib import AbstractContextManager, suppress
from datetime import datetime
from pathlib import Path
from typing import Any, Self

import filelock
from etils import epy

from jaxcifar.config.train import CONFIG_FILE, FOLDER_PREFIX, TrainConfig, folder_path
from jaxcifar.errors import UserError
from jaxcifar.files import atomic
from jaxcifar.files.checkpoints import Checkpoints, last_step, read_metadata

with epy.lazy_imports():
    import tensorboardX

ENVIRONMENT_FILE = "environment.json"
METRICS_FILE = "metrics.jsonl"


def read_metrics(path: str | Path) -> list[dict[str, Any]]:
    """Return the records of a ``metrics.jsonl``, without lines that a killed process cut short."""
    records = []
    path = Path(path)
    for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else []:
        with suppress(ValueError):
            records.append(json.loads(line))
    return [record for record in records if isinstance(record, dict) and "step" in record]


class MetricWriter:
    """Appends records; those beyond ``step``, which a resumed run does not share, are removed.

    If ``silent``, records stay in memory, as in all but one process of a run.
    """

    def __init__(self, directory: str | Path, step: int, *, silent: bool = False) -> None:
        directory = Path(directory)
        path = directory / METRICS_FILE
        self.records = [record for record in read_metrics(path) if record["step"] <= step]
        self._silent = silent
        if silent:
            return
        atomic.write_text(path, "".join(json.dumps(record) + "\n" for record in self.records))
        self._file = path.open("a", encoding="utf-8")
        events = str(directory / "tensorboard")
        self._events = tensorboardX.SummaryWriter(events, purge_step=step + 1)

    def write(self, step: int, split: str, **values: float | None) -> None:
        """Add a record of one split after ``step`` updates, without the values that are None."""
        numbers = {name: value for name, value in values.items() if value is not None}
        record = {"step": step, "split": split, **numbers}
        self.records.append(record)
        if self._silent:
            return
        self._file.write(json.dumps(record) + "\n")
        self._file.flush()
        for name, value in numbers.items():
            self._events.add_scalar(f"{split}/{name}", value, step)

    def close(self) -> None:
        if not self._silent:
            self._file.close()
            self._events.close()


def weights_path(source: str | Path) -> Path:
    """Return where weights are; ``RUN:best`` is the run's best checkpoint by validation."""
    name, _, which = str(source).rpartition(":")
    if which != "best" or Path(source).exists():
        return Path(source)
    run = RunDirectory(Path(name))
    if (best := run.best()) is None:
        problem = f"{name} has no checkpoint with a validation accuracy"
        raise UserError(f"{problem}: train with --val-fraction, or pass {name}")
    return run.checkpoints_dir / str(best["step"])


@dataclasses.dataclass(frozen=True)
class RunDirectory:
    """Where a run keeps its lock, options, environment, metrics, checkpoints and report."""

    path: Path

    def __post_init__(self) -> None:
        object.__setattr__(self, "path", Path(self.path))  # of a str

    @classmethod
    def for_run(cls, config: TrainConfig) -> Self:
        """Return the directory; unless the run resumes, it holds no checkpoint."""
        name = f"{_name(config.dataset)}-{config.model}-{datetime.now():%Y%m%d-%H%M%S}"
        run = cls(Path(config.workdir or Path("runs") / name))
        if not config.resume and run.last_step() is not None:
            advice = "continue it with --resume, or choose another --workdir"
            raise UserError(f"{run.path} holds a run already: {advice}")
        return run

    @property
    def checkpoints_dir(self) -> Path:
        return self.path / "checkpoints"

    @property
    def report_dir(self) -> Path:
        return self.path / "report"

    def last_step(self) -> int | None:
        return last_step(self.checkpoints_dir)

    def best(self) -> dict[str, Any] | None:
        """Return the record of the best validation among the checkpoints; None without any."""
        saved = (r for r in self.read_metrics() if (self.checkpoints_dir / str(r["step"])).is_dir())
        records = (record for record in saved if record.get("split") == "val")
        return max(records, key=lambda record: record["accuracy"], default=None)

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
        with suppress(OSError, TypeError, ValueError):
            return {**json.loads((self.path / ENVIRONMENT_FILE).read_text(encoding="utf-8"))}
        return {}

    def locked(self) -> AbstractContextManager[object]:
        """Create the directory and keep other runs out; the lock of a dead process is free."""
        lock = filelock.FileLock(self.path / "lock", timeout=0)
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            return lock.acquire()  # on exit it is released
        except filelock.Timeout:
            advice = "wait until it ends, or choose another --workdir"
            raise UserError(f"another run writes to {self.path}: {advice}") from None
        except OSError as error:
            problem = f"{self.path} cannot be written to ({error.strerror})"
            raise UserError(f"{problem}: choose another --workdir") from error


def _name(dataset: str) -> str:
    """Return a data set's name for a path; a folder's own name without unusual characters."""
    if not dataset.startswith(FOLDER_PREFIX):
        return dataset
    name = re.sub(r"[^\w.]+", "_", os.path.basename(os.path.abspath(folder_path(dataset))))
    return name.strip("._")[:40] or "folder"
