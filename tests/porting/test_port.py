"""What the port prints, reports and writes, and where it refuses to write."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pooch
import pytest

from jaxcifar import data
from jaxcifar.core import augment
from jaxcifar.files import torch_files, weights
from tests.porting.files import (
    VGG,
    assert_equal,
    assert_read,
    listing,
    port,
    refused,
    save_file,
    torch,
)

TOOL = Path(__file__).parents[2] / "tools" / "port_torch_ckpt.py"


@pytest.mark.parametrize("name", ["vgg16", "resnet50_layer4"])
def test_there_and_back_is_the_same_file(capsys, modules, checkpoints, name):
    path, state_dict = checkpoints[name], modules[name].state_dict()
    port(path, "orbax", "--report", "report.json")
    out, error = capsys.readouterr()
    assert f"is {name} with 10 classes: {len(state_dict)} tensors" in out
    assert f"{len(state_dict)} of {len(state_dict)} tensors bit-identical" in out
    assert "verified against torch on 16 images" in out
    assert error == ""
    port("orbax", "out.ckpt", "--no-verify")
    assert_equal(state_dict, torch.load("out.ckpt", weights_only=True))
    assert set(os.listdir()) == {"orbax", "out.ckpt", "report.json"}

    report = json.loads(Path("report.json").read_text())
    expected = {
        "input": {"path": str(path), "sha256": pooch.file_hash(path)},
        "output": {"path": "orbax", "format": "orbax"},
        "model": name,
        "num_classes": 10,
        "tensors": len(state_dict),
        "parameters": sum(p.numel() for p in modules[name].parameters()),
        "normalization": {"mean": list(augment.MEAN), "std": list(augment.STD)},
    }
    assert report | expected == report
    assert {"python", "jax", "flax", "orbax-checkpoint", "numpy", "torch"} <= {*report["versions"]}
    verification = report["verification"]
    assert 0 < verification["largest"] <= 1e-4
    layers = {row["name"]: row for row in verification["layers"]}
    assert layers["logits"]["relative"] <= 2e-5
    assert {key.rpartition(".")[0] for key in state_dict} <= set(layers)
    assert verification["not_compared"] == []


@pytest.fixture
def file():
    """Small weights in ``runs/in.ckpt``."""
    path = Path("runs/in.ckpt")
    path.parent.mkdir()
    torch.save(VGG, path)
    return path


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        ("out.ckpt", "out.ckpt exists already"),
        ("none/out", "no folder"),
        ("other --force", "other exists already"),
        ("runs/in.ckpt --force", "runs/in.ckpt is the input itself"),
        ("link.ckpt --force", "link.ckpt is the input itself"),
        ("dangling.ckpt --force", "dangling.ckpt exists already"),
        ("new --report pipe --force", "pipe exists already"),
        ("new --report new --force", "cannot be the output and the report"),
    ],
)
def test_a_bad_place_is_refused_before_anything_is_written(file, argv, words):
    Path("out.ckpt").write_bytes(b"mine")
    Path("other").mkdir()
    Path("link.ckpt").symlink_to(file)
    Path("dangling.ckpt").symlink_to("nowhere")
    os.mkfifo("pipe")
    assert words in refused(file, *argv.split(), "--no-verify")


def test_a_dry_run_compares_test_images_too_and_writes_only_the_report(
    capsys, checkpoints, monkeypatch, rng
):
    examples = data.Examples(rng.integers(0, 256, (60, 32, 32, 3), np.uint8), np.zeros(60))
    for name in ("RANDOM_IMAGES", "VERIFY_IMAGES"):  # 16 in all, as in the other tests
        monkeypatch.setattr(f"jaxcifar.port.{name}", 8)
    calls, dataset = [], data.Dataset(examples, examples, ())
    monkeypatch.setattr(data, "load", lambda *args, **options: calls.append(args) or dataset)
    Path("out.ckpt").write_bytes(b"mine")
    before, report = listing(), Path("report.json")
    flags = "--dry-run", "--data-dir", "cifar", "--report", report
    port(checkpoints["vgg16"], "out.ckpt", *flags)
    assert calls == [("cifar10", "cifar")]
    assert "verified against torch on 16 images" in capsys.readouterr().out
    assert json.loads(report.read_text())["tensors"] == 35
    report.unlink()
    assert listing() == before


def test_force_replaces_files_and_checkpoints(file):
    Path("out").mkdir()
    for name in ("out.ckpt", "out/_CHECKPOINT_METADATA", "out/old", "report.json"):
        Path(name).write_text("old")
    flags = "--force", "--no-verify", "--report", "report.json"
    for name in ("out.ckpt", "out"):
        port(file, name, *flags)
        assert weights.load(name).model == "vgg16"
        assert json.loads(Path("report.json").read_text())["output"]["path"].endswith(name)
    assert not Path("out/old").exists()
    assert set(os.listdir()) == {"runs", "out", "out.ckpt", "report.json"}


def test_a_weight_that_is_not_finite_is_named_and_kept(capsys, modules):
    bias = torch.tensor([float("nan"), float("inf"), *range(8)])
    state_dict = modules["vgg16"].state_dict() | {"classifier.5.bias": bias}
    torch.save(state_dict, "in.ckpt")
    assert "in torch, classifier.5 gives NaN or infinity" in refused("in.ckpt", "out.ckpt")
    capsys.readouterr()
    port("in.ckpt", "out.ckpt", "--report", "report.json", "--no-verify")
    error = capsys.readouterr().err
    assert error == "Warning: in.ckpt: not all finite: classifier.5.bias\n"
    assert_equal(state_dict, torch.load("out.ckpt"))
    invalid = []  # JSON has no NaN
    report = json.loads(Path("report.json").read_text(), parse_constant=invalid.append)
    assert report["nonfinite"] == ["classifier.5.bias"]
    assert invalid == []


def test_without_torch_safetensors_still_port(capsys, checkpoints, modules, monkeypatch):
    save_file(modules["vgg16"].state_dict(), "in.safetensors")
    monkeypatch.setitem(sys.modules, "torch", None)
    monkeypatch.delitem(vars(torch_files.torch), "_module", raising=False)  # the lazy import
    assert "torch 2.6 or newer: install it" in refused("in.safetensors", "out.ckpt")
    assert "torch" in refused("in.safetensors", "out", "--against", "torch.nn:Module")
    port(checkpoints["vgg16"], "orbax")
    port("in.safetensors", "out.safetensors")
    assert "not verified against torch, which is not installed" in capsys.readouterr().out
    monkeypatch.undo()
    for name in ("orbax", "out.safetensors"):
        assert_read(name, modules["vgg16"].state_dict())


def test_the_former_tool_takes_the_same_arguments(file):
    command = [sys.executable, TOOL, file, "out.safetensors", "--no-verify"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert "wrote out.safetensors (safetensors)" in done.stdout
    assert_read("out.safetensors", VGG)
