"""The metrics of a run: ``metrics.jsonl``, and the same numbers as TensorBoard events."""

import json
from pathlib import Path
from typing import Any

from etils import epy

from jaxcifar.files import atomic

with epy.lazy_imports():
    import tensorboardX


METRICS_FILE = "metrics.jsonl"  # in a run's directory


class MetricWriter:
    """Appends records; those beyond ``step``, which a resumed run does not share, are removed.

    If ``silent``, records stay in memory, as in all but one process of a run.
    """

    def __init__(self, directory: Path, step: int, *, silent: bool = False) -> None:
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


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """Return the records of a ``metrics.jsonl``, without lines that a killed process cut short."""
    records = []
    for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else []:
        try:
            record = json.loads(line)
        except ValueError:
            continue
        if isinstance(record, dict) and "step" in record:
            records.append(record)
    return records
