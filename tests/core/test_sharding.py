"""Several devices compute what one does."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.slow
@pytest.mark.parametrize(
    ("dtype", "learning_rate", "bound"),
    [
        # Adam divides by |g| + 1e-8: in float32 the rounding of a gradient that is zero, as of a
        # bias before a batch norm, becomes a step as long as the learning rate. A ReLU or maximum
        # that rounding decides otherwise also changes gradients.
        ("float32", "1e-6", 1e-5),
        ("float64", "1e-3", 1e-10),
    ],
)
def test_devices_agree(dtype, learning_rate, bound):
    output = subprocess.run(
        [sys.executable, "-m", "tests.core.train_on_devices", dtype, learning_rate],
        env={**os.environ, "JAX_NUM_CPU_DEVICES": "8"},
        cwd=Path(__file__).parents[2],
        stdout=subprocess.PIPE,
        check=True,
    ).stdout
    differences = json.loads(output.splitlines()[-1])
    assert len(differences) == 3  # of 2, 4 and 8 devices from 1
    for by_name in differences:
        assert by_name.keys() == {"logits", "losses", "params"}
        assert max(by_name.values()) <= bound, by_name
