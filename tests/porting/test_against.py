"""The comparison with the user's own torch class."""

import sys
from pathlib import Path

import pytest

from tests.porting.files import port, refused
from tests.porting.test_own_networks import write

FLAGS = "--against", "mine.py:Mine"
MINE = "from my_torch import *\nclass Mine(Net):\n"
FORWARD = "    def forward(self, x):\n        return "
INIT = "    def __init__(self):\n        "


@pytest.fixture(autouse=True)
def _leave_no_trace(monkeypatch):
    monkeypatch.setattr(sys, "path", sys.path.copy())
    monkeypatch.setattr(sys, "dont_write_bytecode", True)


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (FORWARD + "super().forward(x) * 1.001", "outputs differ from torch's, first logits"),
        (INIT + "super().__init__(7); self.act = nn.Identity()", "first act"),
        (FORWARD + "(super().forward(x),)", "no single tensor of logits: nothing was written"),
        (FORWARD + "1 / 0  # no way\n", "torch's model fails: ZeroDivisionError"),
        (INIT + "super().__init__(8)", "does not take these weights"),
        ("    pass\nraise SystemExit(0)", "mine.py:Mine: SystemExit"),
        ("    pass\ndel Mine", "mine.py:Mine: AttributeError"),
        ("    pass\nMine = lambda: 3", "does not take these weights"),
    ],
)
def test_another_torch_class_is_told_apart(body, words):
    _, name = write()
    Path("mine.py").write_text(MINE + body)
    Path("old.ckpt").write_bytes(b"old")
    flags = *FLAGS, "--model", name, "--force", "--report", "report.json"
    message = refused("net.pth", "old.ckpt", *flags)
    assert words in message
    assert "first" not in words or "nothing was written" in message


DATACLASS = """from __future__ import annotations
import dataclasses
from jaxcifar.porting.torch_models import VGG16 as Mine
@dataclasses.dataclass
class Settings:
    size: int = 3
"""


def test_a_file_with_your_own_torch_class_is_compared(capsys, checkpoints):
    Path("mine.py").write_text(DATACLASS)
    port(checkpoints["vgg16"], "out.ckpt", *FLAGS)
    assert "verified against mine.py:Mine on 16 images" in capsys.readouterr().out
    assert Path("out.ckpt").exists()
