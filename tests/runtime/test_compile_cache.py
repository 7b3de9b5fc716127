"""Where compiled programs are kept."""

import os
import subprocess
import sys

import pytest

from jaxcifar import cli
from jaxcifar.config import TrainConfig

CODE = """
import jax, jax.numpy as jnp
from jaxcifar.runtime import compile_cache
compile_cache.enable()
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
jax.jit(lambda x: jnp.sin(x) @ x)(jnp.ones((9, 9)))
print(jax.config.jax_compilation_cache_dir)
"""


def folder_with(**variables):
    """The cache that a fresh process uses under these environment variables."""
    environment = {k: v for k, v in os.environ.items() if k != "JAX_COMPILATION_CACHE_DIR"}
    environment |= {"JAX_PLATFORMS": "cpu"} | {k: str(v) for k, v in variables.items()}
    command = [sys.executable, "-c", CODE]
    run = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert run.stderr == ""
    return run.stdout.strip()


@pytest.mark.skipif(sys.platform != "linux", reason="another place than on Linux")
def test_programs_are_kept_in_the_users_cache(tmp_path):
    folder = folder_with(XDG_CACHE_HOME=tmp_path)
    assert folder.startswith(f"{tmp_path}/jaxcifar/jaxlib-")
    assert any(name.endswith("-cache") for name in os.listdir(folder))
    assert os.stat(folder).st_mode & 0o077 == 0
    assert folder_with(XDG_CACHE_HOME=tmp_path) == folder


def test_a_cache_that_is_set_is_left_as_it_is(tmp_path):
    mine, other = tmp_path / "mine", tmp_path / "other"
    assert folder_with(XDG_CACHE_HOME=other, JAX_COMPILATION_CACHE_DIR=mine) == str(mine)
    assert not other.exists()


def test_no_place_means_no_cache_and_no_error(tmp_path):
    (tmp_path / "file").write_text("")
    assert folder_with(XDG_CACHE_HOME=tmp_path / "file") == "None"


def test_it_is_an_option():
    assert TrainConfig().compile_cache
    flags = cli.parse(TrainConfig, ["--no-compile-cache"], prog="test", description="")
    assert flags == {"compile_cache": False}
