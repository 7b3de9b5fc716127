"""The processes that ``bench.py`` times."""

import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import Any, Self

MEASURE = Path(__file__).with_name("measure.py")
PATIENCE = 600  # seconds, after which a process has failed


class Program:
    """A process of ``measure.py`` that has done its first step and waits.

    If it fails, it prints why, and times nothing more.
    """

    def __init__(self, arguments: list[str]) -> None:
        self._name, self._log = " ".join(arguments), tempfile.TemporaryFile("w+")  # noqa: SIM115
        self._process = subprocess.Popen(  # noqa: S603
            [sys.executable, str(MEASURE), *arguments],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._log, text=True,
        )  # fmt: skip
        self.peak_bytes, self._failed = 0, False
        self._read()

    def time(self, steps: int) -> list[float]:
        """Return the seconds of each of so many steps; none after a failure."""
        if self._failed or not steps:
            return []
        with suppress(OSError):  # it has ended, which the missing answer shows
            print(steps, file=self._process.stdin, flush=True)
        return self._read().get("seconds", [])

    def _read(self) -> dict[str, Any]:
        limit = threading.Timer(PATIENCE, self._process.kill)
        limit.start()
        answers = (line for line in self._process.stdout if line.startswith("{"))
        line = next(answers, None)
        limit.cancel()
        if not line:
            self._failed = True
            self._log.seek(0)
            last = (self._log.read().strip().splitlines() or ["no message"])[-1]
            print(f"{self._name} failed: {last}", file=sys.stderr, flush=True)
            return {}
        figures = json.loads(line)
        self.peak_bytes = figures["peak_bytes"]
        return figures

    def close(self) -> None:
        """End the process and wait for it."""
        self._process.kill()
        self._process.communicate()
        self._log.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


def first_step_of_command(model: str, dataset: str, caches: Path) -> float | None:
    """Return the seconds from the start of ``jaxcifar train`` to its first loss, and end it."""
    with tempfile.TemporaryDirectory() as workdir, tempfile.TemporaryFile("w+") as log:
        command = [sys.executable, "-m", "jaxcifar", "train", "--model", model]
        command += ["--dataset", dataset, "--workdir", f"{workdir}/run"]
        command += ["--log-every", "1", "--limit-steps", "20"]  # ends soon if nobody ends it
        environment = os.environ | {"XDG_CACHE_HOME": str(caches)}
        environment.pop("JAX_COMPILATION_CACHE_DIR", None)
        start = time.monotonic()
        process = subprocess.Popen(  # noqa: S603
            command, stdout=subprocess.PIPE, stderr=log, text=True, env=environment
        )
        limit = threading.Timer(PATIENCE, process.kill)
        limit.start()
        seconds = None
        for line in process.stdout:
            if "Step [1/" in line:
                seconds = time.monotonic() - start
                break
        limit.cancel()
        process.kill()
        process.communicate()
        if seconds is None:
            log.seek(0)
            last = (log.read().strip().splitlines() or ["no message"])[-1]
            print(f"{' '.join(command[2:])} failed: {last}", file=sys.stderr, flush=True)
        return seconds
