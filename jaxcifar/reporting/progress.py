"""What a training run shows while it runs."""

import io
import statistics
import sys
from collections import deque

from tqdm import tqdm

COUNTS = "{n_fmt}/{total_fmt} images, {rate_noinv_fmt}, {remaining} left{postfix}"


class Progress:
    """Show a live bar in a terminal and plain lines in a log; ``total`` and ``done`` are images."""

    def __init__(self, total: int, done: int, *, silent: bool = False) -> None:
        self._silent, self._total = silent, total
        self._live = not silent and sys.stderr is not None and sys.stderr.isatty()
        self._interval: tuple[float, float] | None = None  # where it began: images, seconds
        self._noted = 0.0, 0.0  # the same, since the last note
        self._paces: deque[float] = deque(maxlen=9)  # seconds for an image, between notes
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
        if self._interval is None:  # the first step compiles; the pace counts from here
            bar.n = bar.initial = bar.last_print_n = bar.n + images
            bar.unpause()
            self._interval = self._noted = bar.n, self._elapsed
        else:
            bar.update(images)
        bar.set_description_str(label, refresh=bar.n == bar.initial)

    @property
    def images_per_second(self) -> float | None:
        """The pace since the last result, or None if no step has ended since."""
        images, seconds = self._interval or (self._bar.n, 0.0)
        images = self._bar.n - images
        return images / (self._elapsed - seconds) if images else None

    def result(self, line: str, note: str = "") -> None:
        """Print a line of results to stdout; with a note, say on stderr how far the run is."""
        bar, speed = self._bar, self.images_per_second
        if not self._silent:
            with tqdm.external_write_mode():
                print(line, flush=True)
        if note:
            bar.set_postfix_str(note, refresh=False)
        if note and speed and not self._silent and not self._live:
            counts = f"{bar.n}/{self._total} images, {speed:.0f} images/s"
            left = tqdm.format_interval(self._seconds_per_image() * (self._total - bar.n))
            print(f"  {counts}, {left} left, {note}", file=sys.stderr)
        self._interval = bar.n, self._elapsed

    def _seconds_per_image(self) -> float:
        """Return the recent mean; it counts validations, but no time in which a run slept."""
        (images, seconds), now = self._noted, (self._bar.n, self._elapsed)
        self._paces.append((now[1] - seconds) / (now[0] - images))
        self._noted = now
        limit = 3 * statistics.median(self._paces)
        return statistics.mean(pace for pace in self._paces if pace <= limit)

    def close(self) -> None:
        self._bar.close()

    @property
    def _elapsed(self) -> float:
        return float(self._bar.format_dict["elapsed"])
