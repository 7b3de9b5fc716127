"""Files that the port refuses: in one line, without running or writing anything."""

import contextlib
import io
import os
import pickle
import zipfile
from pathlib import Path

import pytest

from jaxcifar import UserError
from tests.porting import files
from tests.porting.files import FIRST, VGG, Runs, hollow_adam, port, refused, save_file, torch

SHAPE = (64, 3, 3, 3)
NUMBER = torch.zeros(())


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize(("function", "name"), [(os.system, "posix.system"), (eval, "eval")])
@pytest.mark.parametrize("place", ["weights", "beside"])
def test_a_pickle_that_would_run_code_is_refused(zipped, function, name, place):
    attack = Runs(function, "touch ran" if function is os.system else "open('ran', 'w').close()")
    beside = {"state_dict": VGG, "epoch": attack}
    content = beside if place == "beside" else VGG | {FIRST: attack}
    torch.save(content, "in.ckpt", _use_new_zipfile_serialization=zipped)
    message = refused("in.ckpt", "out")
    assert "in.ckpt is refused" in message
    assert name in message
    assert not Path("ran").exists()
    pickle.loads(pickle.dumps(attack))
    assert Path("ran").exists()  # so it would have run


LOOP = {}
LOOP["state_dict"] = LOOP
HEAD = {
    "classifier.5.weight": NUMBER.expand(10**10, 512),
    "classifier.5.bias": NUMBER.expand(10**10),
}
OTHER = {"conv1.weight": NUMBER.expand(64, 3, 7, 7), "fc.bias": NUMBER.expand(1000)}
SEVERAL = {key: value for key, value in VGG.items() if key != "features.2.bias"}
SEVERAL |= {FIRST: torch.zeros(64, 3, 5, 5), "features.99.bias": torch.zeros(7)}
CONTENTS = [
    (torch.nn.Linear(1, 1), "is no known model", "unexpected: weight (1, 1)"),
    (OTHER, "is no known model; the nearest is", " unexpected: conv1.weight (64, 3, 7, 7)"),
    (SEVERAL, "in.ckpt is no known model; the nearest is vgg16: 1 missing: features.2.bias (64,)"),
    (VGG | {"features.99.x": NUMBER.expand(10**10)}, "1 unexpected: features.99.x (10000000000,)"),
    ({"a": VGG, "b": files.hollow(shift=1)}, "has several copies, a, b: choose with --ema or"),
    (VGG | HEAD, "10000000000 classes"),
    (LOOP, "holds no state dict"),
    (VGG | {FIRST: torch.zeros(SHAPE).to_sparse()}, f"1 missing: {FIRST}"),
    (VGG | {FIRST: torch.zeros(SHAPE, device="meta")}, f"1 missing: {FIRST}"),
    ([1], "holds no state dict, but <class 'list'>"),
    ({}, "holds no state dict"),
    ({"epoch": 1, "loss": 0.5}, "holds no state dict, but ['epoch', 'loss']"),
]
ASKED = [
    (VGG, "--ema", "in.ckpt has no such copy, but the bare keys"),
    (VGG, "--prefix=model", "in.ckpt has no such copy, but the bare keys"),
    (VGG, "--model=vgg16_bn", "in.ckpt is vgg16, not vgg16_bn: use --model vgg16"),
    (SEVERAL, "--model=resnet50_layer4", "in.ckpt is not resnet50_layer4: 320 missing"),
]
CASES = [(content, "--no-verify", *words) for content, *words in CONTENTS] + ASKED


@pytest.mark.parametrize("case", CASES, ids=[case[2] for case in CASES])
def test_content_that_cannot_be_ported_exactly_is_refused(case):
    content, flag, *words = case
    torch.save(content, "in.ckpt")
    message = refused("in.ckpt", "out", flag)
    assert "in.ckpt" in message
    assert [word for word in words if word not in message] == []


@pytest.mark.parametrize("name", ["zip.ckpt", "pickle.ckpt", "in.safetensors"])
def test_a_truncated_file_is_refused(name):
    path = Path(name)
    if path.suffix == ".ckpt":
        torch.save(VGG, path, _use_new_zipfile_serialization=name == "zip.ckpt")
    else:
        save_file({FIRST: torch.zeros(SHAPE)}, path)
    content, size = path.read_bytes(), path.stat().st_size
    known = ("is damaged", "is neither a torch", "cannot be read")
    for cut in (1, 3, 4, 20, 100, size // 3, size // 2, size - 100, size - 20, size - 1):
        path.write_bytes(content[:cut])
        message = refused(path, "out")
        assert name in message
        assert any(words in message for words in known)


def test_flipped_bytes_in_the_pickle_are_refused(rng):
    path = Path("in.ckpt")
    torch.save({"state_dict": VGG, "optimizer": hollow_adam()}, path)
    with zipfile.ZipFile(path) as archive:
        pickled = archive.read("in/data.pkl")
    content = path.read_bytes()
    start = content.index(pickled)

    def overwrite(position, new):
        path.write_bytes(content[:position] + new + content[position + len(new) :])

    overwrite(start + len(pickled) // 2, bytes(64))
    assert "in.ckpt is damaged" in refused(path, "out")
    for position in rng.integers(0, len(pickled), 8) + start:
        overwrite(position, bytes([content[position] ^ (1 << rng.integers(8))]))
        with contextlib.suppress(UserError):  # some only change a name that means nothing
            port(path, "out", "--dry-run", "--no-verify")


def with_pickle(pickled):
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("in/data.pkl", b"\x80\x02" + pickled + b".")
        archive.writestr("in/version", "3\n")
    return file.getvalue()


NEITHER, UNWRAPPED = "is neither a torch nor a safetensors file", "holds no state dict"
DEPTH, NAME = 50_000, b"X\x0a\0\0\0state_dict"
BYTES = [
    (b"", NEITHER),
    (b"PK\x03\x04" + bytes(1000), "is damaged"),
    (b"\xff" * 7 + b'\x7f{"a":', "is damaged"),
    (with_pickle((b"}" + NAME) * DEPTH + b"}" + b"s" * DEPTH), UNWRAPPED),
    (with_pickle(b"]" * DEPTH + b"a" * (DEPTH - 1)), UNWRAPPED),
    (with_pickle(b"})" + b"\x85" * DEPTH + b"K\x01s"), UNWRAPPED),  # tuples as a key
]


@pytest.mark.parametrize("name", ["in.ckpt", "in.safetensors"])
@pytest.mark.parametrize(("content", "words"), BYTES, ids=[words for _, words in BYTES])
def test_a_file_without_tensors_is_refused(name, content, words):
    Path(name).write_bytes(content)
    assert f"{name} {words}" in refused(name, "out")
