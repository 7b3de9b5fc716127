"""Scores against counts made by hand."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxcifar.reporting.scores import confusions, score, table

NAMES = tuple("abcdef")


def logits_for(predictions, confidence):
    """Logits whose softmax gives each prediction its confidence, and the rest the others' share."""
    probabilities = np.tile(((1 - confidence) / (len(NAMES) - 1))[:, None], len(NAMES))
    probabilities[np.arange(len(predictions)), predictions] = confidence
    return np.log(probabilities).astype(np.float32)


def test_a_small_case_by_hand():
    labels = np.array([0, 0, 0, 1, 1, 2], np.int32)
    scores = score(logits_for([0, 0, 1, 1, 2, 2], np.repeat([0.9, 0.5], 3)), labels, NAMES)
    probabilities = np.array([0.9, 0.9, 0.1 / 5, 0.5, 0.5 / 5, 0.5])  # of the labels
    assert scores.loss == pytest.approx(-np.log(probabilities).mean(), rel=1e-6)
    assert scores.accuracy_interval == pytest.approx((0.2999933, 0.9032286))  # Wilson's formula
    assert scores.confusion[0] == [2, 1, 0, 0, 0, 0]
    assert confusions(scores) == [("a", "b", 1, 1 / 3), ("b", "c", 1, 0.5)]
    assert confusions(scores, 1) == [("a", "b", 1, 1 / 3)]
    rows = [line.split() for line in table(scores).splitlines()]
    assert rows[1] == ["a", "1.000", "0.667", "0.800", "3"]
    assert rows[6] == ["f", "0.000", "0.000", "0.000", "0"]


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
    assert scores.images == np.sum(scores.confusion) == count
    assert [row.images for row in scores.classes] == np.sum(scores.confusion, axis=1).tolist()
    ranks = (logits > logits[np.arange(count), labels][:, None]).sum(1)
    assert scores.top5 == (None if classes <= 5 else pytest.approx((ranks < 5).mean()))
