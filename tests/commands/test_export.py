"""Exported files: other programs get the same logits, and nothing is left half-written."""

import json
import resource
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

from jaxcifar import UserError, cli, export
from jaxcifar.core import inference
from jaxcifar.files import atomic, weights
from tests.commands.test_predict import random_images

BATCHES = (1, 3, 100)
WITH_PLAIN_JAX = """
import json, sys
for name in ("jaxcifar", "flax", "optax", "orbax", "torch"):
    sys.modules[name] = None  # its import fails
import numpy as np
from jax import export
program = export.deserialize(bytearray(open(sys.argv[1], "rb").read()))
images = np.load(sys.argv[2])
logits = [np.asarray(program.call(images[:count])) for count in json.loads(sys.argv[3])]
np.savez(sys.argv[4], *logits)
print(*program.platforms)
"""


def run_export(checkpoint, output, *flags):
    cli.call("export", ["--checkpoint", str(checkpoint), str(output), *flags])


@pytest.fixture(scope="module")
def images():
    return random_images(max(BATCHES))


@pytest.fixture(scope="module")
def logits(checkpoint, images):
    """The library's own, as evaluation computes them."""
    logits = inference.logits(weights.load(checkpoint).state(), images, batch_size=len(images))
    assert logits.std(axis=0).max() > 0.1  # it looks at the images
    return logits


def assert_close(actual, expected):
    np.testing.assert_allclose(actual, expected, rtol=0, atol=1e-5 * np.abs(expected).max())


def listing(folder):
    return {path.name: path.stat().st_mtime_ns for path in folder.iterdir()}


def test_plain_jax_gives_the_same_logits(checkpoint, images, logits, tmp_path, capsys):
    program = tmp_path / "resnet.stablehlo"
    run_export(checkpoint, program)
    out = capsys.readouterr().out
    assert out.count("\n") == 1
    assert f"wrote {program} (stablehlo, resnet50_layer4, 10 classes, 5" in out
    np.save(tmp_path / "images.npy", images)
    script = tmp_path / "alone.py"
    script.write_text(WITH_PLAIN_JAX)
    args = (program, tmp_path / "images.npy", json.dumps(BATCHES), tmp_path / "logits.npz")
    argv = [sys.executable, "-I", script, *args]
    alone = subprocess.run(argv, capture_output=True, text=True, cwd=tmp_path)
    assert alone.returncode == 0, alone.stderr
    assert alone.stdout.split() == list(export.PLATFORMS)
    with np.load(tmp_path / "logits.npz") as file:
        results = list(file.values())
    for count, result in zip(BATCHES, results, strict=True):
        assert result.dtype == np.float32
        assert result.shape == (count, 10)
        assert_close(result, logits[:count])


def test_torch_loads_the_state_dict_strictly(checkpoint, images, logits, tmp_path):
    torch = pytest.importorskip("torch", reason="torch is not installed")
    from jaxcifar.core.augment import normalize
    from jaxcifar.porting.torch_models import create_torch_model

    path = tmp_path / "resnet.ckpt"
    run_export(checkpoint, path)
    model = create_torch_model("resnet50_layer4").eval()
    model.load_state_dict(torch.load(path), strict=True)
    inputs = torch.from_numpy(np.array(normalize(images[:3])).transpose(0, 3, 1, 2).copy())
    with torch.no_grad():
        assert_close(model(inputs).numpy(), logits[:3])


def test_safetensors_keep_every_bit_and_the_names(checkpoint, tmp_path):
    path = tmp_path / "resnet.safetensors"
    run_export(checkpoint, path)
    source, back = weights.load(checkpoint), weights.load(path)
    assert back.class_names == source.class_names == tuple("abcdefghij")
    jax.tree.map(np.testing.assert_array_equal, back.variables, source.variables)


@pytest.mark.parametrize(
    ("output", "flags", "message"),
    [
        ("there.ckpt", [], "there.ckpt exists already: choose another name, or --force"),
        ("folder", [], "exists already"),
        ("folder", ["--force"], "is a folder and no checkpoint"),
        ("resnet", [], "resnet: unknown format; use .ckpt, .pt, .pth, .safetensors or .stablehlo"),
        ("x.onnx", [], "x.onnx: unknown format"),
        ("nowhere/x.ckpt", [], "nowhere: create it first"),
        ("x.ckpt", ["--ema"], "--ema is for torch files"),
    ],
)
def test_bad_input_writes_nothing(output, flags, message, checkpoint, tmp_path):
    (tmp_path / "there.ckpt").write_text("precious")
    (tmp_path / "folder").mkdir()
    before = listing(tmp_path)
    with pytest.raises(UserError) as error:
        run_export(checkpoint, tmp_path / output, *flags)
    assert message in str(error.value)
    assert listing(tmp_path) == before


def test_force_replaces_a_file_but_not_the_input(checkpoint, tmp_path):
    path = tmp_path / "x.safetensors"
    path.write_text("old")
    run_export(checkpoint, path, "--force")
    assert weights.load(path).model == "resnet50_layer4"
    with pytest.raises(UserError, match="is the input itself"):
        run_export(path, path, "--force")
    assert list(listing(tmp_path)) == ["x.safetensors"]


@pytest.mark.parametrize("suffix", [".stablehlo", ".safetensors"])
@pytest.mark.parametrize("exists", [False, True])
def test_a_full_disk_leaves_what_was_there(suffix, exists, checkpoint, tmp_path, monkeypatch):
    monkeypatch.setattr(export, "to_stablehlo", lambda weights: bytearray(2**20))
    path = tmp_path / f"x{suffix}"
    if exists:
        path.write_text("old")
    before = listing(tmp_path)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2**19, limits[1]))
    try:
        with pytest.raises((UserError, OSError)):
            run_export(checkpoint, path, "--force")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert listing(tmp_path) == before


@pytest.mark.parametrize("stop", [KeyboardInterrupt, UserError("no")])
def test_nothing_is_replaced_before_the_end(stop, tmp_path):
    path = tmp_path / "x.ckpt"
    path.write_text("old")
    before = listing(tmp_path)
    refused = pytest.raises((KeyboardInterrupt, UserError))
    with refused, atomic.replacing(path) as new:
        assert new.suffix == ".ckpt"
        new.write_text("half")
        raise stop
    assert listing(tmp_path) == before
    with atomic.replacing(path) as new:
        new.write_text("whole")
    assert path.read_text() == "whole"
    assert list(listing(tmp_path)) == ["x.ckpt"]


def test_a_folder_that_cannot_be_written_to():
    refused = pytest.raises(UserError, match="/dev/null cannot be written to")
    with refused, atomic.replacing(Path("/dev/null/x.ckpt")):
        pytest.fail("there is no such folder")
