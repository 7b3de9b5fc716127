"""A few of the kills of ``make torture``."""

import pytest

from tests.commands.torture import torture


@pytest.mark.slow
def test_killed_runs_end_as_an_undisturbed_one():
    assert torture(kills=3, seed=1) >= 1
