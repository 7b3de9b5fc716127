"""The figures of a report: PNG files, returned as ``data:`` addresses, too."""

import base64
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from etils import epy

from jaxcifar.core.steps import Examples

with epy.lazy_imports():
    from matplotlib import figure as mpl
    from matplotlib import ticker
    from scipy import special
    from sklearn import metrics

PANELS = {
    "loss": "loss (nats)",
    "accuracy": "accuracy (%)",
    "learning_rate": "learning rate",
    "images_per_second": "images per second",
}
LINES = {"train": "-", "val": "--", "test": ":"}
MAX_ANNOTATED = 20  # classes whose counts fit into their squares
COLUMNS = 5  # of images


def curves(runs: Mapping[str, Sequence[Mapping[str, Any]]], path: Path) -> str:
    """Draw loss, accuracy, learning rate and speed by step, from each run's records."""
    figure = mpl.Figure(figsize=(10, 6.5), layout="constrained")
    for axes, (quantity, title) in zip(figure.subplots(2, 2).flat, PANELS.items(), strict=True):
        scale = 100 if quantity == "accuracy" else 1
        for index, (name, records) in enumerate(runs.items()):
            for split, line in LINES.items():
                rows = [r for r in records if r.get("split") == split and quantity in r]
                if rows:
                    axes.plot(
                        [row["step"] for row in rows],
                        [scale * row[quantity] for row in rows],
                        linestyle=line,
                        color=f"C{index % 10}" if len(runs) > 1 else None,
                        label=_text(f"{name} {split}", 60) if len(runs) > 1 else split,
                        marker="*" if len(rows) == 1 else "o" if len(rows) < 20 else "",
                        markersize=9 if len(rows) == 1 else 4,
                    )
        yscale = "log" if quantity == "learning_rate" else "linear"
        axes.set(title=title, xlabel="step", yscale=yscale)
        axes.xaxis.set_major_locator(ticker.MaxNLocator(integer=True))
        axes.grid(alpha=0.3)
        if axes.lines:
            axes.legend(fontsize="small")
    return _save(figure, path)


def confusion(matrix: Sequence[Sequence[int]], class_names: Sequence[str], path: Path) -> str:
    """Draw the numbers of images by label (rows) and prediction (columns)."""
    counts = np.asarray(matrix)
    size, annotated = min(2.5 + 0.4 * len(counts), 14), len(counts) <= MAX_ANNOTATED
    figure = mpl.Figure(figsize=(size + 0.8, size), layout="constrained")
    axes = figure.subplots()
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    names = [_text(name, 40) for name in class_names]
    display = metrics.ConfusionMatrixDisplay(shares, display_labels=names).plot(
        ax=axes,
        cmap="Blues",
        im_kw={"vmin": 0, "vmax": 1},
        colorbar=False,
        include_values=annotated,
    )
    if annotated:  # colours show shares, numbers show counts
        for text, count in zip(display.text_.flat, counts.flat, strict=True):
            text.set(text=str(count), fontsize=9)
    figure.colorbar(display.im_, ax=axes, label="share of the images of a class", shrink=0.8)
    axes.tick_params(labelsize=10 if annotated else 5)
    axes.tick_params("x", labelrotation=90)
    axes.set(xlabel="predicted", ylabel="label")
    return _save(figure, path)


def mistakes(examples: Examples, logits: np.ndarray, names: Sequence[str], path: Path) -> str:
    """Draw images with their labels and predictions."""
    probabilities = special.softmax(logits, axis=1)
    names = [_text(name, 13) for name in names]
    rows = max(1, -(-len(logits) // COLUMNS))
    figure = mpl.Figure(figsize=(1.4 * COLUMNS, 1.8 * rows), layout="constrained")
    grid = figure.subplots(rows, COLUMNS, squeeze=False).ravel()
    for axes in grid:
        axes.set_axis_off()
    for axes, image, label, row in zip(grid, *examples, probabilities, strict=False):
        axes.imshow(image, interpolation="nearest")
        title = f"{names[label]}\n→ {names[row.argmax()]} ({100 * row.max():.0f} %)"
        axes.set_title(title, fontsize=8)
    if not len(logits):
        figure.text(0.5, 0.5, "no mistakes", ha="center", va="center", fontsize=14)
    return _save(figure, path)


def _text(text: str, length: int) -> str:
    """Cut a text, and keep a dollar sign in it from starting a formula."""
    text = text if len(text) <= length else f"{text[: length - 1]}…"
    return text.replace("$", r"\$")


def _save(figure: Any, path: Path) -> str:
    """Write the figure to a PNG file and return it as a ``data:`` address."""
    with warnings.catch_warnings():  # a name in a script that the font lacks shows as boxes
        warnings.filterwarnings("ignore", message="Glyph .* missing")
        figure.savefig(path, dpi=110)
    return f"data:image/png;base64,{base64.b64encode(path.read_bytes()).decode()}"
