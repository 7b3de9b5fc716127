"""What a training run shows while it runs."""

import io
import sys
from functools import partial

from tqdm import tqdm

PACE = "{n_fmt}/{total_fmt} images, {rate_noinv_fmt}, {remaining} left"


class Progress:
    """Show a live bar in a terminal and plain lines in a log.

    Results go to stdout, progress to stderr. The pace is that of this process, without its first
    step, which compiles. ``total`` and ``done`` are images; ``silent`` is for the other processes.
    """

    def __init__(self, total: int, done: int, *, silent: bool = False) -> None:
        self._silent = silent
        self._live = not silent and sys.stderr.isatty()
        self._new_bar = partial(
            tqdm,
            total=total,
            unit=" images",
            smoothing=0.05,
            dynamic_ncols=True,
            file=sys.stderr if self._live else io.StringIO(),  # measures the pace unseen
            bar_format=("{desc} {percentage:3.0f}% |{bar}| " if self._live else "  ") + PACE,
        )
        self._bar = self._new_bar(initial=done, desc="compiling", leave=False)
        self._compiling = True

    def advance(self, images: int, label: str) -> None:
        """Count the images of a step that has ended."""
        if self._compiling:
            self.close()
            self._bar = self._new_bar(initial=self._bar.n + images, desc=label)
            self._compiling = False
        else:
            self._bar.set_description_str(label, refresh=False)
            self._bar.update(images)

    @property
    def images_per_second(self) -> float | None:
        """The mean pace, or None before the second step has ended."""
        bar = self._bar.format_dict
        images = bar["n"] - bar["initial"]
        return images / bar["elapsed"] if images else None

    def result(self, line: str) -> None:
        """Print a line of results, above the bar."""
        if not self._silent:
            with tqdm.external_write_mode():
                print(line, flush=True)

    def note_pace(self) -> None:
        """Print a line about the pace in a log, where there is no bar."""
        if self.images_per_second and not (self._live or self._silent):
            print(self._bar, file=sys.stderr)

    def close(self) -> None:
        self._bar.close()
