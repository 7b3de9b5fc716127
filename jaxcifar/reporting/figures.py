"""The pictures of a report."""

import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

Records = Sequence[Mapping[str, Any]]
PANELS = (
    ("loss", "loss (nats)"),
    ("accuracy", "accuracy (%)"),
    ("learning_rate", "learning rate"),
    ("images_per_second", "images a second"),
)
STYLES = {"train": {"linestyle": "-"}, "val": {"linestyle": "--"}, "test": {"linestyle": ":"}}
MOST_ANNOTATED = 20  # classes whose counts fit into their squares


class Mistake(NamedTuple):
    """An image that was taken for another class.

    Attributes:
      image: uint8 ``(32, 32, 3)``.
      label: the class that it is of.
      predicted: the one it was taken for.
      confidence: the probability given to that, from 0 to 1.
    """

    image: np.ndarray
    label: str
    predicted: str
    confidence: float


def curves(runs: Mapping[str, Records], path: Path) -> None:
    """Draws loss, accuracy, learning rate and speed over the steps, of one run or several."""
    figure = Figure(figsize=(10, 6.5), layout="constrained")
    for axes, (quantity, title) in zip(figure.subplots(2, 2).flat, PANELS, strict=True):
        for index, (name, records) in enumerate(runs.items()):
            for split, style in STYLES.items():
                points = [
                    (record["step"], record[quantity])
                    for record in records
                    if record.get("split") == split and record.get(quantity) is not None
                ]
                if points:
                    label = f"{name} {split}" if len(runs) > 1 else split
                    _line(axes, quantity, points, label, index if len(runs) > 1 else None, style)
        axes.set(title=title, xlabel="step")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.set_yscale("log" if quantity == "learning_rate" else "linear")
        axes.grid(alpha=0.3)
        if axes.lines:
            axes.legend(fontsize="small")
    _save(figure, path)


def confusion(matrix: Sequence[Sequence[int]], class_names: Sequence[str], path: Path) -> None:
    """Draws how many images of each class (rows) were taken for which (columns)."""
    counts = np.asarray(matrix)
    classes = len(class_names)
    size = min(2.5 + 0.4 * classes, 14)
    figure = Figure(figsize=(size + 0.8, size), layout="constrained")
    axes = figure.subplots()
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    image = axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    figure.colorbar(image, ax=axes, label="share of the images of a class", shrink=0.8)
    if classes <= MOST_ANNOTATED:
        for (row, column), count in np.ndenumerate(counts):
            colour = "white" if shares[row, column] > 0.5 else "black"
            axes.text(column, row, str(count), ha="center", va="center", color=colour, fontsize=9)
    ticks = np.arange(classes)
    small = 10 if classes <= MOST_ANNOTATED else 5
    axes.set_xticks(ticks, _plain(class_names), rotation=90, fontsize=small)
    axes.set_yticks(ticks, _plain(class_names), fontsize=small)
    axes.set(xlabel="predicted", ylabel="label")
    _save(figure, path)


def mistakes(found: Sequence[Mistake], path: Path, *, columns: int = 5) -> None:
    """Draws the images with what they are and what they were taken for."""
    rows = max(1, -(-len(found) // columns))
    figure = Figure(figsize=(1.4 * columns, 1.8 * rows), layout="constrained")
    grid = figure.subplots(rows, columns, squeeze=False)
    for axes in grid.flat:
        axes.set_axis_off()
    for axes, mistake in zip(grid.flat, found, strict=False):
        axes.imshow(mistake.image, interpolation="nearest")
        label, predicted = _plain((mistake.label, mistake.predicted))
        axes.set_title(f"{label}\n→ {predicted} ({100 * mistake.confidence:.0f} %)", fontsize=9)
    if not found:
        figure.text(0.5, 0.5, "no mistakes", ha="center", va="center", fontsize=14)
    _save(figure, path)


def _line(
    axes: Axes,
    quantity: str,
    points: Sequence[tuple[int, float]],
    label: str,
    colour: int | None,
    style: Mapping[str, Any],
) -> None:
    steps, values = np.array(points, float).T
    options: dict[str, Any] = {**style, "label": label}
    if colour is not None:
        options["color"] = f"C{colour % 10}"
    if len(steps) == 1:
        options["marker"] = "*"
        options["markersize"] = 9
    elif len(steps) < 20:
        options["marker"] = "o"
        options["markersize"] = 4
    axes.plot(steps, 100 * values if quantity == "accuracy" else values, **options)


def _plain(names: Sequence[str]) -> list[str]:
    """Names as they are: a dollar would begin a formula."""
    return [name.replace("$", r"\$") for name in names]


def _save(figure: Figure, path: Path) -> None:
    with warnings.catch_warnings():  # a name in a script that the font lacks shows as boxes
        warnings.filterwarnings("ignore", message="Glyph .* missing")
        figure.savefig(path, dpi=110)
