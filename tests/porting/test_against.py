"""The comparison with the user's own torch class."""

import sys
from pathlib import Path

import numpy as np
import pytest

from tests.porting.files import VGG, port, refused, torch

MINE = """import torch
from torch import nn
from jaxcifar.porting.torch_models import VGG16
class Mine(VGG16):
"""
FORWARD = "    def forward(self, x):\n        return "
INIT = "    def __init__(self):\n        "


@pytest.fixture
def against(monkeypatch):
    monkeypatch.setattr(sys, "path", sys.path.copy())
    monkeypatch.setattr(sys, "dont_write_bytecode", True)

    def write(body, head=MINE):
        Path("mine.py").write_text(head + body + "\n")
        return "--against", "mine.py:Mine"

    return write


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (FORWARD + "super().forward(x) * 1.001", "outputs differ from torch's, first logits"),
        (FORWARD + "super().forward(x)[:, :9]", "first logits"),
        (INIT + "super().__init__(); self.classifier[3] = nn.Identity()", "first classifier.3"),
        (FORWARD + "(super().forward(x),)", "no single tensor of logits: nothing was written"),
        (FORWARD + "1 / 0  # no way\n", "torch's model fails: ZeroDivisionError"),
        (INIT + "raise RuntimeError('no\\nway')", "RuntimeError: no way"),
        (INIT + "super().__init__(batch_norm=True)", "does not take these weights"),
        ("    pass\nraise SystemExit(0)", "mine.py:Mine: SystemExit"),
        ("    pass\n)", "SyntaxError"),
        ("    pass\ndel Mine", "mine.py:Mine: AttributeError"),
        ("    pass\nMine = lambda: 3", "gives a int, no module"),
    ],
)
def test_another_torch_class_is_told_apart(checkpoints, against, body, words):
    Path("old.ckpt").write_bytes(b"old")
    flags = *against(body), "--force", "--report", "report.json"
    message = refused(checkpoints["vgg16"], "old.ckpt", *flags)
    assert words in message
    assert "first" not in words or "nothing was written" in message


DATACLASS = "    pass\n@dataclasses.dataclass\nclass Settings:\n    size: int = 3"
FUTURE = "from __future__ import annotations\nimport dataclasses\n"


@pytest.mark.parametrize(
    ("body", "head"),
    [("    pass", "import beside_mine\n"), (DATACLASS, FUTURE)],
    ids=["imports from beside", "with a dataclass"],
)
def test_your_own_torch_class_is_compared(capsys, checkpoints, against, body, head):
    Path("beside_mine.py").write_text("")
    port(checkpoints["vgg16"], "out.ckpt", *against(body, head + MINE))
    assert "verified against mine.py:Mine on 16 images" in capsys.readouterr().out
    assert Path("out.ckpt").exists()


@pytest.mark.parametrize("name", ["none.py:Mine", "mine.py", "mine.py:", ":Mine"])
def test_a_class_that_is_not_there_is_named(against, name):
    against("    pass")
    torch.save(VGG, "in.ckpt")
    assert name in refused("in.ckpt", "out", "--against", name)


def test_an_infinite_logit_does_not_hide_the_others(modules, against):
    bias = torch.tensor([float("inf"), *range(9)])
    torch.save(modules["vgg16"].state_dict() | {"classifier.5.bias": bias}, "in.ckpt")
    with np.errstate(invalid="ignore"):
        flags = against(FORWARD + "super().forward(x) * 1.01")
        assert "classifier.5 gives NaN or infinity" in refused("in.ckpt", "out.ckpt", *flags)
