"""What a run shows: results on stdout, the pace on stderr."""

import io
import sys

import pytest

from jaxcifar.reporting.progress import Progress


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.fixture
def clock(monkeypatch):
    """A clock that moves when it is told to."""
    now = [1000.0]
    monkeypatch.setattr("tqdm.std.time", lambda: now[0])
    return now


def train(progress, clock):
    """Three steps of 100 images, in 50, 1 and 1 seconds."""
    for seconds in (50, 1, 1):
        clock[0] += seconds
        progress.advance(100, "epoch 1/1")
    progress.result("Loss: 1.0")
    progress.note_pace()
    progress.close()


def test_a_log_gets_the_pace_without_the_step_that_compiles(clock, capsys):
    progress = Progress(1000, 200)
    assert progress.images_per_second is None
    train(progress, clock)
    assert progress.images_per_second == 100
    out, error = capsys.readouterr()
    assert out == "Loss: 1.0\n"
    assert error == "  500/1000 images, 100.00 images/s, 00:05 left\n"


def test_a_terminal_gets_a_bar(clock, capsys, monkeypatch):
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    train(Progress(1000, 200), clock)
    assert capsys.readouterr().out == "Loss: 1.0\n"
    shown = terminal.getvalue()
    assert shown.index("compiling  20% |") < shown.index("epoch 1/1  30% |")
    assert "500/1000 images, 100.00 images/s, 00:05 left" in shown
    assert "  500/1000" not in shown.splitlines()[-1]  # no line of a log


def test_other_processes_are_silent(clock, capsys):
    progress = Progress(1000, 200, silent=True)
    train(progress, clock)
    assert progress.images_per_second == 100
    assert capsys.readouterr() == ("", "")
