"""Files that the port takes, and that what it writes is what it read, to the bit."""

import jax
import pytest
from safetensors.torch import load_file, save_file

from jaxcifar.files import weights
from tests.porting import torch_reference
from tests.porting.files import FIRST, VGG16, assert_equal, assert_read, hollow, port, takes, torch


def cast(state_dict, dtype):
    return {key: t.to(dtype) if t.is_floating_point() else t for key, t in state_dict.items()}


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_comes_back_in_the_same_bits(folder, capsys, modules, dtype):
    half = cast(modules["vgg16"].state_dict(), dtype)
    torch.save(half, folder / "in.ckpt")
    flags = ["--no-verify"] if dtype == torch.float16 else []
    port(folder / "in.ckpt", folder / "orbax", "--no-verify")
    name = str(dtype).removeprefix("torch.")
    assert f"took 34 tensors of {name} into the model's dtypes" in capsys.readouterr().out
    kept = weights.load(folder / "orbax")
    assert {leaf.dtype.name for leaf in jax.tree.leaves(kept.variables)} == {"float32", "int32"}
    port(folder / "orbax", folder / "out", "--to", "torch", *flags)
    assert_equal(half, torch.load(folder / "out"))


def test_half_precision_in_safetensors_comes_back_in_the_same_bits(folder):
    half = {key: tensor.contiguous() for key, tensor in cast(hollow(), torch.bfloat16).items()}
    save_file(half, folder / "in.safetensors")
    port(folder / "in.safetensors", folder / "out.safetensors", "--no-verify")
    back = load_file(folder / "out.safetensors")
    assert_equal(half, {key: back[key] for key in half})


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_bits_of_a_nan_are_kept(folder, dtype):
    patterns = {  # signs, payloads, quiet and signalling
        torch.float32: [0x7FC00000, 0x7FC12345, 0x7F800001, -0x400000],
        torch.float16: [0x7E00, 0x7E12, 0x7C01, -0x200],
        torch.bfloat16: [0x7FC0, 0x7FC1, 0x7F81, -0x40],
    }[dtype]
    integer = torch.int32 if dtype == torch.float32 else torch.int16
    bias = torch.tensor(patterns * 16, dtype=integer).view(dtype)
    torch.save(hollow() | {"features.0.bias": bias}, folder / "in.ckpt")
    port(folder / "in.ckpt", folder / "out.ckpt", "--no-verify")
    back = torch.load(folder / "out.ckpt")["features.0.bias"]
    assert torch.equal(back.view(integer), bias.view(integer))


def test_float64_that_is_exact_in_float32_is_taken(folder, capsys):
    double = hollow() | {FIRST: hollow()[FIRST].double()}
    assert "float64" in takes(capsys, double, folder / "in.ckpt")
    assert_read(folder / "in.ckpt", double)


def test_strided_and_shared_tensors_are_taken(folder):
    module = torch_reference.randomize(VGG16(), seed=1)
    state_dict = module.to(memory_format=torch.channels_last).state_dict()
    assert not state_dict["features.2.weight"].is_contiguous()
    weight = state_dict["classifier.1.weight"]
    state_dict["classifier.1.weight"] = weight.T.contiguous().T
    state_dict["features.2.bias"] = state_dict["features.0.bias"]
    storage = torch.arange(1000.0)
    state_dict["classifier.1.bias"] = storage[3:515]
    state_dict["classifier.2.bias"] = storage[:512]
    torch.save(state_dict, folder / "in.ckpt")
    port(folder / "in.ckpt", folder / "orbax", "--no-verify")
    port(folder / "orbax", folder / "out.ckpt", "--no-verify")
    port(folder / "in.ckpt", folder / "out.safetensors", "--no-verify")
    assert_equal(state_dict, torch.load(folder / "out.ckpt"))
    assert_read(folder / "out.safetensors", state_dict)


def test_older_files_and_safetensors_are_taken(folder, capsys, modules):
    state_dict = modules["vgg16"].state_dict()
    torch.save(state_dict, folder / "in.pth", _use_new_zipfile_serialization=False)
    save_file(state_dict, folder / "in.safetensors")
    for path in (folder / "in.pth", folder / "in.safetensors"):
        assert "vgg16 with 10 classes" in takes(capsys, None, path)
        assert_read(path, state_dict)


def test_other_numbers_of_classes_are_taken(folder, capsys):
    number = torch.tensor(0.5)
    head = {"fc.weight": number.expand(100, 1024), "fc.bias": number.expand(100)}
    content = hollow("resnet50_layer4") | head
    assert "resnet50_layer4 with 100 classes" in takes(capsys, content, folder / "in.ckpt")


@pytest.mark.parametrize("wrapper", ["state_dict", "model_state_dict", "model", "net"])
def test_wrappers_are_taken_off(folder, capsys, wrapper):
    path = folder / "in.ckpt"
    printed = takes(capsys, {"epoch": 3, wrapper: hollow(), "best": 0.9}, path)
    assert f"{path}: took {wrapper} of epoch, {wrapper}, best\n" in printed
    assert_read(path, hollow())


@pytest.mark.parametrize(
    ("prefixes", "wrapped"),
    [
        (["module."], True),
        (["_orig_mod."], False),
        (["model."], True),
        (["module.", "_orig_mod."], False),
        (["model.", "_orig_mod.", "module."], True),
    ],
    ids=str,
)
def test_prefixes_are_taken_off(folder, capsys, prefixes, wrapped):
    state_dict = {"".join(prefixes) + key: tensor for key, tensor in hollow().items()}
    content = {"model": state_dict} if wrapped else state_dict
    printed = takes(capsys, content, folder / "in.ckpt")
    assert all(f"in.ckpt: took {prefix} off every key\n" in printed for prefix in prefixes)
    assert_read(folder / "in.ckpt", hollow())


@pytest.mark.parametrize(
    ("entry", "wrapped"), [("state_dict_ema", False), ("model_ema", True), ("ema", True)]
)
def test_averages_are_taken_if_asked_for(folder, capsys, entry, wrapped):
    averages, path = hollow(shift=0.5), folder / "in.ckpt"
    inner = {"state_dict": averages} if wrapped else averages
    printed = takes(capsys, {"state_dict": hollow(), entry: inner}, path)
    assert f"left {entry}, an average of the weights: --ema takes that" in printed
    assert_read(path, hollow())
    assert f"took {entry} of" in takes(capsys, None, path, "--ema")
    assert_read(path, averages, ema=True)


def test_torchs_averaged_model_is_taken(folder, capsys, modules):
    averaged = torch.optim.swa_utils.AveragedModel(modules["vgg16"])
    averaged.update_parameters(modules["vgg16"])
    state_dict = averaged.module.state_dict()
    assert "left n_averaged" in takes(capsys, averaged.state_dict(), folder / "bare.ckpt")
    assert_read(folder / "bare.ckpt", state_dict)
    wrapped = {"model": hollow(), "ema_model": averaged.state_dict()}
    assert "left n_averaged" in takes(capsys, wrapped, folder / "wrapped.ckpt", "--ema")
    assert_read(folder / "wrapped.ckpt", state_dict, ema=True)
