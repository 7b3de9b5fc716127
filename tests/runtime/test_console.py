"""The streams and signals of a command, in processes of their own that load nothing heavy."""

import errno
import signal
import subprocess
import sys

import pytest

from jaxcifar.runtime import console

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="uses a Unix shell and devices")
SLEEP = """
import time
from jaxcifar.runtime import console
console.catch_signals()
try:
    print("ready", flush=True)
    time.sleep(60)
except KeyboardInterrupt as interrupt:
    console.leave(128 + interrupt.args[0])
"""


@pytest.mark.parametrize("closed", ["", ">&-", "2>&-", "<&- >&- 2>&-", "> /dev/full 2> /dev/full"])
def test_streams_that_are_closed_or_full_end_nothing(closed, tmp_path):
    code = (
        "import sys; from jaxcifar.runtime import console\nconsole.protect_streams(strict=False)\n"
    )
    code += f"file = open({str(tmp_path / 'file')!r}, 'w'); assert file.fileno() > 2; print('é')\n"
    code += "print('x', file=sys.stderr, flush=True); file.write('done')"
    command = f'{sys.executable} -c "$CODE" {closed}'
    environment = {"CODE": code, "PYTHONIOENCODING": "ascii", "PYTHONPATH": ":".join(sys.path)}
    done = subprocess.run(["sh", "-c", command], env=environment, capture_output=True, text=True)
    assert (tmp_path / "file").read_text() == "done"
    assert (done.returncode, done.stdout) in ((0, "?\n"), (0, ""))
    assert done.stderr in ("x\n", "")


def test_the_first_failure_of_a_strict_stream_is_raised():
    with open("/dev/full", "w") as full:
        stream = console.forgiving(full, strict=True)
        with pytest.raises(OSError, match="'stdout'") as failure:
            print("lost", file=stream)
        assert failure.value.errno == errno.ENOSPC
        print("lost, too", file=stream, flush=True)


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGHUP])
def test_a_signal_is_announced_and_ends_a_command(signum):
    process = subprocess.Popen([sys.executable, "-c", SLEEP], stdout=-1, stderr=-1, text=True)
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
