"""Scores against counts made by hand."""

import dataclasses
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxcifar import UserError
from jaxcifar.reporting.scores import score, table

NAMES = tuple("abcdef")


def logits_for(predictions, confidence):
    """Logits whose softmax gives each prediction its confidence, and the rest the others' share."""
    confidence = np.broadcast_to(confidence, len(predictions))
    probabilities = np.tile(((1 - confidence) / (len(NAMES) - 1))[:, None], len(NAMES))
    probabilities[np.arange(len(predictions)), predictions] = confidence
    return np.log(probabilities).astype(np.float32)


def test_a_small_case_by_hand():
    labels = np.array([0, 0, 0, 1, 1, 2], np.int32)
    scores = score(logits_for([0, 0, 1, 1, 2, 2], 0.8), labels, NAMES)
    assert (scores.images, scores.accuracy) == (6, 4 / 6)
    loss = (4 * -math.log(0.8) + 2 * -math.log(0.04)) / 6
    assert scores.loss == pytest.approx(loss, rel=1e-6)
    assert scores.calibration_error == pytest.approx(0.8 - 4 / 6, rel=1e-6)
    assert scores.confusion[0] == [2, 1, 0, 0, 0, 0]
    assert [row.images for row in scores.classes] == [3, 2, 1, 0, 0, 0]
    assert scores.classes[0].precision == 1
    assert scores.classes[0].recall == pytest.approx(2 / 3)
    assert dataclasses.astuple(scores.classes[5]) == ("f", 0, 0, 0, 0)
    # Wilson's interval, from its formula.
    z, n, p = 1.959963984540054, 6, 4 / 6
    middle = (p + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    assert scores.accuracy_interval == pytest.approx((middle - half, middle + half))
    assert table(scores).splitlines()[1].split() == ["a", "1.000", "0.667", "0.800", "3"]


def test_calibration_weighs_the_bins():
    """Three images at 0.9, two of them correct, and a correct one at 0.5."""
    logits = logits_for([0, 1, 2, 3], [0.9, 0.9, 0.9, 0.5])
    scores = score(logits, np.array([0, 1, 0, 3]), NAMES)
    assert scores.calibration_error == pytest.approx((3 * abs(2 / 3 - 0.9) + 0.5) / 4, rel=1e-5)


@given(seed=st.integers(0, 2**32 - 1), count=st.integers(1, 60), classes=st.integers(2, 12))
def test_sums_agree(seed, count, classes):
    rng = np.random.default_rng(seed)
    logits = rng.normal(0, 3, (count, classes)).astype(np.float32)
    labels = rng.integers(0, classes, count).astype(np.int32)
    scores = score(logits, labels, [str(i) for i in range(classes)])
    correct = logits.argmax(1) == labels
    assert scores.accuracy == correct.mean()
    low, high = scores.accuracy_interval
    assert 0 <= low <= scores.accuracy <= high <= 1
    assert np.trace(scores.confusion) == correct.sum()
    assert np.sum(scores.confusion) == sum(row.images for row in scores.classes) == count
    ranks = (logits > logits[np.arange(count), labels][:, None]).sum(1)
    assert scores.top5 == (None if classes <= 5 else pytest.approx((ranks < 5).mean()))
    assert 0 <= scores.calibration_error <= 1


def test_logits_that_are_not_finite_are_refused():
    logits = np.zeros((3, 6), np.float32)
    logits[1, 2] = np.nan
    with pytest.raises(UserError, match="not finite for 1 of 3 images"):
        score(logits, np.zeros(3, np.int32), NAMES)
