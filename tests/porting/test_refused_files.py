"""Files that the port refuses: in one line, without running or writing anything."""

import contextlib
import json
import os
import pickle
import shutil
import subprocess
import sys
import zipfile

import numpy as np
import pytest
from safetensors.torch import save_file

from jaxcifar import UserError
from tests.porting.files import FIRST, VGG, Runs, hollow_adam, port, refused, torch

SHAPE = (64, 3, 3, 3)
NUMBER = torch.zeros(())


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize(("function", "name"), [(os.system, "posix.system"), (eval, "eval")])
@pytest.mark.parametrize("place", ["weights", "beside"])
def test_a_pickle_that_would_run_code_is_refused(folder, zipped, function, name, place):
    marker = folder / "ran"
    shell, python = f"touch {marker}", f"open({str(marker)!r}, 'w').close()"
    attack = Runs(function, shell if function is os.system else python)
    content = {"state_dict": VGG, "epoch": attack}
    if place == "weights":
        content = VGG | {FIRST: attack}
    torch.save(content, folder / "in.ckpt", _use_new_zipfile_serialization=zipped)
    message = refused(folder, "in.ckpt", "out")
    assert "in.ckpt is refused" in message
    assert name in message
    assert not marker.exists()
    pickle.loads(pickle.dumps(attack))
    assert marker.exists()  # so it would have run


LOOP, LOOP_BESIDE = {}, dict(VGG)
LOOP["state_dict"], LOOP_BESIDE["state_dict"] = LOOP, LOOP_BESIDE
HEAD = {
    "classifier.5.weight": NUMBER.expand(10**10, 512),
    "classifier.5.bias": NUMBER.expand(10**10),
}
OTHER = {"conv1.weight": NUMBER.expand(64, 3, 7, 7), "fc.bias": NUMBER.expand(1000)}
ONE_PREFIX = {f"module.{key}" if key == FIRST else key: value for key, value in VGG.items()}
SEVERAL = {key: value for key, value in VGG.items() if key != "features.2.bias"}
SEVERAL |= {FIRST: torch.zeros(64, 3, 5, 5), "features.99.bias": torch.zeros(7)}
CONTENTS = [
    (torch.nn.Linear(1, 1), "linear.Linear", "save model.state_dict() alone"),
    (OTHER, "is no known model; the nearest is", " unexpected: conv1.weight (64, 3, 7, 7)"),
    (SEVERAL, "in.ckpt is no known model; the nearest is vgg16: 1 missing: features.2.bias (64,)"),
    (SEVERAL, "1 unexpected: features.99.bias (7,)", f"{FIRST} (64, 3, 5, 5), expected (64, 3"),
    (ONE_PREFIX, f"1 unexpected: module.{FIRST} (64, 3, 3, 3)"),
    (VGG | {"padding": NUMBER.expand(10**10)}, "1 unexpected: padding (10000000000,)"),
    (VGG | HEAD, "10000000000 classes"),
    (LOOP, "holds no state dict"),
    (LOOP_BESIDE, "'state_dict' is a dict, expected a tensor"),
    ({"net": {"net": {"net": {"net": {"net": VGG}}}}}, "holds no state dict"),
    (VGG | {FIRST: torch.full(SHAPE, 1 / 3, dtype=torch.float64)}, f"{FIRST} is float64"),
    (VGG | {FIRST: torch.full(SHAPE, 1e300, dtype=torch.float64)}, f"{FIRST} is float64"),
    (VGG | {FIRST: torch.zeros(SHAPE, dtype=torch.int8)}, f"{FIRST} is int8"),
    (VGG | {FIRST: torch.zeros(SHAPE, dtype=torch.bool)}, f"{FIRST} is bool"),
    (VGG | {FIRST: torch.zeros(SHAPE, dtype=torch.complex64)}, f"{FIRST} is complex64"),
    (VGG | {FIRST: torch.zeros(SHAPE).to(torch.float8_e4m3fn)}, f"{FIRST} is", "float8_e4m3fn"),
    (VGG | {FIRST: torch.zeros(SHAPE).to_sparse()}, f"{FIRST} is sparse"),
    (VGG | {FIRST: torch.zeros(SHAPE, device="meta")}, f"{FIRST} is", "meta"),
    (VGG | {FIRST: torch.zeros(1, *SHAPE)}, f"{FIRST} (1, 64, 3, 3, 3), expected (64, 3, 3, 3)"),
    (VGG | {7: torch.zeros(1)}, "a key is a int, expected a text"),
    (VGG | {"epoch": 3}, "'epoch' is a int, expected a tensor"),
    (VGG | {"epoch": None}, "'epoch' is a NoneType, expected a tensor"),
    (VGG | {"lines": ["a"]}, "'lines' is a list, expected a tensor"),
    ([1], "holds a list"),
    ({}, "not a state dict"),
    (torch.zeros(3), "holds a Tensor"),
    ({"epoch": 1, "loss": 0.5}, "holds no state dict: its entries are epoch, loss"),
    ({"state_dict": None}, "holds no state dict: its entries are state_dict"),
]


@pytest.mark.parametrize("case", CONTENTS, ids=[case[1] for case in CONTENTS])
def test_content_that_cannot_be_ported_exactly_is_refused(folder, case):
    content, *words = case
    torch.save(content, folder / "in.ckpt")
    message = refused(folder, "in.ckpt", "out", "--no-verify")
    assert "in.ckpt" in message
    assert [word for word in words if word not in message] == []


@pytest.mark.parametrize("content", [VGG, {"state_dict": VGG}], ids=["bare", "wrapped"])
def test_averages_and_models_that_are_not_there_are_refused(folder, content):
    torch.save(content, folder / "in.ckpt")
    (folder / "run").mkdir()
    assert "EMA" in refused(folder, "in.ckpt", "out", "--ema")
    assert "is for torch files" in refused(folder, "run", "out", "--ema")
    message = refused(folder, "in.ckpt", "out", "--model", "vgg16_bn")
    assert "in.ckpt is vgg16, not vgg16_bn: use --model vgg16" in message
    torch.save(SEVERAL, folder / "in.ckpt")
    message = refused(folder, "in.ckpt", "out", "--model", "resnet50_layer4")
    assert "in.ckpt is not resnet50_layer4: 373 missing" in message


@pytest.mark.parametrize("name", ["zip.ckpt", "pickle.ckpt", "in.safetensors"])
def test_a_truncated_file_is_refused(folder, name):
    path = folder / name
    if path.suffix == ".ckpt":
        torch.save(VGG, path, _use_new_zipfile_serialization=name == "zip.ckpt")
    else:
        save_file({FIRST: torch.zeros(SHAPE)}, path)
    content, size = path.read_bytes(), path.stat().st_size
    known = ("damaged", "neither a torch file", "no whole safetensors file")
    for cut in (1, 3, 4, 20, 100, size // 3, size // 2, size - 100, size - 20, size - 1):
        path.write_bytes(content[:cut])
        message = refused(folder, path, "out")
        assert any(f"{name} is {words}" in message for words in known)


def test_flipped_bytes_in_the_pickle_are_refused(folder):
    path = folder / "in.ckpt"
    torch.save({"state_dict": VGG, "optimizer": hollow_adam()}, path)
    with zipfile.ZipFile(path) as archive:
        pickled = archive.read("in/data.pkl")
    content = path.read_bytes()
    start = content.index(pickled)
    middle = start + len(pickled) // 2
    path.write_bytes(content[:middle] + bytes(64) + content[middle + 64 :])
    assert "in.ckpt is damaged" in refused(folder, path, "out")
    generator = np.random.default_rng(0)
    for position in generator.integers(0, len(pickled), 8) + start:
        flipped = bytes([content[position] ^ (1 << generator.integers(8))])
        path.write_bytes(content[:position] + flipped + content[position + 1 :])
        with contextlib.suppress(UserError):  # some only change a name that means nothing
            port(folder, path, "out", "--dry-run", "--no-verify")


@pytest.mark.parametrize("suffix", [".ckpt", ".safetensors", ""])
@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "is empty"),
        (b"epoch 1, loss 2.3\n" * 100, "neither a torch file nor a safetensors file"),
        (b"PK\x03\x04" + bytes(1000), "is damaged"),
        (b"\x80\x02}q\x00.", "neither a torch file nor a safetensors file"),
        (b"\xff" * 7 + b'\x7f{"a":', "no whole safetensors file"),
    ],
)
def test_a_file_without_tensors_is_refused(folder, suffix, content, words):
    path = folder / f"in{suffix}"
    path.write_bytes(content)
    message = refused(folder, path, "out")
    assert path.name in message
    if suffix == ".safetensors" and not content.startswith(b"PK"):
        words = "no whole safetensors file"
    assert words in message


def test_other_files_that_cannot_be_read_are_refused(folder):
    save_file({FIRST: torch.zeros(SHAPE).to(torch.float8_e4m3fn)}, folder / "in.safetensors")
    (folder / "run.ckpt").mkdir()
    torch.save(VGG, folder / "stored.ckpt")
    with (
        zipfile.ZipFile(folder / "stored.ckpt") as stored,
        zipfile.ZipFile(folder / "in.ckpt", "w", zipfile.ZIP_DEFLATED) as deflated,
    ):
        for name in stored.namelist():
            deflated.writestr(name, stored.read(name))
    assert "none.ckpt" in refused(folder, "none.ckpt", "out", error=FileNotFoundError)
    assert "run.ckpt holds no checkpoint" in refused(folder, "run.ckpt", "out")
    assert "in.safetensors" in refused(folder, "in.safetensors", "out", "--no-verify")
    assert "compressed zip" in refused(folder, "in.ckpt", "out")


MEASURE = """
import resource, sys
from jaxcifar import UserError, cli

for path in sys.argv[2:]:
    try:
        cli.call("port", [path, sys.argv[1], "--no-verify"])
    except UserError as error:
        assert "unexpected: padding" in str(error), error
        print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024)
"""


def test_a_gigabyte_of_padding_takes_no_memory(folder):
    if shutil.disk_usage(folder).free < 3 * 10**9:
        pytest.skip("too little disk space")
    paths = []
    for count in (1, 250_000_000):
        paths += [folder / f"{count}.ckpt", folder / f"{count}.safetensors"]
        torch.save(VGG | {"padding": torch.zeros(count)}, paths[-2])
        entry = {"dtype": "F32", "shape": [count], "data_offsets": [0, 4 * count]}
        header = json.dumps({"padding": entry}).encode()
        with paths[-1].open("wb") as file:
            file.write(len(header).to_bytes(8, "little") + header)
            file.truncate(8 + len(header) + 4 * count)
    assert all(path.stat().st_size > 10**9 for path in paths[2:])
    command = [sys.executable, "-c", MEASURE, folder / "out", *paths]
    run = subprocess.run(command, capture_output=True, text=True, check=True)
    _, least, zipped, safetensors = (int(line) for line in run.stdout.split())
    assert zipped - least < 200  # MB
    assert safetensors - least < 200


DEPTH = 50_000
NAME = b"X\x0a\0\0\0state_dict"


@pytest.mark.parametrize(
    ("pickled", "words"),
    [
        ((b"}" + NAME) * DEPTH + b"}" + b"s" * DEPTH, "holds no state dict"),
        (b"}" + NAME + b"]" * DEPTH + b"a" * (DEPTH - 1) + b"s", "holds no state dict"),
        (b"]" * DEPTH + b"a" * (DEPTH - 1), "holds a list"),
        (b"})" + b"\x85" * DEPTH + b"K\x01s", "holds no state dict"),
    ],
    ids=["dicts", "lists in a dict", "lists", "tuples as a key"],
)
def test_deep_nesting_is_refused(folder, pickled, words):
    with zipfile.ZipFile(folder / "in.ckpt", "w") as archive:
        archive.writestr("in/data.pkl", b"\x80\x02" + pickled + b".")
        archive.writestr("in/version", "3\n")
    assert words in refused(folder, "in.ckpt", "out")


@pytest.mark.parametrize("value", [torch.zeros(1), 3])
def test_a_deep_tuple_as_a_key_among_tensors_is_refused(folder, value):
    key = ()
    for _ in range(5000):
        key = (key,)
    usual = sys.getrecursionlimit()
    sys.setrecursionlimit(50_000)
    torch.save({key: value, FIRST: torch.zeros(1)}, folder / "in.ckpt")
    sys.setrecursionlimit(usual)
    assert "in.ckpt" in refused(folder, "in.ckpt", "out")
