"""What a process asks of the system: memory that stays, warnings, and the compile cache."""

import os
import platform
import subprocess
import sys
from unittest.mock import Mock

import pytest

from jaxcifar import UserError
from jaxcifar.runtime import memory, process


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="mallopt is glibc's")
def test_freed_memory_is_kept():
    """100 MB allocated again and again: no page is fetched twice."""
    code = """
import resource
from jaxcifar import UserError
from jaxcifar.runtime import memory
memory.share_arenas()
import numpy as np
def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    np.ones(100_000_000, np.uint8)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
faults(); default = faults()
memory.keep_freed()
faults(); print(default, faults())
"""
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    default, kept = map(int, out.stdout.split())
    assert kept < 100
    assert kept < default / 10


def test_without_glibc_nothing_happens(monkeypatch):
    monkeypatch.setattr(memory.ctypes, "CDLL", lambda name: object())
    memory.share_arenas()
    memory.keep_freed.__wrapped__()


CACHE = """
import jax, jax.numpy as jnp
from jaxcifar.runtime import process
process.keep_programs()
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
jax.jit(lambda x: jnp.sin(x) @ x)(jnp.ones((9, 9)))
print(jax.config.jax_compilation_cache_dir)
"""


def cache_with(code=CACHE, **variables):
    """The cache that a fresh process uses under these environment variables."""
    environment = {k: v for k, v in os.environ.items() if k != "JAX_COMPILATION_CACHE_DIR"}
    environment |= {"JAX_PLATFORMS": "cpu"} | {k: str(v) for k, v in variables.items()}
    command = [sys.executable, "-c", code]
    run = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert run.stderr == ""
    return run.stdout.strip()


@pytest.mark.skipif(sys.platform != "linux", reason="another place than on Linux")
def test_programs_are_kept_in_the_users_cache(tmp_path):
    path = cache_with(XDG_CACHE_HOME=tmp_path)
    assert path.startswith(f"{tmp_path}/jaxcifar/jaxlib-")
    assert any(name.endswith("-cache") for name in os.listdir(path))
    assert cache_with(XDG_CACHE_HOME=tmp_path) == path


def test_a_damaged_program_is_replaced(tmp_path):
    again = """
paths = list(process.Path(jax.config.jax_compilation_cache_dir).glob("*-cache"))
[path.write_bytes(path.read_bytes()[:9]) for path in paths]
jax.clear_caches()
jax.jit(lambda x: jnp.sin(x) @ x)(jnp.ones((9, 9)))
assert max(path.stat().st_size for path in paths if path.exists()) > 9
"""
    cache_with(CACHE + again, XDG_CACHE_HOME=tmp_path)


def test_a_cache_that_is_set_stays(tmp_path):
    own, other = tmp_path / "own", tmp_path / "other"
    assert cache_with(XDG_CACHE_HOME=other, JAX_COMPILATION_CACHE_DIR=own) == str(own)
    assert not other.exists()


@pytest.mark.parametrize("error", [AssertionError(), RuntimeError("no backend"), ImportError("x")])
def test_without_a_device_the_variable_is_named(error, monkeypatch):
    monkeypatch.setattr(process.jax, "devices", Mock(side_effect=error))
    with pytest.raises(UserError, match=r"JAX_PLATFORMS=cpu \(.*(AssertionError|no backend|x).*\)"):
        process.start()


def test_without_a_place_or_a_home_there_is_no_cache_and_no_error(monkeypatch, tmp_path):
    cache_with(XDG_CACHE_HOME=__file__)  # where no folder can be made
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr(process.os.path, "expanduser", lambda path: path)
    monkeypatch.chdir(tmp_path)
    process.keep_programs()
    assert not list(tmp_path.iterdir())


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
    if not module.name.endswith("__main__"):
        import_module(module.name)
jaxcifar.cli.main()
"""


@pytest.mark.slow
def test_what_windows_lacks_is_not_needed(tmp_path):
    """A Linux without it trains; Windows itself may still differ."""
    options = (
        "train --dataset digits --model tests.tiny:Tiny --batch-size 400 --no-report --workdir"
    )
    command = [sys.executable, "-c", WINDOWS, *options.split(), str(tmp_path / "run")]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "Accuracy of the model on the test images" in done.stdout
