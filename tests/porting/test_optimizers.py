"""Adam's moments in a torch file, and optimizers that training cannot continue."""

import json

import jax
import pytest

from jaxcifar.files import weights
from tests.conftest import assert_same
from tests.porting import torch_reference
from tests.porting.files import VGG, VGG16, assert_equal, hollow, hollow_adam, port, takes, torch


def test_adams_state_arrives(folder, capsys):
    module = torch_reference.randomize(VGG16())
    optimizer = torch.optim.Adam(module.parameters(), lr=3e-4)
    for parameter in module.parameters():
        parameter.grad = torch.rand_like(parameter)
    optimizer.step()
    optimizer.step()
    content = {"model": module.state_dict(), "optimizer": optimizer.state_dict(), "epoch": 1}
    torch.save(content, folder / "in.ckpt")
    port(folder, "in.ckpt", "out", "--no-verify", "--report", folder / "report.json")
    note = "in.ckpt: took Adam's moments after 2 steps, learning rate 0.0003"
    assert note in capsys.readouterr().err
    report = json.loads((folder / "report.json").read_text())
    assert report["adam_steps"] == 2
    assert report["notes"][-1].endswith(note)
    loaded = weights.load(folder / "out", optimizer=True)
    assert (loaded.adam.count, loaded.learning_rate) == (2, 3e-4)
    assert_same([loaded.adam.mu, loaded.adam.nu], torch_reference.moments(optimizer, module))
    for path in (folder / "in.ckpt", folder / "out"):
        assert weights.load(path).adam is None  # unless asked for
    port(folder, "out", "out.ckpt", "--no-verify")
    assert "without Adam's moments: only an Orbax" in capsys.readouterr().out
    assert_equal(module.state_dict(), torch.load(folder / "out.ckpt"))


def without(entry):
    adam = hollow_adam()
    del adam["param_groups"][0][entry]
    return adam


def sgd(momentum):
    with torch.device("meta"):
        parameters = list(VGG16().parameters())
    content = torch.optim.SGD(parameters, momentum=momentum, lr=0.1).state_dict()
    for index, parameter in enumerate(parameters if momentum else ()):
        content["state"][index] = {"momentum_buffer": torch.zeros(()).expand(parameter.shape)}
    return content


NUMBERS = {"step": 1, "exp_avg": 0, "exp_avg_sq": 0}


@pytest.mark.parametrize(
    ("optimizer", "words"),
    [
        (sgd(0.9), "is not Adam"),
        (sgd(0), "a state for 0 of 32 parameters"),
        (hollow_adam(weight_decay=0.01), "has weight_decay 0.01, training has 0"),
        (hollow_adam(amsgrad=True), "has amsgrad True"),
        (hollow_adam(betas=(0.5, 0.999)), "has betas (0.5, 0.999)"),
        (hollow_adam(betas=None), "betas"),
        (hollow_adam(params=[*range(31), "last"]), ""),
        (hollow_adam(lr="fast"), ""),
        (hollow_adam(step=float("nan")), "step"),
        (hollow_adam(step=1e12), "step"),
        (hollow_adam(step=float("inf")), ""),
        (hollow_adam(lr=10**400), ""),
        (hollow_adam(weight_decay=torch.ones(2)), ""),
        (hollow_adam(torch.tensor(1 / 3, dtype=torch.float64)), "is float64"),
        (hollow_adam(torch.zeros(()).to(torch.float8_e4m3fn)), "float8"),
        (hollow_adam(count=0), "a state for 0 of 32 parameters"),
        (hollow_adam(count=31), "a state for 31 of 32 parameters"),
        (without("lr"), ""),
        (without("params"), ""),
        (hollow_adam() | {"param_groups": [1]}, ""),
        (hollow_adam() | {"param_groups": "one"}, ""),
        (hollow_adam() | {"param_groups": None}, "no param_groups"),
        (hollow_adam() | {"state": {i: {"step": 1} for i in range(32)}}, "is not Adam"),
        (hollow_adam() | {"state": dict.fromkeys(range(32), NUMBERS)}, ""),
        ([1, 2], "is not the state dict of one optimizer"),
        ({"state": 3}, ""),
    ],
)
def test_an_optimizer_that_cannot_be_continued_is_left(folder, capsys, optimizer, words):
    printed = takes(capsys, folder, {"state_dict": VGG, "optimizer": optimizer})
    assert f"Warning: {folder / 'in.ckpt'}: left the optimizer: " in printed
    assert words in printed


@pytest.mark.parametrize("optimizer", [torch.ones(3), torch.ones(1), "adam"])
def test_something_else_in_the_optimizers_place_is_ignored(folder, capsys, optimizer):
    printed = takes(capsys, folder, {"state_dict": VGG, "optimizer": optimizer})
    assert "took state_dict" in printed
    assert "moments" not in printed


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_moments_in_half_precision_arrive_unless_averages_are_taken(folder, capsys, dtype):
    adam = hollow_adam(torch.tensor(0.5, dtype=dtype))
    content = {"state_dict": VGG, "ema": hollow(shift=0.5), "optimizer": adam}
    assert "Adam's moments after 3 steps" in takes(capsys, folder, content)
    adam = weights.load(folder / "in.ckpt", optimizer=True).adam
    assert all((leaf == 0.5).all() for leaf in jax.tree.leaves(adam.mu))
    assert "left optimizer: it belongs to" in takes(capsys, folder, content, "--ema")
    assert weights.load(folder / "in.ckpt", ema=True, optimizer=True).adam is None
