"""What a run shows: results on stdout, the pace on stderr."""

import io
import sys

import pytest

from jaxcifar.reporting.progress import Progress


@pytest.fixture
def train(monkeypatch):
    """Five steps of 100 images; the first compiles, a validation takes 6 seconds."""
    now = [1000.0]
    monkeypatch.setattr("tqdm.std.time", lambda: now[0])

    def train(**options):
        progress = Progress(1000, 200, **options)
        for seconds in (50, 1, 1, 2, 2):
            now[0] += seconds
            progress.advance(100, "epoch 1/1")
            if seconds == 1:
                progress.result("Loss: 1.0", "sure", progress.pace())
                now[0] += 3
                assert progress.pace() is None
                progress.result("Accuracy: 50 %")
        progress.result("Loss: 0.5", "sure", progress.pace())
        progress.close()

    return train


def test_a_log_gets_lines_and_other_processes_are_silent(train, capsys):
    train()
    out, lines = capsys.readouterr()
    assert out == 2 * "Loss: 1.0\nAccuracy: 50 %\n" + "Loss: 0.5\n"
    # The speed is that of the last steps; the time left counts the validations, too.
    # After 1, 5 and 12 seconds, 100, 200 and 400 images.
    assert lines.splitlines() == [
        "  400/1000 images, 100 images/s, 00:06 left, sure",
        "  500/1000 images, 100 images/s, 00:12 left, sure",
        "  700/1000 images, 50 images/s, 00:09 left, sure",
    ]
    train(silent=True)
    assert capsys.readouterr() == ("", "")


def test_a_terminal_gets_a_bar(train, capsys, monkeypatch):
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    train()
    assert capsys.readouterr().err == ""
    shown = sys.stderr.getvalue()
    assert shown.index("compiling  20% |") < shown.index("epoch 1/1  30% |")
    assert "|" in shown[shown.rindex("\r") : shown.rindex("700/1000 images, ")]
    assert shown.rstrip().endswith(" left, sure")


def test_the_time_left_is_right_again_after_a_pause(monkeypatch, capsys):
    now = [0.0]
    monkeypatch.setattr("tqdm.std.time", lambda: now[0])
    progress = Progress(1000, 0)
    for seconds in (9, 1, 1, 3600, 1, *[2] * 10):  # at last at half the speed
        now[0] += seconds
        progress.advance(10, "epoch 1/1")
        progress.result("Loss: 1.0", "sure", progress.pace())
    lines = capsys.readouterr().err.splitlines()
    assert [lines[i].split(", ")[2] for i in (1, -1)] == ["01:37 left", "02:50 left"]
