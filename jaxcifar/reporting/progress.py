"""What a training run shows while it runs."""

import io
import sys

from tqdm import tqdm

PACE = "{n_fmt}/{total_fmt} images, {rate_noinv_fmt}, {remaining} left"


class Progress:
    """Show a live bar in a terminal and plain lines in a log; ``total`` and ``done`` are images."""

    def __init__(self, total: int, done: int, *, silent: bool = False) -> None:
        self._silent = silent
        self._live = not silent and sys.stderr.isatty()
        self._compiling = True
        self._bar = tqdm(
            total=total,
            initial=done,
            desc="compiling",
            unit=" images",
            smoothing=0.05,
            dynamic_ncols=True,
            file=sys.stderr if self._live else io.StringIO(),  # measures the pace unseen
            bar_format=("{desc} {percentage:3.0f}% |{bar}| " if self._live else "  ") + PACE,
        )

    def advance(self, images: int, label: str) -> None:
        """Count the images of a step that has ended."""
        bar = self._bar
        if self._compiling:  # the pace counts from here
            bar.n = bar.initial = bar.last_print_n = bar.n + images
            bar.unpause()
        else:
            bar.update(images)
        bar.set_description_str(label, refresh=self._compiling)
        self._compiling = False

    @property
    def images_per_second(self) -> float | None:
        """The mean pace, or None before the second step has ended."""
        bar = self._bar.format_dict
        images = bar["n"] - bar["initial"]
        return images / bar["elapsed"] if images else None

    def result(self, line: str, *, pace: bool = False) -> None:
        """Print a line of results to stdout; ``pace`` adds one to a log, which has no bar."""
        if self._silent:
            return
        with tqdm.external_write_mode():
            print(line, flush=True)
        if pace and self.images_per_second and not self._live:
            print(self._bar, file=sys.stderr)

    def close(self) -> None:
        self._bar.close()
