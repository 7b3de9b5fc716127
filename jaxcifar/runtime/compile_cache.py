"""Keeps compiled programs between runs, so that only the first one waits for the compiler."""

import hashlib
import os
import platform
import sys
from pathlib import Path


def enable() -> None:
    """Turns jax's persistent compilation cache on, in the user's cache folder.

    A cache that the user has set (``JAX_COMPILATION_CACHE_DIR``) is left as it is; a folder
    that cannot be made means no cache, and no error.
    """
    import jax

    if jax.config.jax_compilation_cache_dir:  # type: ignore[attr-defined]
        return
    folder = _folder()
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError:
        return
    if not os.access(folder, os.W_OK):
        return
    jax.config.update("jax_compilation_cache_dir", str(folder))


def _folder() -> Path:
    """One for each jaxlib and each kind of processor: code for one can crash on another."""
    import jaxlib

    if sys.platform == "darwin":
        home = Path("~/Library/Caches")
    else:
        home = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache")
    processor = f"{platform.machine()} {platform.processor()} {cpu_flags()}"
    key = hashlib.sha256(processor.encode()).hexdigest()[:12]
    return home.expanduser() / "jaxcifar" / f"jaxlib-{jaxlib.version.__version__}-{key}"


def cpu_flags() -> str:
    """The processor's instruction sets, where Linux lists them."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return ""
    return next((line for line in lines if line.startswith(("flags", "Features"))), "")
