"""The wheel is complete: it is installed into an empty environment and used in an empty folder."""

import os
import subprocess
import sys
import venv
import zipfile
from pathlib import Path

import pytest

import jaxcifar

ROOT = Path(__file__).parents[2]


def run(*command, cwd):
    """What a command prints; the checkout is found by no environment variable."""
    env = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(list(map(str, command)), cwd=cwd, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    folder = tmp_path_factory.mktemp("wheel")
    run(sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", folder, cwd=ROOT)
    [path] = folder.iterdir()
    return path


@pytest.fixture(scope="module")
def environment(wheel, tmp_path_factory):
    """The programs of an environment with the wheel, and with the dependencies of this one."""
    folder = tmp_path_factory.mktemp("environment")
    venv.create(folder, symlinks=True)
    programs = folder / "bin"
    pip = (sys.executable, "-m", "pip", "--python", programs / "python", "install", "--quiet")
    run(*pip, "--no-index", "--no-deps", wheel, cwd=folder)
    # Python skips the .pth files of these folders, thus editable installations.
    dependencies = [path for path in sys.path if path.endswith("-packages")]
    [packages] = folder.glob("lib/python*/site-packages")
    (packages / "dependencies.pth").write_text("\n".join(dependencies))
    return programs


def test_the_wheel_holds_every_file_of_the_package(wheel):
    files = {str(p.relative_to(ROOT)) for p in ROOT.glob("jaxcifar/**/*") if p.is_file()}
    packed = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    assert packed == {path for path in files if "__pycache__" not in path}
    assert {"jaxcifar/py.typed", "jaxcifar/reporting/report.html"} <= packed


def test_the_command_is_the_installed_one(environment, tmp_path):
    version = run(environment / "jaxcifar", "--version", cwd=tmp_path)
    assert version == f"jaxcifar {jaxcifar.__version__}\n"
    code = "import jaxcifar; print(jaxcifar.__file__)"
    path = run(environment / "python", "-c", code, cwd=tmp_path)
    assert Path(path).is_relative_to(environment.parent)


@pytest.mark.slow
def test_the_port_works_without_the_checkout(environment, tmp_path):
    torch = pytest.importorskip("torch", reason="torch is not installed")
    from jaxcifar.porting.torch_models import create_torch_model

    torch.save(create_torch_model("resnet50_layer4").state_dict(), tmp_path / "in.ckpt")
    output = run(environment / "jaxcifar", "port", "in.ckpt", "flax", cwd=tmp_path)
    assert "round trip: 373 of 373 tensors bit-identical" in output
    assert "verified against torch on 16 images" in output
    assert (tmp_path / "flax").is_dir()
