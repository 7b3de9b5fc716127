"""The benchmarks run; times on a busy machine mean nothing."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


def run(*command):
    out = subprocess.run(
        [sys.executable, *map(str, command)], capture_output=True, text=True, check=True
    )
    return out.stdout


@pytest.mark.slow
@pytest.mark.parametrize("program", ["jaxcifar", "torch", "stock flax"])
def test_one_program_is_measured(program):
    if program == "torch":
        pytest.importorskip("torch", reason="torch is not installed")
    options = ("--batch-size", 4, "--steps", 2, "--chunk", 2)
    task = ("evaluate", "resnet50_layer4", "float32")
    figures = json.loads(run(BENCHMARKS / "measure.py", program, *task, *options))
    assert len(figures["seconds"]) == 2
    assert all(0 < s < figures["first_step"] for s in figures["seconds"])
    assert figures["peak_bytes"] > 100e6


@pytest.mark.slow
def test_every_layer_is_measured(tmp_path):
    path = tmp_path / "layers.json"
    options = ("--precision", "float32", "--batch-size", 1, "--repeats", 1, "--json", path)
    text = run(BENCHMARKS / "layers.py", "--models", "vgg16", *options)
    results = json.loads(path.read_text())
    chosen = [r for r in results if r["chosen"] and r["model"] == "vgg16"]
    assert sum(r["layers"] for r in chosen) == 13
    assert {r["algorithm"] for r in chosen} == {"xla", "winograd", "dense"}
    assert "matmul peak" in text
