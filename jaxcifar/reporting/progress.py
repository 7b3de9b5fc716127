"""What a training run shows while it runs."""

import io
import sys
from collections import deque

from tqdm import tqdm

COUNTS = "{n_fmt}/{total_fmt} images, {rate_noinv_fmt}, {remaining} left{postfix}"


class Progress:
    """Show a live bar in a terminal and plain lines in a log; ``total`` and ``done`` are images."""

    def __init__(self, total: int, done: int, *, silent: bool = False) -> None:
        self._silent, self._total = silent, total
        self._live = not silent and sys.stderr is not None and sys.stderr.isatty()
        self._results: deque[tuple[float, float]] = deque(maxlen=9)  # the last: images, seconds
        self._bar = tqdm(
            total=total,
            initial=done,
            desc="compiling",
            unit=" images",
            smoothing=0.05,
            dynamic_ncols=True,
            file=sys.stderr if self._live else io.StringIO(),  # counts the time unseen
            bar_format="{desc} {percentage:3.0f}% |{bar}| " + COUNTS,
        )

    def advance(self, images: int, label: str) -> None:
        """Count the images of a step that has ended."""
        bar = self._bar
        if not self._results:  # the first step compiles; the pace counts from here
            bar.n = bar.initial = bar.last_print_n = bar.n + images
            bar.unpause()
            self._results.append((bar.n, bar.format_dict["elapsed"]))
        else:
            bar.update(images)
        bar.set_description_str(label, refresh=bar.n == bar.initial)

    def result(self, line: str, note: str = "") -> float | None:
        """Print a line of results to stdout; with a note, say on stderr how far the run is.

        Return the images per second since the last result, or None if no step has ended since.
        """
        bar, elapsed = self._bar, self._bar.format_dict["elapsed"]
        first, last = self._results[0], self._results[-1]
        pace = (bar.n - last[0]) / (elapsed - last[1]) if bar.n > last[0] else None
        if not self._silent:
            with tqdm.external_write_mode():
                print(line, flush=True)
        if note:
            bar.set_postfix_str(note, refresh=False)
        if note and pace and not self._silent and not self._live:
            slowness = (elapsed - first[1]) / (bar.n - first[0])  # includes validations
            left = tqdm.format_interval(slowness * (self._total - bar.n))
            counts = f"{bar.n}/{self._total} images, {pace:.0f} images/s"
            print(f"  {counts}, {left} left, {note}", file=sys.stderr)
        self._results.append((bar.n, elapsed))
        return pace

    def close(self) -> None:
        self._bar.close()
