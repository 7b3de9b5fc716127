"""How good a classifier's logits are: scikit-learn's metrics, gathered."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
from scipy.special import softmax
from scipy.stats import binomtest
from sklearn import metrics
from sklearn.calibration import calibration_curve

from jaxcifar.errors import UserError

CALIBRATION_BINS = 15


@dataclasses.dataclass(frozen=True)
class ClassScores:
    """Of one class: shares from 0 to 1, and how many images have its label."""

    name: str
    precision: float
    recall: float
    f1: float
    images: int


@dataclasses.dataclass(frozen=True)
class Scores:
    """Of all images; shares are from 0 to 1.

    Attributes:
      images: how many there are.
      accuracy: share of images whose largest logit is the label's.
      accuracy_interval: 95 % confidence interval of the accuracy (Wilson, 1927).
      loss: mean cross-entropy, in nats.
      top5: share of images whose label is among the five largest logits; None for at most
        five classes.
      calibration_error: mean distance of confidence and accuracy over 15 equal bins of the
        confidence, weighed by images (Guo et al., 2017).
      classes: in the order of the labels.
      confusion: images by label (rows) and prediction (columns).
    """

    images: int
    accuracy: float
    accuracy_interval: tuple[float, float]
    loss: float
    top5: float | None
    calibration_error: float
    classes: tuple[ClassScores, ...]
    confusion: tuple[tuple[int, ...], ...]

    def to_dict(self) -> dict[str, Any]:
        """As JSON would have it."""
        return dataclasses.asdict(self)


def score(logits: np.ndarray, labels: np.ndarray, class_names: Sequence[str]) -> Scores:
    """Compares predictions with labels.

    Args:
      logits: float ``(N, C)``.
      labels: int ``(N,)``, from 0 to ``C - 1``; not every class has to occur.
      class_names: ``C`` of them.

    Raises:
      UserError: a logit is not finite.
    """
    finite = np.isfinite(logits).all(axis=1)
    if not finite.all():
        raise UserError(
            f"the network's outputs are not finite on {np.sum(~finite)} of {len(finite)} images:"
            " its weights are of a run that diverged; take an earlier checkpoint"
        )
    probabilities = softmax(np.asarray(logits, np.float64), axis=1)
    predicted = logits.argmax(axis=1)
    classes = np.arange(len(class_names))
    right = int(metrics.accuracy_score(labels, predicted, normalize=False))
    interval = binomtest(right, len(labels)).proportion_ci(0.95, method="wilson")
    each = metrics.precision_recall_fscore_support(
        labels, predicted, labels=classes, zero_division=0
    )
    return Scores(
        images=len(labels),
        accuracy=right / len(labels),
        accuracy_interval=(float(interval.low), float(interval.high)),
        loss=float(metrics.log_loss(labels, probabilities, labels=classes)),
        top5=_top(5, labels, logits, classes),
        calibration_error=_calibration_error(labels == predicted, probabilities.max(axis=1)),
        classes=tuple(
            ClassScores(name, float(precision), float(recall), float(f1), int(count))
            for name, precision, recall, f1, count in zip(class_names, *each, strict=True)
        ),
        confusion=tuple(
            tuple(map(int, row))
            for row in metrics.confusion_matrix(labels, predicted, labels=classes)
        ),
    )


def table(scores: Scores) -> str:
    """The scores of each class as lines of text."""
    width = max(len("class"), *(len(row.name) for row in scores.classes))
    lines = [f"{'class':{width}}  precision  recall     f1  images"]
    for row in scores.classes:
        shares = f"{row.precision:9.3f}  {row.recall:6.3f}  {row.f1:5.3f}"
        lines.append(f"{row.name:{width}}  {shares}  {row.images:6}")
    return "\n".join(lines)


def _top(k: int, labels: np.ndarray, logits: np.ndarray, classes: np.ndarray) -> float | None:
    if len(classes) <= k:
        return None
    return float(metrics.top_k_accuracy_score(labels, logits, k=k, labels=classes))


def _calibration_error(right: np.ndarray, confidence: np.ndarray) -> float:
    accuracy, mean_confidence = calibration_curve(
        right, confidence, pos_label=True, n_bins=CALIBRATION_BINS
    )
    # scikit-learn gives the bins' means alone; these are its bins' sizes.
    edges = np.linspace(0, 1, CALIBRATION_BINS + 1)
    sizes = np.bincount(np.searchsorted(edges[1:-1], confidence), minlength=CALIBRATION_BINS)
    sizes = sizes[sizes > 0]
    return float(np.sum(sizes * np.abs(accuracy - mean_confidence)) / len(right))
