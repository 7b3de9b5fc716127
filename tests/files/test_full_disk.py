"""A disk that is full or must not be written to: what was there stays, and a line says so."""

import contextlib
import logging
import subprocess
import sys
from pathlib import Path

import pytest

from jaxcifar import UserError, cli, export
from jaxcifar.files.run import RunDirectory
from tests.conftest import TINY
from tests.files.test_checkpoints import kept, restore, save

# The threads of Orbax that fail leave futures behind that nobody asks.
pytestmark = [
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning"),
]


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 1 MB, where the user may mount one."""
    mount = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(tmp_path)]
    if subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("mounting a small file system needs root")
    yield tmp_path
    subprocess.run(["umount", "-l", str(tmp_path)], check=True)


def fill(disk):
    filler = disk / "filler"
    with filler.open("wb", buffering=0) as file, contextlib.suppress(OSError):
        while True:
            file.write(bytes(1000))
    return filler


def test_a_directory_that_cannot_be_written_to_is_reported(small_disk):
    save(small_disk, 1)
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    file = small_disk.parent / "file"
    file.write_text("")
    for path in (small_disk, small_disk / "new", file, Path("/proc/run")):
        run = RunDirectory(path)
        with pytest.raises(UserError, match=r"cannot be written to \(.*\): free"), run.locked():
            pass
    assert kept(small_disk) == {1}


def test_a_full_disk_loses_no_checkpoint(small_disk):
    save(small_disk, 1)
    filler = fill(small_disk)
    with pytest.raises(UserError, match=r"cannot be written to.* checkpoints are intact; free"):
        save(small_disk, 2)
    filler.unlink()
    assert restore(small_disk).step == 1
    save(small_disk, 2)
    assert restore(small_disk).step == 2


@pytest.mark.parametrize(
    ("command", "output"),
    [
        ("port", "a.ckpt"),
        ("port", "a.safetensors"),
        ("port", "a"),
        ("export --checkpoint", "a.ckpt"),
        ("export --checkpoint", "a.stablehlo"),
    ],
)
def test_a_full_disk_keeps_the_old_output(
    command, output, checkpoint, small_disk, capsys, monkeypatch
):
    if output.endswith("ckpt"):
        pytest.importorskip("torch", reason="torch is not installed")
    monkeypatch.setattr(cli.console, "catch_signals", lambda: None)
    monkeypatch.setattr(cli.console, "leave", sys.exit)
    monkeypatch.setattr(sys, "argv", sys.argv[:1])
    monkeypatch.setattr(logging.getLogger("jaxcifar"), "propagate", True)  # restored after a test
    monkeypatch.setattr(export, "to_stablehlo", lambda weights: bytes(2**21))
    old = small_disk / output
    file = old
    if not old.suffix:  # Orbax's
        old.mkdir()
        file = old / "_CHECKPOINT_METADATA"
    file.write_text("old")
    filler = fill(small_disk)
    with pytest.raises(SystemExit) as end:
        cli.main(*command.split(), str(checkpoint), str(old), "--force", "--model", TINY)
    assert end.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"jaxcifar {command.split()[0]}: error: ")
    assert "free some space" in line
    assert {*small_disk.iterdir()} == {old, filler}
    assert file.read_text() == "old"
