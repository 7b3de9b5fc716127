"""The versions and devices of a run, for those who want to repeat it."""

import os
import platform
import subprocess
from collections.abc import Iterable
from contextlib import suppress
from importlib import metadata
from pathlib import Path
from typing import Any

import jax

from jaxcifar.runtime import process

PACKAGES = ("jaxcifar", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy")


def versions(packages: Iterable[str] = PACKAGES) -> dict[str, str]:
    """Return the versions of Python and of the packages that are installed."""
    installed = {"python": platform.python_version()}
    for package in packages:
        with suppress(metadata.PackageNotFoundError):
            installed[package] = metadata.version(package)
    return installed


def describe() -> dict[str, Any]:
    """Return versions, commit, system and devices as JSON would have them."""
    kinds = sorted({device.device_kind for device in jax.devices()})
    return {
        "versions": versions(),
        "commit": _commit(),
        "system": f"{platform.system()} {platform.machine()}",
        "processor": f"{os.cpu_count()} x {process.processor()}",
        "devices": f"{jax.device_count()} x {', '.join(kinds)}",
        "processes": jax.process_count(),
    }


def _commit() -> str | None:
    """Return the commit of a clone, with a suffix if files were changed; None if this is none."""
    root = Path(__file__).parents[2]
    if not (root / ".git").exists():
        return None
    command = ["git", "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*"]
    with suppress(OSError, subprocess.SubprocessError):
        return subprocess.check_output(command, cwd=root, text=True).strip()  # noqa: S603 - a fixed command
    return None
