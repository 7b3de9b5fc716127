"""The directory of a run, and its metrics."""

import dataclasses
import errno
import json
import logging
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from datetime import datetime
from pathlib import Path
from typing import Any, Self

import filelock
from etils import epy

from jaxcifar.config.options import is_count, parse_saved
from jaxcifar.config.train import CONFIG_FILE, FOLDER_PREFIX, TrainConfig, folder_path
from jaxcifar.errors import UserError, one_line, regular_file
from jaxcifar.files import atomic
from jaxcifar.files.checkpoints import Checkpoints, last_step, read_metadata

with epy.lazy_imports():
    import tensorboardX

ENVIRONMENT_FILE = "environment.json"
METRICS_FILE = "metrics.jsonl"
NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)  # of a file system

log = logging.getLogger(__name__)


def read_metrics(path: str | Path) -> list[dict[str, Any]]:
    """Return the records of a ``metrics.jsonl``, without what a killed process cut short."""
    path = regular_file(Path(path))
    try:
        lines = path.read_text("utf-8").splitlines() if os.path.lexists(path) else []
    except UnicodeDecodeError as error:
        raise UserError(f"{path} cannot be read ({error}): delete it") from error
    records = [record for line in lines if (record := _record(line))]
    if len(records) < len(lines):
        log.warning("%s: left out %d lines that are no records", path, len(lines) - len(records))
    return records


def _record(line: str) -> dict[str, Any] | None:
    """Return a record with its numbers that fit a double; None if it lacks a step or split."""
    record: dict[str, Any] = {}
    with suppress(ValueError):
        record = parse_saved(line)
    if type(record.get("step")) is not int or not isinstance(record.get("split"), str):
        return None
    kept = [k for k, v in record.items() if type(v) is float or k == "split" or is_count(v)]
    return {name: record[name] for name in kept} if "step" in kept else None


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
        try:
            self._file.write(json.dumps(record) + "\n")
            self._file.flush()
        except OSError as error:
            problem = f"{self._file.name} cannot be written to ({error.strerror})"
            raise UserError(f"{problem}: free some space, then rerun with --resume") from error
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
    has_default_name: bool = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "path", Path(self.path))  # of a str

    @classmethod
    def for_run(cls, config: TrainConfig) -> Self:
        """Return the directory; unless the run resumes, it holds no checkpoint."""
        name = f"{_name(config.dataset)}-{_name(config.model)}-{datetime.now():%Y%m%d-%H%M%S}"
        run = cls(Path(config.workdir or Path("runs") / name), config.workdir is None)
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

    def read_environment(self) -> dict[str, str]:
        """Return what the run ran on, by name; empty if that is unknown."""
        try:
            values = parse_saved(regular_file(self.path / ENVIRONMENT_FILE).read_text("utf-8"))
        except (OSError, ValueError):
            return {}
        versions = values.pop("versions", None)
        values = (versions if isinstance(versions, dict) else {}) | values
        return {one_line(name): one_line(str(value)) for name, value in values.items()}

    def check_links(self) -> None:
        """Raise ``UserError`` if a link in the directory could make the run write elsewhere."""
        for folder, folders, files in os.walk(self.path):
            for path in (Path(folder, name) for name in (*folders, *files)):
                if path.is_symlink():
                    raise UserError(f"{path} is a link to another place: replace it by a copy")

    @contextmanager
    def locked(self) -> Iterator[Self]:
        """Create the directory and keep other runs out; the lock of a dead process is free.

        Yields the directory, with another name if it has a default one that is taken. What is new
        is removed if the run fails before it has results.
        """
        if os.fsencode(path := self.path.absolute()) != str(path).encode(errors="replace"):
            raise UserError(f"the name {path} is not in UTF-8: choose another --workdir or locale")
        try:
            run, new = self._create()
            empty = not any(run.path.iterdir())
            run.check_links()
            lock: AbstractContextManager[object] = filelock.FileLock(run.path / "lock").acquire(0)
        except filelock.Timeout:
            advice = "wait until it ends, or choose another --workdir"
            raise UserError(f"another run writes to {self.path}: {advice}") from None
        except (OSError, NotImplementedError) as error:
            if getattr(error, "errno", errno.ENOSYS) not in NO_LOCKS:
                problem = f"{self.path} cannot be written to ({error.args[1]})"
                raise UserError(f"{problem}: choose another --workdir") from error
            log.warning("%s cannot be locked: start no other run in it", run.path)
            lock = nullcontext()
        with lock:
            try:
                yield run
            except BaseException:
                if empty and run.last_step() is None and not run.read_metrics():
                    shutil.rmtree(run.path, ignore_errors=True)
                    with suppress(OSError):
                        if not new:
                            run.path.mkdir()
                        for path in new[1:]:
                            path.rmdir()
                raise

    def _create(self) -> tuple[Self, list[Path]]:
        """Create the directory; return it, and what of its path is new."""
        run, number = self, 1
        while True:
            new = [path for path in (run.path, *run.path.parents) if not path.exists()]
            try:
                run.path.mkdir(parents=True, exist_ok=not self.has_default_name)
                return run, new
            except FileExistsError:  # by a run that started in the same second
                if not self.has_default_name:
                    raise
            number += 1
            run = dataclasses.replace(self, path=Path(f"{self.path}-{number}"))


def _name(text: str) -> str:
    """Return the last part of a name or path, without characters that a path may lack."""
    text = os.path.abspath(folder_path(text)) if text.startswith(FOLDER_PREFIX) else text
    return re.sub(r"[^\w.]+", "_", os.path.basename(text)).strip("._")[:40] or "run"
