"""Networks of the user's own: by file and name, and what a wrong one is told."""

from itertools import count
from pathlib import Path

import pytest

from jaxcifar import UserError, cli
from tests.porting.files import assert_equal, port, refused, torch

MY_TORCH = """
import torch
from torch import nn
class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Conv2d(16, 16, 1, 2), nn.Conv2d(16, 16, 3, 1, 1)
        self.downsample = nn.Conv2d(16, 16, 1, 2)
    def forward(self, x):
        return self.downsample(x) + self.b(self.a(x))
class Branches(nn.Module):
    def __init__(self):
        super().__init__()
        self.left, self.right = nn.Conv2d(16, 8, 1), nn.Conv2d(16, 24, 1)
    def forward(self, x):
        return torch.cat([self.left(x), self.right(x)], 1)
class Net(nn.Module):
    def __init__(self, num_classes=10):
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(3, 16, 3, 2, 1), nn.BatchNorm2d(16)
        self.act, self.block, self.branches = nn.GELU(), Block(), Branches()
        self.pool = nn.AvgPool2d(3, 2, 1)
        self.up = nn.Upsample(scale_factor=2, mode="bilinear")
        self.fc = nn.Linear(32 * 8 * 8, num_classes)
    def forward(self, x):
        x = self.block(self.act(self.bn1(self.conv1(x))))
        x = self.up(self.pool(torch.relu(self.branches(x))))
        return self.fc(x.flatten(1))
"""
MY_NET = """
import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxcifar.layers import *
class Block(nn.Module):
    @nn.compact
    def __call__(self, x, *, train):
        y = Conv(16, 1, 2, name="a")(x, train=train)
        y = Conv(16, 3, 1, 1, name="b")(y, train=train)
        return y + Conv(16, 1, 2, name="downsample")(x, train=train)
class Branches(nn.Module):
    @nn.compact
    def __call__(self, x, *, train):
        left = Conv(8, 1, name="left")(x, train=train)
        right = Conv(24, 1, name="right")(x, train=train)
        return jnp.concatenate([left, right], -1)
class Up(nn.Module):
    @nn.compact
    def __call__(self, x, *, train):
        return jax.image.resize(x, (len(x), 8, 8, 32), "bilinear")
class Net(nn.Module):
    num_classes: int = 10
    @nn.compact
    def __call__(self, x, *, train):
        x = Conv(16, 3, 2, 1, name="conv1")(x, train=train)
        x = BatchNorm(name="bn1")(x, train=train)
        x = GELU(name="act")(x, train=train)
        x = Block(name="block")(x, train=train)
        x = nn.relu(Branches(name="branches")(x, train=train))
        x = AvgPool(3, 2, 1, name="pool")(x, train=train)
        x = Up(name="up")(x, train=train)
        x = Flatten()(x, train=train)
        return Linear(self.num_classes, name="fc")(x, train=train)
"""
numbers = count()
OPTIONS = "--against", "my_torch.py:Net"


def write(*changes):
    """Write the torch class, a checkpoint of 7 classes, and the Flax class under a new name."""
    Path("my_torch.py").write_text(MY_TORCH)
    names = {}
    exec(MY_TORCH, names)
    torch.manual_seed(0)
    module = names["Net"](7)
    for _ in range(3):
        module(torch.randn(8, 3, 32, 32) * 3 + 1)
    torch.save(module.state_dict(), "net.pth")
    text = MY_NET
    for old, new in changes:
        assert text.count(old) == 1, old
        text = text.replace(old, new)
    path = Path(f"my_net{next(numbers)}.py")
    path.write_text(text)
    return module, f"{path}:Net"


def test_a_network_of_ones_own_goes_there_and_back(capsys):
    module, name = write()
    port("net.pth", "flax", "--model", name, *OPTIONS, "--train-step")
    out = capsys.readouterr().out
    assert "with 7 classes: 19 tensors" in out
    assert "verified against my_torch.py:Net" in out
    assert "bn1.running_var" in out
    port("flax", "back.pth", "--model", name, "--no-verify")
    assert_equal(module.state_dict(), torch.load("back.pth"))
    assert f"name it with --model {name}" not in refused("flax", "x", "--model", "none.py:Net")
    assert "own network" in refused("flax", "x")  # code is not run unless it is named


BOTH = """        y = Conv(16, 1, {}, name="a")(x, train=train)
        y = Conv(16, 3, {}, 1, name="b")(y, train=train)
"""
PADDED = "jnp.pad(x, ((0, 0), (0, 1), (0, 1), (0, 0)))"
BRANCHES = 'Branches(name="branches")(x, train=train)'
DOWNSAMPLE = 'Conv(16, 1, 2, name="downsample")(x, train=train)'
RESIZE = 'resize(x, (len(x), 8, 8, 32), "bilinear")'
ALIGNED = RESIZE.replace("resize", "scale_and_translate").replace(
    '"bilinear"', '(1, 2), jnp.full(2, 7 / 3), jnp.full(2, -2 / 3), "linear"'
)
MISTAKES = [
    ("Conv(16, 3, 2, 1, name", "Conv(16, 3, 2, name", "first conv1", "padding 0, torch has (1, 1)"),
    ('2, 1, name="conv1")(x', f'2, 0, name="conv1")({PADDED}', "first conv1", "padding SAME"),
    (BOTH.format(2, 1), BOTH.format(1, 2), "first block.a", "stride 1, torch has (2, 2)"),
    ("BatchNorm(name", "BatchNorm(1e-3, name", "first bn1", "epsilon 0.001, torch has 1e-05"),
    ("BatchNorm(name", "BatchNorm(track_running_stats=False, name", "unexpected: bn1.running_mean"),
    ('GELU(name="act")', 'ReLU(name="act")', "first act", "the activation is relu"),
    ('        x = GELU(name="act")(x, train=train)\n', "", "first block.downsample",
     "an activation between bn1 and this layer is missing"),
    (f"nn.relu({BRANCHES})", BRANCHES, "first pool",
     "an activation between branches and this layer is missing"),
    (f"return y + {DOWNSAMPLE}", f"{DOWNSAMPLE}\n        return y", "first block",
     "its output is that of torch's block.b"),
    ("[left, right]", "[right, left]", "first branches", "swapped branches"),
    ("AvgPool(3, 2, 1, name", "AvgPool(3, 2, 1, count_include_pad=False, name", "first pool",
     "count_include_pad False, torch has True"),
    (RESIZE, ALIGNED, "first up", "align_corners True"),
    ("x = Flatten()(x, train=train)", "x = x.reshape(len(x), -1)", "first fc",
     "it flattens channels last, torch (C, H, W)"),
]  # fmt: skip


@pytest.mark.parametrize("mistake", MISTAKES, ids=[m[-1] for m in MISTAKES])
def test_a_mistake_is_called_by_its_name(mistake):
    old, new, *words = mistake
    _, name = write((old, new))
    message = refused("net.pth", "out", "--model", name, *OPTIONS)
    assert [word for word in words if word not in message] == []


def test_a_wrong_momentum_shows_after_a_training_step():
    _, name = write(("BatchNorm(name", "BatchNorm(momentum=0.9, name"))
    port("net.pth", "out", "--model", name, *OPTIONS)
    message = refused("net.pth", "out2", "--model", name, *OPTIONS, "--train-step")
    assert "first bn1.running_mean" in message
    assert "momentum 0.9, torch has 0.1" in message


def test_keys_that_do_not_fit_are_listed_with_the_nearest(capsys):
    _, name = write(('name="conv1"', 'name="conv_1"'))
    assert "2 missing: conv_1.weight" in refused("net.pth", "out", "--model", name)
    line = "only the network has conv_1.bias; did you mean conv1.bias?"
    assert line in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("none.py:Net", "FileNotFoundError"),
        ("none.module:Net", "ModuleNotFoundError"),
        ("{}:Other", "AttributeError"),
        ("{}:Block", "of another shape: a.weight"),
        ("{}:jnp", "TypeError"),
        ("collections:Counter", "gives a Counter, not a Flax module"),
        ("flax.linen:Dense", "Dense"),
    ],
)
def test_a_network_that_cannot_be_used_is_named_in_a_line(name, words):
    _, right = write()
    name = name.format(right.partition(":")[0])
    assert words in refused("net.pth", "out", "--model", name)


@pytest.mark.slow
def test_a_network_of_ones_own_trains_resumes_and_predicts(capsys):
    _, name = write()
    flags = ["--workdir", "run", "--dataset", "digits", "--init-from", "net.pth", "--no-report"]
    cli.call("train", [*flags, "--model", name])
    assert "reinitialising the head (fc)" in capsys.readouterr().err
    resume = ["--workdir", "run", "--resume", "--epochs", "2"]
    with pytest.raises(UserError, match=f"pass --model {name}, too"):
        cli.call("train", resume)
    cli.call("train", [*resume, "--model", name])
    for command, *output in ("evaluate",), ("export", "a.pth"):
        with pytest.raises(Exception, match="name it with --model"):
            cli.call(command, ["--checkpoint", "run", *output])
        cli.call(command, ["--checkpoint", "run", *output, "--model", name])
    assert f"{name} on 360 test images" in capsys.readouterr().out
    assert torch.load("a.pth")["fc.weight"].shape == (10, 2048)
