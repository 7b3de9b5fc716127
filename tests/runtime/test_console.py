"""The streams and signals of a command, in processes of their own that load nothing heavy."""

import os
import shlex
import signal
import subprocess
import sys

import pytest

from jaxcifar.runtime import console

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="uses a Unix shell and devices")
COMMAND = """
import logging, sys, time, types
from jaxcifar import cli
from jaxcifar.reporting.progress import Progress

def main(config):
    if config.seed:
        print("ready", flush=True)
        try:
            time.sleep(60)
        except KeyboardInterrupt:
            raise ImportError("as of a module in C")
    progress = Progress(4, 0)
    with open("file", "w") as file:
        assert file.fileno() > 2
        for _ in range(2):
            progress.advance(2, "epoch 1/1")
            progress.result("é", "sure", progress.pace())
        logging.getLogger("jaxcifar").warning("x")
        file.write("done")

module = sys.modules[f"jaxcifar.{sys.argv[1]}"] = types.ModuleType("command")
module.main = lambda config: print("lost") if hasattr(config, "json") else main(config)
cli.main()
"""


def run(*words, redirected, cwd):
    command = shlex.join([sys.executable, "-c", COMMAND, *words]) + f" {redirected}"
    environment = {
        "PYTHONIOENCODING": "ascii",
        "PYTHONPATH": ":".join(map(os.path.abspath, sys.path)),
    }
    return subprocess.run(
        ["sh", "-c", command], cwd=cwd, env=environment, capture_output=True, text=True
    )


@pytest.mark.parametrize("closed", ["", ">&-", "2>&-", "<&- >&- 2>&-", "> /dev/full 2> /dev/full"])
def test_streams_that_are_closed_or_full_do_not_end_a_run(closed, tmp_path):
    done = run("train", redirected=closed, cwd=tmp_path)
    assert (tmp_path / "file").read_text() == "done"
    assert (done.returncode, done.stdout) in ((0, "?\n?\n"), (0, ""))
    assert done.stderr == "" or done.stderr.endswith(" left, sure\nWarning: x\n")


def test_a_full_stdout_ends_another_command_in_a_line(tmp_path):
    words = "evaluate", "--checkpoint", "x"
    done = run(*words, redirected="> /dev/full", cwd=tmp_path)
    message = "jaxcifar evaluate: error: [Errno 28] No space left on device\n"
    assert (done.returncode, done.stderr) == (2, message)


@pytest.mark.parametrize("signum", console.stop_signals()[1:])  # not SIGHUP under nohup
def test_a_signal_is_announced_and_ends_a_command(signum):
    words = [sys.executable, "-c", COMMAND, "train", "--seed", "1"]
    process = subprocess.Popen(words, stdout=-1, stderr=-1, text=True)
    assert process.stdout.readline() == "ready\n"
    process.send_signal(signum)
    assert "stopping" in process.communicate(timeout=60)[1]
    assert process.returncode == 128 + signum


def test_nohup_is_heeded():
    old = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        assert console.stop_signals() == [signal.SIGINT, signal.SIGTERM]
    finally:
        signal.signal(signal.SIGHUP, old)
