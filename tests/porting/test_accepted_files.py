"""Files that the port takes, and that what it writes is what it read, to the bit.

An optimizer beside the weights is taken if training can continue it, else left.
"""

import functools
import json
from itertools import pairwise
from pathlib import Path

import jax
import pytest

from jaxcifar.files import weights
from tests.conftest import assert_same
from tests.porting import files
from tests.porting.files import FIRST, VGG, assert_read, hollow_adam, port, takes, torch
from tests.porting.torch_reference import moments, random_module


def cast(state_dict, dtype):
    return {key: t.to(dtype) if t.is_floating_point() else t for key, t in state_dict.items()}


def with_nans(dtype, patterns):
    integer = torch.int32 if dtype == torch.float32 else torch.int16
    bias = torch.tensor(patterns * 16, dtype=integer).view(dtype)
    return cast(VGG, dtype) | {"features.0.bias": bias}


def strided_and_shared():
    module = random_module("vgg16", seed=1).to(memory_format=torch.channels_last)
    state_dict, storage = module.state_dict(), torch.arange(1000.0)
    assert not state_dict["features.2.weight"].is_contiguous()
    return state_dict | {
        "classifier.1.weight": state_dict["classifier.1.weight"].T.contiguous().T,
        "features.2.bias": state_dict["features.0.bias"],
        "classifier.1.bias": storage[3:515],
        "classifier.2.bias": storage[:512],
    }


SAME_BITS = {  # NaNs of both signs, with payloads, quiet and signalling
    "float32": with_nans(torch.float32, [0x7FC00000, 0x7FC12345, 0x7F800001, -0x400000]),
    "float16": with_nans(torch.float16, [0x7E00, 0x7E12, 0x7C01, -0x200]),
    "bfloat16": with_nans(torch.bfloat16, [0x7FC0, 0x7FC1, 0x7F81, -0x40]),
    "strided and shared": strided_and_shared(),
}


@pytest.mark.parametrize("state_dict", SAME_BITS.values(), ids=SAME_BITS)
def test_every_tensor_comes_back_in_the_same_bits(state_dict):
    names = "in.ckpt", "orbax", "kept.safetensors", "out.ckpt"
    torch.save(state_dict, names[0])
    for source, target in pairwise(names):
        port(source, target, "--no-verify")
    files.assert_equal(state_dict, torch.load("out.ckpt"))


def test_half_precision_is_verified_in_the_models_dtypes(modules):
    torch.save(cast(modules["vgg16"].state_dict(), torch.bfloat16), "in.ckpt")
    port("in.ckpt", "orbax")
    leaves = jax.tree.leaves(weights.load("orbax").variables)
    assert {leaf.dtype.name for leaf in leaves} == {"float32", "int32"}


def prefixed(prefix):
    return {prefix + key: tensor for key, tensor in VGG.items()}


NUMBER, AVERAGES, HALF = torch.tensor(0.5), files.hollow(shift=0.5), cast(VGG, torch.float16)
DOUBLE = VGG | {FIRST: VGG[FIRST].double()}  # exact in float32
THIRD = torch.tensor(1 / 3, dtype=torch.float64).expand(VGG[FIRST].shape)
HEAD = {"fc.weight": NUMBER.expand(100, 1024), "fc.bias": NUMBER.expand(100)}
HUNDRED = files.hollow("resnet50_layer4") | HEAD
NAMES = ["state_dict", "model_state_dict", "model", "net"]
PREFIXED = [
    (prefixed("module."), VGG, [f"in.ckpt: took the keys module.{FIRST} and so on\n"]),
    ({"a": prefixed("_orig_mod.module.")}, VGG, [f"keys a._orig_mod.module.{FIRST} and so on\n"]),
]
WITH_EMA = {
    "state_dict_ema": {"state_dict": VGG, "state_dict_ema": AVERAGES},
    "model_ema": {"state_dict": VGG, "model_ema": {"state_dict": AVERAGES}},
    "ema": {"state_dict": VGG, "ema": {"state_dict": AVERAGES}},
}
SWA = torch.optim.swa_utils.AveragedModel(files.VGG16())
AVERAGED = SWA.module.state_dict()
BESIDE = [  # what lies beside the weights costs nothing
    (VGG | {"epoch": 3, 7: NUMBER, "padding": NUMBER.expand(10**10)}, "left padding\n"),
    ({f"net.{k}": v for k, v in VGG.items()} | {"loss.weight": NUMBER}, "left loss.weight\n"),
    ({k.replace("features.", "features.module."): v for k, v in VGG.items()}, "took the keys feat"),
    (VGG | {"features.0.total_ops": NUMBER}, "left features.0.total_ops\n"),
    ({"a": VGG, "b": VGG}, "took the keys a.features"),
]
COUNT = "classifier.2.num_batches_tracked"
UNCOUNTED = {key: tensor for key, tensor in VGG.items() if key != COUNT}
TAKEN = [  # the content, what is read, and what is printed
    (DOUBLE, DOUBLE, ["float64"]),
    (VGG | {FIRST: THIRD}, VGG | {FIRST: THIRD.float()}, [f"as in torch: {FIRST} (float64)\n"]),
    (VGG | {COUNT: torch.tensor([7.0])}, VGG | {COUNT: torch.tensor(7.0)}, []),
    (VGG | {COUNT: torch.tensor(2**40)}, VGG | {COUNT: torch.tensor(0).int()}, ["as in torch"]),
    (HALF, HALF, ["took 34 tensors of float16 into the model's dtypes"]),
    (UNCOUNTED, UNCOUNTED, ["1 num_batches_tracked are missing: taken as 0"]),
    (HUNDRED, HUNDRED, ["resnet50_layer4 with 100 classes"]),
    *(({"epoch": 3, n: VGG, "best": 0.9}, VGG, [f"took the keys {n}.{FIRST} and"]) for n in NAMES),
    *((content, VGG, words) for content, *words in BESIDE),
    *PREFIXED,
    *(
        (content, VGG, [f"left {entry}", "an average of the weights: --ema takes that"])
        for entry, content in WITH_EMA.items()
    ),
    (SWA.state_dict(), AVERAGED, ["left n_averaged"]),
]
TAKEN_AS_EMA = [
    *((content, AVERAGES, [f"took the keys {entry}."]) for entry, content in WITH_EMA.items()),
    ({"model": VGG, "ema_model": SWA.state_dict()}, AVERAGED, ["took the keys ema_model.module."]),
]


@pytest.mark.parametrize(
    ("ema", "content", "expected", "words"),
    [(False, *row) for row in TAKEN] + [(True, *row) for row in TAKEN_AS_EMA],
)
def test_what_people_save_is_taken(capsys, ema, content, expected, words):
    printed = takes(capsys, content, *(["--ema"] if ema else []))
    assert [word for word in words if word not in printed] == []
    assert_read("in.ckpt", expected, ema=ema)


def test_adams_state_arrives(capsys):
    module = random_module("vgg16")
    optimizer = torch.optim.Adam(module.parameters(), lr=3e-4)
    for parameter in module.parameters():
        parameter.grad = torch.rand_like(parameter)
    optimizer.step()
    optimizer.step()
    state_dict = module.state_dict()
    content = {"model": state_dict, "optimizer": optimizer.state_dict(), "ema": state_dict}
    torch.save(content, "in.ckpt")
    port("in.ckpt", "out", "--no-verify", "--report", "report.json")
    note = "in.ckpt: took Adam's moments after 2 steps, learning rate 0.0003"
    assert note in capsys.readouterr().err
    assert json.loads(Path("report.json").read_text())["adam_steps"] == 2
    loaded = weights.load("out", optimizer=True)
    assert (loaded.adam.count, loaded.learning_rate) == (2, 3e-4)
    assert_same([loaded.adam.mu, loaded.adam.nu], moments(optimizer, module))
    for path in ("in.ckpt", "out"):
        assert weights.load(path).adam is None  # unless asked for
    averaged = weights.load("in.ckpt", ema=True, optimizer=True)
    assert averaged.adam is None  # the moments belong to the other copy
    port("out", "out.ckpt", "--no-verify")
    assert "without Adam's moments: only an Orbax" in capsys.readouterr().out
    files.assert_equal(state_dict, torch.load("out.ckpt"))


MOMENTUM = {"momentum_buffer": torch.zeros(1)}  # of SGD
NESTED = functools.reduce(lambda inner, _: [inner, inner], range(40), 0)  # 2**40 numbers
NUMBERS = {"step": 1, "exp_avg": 0, "exp_avg_sq": 0}


@pytest.mark.parametrize(
    ("optimizer", "words"),
    [
        (hollow_adam() | {"state": dict.fromkeys(range(32), MOMENTUM)}, "it is malformed"),
        (hollow_adam(weight_decay=0.01), "has weight_decay 0.01, training has 0"),
        (hollow_adam(params=[*range(31), "last"]), ""),
        (hollow_adam(step=1e12), "step"),
        (hollow_adam(betas=NESTED), ""),
        (hollow_adam(count=31), "a state for 31 of 32 parameters"),
        (hollow_adam() | {"state": dict.fromkeys(range(32), NUMBERS)}, ""),
    ],
)
def test_an_optimizer_that_cannot_be_continued_is_left(capsys, optimizer, words):
    printed = takes(capsys, {"state_dict": VGG, "optimizer": optimizer})
    assert "Warning: in.ckpt: left the optimizer: " in printed
    assert weights.load("in.ckpt", optimizer=True).adam is None
    assert words in printed
