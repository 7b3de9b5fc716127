"""Exported files: other programs get the same logits, and nothing is left half-written."""

import re
import subprocess
import sys

import numpy as np
import pytest

from jaxcifar import UserError, cli, export
from jaxcifar.core import inference
from jaxcifar.files import weights
from tests.commands.test_predict import random_images
from tests.conftest import TINY, assert_same

BATCHES = (1, 3, 20)
WITH_PLAIN_JAX = f"""
import sys
for name in ("jaxcifar", "flax", "optax", "orbax", "torch"):
    sys.modules[name] = None  # its import fails
import numpy as np
from jax import export
program = export.deserialize(bytearray(open("tiny.stablehlo", "rb").read()))
images = np.load("images.npy")
np.savez("logits.npz", *(program.call(images[:count]) for count in {BATCHES}))
print(*program.platforms)
"""


def run_export(checkpoint, output, *flags):
    cli.call("export", ["--checkpoint", str(checkpoint), str(output), "--model", TINY, *flags])


def listing(folder):
    return {path.name: path.stat().st_mtime_ns for path in folder.iterdir()}


@pytest.fixture
def untouched(tmp_path):
    """A folder that a test must leave as it is."""
    for suffix in ("ckpt", "safetensors", "stablehlo"):
        (tmp_path / f"there.{suffix}").write_text("precious")
    (tmp_path / "folder").mkdir()
    before = listing(tmp_path)
    yield tmp_path
    assert listing(tmp_path) == before


def test_plain_jax_gives_the_same_logits(checkpoint, tmp_path, capsys):
    program, images = tmp_path / "tiny.stablehlo", random_images(max(BATCHES))
    run_export(checkpoint, program)
    (line,) = capsys.readouterr().out.splitlines()
    assert f"wrote {program} (stablehlo, {TINY}, 10 classes, " in line
    np.save(tmp_path / "images.npy", images)
    argv = [sys.executable, "-I", "-c", WITH_PLAIN_JAX]
    alone = subprocess.run(argv, stdout=subprocess.PIPE, text=True, cwd=tmp_path, check=True)
    assert alone.stdout.split() == list(export.PLATFORMS)
    state = weights.load(checkpoint, model=TINY).state()
    logits = inference.logits(state, images, batch_size=len(images))
    assert logits.std(axis=0).max() > 0.1  # it looks at the images
    with np.load(tmp_path / "logits.npz") as file:
        for count, result in zip(BATCHES, file.values(), strict=True):
            assert (result.dtype, result.shape) == (np.float32, (count, 10))
            atol = 1e-5 * np.abs(logits[:count]).max()
            np.testing.assert_allclose(result, logits[:count], rtol=0, atol=atol)


@pytest.mark.parametrize("name", ["x.ckpt", "x.safetensors"])
def test_files_keep_every_bit_and_force_replaces_all_but_the_input(name, checkpoint, tmp_path):
    if name == "x.ckpt":
        pytest.importorskip("torch", reason="torch is not installed")
    path = tmp_path / name
    path.write_text("old")
    run_export(checkpoint, path, "--force")
    source, back = (weights.load(each, model=TINY) for each in (checkpoint, path))
    assert_same(back.variables, source.variables)
    assert back.class_names == (source.class_names if name == "x.safetensors" else None)
    with pytest.raises(UserError, match="is the input itself"):
        run_export(path, path, "--force")
    assert list(listing(tmp_path)) == [name]


@pytest.mark.parametrize(
    ("output", "flags", "message"),
    [
        ("there.ckpt", [], "there.ckpt exists already: choose another name, or --force"),
        ("folder", ["--force"], "or --force to replace a file or checkpoint"),
        ("tiny", [], "tiny: unknown format; use .ckpt, .pt, .pth, .safetensors or .stablehlo"),
        ("nowhere/x.ckpt", [], "nowhere: create it first"),
        ("/proc/x.ckpt", [], "/proc/x.ckpt cannot be written to"),
        ("x.ckpt", ["--ema"], "has no such copy, but the bare keys"),
    ],
)
def test_bad_input_writes_nothing(output, flags, message, checkpoint, untouched):
    with pytest.raises(UserError, match=re.escape(message)):
        run_export(checkpoint, untouched / output, *flags)
