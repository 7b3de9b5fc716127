"""What a process asks of the system: memory that stays, warnings, and the compile cache."""

import os
import platform
import subprocess
import sys
from unittest.mock import Mock

import pytest

from jaxcifar import UserError
from jaxcifar.runtime import process


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="mallopt is glibc's")
def test_freed_memory_is_kept():
    """100 MB allocated again and again: no page is fetched twice."""
    code = """
import resource
from jaxcifar.runtime import process
import numpy as np
def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    np.ones(100_000_000, np.uint8)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
faults(); default = faults()
process.keep_freed()
faults(); print(default, faults())
"""
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    default, kept = map(int, out.stdout.split())
    assert kept < min(100, default / 10)


CACHE = """
import jax, os, pathlib, warnings
from jaxcifar.runtime import process
def keep(**environment):
    os.environ.update(environment)
    process.keep_programs()
    jax.clear_caches()
    jax.jit(lambda x: jax.numpy.sin(x) @ x)(jax.numpy.ones((9, 9)))
    return pathlib.Path(jax.config.jax_compilation_cache_dir)
"""


def run(code):
    """Run code in a fresh process that has no cache yet."""
    environment = {k: v for k, v in os.environ.items() if "CACHE" not in k}
    command = [sys.executable, "-c", CACHE + code]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert done.stderr == ""


@pytest.mark.skipif(sys.platform != "linux", reason="another place than on Linux")
def test_programs_are_kept_in_the_users_cache_and_damaged_ones_replaced(tmp_path):
    code = f"""
path = keep(XDG_CACHE_HOME={str(tmp_path)!r})
assert path.match({f"{tmp_path}/jaxcifar/jaxlib-*"!r})
paths = list(path.glob("*-cache"))
warnings.warn("Error writing persistent compilation cache entry")  # is no matter
assert all(path.exists() for path in paths)
[path.write_bytes(path.read_bytes()[:9]) for path in paths]
keep()
assert max(path.stat().st_size for path in paths if path.exists()) > 9
"""
    run(code)


def test_without_a_home_or_a_place_there_is_no_cache_and_no_error():
    code = """
os.path.expanduser, expanduser = lambda path: path, os.path.expanduser
process.keep_programs()
assert jax.config.jax_compilation_cache_dir is None
os.path.expanduser = expanduser
keep(XDG_CACHE_HOME="/dev/null")  # where no folder can be made
"""
    run(code)


@pytest.mark.parametrize("error", [AssertionError(), RuntimeError("no backend"), ImportError("x")])
def test_without_a_device_the_variable_is_named(error, monkeypatch):
    monkeypatch.setattr(process.jax, "devices", Mock(side_effect=error))
    with pytest.raises(UserError, match=r"JAX_PLATFORMS=cpu \(.*(AssertionError|no backend|x).*\)"):
        process.start()


WINDOWS = """
import os, pkgutil, signal, sys
from importlib import import_module
heavy = "filelock jax flax.linen optax orbax.checkpoint tensorboardX tensorstore sklearn.datasets"
heavy += " matplotlib.figure PIL.Image tqdm safetensors scipy.special requests multiprocessing.pool"
heavy += " jax.experimental.multihost_utils tensorflow_datasets tests.tiny"
from orbax.checkpoint import v1
[import_module(name) for name in heavy.split()]  # their own Windows is theirs
for name in ("fcntl", "resource", "pwd", "grp", "termios", "array_record"):
    sys.modules[name] = None
for module, names in ((signal, "SIGHUP SIGKILL SIGALRM"), (os, "geteuid getuid mkfifo O_NOFOLLOW")):
    [delattr(module, name) for name in names.split()]
sys.platform = "win32"
import jaxcifar
for module in pkgutil.walk_packages(jaxcifar.__path__, "jaxcifar."):
    if not module.name.endswith(("__main__", "torch_models")):  # which needs torch
        import_module(module.name)
jaxcifar.cli.main()
"""


@pytest.mark.slow
def test_what_windows_lacks_is_not_needed(tmp_path):
    """A Linux without it trains; Windows itself may still differ."""
    words = "train --dataset digits --model tests.tiny:Small --batch-size 400 --no-report --workdir"
    command = [sys.executable, "-c", WINDOWS, *words.split(), str(tmp_path / "run")]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "Accuracy of the model on the test images" in done.stdout
