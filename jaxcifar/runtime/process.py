"""What a process computes with: devices, other processes, compiled programs, versions."""

import ctypes
import hashlib
import logging
import os
import platform
import subprocess
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from importlib import metadata
from pathlib import Path
from typing import Any

import jax
import jaxlib
import platformdirs

from jaxcifar.errors import UserError, one_line

WAIT_SECONDS = 60  # for the other processes of a run
PACKAGES = ("jaxcifar", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy")


def start(*, use_compile_cache: bool = False, prefer_cpu: bool = False) -> None:
    """Set JAX and its devices up; if ``prefer_cpu``, the CPU unless the user chose a platform."""
    if prefer_cpu and not jax.config.jax_platforms:  # type: ignore[attr-defined]
        jax.config.update("jax_platforms", "cpu")
    # On a CPU each step ends, and frees its memory, before the next is dispatched.
    jax.config.update("jax_cpu_enable_async_dispatch", False)
    for name in ("absl", "asyncio", "jax._src.callback"):  # which log what we say in a line
        logging.getLogger(name).setLevel(logging.CRITICAL)
    if use_compile_cache:
        keep_programs()
    try:
        jax.devices()
    except Exception as error:  # of JAX or a plugin; an assertion, if JAX knows no such platform
        platforms = jax.config.jax_platforms or ""  # type: ignore[attr-defined]
        problem = f"JAX has no device for JAX_PLATFORMS={platforms} ({error!r:.200})"
        raise UserError(f"{problem}: set JAX_PLATFORMS=cpu, or see to the driver") from error


def keep_freed() -> None:
    """Keep freed memory, which glibc would return after each step; first return what is free."""
    if os.name == "posix" and hasattr(libc := ctypes.CDLL(None), "malloc_trim"):
        libc.malloc_trim(0)
        libc.mallopt(-4, 0)  # M_MMAP_MAX
        libc.mallopt(-1, -1)  # M_TRIM_THRESHOLD


def computes_on_cpu() -> bool:
    """Whether JAX's devices are CPUs."""
    return jax.default_backend() == "cpu"


def join(coordinator: str | None, num_processes: int | None, process_id: int | None) -> None:
    """Connect to the other processes of a run, if there are any; call it before JAX computes."""
    if coordinator is None or jax.distributed.is_initialized():
        return
    jax.config.update("jax_enable_preemption_service", False)  # the loop handles signals itself
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
        problem = f"cannot connect to the other processes ({error})"
        advice = f"start all within {WAIT_SECONDS} seconds, with the same --coordinator HOST:PORT"
        schedulers = "auto needs Slurm, Kubernetes, Open MPI or a TPU"
        raise UserError(f"{problem}: {advice}; {schedulers}") from error


@contextmanager
def watching() -> Iterator[None]:
    """End this process at once if another one of the run is gone, or does not come."""
    try:
        yield
    except jax.errors.JaxRuntimeError as error:
        if jax.process_count() == 1:
            raise
        problem = f"another process of the run has ended or is late ({one_line(str(error))[:200]})"
        print(f"jaxcifar: error: {problem}: start all again with --resume", file=sys.stderr)
        os._exit(2)


def keep_programs() -> None:
    """Turn JAX's compilation cache on in the user's cache directory, unless one is set."""
    if jax.config.jax_compilation_cache_dir:  # type: ignore[attr-defined]
        return
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)  # dozens are quick
    # One for each jaxlib and processor: code for one can crash on another.
    processor = f"{platform.machine()} {platform.processor()} {cpu_info('flags', 'Features')}"
    key = hashlib.sha256(processor.encode()).hexdigest()[:12]
    with suppress(RuntimeError):  # without a home there is no cache
        caches = platformdirs.user_cache_path("jaxcifar")
        directory = caches / f"jaxlib-{jaxlib.version.__version__}-{key}"
        jax.config.update("jax_compilation_cache_dir", str(directory))
    show = warnings.showwarning

    def clear(message: Warning | str, *args: Any, **options: Any) -> None:
        """Delete all programs if one cannot be read: JAX would never replace it."""
        if "Error reading persistent compilation cache entry" in str(message):
            with suppress(OSError):  # where nothing can be written there is no cache either
                for path in directory.glob("*-cache"):
                    path.unlink(missing_ok=True)
        elif "Error writing persistent compilation" not in str(message):  # as of oneDNN's calls
            show(message, *args, **options)

    warnings.showwarning = clear


def cpu_info(*names: str) -> str:
    """Return what Linux says of the processor under the first of these names; empty if nothing."""
    with suppress(OSError, StopIteration):
        lines = Path("/proc/cpuinfo").read_text(errors="replace").splitlines()
        return next(line.partition(":")[2].strip() for line in lines if line.startswith(names))
    return ""


def versions(*others: str) -> dict[str, str]:
    """Return the versions of Python and of the packages that are installed."""
    installed = {"python": platform.python_version()}
    for package in (*PACKAGES, *others):
        with suppress(metadata.PackageNotFoundError):
            installed[package] = metadata.version(package)
    return installed


def describe() -> dict[str, Any]:
    """Return versions, commit, system and devices, for those who want to repeat a run."""
    root, commit = Path(__file__).parents[2], None
    command = ["git", "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*"]
    with suppress(OSError, subprocess.SubprocessError):
        if (root / ".git").exists():
            commit = subprocess.check_output(command, cwd=root, text=True).strip()  # noqa: S603
    kinds = sorted({device.device_kind for device in jax.devices()})
    processor = cpu_info("model name") or platform.processor() or platform.machine()
    return {
        "versions": versions(),
        "commit": commit,
        "system": f"{platform.system()} {platform.machine()}",
        "processor": f"{os.cpu_count()} x {processor}",
        "devices": f"{jax.device_count()} x {', '.join(kinds)}",
    }
