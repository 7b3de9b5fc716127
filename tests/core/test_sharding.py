"""Several devices compute what one does."""

import json
import os
import subprocess
import sys
from pathlib import Path

import jax
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxcifar.core import sharding


@pytest.mark.slow
@pytest.mark.parametrize(
    ("dtype", "learning_rate", "bound"),
    [
        # Adam divides by |g| + 1e-8: in float32 the rounding of a gradient that is zero, as of a
        # bias before a batch norm, becomes a step of the learning rate's size; and a ReLU or a
        # maximum that rounding decides otherwise sends a gradient elsewhere.
        ("float32", "1e-6", 1e-5),
        ("float64", "1e-3", 1e-10),
    ],
)
def test_devices_agree(dtype, learning_rate, bound):
    done = subprocess.run(
        [sys.executable, "tests/core/train_on_devices.py", "tiny", dtype, learning_rate],
        env={**os.environ, "JAX_NUM_CPU_DEVICES": "8"},
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert found.keys() == {"2", "4", "8"}
    for devices, differences in found.items():
        for what, largest in differences.items():
            assert largest <= bound, (devices, what)


@given(batch_size=st.integers(1, 300), devices=st.integers(1, 64))
def test_a_batch_that_cannot_be_split_names_the_nearest(batch_size, devices):
    mesh = jax.sharding.AbstractMesh((devices,), (sharding.AXIS,))
    if batch_size % devices == 0:
        return sharding.require_divisible(batch_size, mesh)
    with pytest.raises(ValueError, match=f"cannot be split over {devices} devices") as error:
        sharding.require_divisible(batch_size, mesh)
    proposed = [int(word) for word in str(error.value).rpartition("take ")[2].split(" or ")]
    assert all(n > 0 and n % devices == 0 and abs(n - batch_size) < devices for n in proposed)
    return None
