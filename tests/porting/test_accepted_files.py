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


def prefixed(prefixes):
    return {"".join(prefixes) + key: tensor for key, tensor in VGG.items()}


NUMBER, AVERAGES, HALF = torch.tensor(0.5), files.hollow(shift=0.5), cast(VGG, torch.float16)
DOUBLE = VGG | {FIRST: VGG[FIRST].double()}  # exact in float32
HEAD = {"fc.weight": NUMBER.expand(100, 1024), "fc.bias": NUMBER.expand(100)}
HUNDRED = files.hollow("resnet50_layer4") | HEAD
NAMES = ["state_dict", "model_state_dict", "model", "net"]
PREFIXES = [["module."], ["_orig_mod."], ["model."], ["module.", "_orig_mod."]]
PREFIXES += [["model.", "_orig_mod.", "module."]]
PREFIXED = [
    (content, VGG, [f"in.ckpt: took {prefix} off every key\n" for prefix in prefixes])
    for prefixes in PREFIXES
    for content in (prefixed(prefixes), {"model": prefixed(prefixes)})
]
WITH_EMA = {
    "state_dict_ema": {"state_dict": VGG, "state_dict_ema": AVERAGES},
    "model_ema": {"state_dict": VGG, "model_ema": {"state_dict": AVERAGES}},
    "ema": {"state_dict": VGG, "ema": {"state_dict": AVERAGES}},
}
LEFT_EMA = "left {}, an average of the weights: --ema takes that"
SWA = torch.optim.swa_utils.AveragedModel(files.VGG16())
AVERAGED = SWA.module.state_dict()
TAKEN = [  # the content, what is read, and what is printed
    (DOUBLE, DOUBLE, ["float64"]),
    (HALF, HALF, ["took 34 tensors of float16 into the model's dtypes"]),
    (HUNDRED, HUNDRED, ["resnet50_layer4 with 100 classes"]),
    *(({"epoch": 3, n: VGG, "best": 0.9}, VGG, [f"took {n} of epoch, {n}, best\n"]) for n in NAMES),
    *PREFIXED,
    *((content, VGG, [LEFT_EMA.format(entry)]) for entry, content in WITH_EMA.items()),
    (SWA.state_dict(), AVERAGED, ["left n_averaged"]),
]
TAKEN_AS_EMA = [
    *((content, AVERAGES, [f"took {entry} of"]) for entry, content in WITH_EMA.items()),
    ({"model": VGG, "ema_model": SWA.state_dict()}, AVERAGED, ["left n_averaged"]),
]


@pytest.mark.parametrize(
    ("ema", "content", "expected", "words"),
    [(False, *row) for row in TAKEN] + [(True, *row) for row in TAKEN_AS_EMA],
)
def test_what_people_save_is_taken(folder, capsys, ema, content, expected, words):
    printed = takes(capsys, folder, content, *(["--ema"] if ema else []))
    assert [word for word in words if word not in printed] == []
    assert_read(folder / "in.ckpt", expected, ema=ema)
