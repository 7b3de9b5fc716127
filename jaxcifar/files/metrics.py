"""What a run shows and leaves: a bar or plain lines, metrics.jsonl, TensorBoard events."""

import json
import sys
import time
from pathlib import Path
from typing import Any

from tqdm import tqdm

METRICS_FILE = "metrics.jsonl"


class Progress:
    """A live bar with images/s and the time left in a terminal; plain lines in a log.

    Results go to stdout, everything about progress to stderr. The speed is measured from the
    end of the first step, which compiles, so that the time left is an honest one.

    Args:
      total: images in the whole run.
      done: images trained on before this process.
      silent: show nothing, as all but one process of a run do.
    """

    def __init__(self, total: int, done: int, *, silent: bool = False) -> None:
        self._total, self._done, self._silent = total, done, silent
        self._clock: tuple[float, int] | None = None
        self._bar = tqdm(
            total=total,
            initial=done,
            desc="compiling",
            smoothing=0.05,
            dynamic_ncols=True,
            disable=silent or not sys.stderr.isatty(),
            bar_format="{desc} {percentage:3.0f}% |{bar}| {n_fmt}/{total_fmt} images{postfix}",
        )

    def advance(self, images: int, label: str) -> None:
        """Counts images whose step has ended."""
        self._done += images
        if self._clock is None:
            self._clock = (time.monotonic(), self._done)
        self._bar.set_description(label, refresh=False)
        self._bar.set_postfix_str(self._pace(), refresh=False)
        self._bar.update(images)

    @property
    def images_per_second(self) -> float | None:
        """The mean speed of this process, or None before it is known."""
        if self._clock is None or self._done == self._clock[1]:
            return None
        return (self._done - self._clock[1]) / (time.monotonic() - self._clock[0])

    def result(self, line: str) -> None:
        """Prints a line of results, above the bar."""
        if self._silent:
            return
        self._bar.clear()
        print(line, flush=True)
        self._bar.refresh()

    def note(self, line: str) -> None:
        """Prints a line about the run, above the bar."""
        if not self._silent:
            tqdm.write(line, file=sys.stderr)

    def note_pace(self) -> None:
        """In a log, where there is no bar: the speed and the time left, as a line."""
        if self._bar.disable and self.images_per_second:
            self.note(f"  {self._done}/{self._total} images, {self._pace()}")

    def close(self) -> None:
        self._bar.close()

    def _pace(self) -> str:
        speed = self.images_per_second
        if speed is None:
            return ""
        left = tqdm.format_interval((self._total - self._done) / speed)
        return f"{speed:.0f} images/s, {left} left"


class MetricWriter:
    """Appends records to ``metrics.jsonl`` and the same numbers to TensorBoard's events.

    Args:
      workdir: the run's folder.
      step: where the run stands: records beyond it are of a past that a resumed run
        does not share, and are removed.
      silent: keep the records in memory only, as all but one process of a run do.
    """

    def __init__(self, workdir: Path, step: int, *, silent: bool = False) -> None:
        from tensorboardX import SummaryWriter

        path = workdir / METRICS_FILE
        self.records = [r for r in read_metrics(path) if r["step"] <= step]
        self._silent = silent
        if silent:
            return
        path.write_text("".join(json.dumps(record) + "\n" for record in self.records))
        self._file = path.open("a")
        self._events = SummaryWriter(str(workdir / "tensorboard"), purge_step=step + 1)

    def write(self, step: int, split: str, **values: float | None) -> None:
        """Adds a record of one split after ``step`` updates; a None is left out."""
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
    """The records of a ``metrics.jsonl``; a line that a killed process cut short is skipped."""
    records = []
    for line in path.read_text().splitlines() if path.exists() else []:
        try:
            record = json.loads(line)
        except ValueError:
            continue
        if isinstance(record, dict) and "step" in record:
            records.append(record)
    return records
