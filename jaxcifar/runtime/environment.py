"""The versions and devices of a run, for those who want to repeat it."""

import platform
from collections.abc import Iterable
from contextlib import suppress
from importlib import metadata
from typing import Any

import jax

PACKAGES = ("jaxcifar", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy")


def versions(packages: Iterable[str] = PACKAGES) -> dict[str, str]:
    """Return the versions of Python and of the packages that are installed."""
    installed = {"python": platform.python_version()}
    for package in packages:
        with suppress(metadata.PackageNotFoundError):
            installed[package] = metadata.version(package)
    return installed


def describe() -> dict[str, Any]:
    """Return versions, system and devices as JSON would have them."""
    kinds = sorted({device.device_kind for device in jax.devices()})
    return {
        "versions": versions(),
        "system": f"{platform.system()} {platform.machine()}",
        "devices": f"{jax.device_count()} x {', '.join(kinds)}",
        "processes": jax.process_count(),
    }
