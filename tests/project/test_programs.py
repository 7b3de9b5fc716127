"""Programs of their own: the wheel in an empty environment, and the benchmarks."""

import json
import os
import subprocess
import sys
import venv
import zipfile
from functools import partial
from pathlib import Path

import pytest

import jaxcifar

ROOT = Path(__file__).parents[2]
run = partial(subprocess.check_output, text=True)
# No environment variable leads to the checkout.
run_outside = partial(run, env={k: v for k, v in os.environ.items() if k != "PYTHONPATH"})


@pytest.fixture(scope="module")
def environment(tmp_path_factory):
    """A folder with the wheel, and with an environment that has the dependencies of this one."""
    folder = tmp_path_factory.mktemp("environment")
    run_outside([sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", folder], cwd=ROOT)
    venv.create(folder, symlinks=True)
    pip = [sys.executable, "-m", "pip", "--python", folder / "bin/python", "install", "--quiet"]
    run_outside([*pip, "--no-index", "--no-deps", *folder.glob("*.whl")], cwd=folder)
    # Python skips the .pth files of these folders, thus editable installations.
    dependencies = "\n".join(path for path in sys.path if path.endswith("-packages"))
    [packages] = folder.glob("lib/python*/site-packages")
    (packages / "dependencies.pth").write_text(dependencies)
    return folder


def test_the_wheel_holds_every_file_of_the_package(environment):
    [wheel] = environment.glob("*.whl")
    packed = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    files = {str(p.relative_to(ROOT)) for p in ROOT.glob("jaxcifar/**/*") if p.is_file()}
    assert packed == {path for path in files if "__pycache__" not in path}
    assert {"jaxcifar/py.typed", "jaxcifar/reporting/report.html"} <= packed


def test_the_command_is_the_installed_one(environment, tmp_path):
    version = run_outside([environment / "bin/jaxcifar", "--version"], cwd=tmp_path)
    assert version == f"jaxcifar {jaxcifar.__version__}\n"
    code = "import jaxcifar; print(jaxcifar.__file__)"
    path = run_outside([environment / "bin/python", "-c", code], cwd=tmp_path)
    assert Path(path).is_relative_to(environment)


@pytest.mark.slow
def test_the_port_works_without_the_checkout(environment, tmp_path):
    torch = pytest.importorskip("torch", reason="torch is not installed")
    from jaxcifar.porting.torch_models import create_torch_model

    torch.save(create_torch_model("resnet50_layer4").state_dict(), tmp_path / "in.ckpt")
    output = run_outside([environment / "bin/jaxcifar", "port", "in.ckpt", "flax"], cwd=tmp_path)
    assert "round trip: 373 of 373 tensors bit-identical" in output
    assert "verified against torch on 16 images" in output
    assert (tmp_path / "flax").is_dir()


@pytest.mark.slow
@pytest.mark.parametrize("program", ["jaxcifar", "torch"])
def test_one_program_is_measured(program):
    if program == "torch":
        pytest.importorskip("torch", reason="torch is not installed")
    task = ["evaluate", "vgg16", "float32", "--batch-size=4", "--steps=2", "--chunk=2"]
    figures = json.loads(run([sys.executable, ROOT / "benchmarks/measure.py", program, *task]))
    assert len(figures["seconds"]) == 2  # on a busy machine they mean nothing
    assert all(0 < s < figures["first_step"] for s in figures["seconds"])
    assert figures["peak_bytes"] > 100e6
