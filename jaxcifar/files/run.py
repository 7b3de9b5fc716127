"""The directory of a run, and its metrics."""

import json
import os
import re
import shutil
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from datetime import datetime
from pathlib import Path
from typing import Any, Self

import filelock
from etils import epy

from jaxcifar.config.options import is_count, parse_saved
from jaxcifar.config.train import CONFIG_FILE, FOLDER_PREFIX, TrainConfig
from jaxcifar.errors import UserError, log, one_line, regular_file
from jaxcifar.files import atomic
from jaxcifar.files.checkpoints import read_info, steps

with epy.lazy_imports():
    import tensorboardX

ENVIRONMENT_FILE = "environment.json"
METRICS_FILE = "metrics.jsonl"


class MetricWriter:
    """Appends records, only in memory if ``silent``; those beyond ``step`` are removed first."""

    def __init__(self, run: "RunDirectory", step: int, *, silent: bool = False) -> None:
        self.records = [record for record in run.read_metrics() if record["step"] <= step]
        self._path = Path(os.devnull) if silent else run.path / METRICS_FILE
        if not silent:
            atomic.write_text(self._path, "".join(json.dumps(r) + "\n" for r in self.records))
        options = {"purge_step": step + 1, "max_queue": 0, "write_to_disk": not silent}
        torch = sys.modules.setdefault("torch", None)  # type: ignore[arg-type]
        try:  # tensorboardX would import it for seconds
            self._events = tensorboardX.SummaryWriter(str(run.path / "tensorboard"), **options)
        finally:
            if torch is None:
                del sys.modules["torch"]

    def write(self, step: int, split: str, **values: float | None) -> None:
        """Add a record of one split after ``step`` updates, without the values that are None."""
        numbers = {name: value for name, value in values.items() if value is not None}
        record = {"step": step, "split": split, **numbers}
        self.records.append(record)
        with atomic.explained(self._path), self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(record) + "\n")  # at once, so that a killed run leaves no half
        for name, value in numbers.items():
            self._events.add_scalar(f"{split}/{name}", value, step)

    def close(self) -> None:
        with suppress(OSError):  # a full disk, which metrics.jsonl noticed
            self._events.close()


class RunDirectory:
    """Where a run keeps its lock, options, environment, metrics, checkpoints and report."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.checkpoints_dir = self.path / "checkpoints"

    @classmethod
    def for_run(cls, config: TrainConfig) -> Self:
        """Return the directory; unless the run resumes, it holds no checkpoint."""
        names = [Path(n.removeprefix(FOLDER_PREFIX)).name for n in (config.dataset, config.model)]
        parts = [re.sub(r"[^\w.]+", "_", name).strip("._")[:40] or "run" for name in names]
        # With microseconds, so that jobs which start in the same second have one each.
        name = "-".join([*parts, f"{datetime.now():%Y%m%d-%H%M%S-%f}"])
        run = cls(config.workdir or Path("runs") / name)
        if not config.resume and run.last_step() is not None:
            advice = "continue it with --resume, or choose another --workdir"
            raise UserError(f"{run.path} holds a run already: {advice}")
        return run

    def last_step(self) -> int | None:
        return next(iter(steps(self.checkpoints_dir)), None)

    def best(self, records: Sequence[Mapping[str, Any]]) -> Mapping[str, Any] | None:
        """Return the record of the best validation among the checkpoints; None without any."""
        saved = [r for r in records if (self.checkpoints_dir / str(r["step"])).is_dir()]
        scores = [r for r in saved if r["split"] == "val" and "accuracy" in r]
        return max(scores, key=lambda record: record["accuracy"], default=None)

    def read_metadata(self) -> dict[str, Any]:
        """Return what the newest readable checkpoint says of the run; empty without any."""
        for step in steps(self.checkpoints_dir):
            with suppress(ValueError):  # a corrupt one is reported when it is restored
                return read_info(self.checkpoints_dir / str(step))
        return {}

    def read_metrics(self) -> list[dict[str, Any]]:
        """Return the records, without a last line that was cut short."""
        path = regular_file(self.path / METRICS_FILE)
        text = path.read_text("utf-8", errors="replace") if path.exists() else ""
        records = list[dict[str, Any]]()
        for line in text.splitlines():
            with suppress(ValueError):
                items = parse_saved(line).items()
                # Without what is odd, or does not fit a double.
                record = {k: v for k, v in items if k == "split" or type(v) is float or is_count(v)}
                if is_count(record.get("step")) and isinstance(record.get("split"), str):
                    records.append(record)
        if (count := text.count("\n") - len(records)) > 0:
            log.warning("%s: left out %d lines that are no records", path, count)
        return records

    def write_config(self, config: TrainConfig, environment: dict[str, Any]) -> None:
        for name, values in ((CONFIG_FILE, config.to_dict()), (ENVIRONMENT_FILE, environment)):
            atomic.write_text(self.path / name, json.dumps(values, indent=2) + "\n")

    def read_config(self) -> TrainConfig:
        return TrainConfig.from_json(self.path / CONFIG_FILE)

    def read_environment(self) -> dict[str, str]:
        """Return what the run ran on, by name; empty if that is unknown."""
        with suppress(OSError, TypeError, ValueError):
            values = parse_saved(regular_file(self.path / ENVIRONMENT_FILE).read_text("utf-8"))
            values = values.pop("versions", {}) | values
            return {one_line(name): one_line(str(value)) for name, value in values.items()}
        return {}

    def check_links(self) -> None:
        """Raise ``UserError`` if a link in the directory could make the run write elsewhere."""
        for path in self.path.rglob("*"):
            if path.is_symlink():
                raise UserError(f"{path} is a link to another place: replace it by a copy")

    @contextmanager
    def locked(self) -> Iterator[Self]:
        """Create the directory and keep other runs out; without results it is removed again."""
        if os.fsencode(path := self.path.absolute()) != str(path).encode(errors="replace"):
            raise UserError(f"the name {path} is not in UTF-8: choose another --workdir or locale")
        is_new = not path.exists()
        try:
            with atomic.explained(self.path):
                path.mkdir(parents=True, exist_ok=True)
                self.check_links()
                lock: AbstractContextManager[object] = filelock.FileLock(path / "lock").acquire(0)
        except filelock.Timeout:
            advice = "wait until it ends, or choose another --workdir"
            raise UserError(f"another run writes to {self.path}: {advice}") from None
        except (OSError, NotImplementedError):  # the file system has no locks
            log.warning("%s cannot be locked: start no other run in it", self.path)
            lock = nullcontext()
        with lock:
            try:
                yield self
            except BaseException:
                if is_new and self.last_step() is None and not self.read_metrics():
                    shutil.rmtree(self.path, ignore_errors=True)
                raise
