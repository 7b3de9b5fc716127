"""The figures of a report."""

import base64
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from etils import epy

with epy.lazy_imports():
    from matplotlib import figure as mpl
    from matplotlib import style, ticker
    from scipy import special
    from sklearn import metrics

PANELS = {
    "loss": {"title": "loss (nats)", "yscale": "log"},  # a spike does not flatten the curve
    "accuracy": {"title": "accuracy (%)"},
    "learning_rate": {"title": "learning rate", "yscale": "log"},
    "images_per_second": {"title": "images per second"},
}


def curves(runs: Mapping[str, Sequence[Mapping[str, Any]]]) -> Any:
    """Draw loss, accuracy, learning rate and speed by step, from each run's records."""
    figure = mpl.Figure(figsize=(10, 6.5), layout="constrained")
    for axes, (quantity, panel) in zip(figure.subplots(2, 2).flat, PANELS.items(), strict=True):
        axes.set(xlabel="step", **panel)
        factor = 100 if quantity == "accuracy" else 1
        for index, (name, records) in enumerate(runs.items()):
            for split, line in {"train": "-", "val": "--", "test": ":"}.items():
                rows = [r for r in records if r.get("split") == split and quantity in r]
                steps, values = [r["step"] for r in rows], [factor * r[quantity] for r in rows]
                marker = "*" if len(rows) == 1 else "o" if len(rows) < 20 else ""
                label = f"{_text(name, 30)} {split}" if len(runs) > 1 else split
                color = f"C{index}" if len(runs) > 1 else None
                if rows:
                    axes.plot(steps, values, line, marker=marker, label=label, color=color)
        axes.xaxis.set_major_locator(ticker.MaxNLocator(integer=True))
        if "yscale" in panel:  # 0.2 instead of a power of ten
            axes.yaxis.set_major_locator(ticker.LogLocator(subs=(1, 2, 5)))
            axes.yaxis.set_major_formatter("{x:g}")
            axes.yaxis.set_minor_formatter(ticker.NullFormatter())
        axes.grid(alpha=0.3)
    legend: Any = {"loc": "outside lower center", "ncols": min(len(runs), 3)}
    figure.legend(handles=figure.axes[0].get_lines(), fontsize="small", **legend)
    return figure


def confusion(matrix: Sequence[Sequence[int]], names: Sequence[str]) -> Any:
    """Draw the numbers of images by label (rows) and prediction (columns)."""
    counts = np.asarray(matrix)
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    labels, annotated = [_text(name, 20) for name in names], len(counts) <= 20  # fit in squares
    fontsize = 10 if annotated else 5
    size = min(1.5 + 0.4 * len(counts), 12) + 0.008 * fontsize * max(map(len, labels))
    figure = mpl.Figure(figsize=(size + 0.8, size), layout="constrained")
    display = metrics.ConfusionMatrixDisplay(shares, display_labels=labels)
    style = {"cmap": "Blues", "im_kw": {"vmin": 0, "vmax": 1}, "xticks_rotation": "vertical"}
    display.plot(ax=figure.subplots(), include_values=annotated, **style)
    if annotated:  # colours show shares, numbers show counts
        for text, count in zip(display.text_.flat, counts.flat, strict=True):
            text.set(text=str(count), fontsize=9)
    display.im_.colorbar.set_label("share of the images of a class")
    display.ax_.tick_params(labelsize=fontsize)
    return figure


def mistakes(images: np.ndarray, labels: np.ndarray, logits: np.ndarray, names: Any) -> Any:
    """Draw the 25 most confident mistakes with their labels and predictions, the worst first."""
    confidence = special.softmax(logits, axis=1).max(axis=1)
    predicted, names = logits.argmax(axis=1), [_text(name, 13) for name in names]
    wrong = np.flatnonzero(predicted != labels)
    worst = wrong[np.argsort(-confidence[wrong], kind="stable")][:25]
    rows = max(1, -(-len(worst) // 5))  # of five images
    figure = mpl.Figure(figsize=(7, 1.8 * rows), layout="constrained")
    for position, i in enumerate(worst, start=1):
        axes = figure.add_subplot(rows, 5, position, frame_on=False, xticks=[], yticks=[])
        axes.imshow(images[i], interpolation="nearest")
        title = f"{names[labels[i]]}\n→ {names[predicted[i]]} ({100 * confidence[i]:.0f} %)"
        axes.set_title(title, fontsize=7)
    if not len(worst):
        figure.text(0.5, 0.5, "no mistakes", ha="center", va="center", fontsize=14)
    return figure


def save(path: Path, draw: Callable[..., Any], *data: Any) -> str:
    """Draw a figure into a PNG file and return that as a ``data:`` address."""
    with style.context("default"), warnings.catch_warnings():  # the user's can ask for LaTeX
        warnings.filterwarnings("ignore", message="Glyph .* missing")  # shows as a box
        draw(*data).savefig(path, dpi=110)
    return f"data:image/png;base64,{base64.b64encode(path.read_bytes()).decode()}"


def _text(text: str, length: int) -> str:
    """Cut the middle out of a text, and keep a dollar sign in it from starting a formula."""
    if len(text) > length:  # names that differ at their end stay apart
        text = f"{text[: length // 2]}…{text[-((length - 1) // 2) :]}"
    return text.replace("$", r"\$")
