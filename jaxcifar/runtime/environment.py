"""What a program ran on and with, for those who want to repeat it."""

import platform
from collections.abc import Iterable
from importlib import metadata
from typing import Any

PACKAGES = ("jaxcifar", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy")


def versions(packages: Iterable[str] = PACKAGES) -> dict[str, str]:
    """Versions of Python and of the packages that are installed."""
    found = {"python": platform.python_version()}
    for package in packages:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found


def describe() -> dict[str, Any]:
    """Versions, system and devices, as JSON would have it."""
    import jax

    kinds = sorted({device.device_kind for device in jax.devices()})
    return {
        "versions": versions(),
        "system": f"{platform.system()} {platform.machine()}",
        "devices": f"{jax.device_count()} x {', '.join(kinds)}",
        "processes": jax.process_count(),
    }
