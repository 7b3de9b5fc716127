"""The cache of compiled programs, so that only the first run waits for the compiler."""

import hashlib
import os
import platform
import sys
from pathlib import Path

import jax
import jaxlib


def enable() -> None:
    """Turn JAX's persistent compilation cache on, unless one is set, in the user's directory.

    If that cannot be created, there is no cache and no error.
    """
    if jax.config.jax_compilation_cache_dir:  # type: ignore[attr-defined]
        return
    directory = _directory()
    try:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError:
        return
    if os.access(directory, os.W_OK):
        jax.config.update("jax_compilation_cache_dir", str(directory))


def _directory() -> Path:
    """One for each jaxlib and processor: code for one can crash on another."""
    if sys.platform == "darwin":
        home = Path("~/Library/Caches")
    else:
        home = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache")
    processor = f"{platform.machine()} {platform.processor()} {cpu_flags()}"
    key = hashlib.sha256(processor.encode()).hexdigest()[:12]
    return home.expanduser() / "jaxcifar" / f"jaxlib-{jaxlib.version.__version__}-{key}"


def cpu_flags() -> str:
    """Return the processor's instruction sets, where Linux lists them."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return ""
    return next((line for line in lines if line.startswith(("flags", "Features"))), "")
