"""What the port prints, reports and writes, and where it refuses to write."""

import json
import os
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from safetensors.torch import load_file, save_file

from jaxcifar import cli, data
from jaxcifar.core import augment
from jaxcifar.files import torch_files, weights
from jaxcifar.files.digest import sha256
from tests.porting import torch_reference
from tests.porting.files import (
    QUICK,
    Runs,
    assert_equal,
    assert_read,
    create_torch_model,
    hollow,
    listing,
    port,
    refused,
    torch,
)

TOOL = Path(__file__).parents[2] / "tools" / "port_torch_ckpt.py"


@pytest.mark.parametrize("name", ["vgg16", "resnet50_layer4"])
def test_there_and_back_is_the_same_file(folder, capsys, modules, checkpoints, name):
    port(checkpoints[name], folder / "orbax", "--report", folder / "report.json")
    out, error = capsys.readouterr()
    state_dict = modules[name].state_dict()
    assert f"is {name} with 10 classes: {len(state_dict)} tensors" in out
    assert f"{len(state_dict)} of {len(state_dict)} tensors bit-identical" in out
    assert "verified against torch on 16 images" in out
    assert error == ""
    port(folder / "orbax", folder / "out.ckpt", "--no-verify")
    back = torch.load(folder / "out.ckpt", weights_only=True)
    assert_equal(state_dict, back)
    fresh = create_torch_model(name)
    fresh.load_state_dict(back, strict=True)
    assert_equal(state_dict, fresh.state_dict())
    assert {path.name for path in folder.iterdir()} == {"orbax", "out.ckpt", "report.json"}

    variables = weights.load(folder / "orbax").variables
    params, batch_stats = torch_reference.to_flax(state_dict, modules[name])
    expected = {"params": params, "batch_stats": batch_stats}
    jax.tree.map(np.testing.assert_array_equal, variables, expected)

    report = json.loads((folder / "report.json").read_text())
    path = checkpoints[name]
    assert report["input"] == {"path": str(path), "sha256": sha256(path)}
    assert report["output"] == {"path": str(folder / "orbax"), "format": "orbax"}
    assert (report["model"], report["num_classes"]) == (name, 10)
    assert report["tensors"] == len(state_dict)
    assert report["parameters"] == sum(p.numel() for p in modules[name].parameters())
    assert report["normalization"] == {"mean": list(augment.MEAN), "std": list(augment.STD)}
    assert report["versions"]["torch"] == torch.__version__
    assert {"python", "jax", "flax", "orbax-checkpoint", "numpy"} <= set(report["versions"])
    assert 0 < report["verification"]["largest"] <= 1e-4
    layers = {row["name"]: row for row in report["verification"]["layers"]}
    assert layers["logits"]["relative"] <= 2e-5
    assert {key.rpartition(".")[0] for key in state_dict} <= set(layers)
    assert report["verification"]["not_compared"] == []


def test_an_existing_output_is_kept(folder, checkpoints):
    out, other = folder / "out.ckpt", folder / "folder"
    out.write_bytes(b"mine")
    other.mkdir()
    for words in ((out,), (other,), (folder / "new", "--report", out)):
        message = refused(folder, checkpoints["vgg16"], *words)
        assert f"{words[-1]} exists already" in message
        assert "--force" in message
    message = refused(folder, checkpoints["vgg16"], folder / "none" / "out")
    assert f"no folder {folder / 'none'}" in message
    for words in ((other,), (folder / "out", "--report", other)):  # not a checkpoint
        message = refused(folder, checkpoints["vgg16"], *words, "--force", "--no-verify")
        assert f"{other} is a folder and no checkpoint" in message


@pytest.mark.parametrize("target", ["runs/in.ckpt", "link.ckpt", "runs"])
def test_the_input_and_what_contains_it_are_not_overwritten(folder, target):
    path = folder / "runs" / "in.ckpt"
    path.parent.mkdir()
    torch.save(hollow(), path)
    (folder / "link.ckpt").symlink_to(path)
    message = refused(folder, path, folder / target, "--force", "--no-verify")
    assert f"{folder / target} is the input itself" in message


@pytest.mark.parametrize("report", ["in.ckpt", "out.ckpt", "none/report.json"])
def test_a_report_in_a_bad_place_is_refused_before_anything_is_written(folder, report):
    torch.save(hollow(), folder / "in.ckpt")
    flags = "--report", folder / report, "--force", "--no-verify"
    refused(folder, folder / "in.ckpt", folder / "out.ckpt", *flags)


def test_a_dry_run_writes_nothing(folder, capsys, checkpoints):
    (folder / "out.ckpt").write_bytes(b"mine")
    before = listing(folder)
    port(checkpoints["vgg16"], folder / "out.ckpt", "--dry-run")
    assert listing(folder) == before
    out = capsys.readouterr().out
    assert "verified against torch" in out
    assert "dry run: nothing written" in out
    report = folder / "report.json"
    port(checkpoints["vgg16"], folder / "out.ckpt", *QUICK, "--report", report)
    assert json.loads(report.read_text())["tensors"] == 35
    report.unlink()
    assert listing(folder) == before


def test_force_replaces_files_and_checkpoints(folder, checkpoints):
    (folder / "out.ckpt").write_bytes(b"old")
    (folder / "out").mkdir()
    for name in ("out/_CHECKPOINT_METADATA", "out/old", "report.json"):
        (folder / name).write_text("old")
    flags = "--force", "--no-verify", "--report", folder / "report.json"
    for name in ("out.ckpt", "out"):
        port(checkpoints["vgg16"], folder / name, *flags)
        assert weights.load(folder / name).model == "vgg16"
        assert json.loads((folder / "report.json").read_text())["output"]["path"].endswith(name)
    assert not (folder / "out" / "old").exists()
    port(checkpoints["vgg16"], folder / "out", *flags, "--to", "safetensors")
    assert load_file(folder / "out").keys() == torch.load(checkpoints["vgg16"]).keys()
    assert {path.name for path in folder.iterdir()} == {"out", "out.ckpt", "report.json"}


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_weight_that_is_not_finite_is_named_and_kept(folder, capsys, modules, value):
    state_dict = modules["vgg16"].state_dict()
    state_dict["classifier.5.bias"] = torch.tensor([value, *range(9)])
    path = folder / "in.ckpt"
    torch.save(state_dict, path)
    port(path, folder / "out.ckpt", "--report", folder / "report.json")
    error = capsys.readouterr().err
    assert error == f"Warning: {path}: not all finite: classifier.5.bias\n"
    assert_equal(state_dict, torch.load(folder / "out.ckpt"))
    invalid = []  # JSON has no NaN
    report = json.loads((folder / "report.json").read_text(), parse_constant=invalid.append)
    assert report["nonfinite"] == ["classifier.5.bias"]
    assert invalid == []


def test_test_images_are_compared_too(folder, capsys, checkpoints, monkeypatch, rng):
    images = rng.integers(0, 256, (60, 32, 32, 3), np.uint8)
    examples = data.Examples(images, np.zeros(60, np.int32))
    calls = []
    dataset = data.Dataset(examples, examples, tuple("abcdefghij"))
    monkeypatch.setattr(data, "load", lambda *args: calls.append(args) or dataset)
    port(checkpoints["vgg16"], folder / "out", "--dry-run", "--data-dir", folder)
    assert calls == [("cifar10", str(folder))]
    assert "verified against torch on 64 images" in capsys.readouterr().out


def test_without_torch_safetensors_still_port(folder, capsys, checkpoints, modules, monkeypatch):
    save_file(modules["vgg16"].state_dict(), folder / "in.safetensors")
    monkeypatch.setitem(sys.modules, "torch", None)
    monkeypatch.delitem(vars(torch_files.torch), "_module")  # the lazy import is tried again
    for argv in (
        (checkpoints["vgg16"], folder / "out"),
        (folder / "in.safetensors", folder / "out.ckpt"),
        (folder / "in.safetensors", folder / "out", "--against", "mine.py:Mine"),
    ):
        assert "torch 2.6 or newer: install it" in refused(folder, *argv)
    port(folder / "in.safetensors", folder / "orbax")
    port(folder / "orbax", folder / "out.safetensors")
    assert "not verified against torch, which is not installed" in capsys.readouterr().out
    monkeypatch.undo()
    assert_read(folder / "orbax", modules["vgg16"].state_dict())
    assert_read(folder / "out.safetensors", modules["vgg16"].state_dict())


@pytest.mark.parametrize("case", ["whole file", "missing file", "hostile file"])
def test_the_former_tool_takes_the_same_arguments(folder, case):
    path, target = folder / "in.ckpt", folder / "out.safetensors"
    attack = Runs(os.system, f"touch {folder / 'ran'}")
    if case != "missing file":
        torch.save(hollow() if case == "whole file" else {"a": attack}, path)
    before = listing(folder)
    command = [sys.executable, TOOL, path, target, "--no-verify"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if case == "whole file":
        assert (done.returncode, done.stderr) == (0, "")
        assert f"wrote {target} (safetensors)" in done.stdout
        assert_read(target, hollow())
    else:
        assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1)
        assert done.stderr.startswith("jaxcifar port: error: ")
        assert "in.ckpt" in done.stderr
        assert listing(folder) == before


def test_evaluation_is_the_same_from_each_format(folder, capsys, checkpoints, few_digits):
    paths = [checkpoints["vgg16"], folder / "out", folder / "out.safetensors"]
    for path in paths[1:]:
        port(checkpoints["vgg16"], path, "--no-verify")
    capsys.readouterr()
    printed = []
    for path in paths:
        cli.call("evaluate", ["--checkpoint", str(path), "--dataset", "digits"])
        out, error = capsys.readouterr()
        assert error == ""
        printed.append(out)
    assert printed[0].startswith("vgg16 on 20 test images of digits\n")
    assert "of the model on the test images: " in printed[0]
    assert len(set(printed)) == 1
