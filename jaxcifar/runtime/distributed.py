"""Several processes that train together."""

import logging
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import jax
import numpy as np
from jax.experimental import multihost_utils

from jaxcifar.errors import UserError, one_line
from jaxcifar.runtime import console

WAIT_SECONDS = 60  # for the other processes of a run


def join(coordinator: str | None, num_processes: int | None, process_id: int | None) -> None:
    """Connect to the other processes of a run, or raise ``UserError``; call it before JAX computes.

    ``coordinator`` is ``HOST:PORT`` of process 0, ``auto`` for the cluster's environment, or None
    for a run of one process.
    """
    if coordinator is None or jax.distributed.is_initialized():
        return
    jax.config.update("jax_enable_preemption_service", False)  # the loop handles signals itself
    _keep_stdout_to_python()
    try:
        jax.distributed.initialize(
            None if coordinator == "auto" else coordinator,
            num_processes,
            process_id,
            initialization_timeout=WAIT_SECONDS,
            heartbeat_timeout_seconds=WAIT_SECONDS // 3,
            shutdown_timeout_seconds=WAIT_SECONDS // 3,
        )
    except (LookupError, ValueError, RuntimeError) as error:
        if coordinator == "auto" and not isinstance(error, RuntimeError):
            problem = "--coordinator auto finds no Slurm, Kubernetes, Open MPI or TPU here"
            raise UserError(f"{problem}: use HOST:PORT of process 0") from error
        advice = f"start all of them within {WAIT_SECONDS} seconds, with the same --coordinator"
        raise UserError(f"cannot connect to the other processes ({error}): {advice}") from error
    if not is_first_process():  # one process prints for all
        logging.getLogger("jaxcifar").setLevel(logging.ERROR)


def is_first_process() -> bool:
    """Whether this process prints and writes."""
    return jax.process_index() == 0


def agreed(flag: bool) -> bool:
    """Whether the flag is set in any process; each of them has to ask."""
    if jax.process_count() == 1:
        return flag
    return bool(multihost_utils.process_allgather(np.array(flag)).any())


@contextmanager
def watching() -> Iterator[None]:
    """End this process at once if another one of the run is gone, or does not come."""
    try:
        yield
    except jax.errors.JaxRuntimeError as error:
        if jax.process_count() == 1:
            raise
        problem = f"another process of the run has ended or is late ({one_line(str(error))[:200]})"
        advice = "start all of them again with --resume"
        print(f"jaxcifar: error: {problem}: {advice}", file=sys.stderr, flush=True)
        os._exit(2)


def _keep_stdout_to_python() -> None:
    """Silence Gloo, which reports each connection on stdout, where only results belong."""
    with suppress(OSError, ValueError), open(os.devnull, "w") as nowhere:  # a notebook has no file
        if sys.stdout.fileno() == 1:
            sys.stdout.flush()
            copy = os.fdopen(os.dup(1), "w", encoding=sys.stdout.encoding)
            sys.stdout = console.forgiving(copy)
            os.dup2(nowhere.fileno(), 1)
