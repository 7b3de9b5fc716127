"""Files that the port takes, and that what it writes is what it read, to the bit."""

import jax
import pytest
from safetensors.torch import save_file

from jaxcifar.files import weights
from tests.porting import files
from tests.porting.files import FIRST, VGG, assert_read, port, takes, torch
from tests.porting.torch_reference import randomize


def cast(state_dict, dtype):
    return {key: t.to(dtype) if t.is_floating_point() else t for key, t in state_dict.items()}


def with_nans(dtype, patterns):
    integer = torch.int32 if dtype == torch.float32 else torch.int16
    bias = torch.tensor(patterns * 16, dtype=integer).view(dtype)
    return cast(VGG, dtype) | {"features.0.bias": bias}


def strided_and_shared():
    module = randomize(files.VGG16(), seed=1).to(memory_format=torch.channels_last)
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
@pytest.mark.parametrize("kept", ["orbax", "kept.safetensors"])
def test_every_tensor_comes_back_in_the_same_bits(folder, state_dict, kept):
    torch.save(state_dict, folder / "in.ckpt")
    port(folder, "in.ckpt", kept, "--no-verify")
    port(folder, kept, "out.ckpt", "--no-verify")
    files.assert_equal(state_dict, torch.load(folder / "out.ckpt"))


def test_half_precision_is_verified_in_the_models_dtypes(folder, modules):
    torch.save(cast(modules["vgg16"].state_dict(), torch.bfloat16), folder / "in.ckpt")
    port(folder, "in.ckpt", "orbax")
    leaves = jax.tree.leaves(weights.load(folder / "orbax").variables)
    assert {leaf.dtype.name for leaf in leaves} == {"float32", "int32"}


def test_older_files_and_safetensors_are_taken(folder, capsys, modules):
    state_dict = modules["vgg16"].state_dict()
    torch.save(state_dict, folder / "in.pth", _use_new_zipfile_serialization=False)
    save_file(state_dict, folder / "in.safetensors")
    for name in ("in.pth", "in.safetensors"):
        assert "vgg16 with 10 classes" in takes(capsys, folder, None, name=name)
        assert_read(folder / name, state_dict)


NUMBER, AVERAGES, HALF = torch.tensor(0.5), files.hollow(shift=0.5), cast(VGG, torch.float16)
WRAPPED = {"state_dict": AVERAGES}
DOUBLE = VGG | {FIRST: VGG[FIRST].double()}  # exact in float32
HEAD = {"fc.weight": NUMBER.expand(100, 1024), "fc.bias": NUMBER.expand(100)}
HUNDRED = files.hollow("resnet50_layer4") | HEAD
TAKEN = [
    (DOUBLE, DOUBLE, "float64"),
    (HALF, HALF, "took 34 tensors of float16 into the model's dtypes"),
    (HUNDRED, HUNDRED, "resnet50_layer4 with 100 classes"),
    *(
        (
            {"epoch": 3, name: VGG, "best": 0.9},
            VGG,
            f"in.ckpt: took {name} of epoch, {name}, best\n",
        )
        for name in ("state_dict", "model_state_dict", "model", "net")
    ),
]


@pytest.mark.parametrize(("content", "expected", "words"), TAKEN, ids=[row[2] for row in TAKEN])
def test_what_people_save_is_taken(folder, capsys, content, expected, words):
    assert words in takes(capsys, folder, content)
    assert_read(folder / "in.ckpt", expected)


@pytest.mark.parametrize("wrapped", [False, True])
@pytest.mark.parametrize(
    "prefixes",
    ["module.", "_orig_mod.", "model.", "module. _orig_mod.", "model. _orig_mod. module."],
)
def test_prefixes_are_taken_off(folder, capsys, prefixes, wrapped):
    state_dict = {prefixes.replace(" ", "") + key: tensor for key, tensor in VGG.items()}
    printed = takes(capsys, folder, {"model": state_dict} if wrapped else state_dict)
    for prefix in prefixes.split():
        assert f"in.ckpt: took {prefix} off every key\n" in printed
    assert_read(folder / "in.ckpt", VGG)


@pytest.mark.parametrize(
    ("entry", "inner"), [("state_dict_ema", AVERAGES), ("model_ema", WRAPPED), ("ema", WRAPPED)]
)
def test_averages_are_taken_if_asked_for(folder, capsys, entry, inner):
    printed = takes(capsys, folder, {"state_dict": VGG, entry: inner})
    assert f"left {entry}, an average of the weights: --ema takes that" in printed
    assert_read(folder / "in.ckpt", VGG)
    assert f"took {entry} of" in takes(capsys, folder, None, "--ema")
    assert_read(folder / "in.ckpt", AVERAGES, ema=True)


@pytest.mark.parametrize("ema", [False, True])
def test_torchs_averaged_model_is_taken(folder, capsys, modules, ema):
    averaged = torch.optim.swa_utils.AveragedModel(modules["vgg16"])
    averaged.update_parameters(modules["vgg16"])
    content, flags = averaged.state_dict(), ()
    if ema:
        content, flags = {"model": VGG, "ema_model": content}, ("--ema",)
    assert "left n_averaged" in takes(capsys, folder, content, *flags)
    assert_read(folder / "in.ckpt", averaged.module.state_dict(), ema=ema)
