"""Training in processes of its own, as the command line starts it."""

import os
import subprocess
import sys
from pathlib import Path

from tests.conftest import SMALL

ROOT = Path(__file__).parents[2]


def start(workdir, options, model=SMALL, **environment):
    """Start ``jaxcifar train`` on digits."""
    options = f"--dataset digits --log-every 1 --model {model} {options}".split()
    return subprocess.Popen(
        [sys.executable, "-m", "jaxcifar", "train", "--workdir", str(workdir), *options],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT)} | environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def wait_for(process, text):
    """Return when a line on stdout contains the text."""
    for line in process.stdout:
        if text in line:
            return
    raise AssertionError(process.stderr.read())


def finish(*processes, timeout=600):
    """Return what each printed, a list of (stdout, stderr); none may have failed."""
    outputs = [process.communicate(timeout=timeout) for process in processes]
    for process, (_, error) in zip(processes, outputs, strict=True):
        assert process.returncode == 0, error
    return outputs
