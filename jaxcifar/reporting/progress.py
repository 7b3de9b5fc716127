"""What a training run shows while it runs."""

import io
import sys
from collections import deque
from contextlib import suppress

from tqdm import tqdm

COMPILING = "compiling"
COUNTS = "{n_fmt}/{total_fmt} images, {rate_noinv_fmt}, {remaining} left{postfix}"


class Progress:
    """Show a live bar in a terminal and plain lines in a log; ``total`` and ``done`` are images."""

    def __init__(self, total: int, done: int, *, silent: bool = False) -> None:
        self._silent, self._total = silent, total
        self._live = not silent and sys.stderr is not None and sys.stderr.isatty()
        self._results = deque([(float(done), 0.0)], maxlen=9)  # the last: images, seconds
        self._bar = tqdm(
            total=total,
            initial=done,
            desc=COMPILING,
            unit=" images",
            smoothing=0.05,
            dynamic_ncols=True,
            file=sys.stderr if self._live else io.StringIO(),  # counts the time unseen
            bar_format="{desc} {percentage:3.0f}% |{bar}| " + COUNTS,
        )

    def advance(self, images: int, label: str) -> None:
        """Count the images of a step that has ended."""
        bar = self._bar
        if bar.desc == COMPILING:  # as the first step does; the pace counts from here
            bar.n = bar.initial = bar.last_print_n = bar.n + images
            bar.unpause()
            self._results.clear()
            self._results.append((bar.n, bar.format_dict["elapsed"]))
        else:
            bar.update(images)
        bar.set_description_str(label, refresh=bar.n == bar.initial)

    def pace(self) -> float | None:
        """Return the images per second since the last result; None if no step has ended since."""
        images, seconds = self._results[-1]
        new = self._bar.n - images
        return new / (self._bar.format_dict["elapsed"] - seconds) if new else None

    def result(self, line: str, note: str = "", pace: float | None = None) -> None:
        """Print a line of results to stdout; with a pace, say on stderr how far the run is."""
        bar, elapsed = self._bar, self._bar.format_dict["elapsed"]
        if not self._silent:
            with tqdm.external_write_mode(), suppress(OSError):  # metrics.jsonl has it, too
                print(line, flush=True)
        if note:
            bar.set_postfix_str(note, refresh=False)
        if pace and not self._silent and not self._live:
            images, seconds = self._results[0]
            slowness = (elapsed - seconds) / (bar.n - images)  # includes validations
            left = tqdm.format_interval(slowness * (self._total - bar.n))
            counts = f"{bar.n}/{self._total} images, {pace:.0f} images/s"
            with suppress(OSError):
                print(f"  {counts}, {left} left, {note}", file=sys.stderr)
        self._results.append((bar.n, elapsed))

    def close(self) -> None:
        self._bar.close()
