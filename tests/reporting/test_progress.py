"""What a run shows: results on stdout, the pace on stderr."""

import io
import sys

import pytest

from jaxcifar.reporting.progress import Progress


@pytest.fixture
def train(monkeypatch):
    """Three steps of 100 images, in 50, 1 and 1 seconds."""
    now = [1000.0]
    monkeypatch.setattr("tqdm.std.time", lambda: now[0])

    def train(**options):
        progress = Progress(1000, 200, **options)
        assert progress.images_per_second is None
        for seconds in (50, 1, 1):
            now[0] += seconds
            progress.advance(100, "epoch 1/1")
        assert progress.images_per_second == 100  # the first step compiles
        progress.result("Loss: 1.0", pace=True)
        progress.close()

    return train


def test_a_log_gets_lines_and_other_processes_are_silent(train, capsys):
    train()
    pace = "  500/1000 images, 100.00 images/s, 00:05 left\n"
    assert capsys.readouterr() == ("Loss: 1.0\n", pace)
    train(silent=True)
    assert capsys.readouterr() == ("", "")


def test_a_terminal_gets_a_bar(train, capsys, monkeypatch):
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    train()
    assert capsys.readouterr().out == "Loss: 1.0\n"
    shown = sys.stderr.getvalue()
    assert shown.index("compiling  20% |") < shown.index("epoch 1/1  30% |")
    assert "|" in shown[shown.rindex("\r") : shown.rindex("500/1000 images, 100.00 images/s")]
