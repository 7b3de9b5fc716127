"""How good a classifier's logits are. Accuracy is defined here and nowhere else."""

import dataclasses
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from etils import epy

from jaxcifar.core.state import short_repr
from jaxcifar.core.steps import Examples
from jaxcifar.errors import UserError

with epy.lazy_imports():
    from scipy import special, stats
    from sklearn import metrics


@dataclasses.dataclass(frozen=True)
class ClassScores:
    """The scores of one class, from 0 to 1, and its number of images."""

    name: str
    precision: float
    recall: float
    f1: float
    images: int


@dataclasses.dataclass(frozen=True)
class Scores:
    """The scores of all images; shares are from 0 to 1."""

    images: int
    accuracy: float
    accuracy_interval: tuple[float, float]  # 95 %, by Wilson (1927)
    loss: float  # mean cross-entropy, in nats
    top5: float | None  # top-5 accuracy, None for at most five classes
    classes: tuple[ClassScores, ...]  # in the order of the labels
    confusion: list[list[int]]  # images by label (rows) and prediction (columns)


@short_repr
class Evaluation(NamedTuple):
    """The logits of weights on test images, float32 ``(N, classes)``, and their scores."""

    model: str
    dataset: str
    examples: Examples
    class_names: Sequence[str]
    logits: np.ndarray
    scores: Scores


def check_finite(outputs: np.ndarray) -> None:
    """Raise ``UserError`` if an output, ``(N, C)``, is not finite."""
    if nonfinite := np.sum(~np.isfinite(outputs).all(axis=1)):
        problem = f"the network's outputs are not finite for {nonfinite} of {len(outputs)} images"
        raise UserError(f"{problem}: its training diverged; use an earlier checkpoint")


def loss_and_accuracy(logits: np.ndarray, labels: np.ndarray) -> tuple[float, float]:
    """Return the mean cross-entropy in nats, and the share of images with the right prediction."""
    losses = -special.log_softmax(logits.astype(np.float64), axis=1)[np.arange(len(labels)), labels]
    return float(losses.mean()), float((logits.argmax(axis=1) == labels).mean())


def score(logits: np.ndarray, labels: np.ndarray, class_names: Sequence[str]) -> Scores:
    """Score logits, ``(N, C)``, by labels, ``(N,)``; raise ``UserError`` if one is not finite."""
    check_finite(logits)
    loss, accuracy = loss_and_accuracy(logits, labels)
    predicted, classes = logits.argmax(axis=1), np.arange(len(class_names))
    interval = stats.binomtest(sum(predicted == labels), len(labels)).proportion_ci(method="wilson")
    options: Any = {"labels": classes, "zero_division": 0}
    columns = metrics.precision_recall_fscore_support(labels, predicted, **options)
    top5 = None
    if len(classes) > 5:
        top5 = metrics.top_k_accuracy_score(labels, logits, k=5, labels=classes)
    return Scores(
        images=len(labels),
        accuracy=accuracy,
        accuracy_interval=(float(interval.low), float(interval.high)),
        loss=loss,
        top5=top5,
        classes=tuple(map(ClassScores, class_names, *(column.tolist() for column in columns))),
        confusion=metrics.confusion_matrix(labels, predicted, labels=classes).tolist(),
    )


def confusions(scores: Scores, limit: int = 10) -> list[tuple[Any, ...]]:
    """Return the most frequent mistakes: label, prediction, images, their share of the label's."""
    counts, names = np.array(scores.confusion), [row.name for row in scores.classes]
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    np.fill_diagonal(counts, 0)
    largest = np.argsort(-counts, axis=None, kind="stable")[:limit]
    pairs = np.transpose(np.unravel_index(largest, counts.shape)).tolist()
    return [(names[i], names[j], counts[i, j], shares[i, j]) for i, j in pairs if counts[i, j]]


def table(scores: Scores) -> str:
    """Return the scores of each class as lines of text."""
    width = max(len("class"), *(len(row.name) for row in scores.classes))
    lines = [f"{'class':{width}}  precision  recall     f1  images"]
    for name, precision, recall, f1, images in map(dataclasses.astuple, scores.classes):
        lines.append(f"{name:{width}}  {precision:9.3f}  {recall:6.3f}  {f1:5.3f}  {images:6}")
    return "\n".join(lines)
