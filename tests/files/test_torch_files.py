"""Torch files as others write them: whole weights are read, and what is none is called by name."""

import argparse
import enum
import functools
import os
import pickle
import re
import types
import zipfile
from collections import Counter, defaultdict, deque
from datetime import datetime
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

from jaxcifar import UserError
from jaxcifar.files import atomic, torch_names, weights
from tests.conftest import TINY
from tests.tiny import Tiny

torch = pytest.importorskip("torch", reason="torch is not installed")
nn = torch.nn


class TorchTiny(nn.Sequential):
    def __init__(self):
        super().__init__()
        channels = 3
        for index, (features, kernel) in enumerate([(16, 3), (16, 3), (24, 1), (24, 3)]):
            self.add_module(f"conv{index}", nn.Conv2d(channels, features, kernel))
            self.add_module(f"norm{index}", nn.BatchNorm2d(features))
            channels = features
        self.add_module("pool", nn.Sequential(nn.AdaptiveMaxPool2d(2), nn.Flatten()))
        self.add_module("Linear_0", nn.Linear(96, 10))


class Colour(enum.Enum):
    RED = 1


@pytest.fixture(autouse=True)
def _in_a_folder_of_its_own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


NETWORK = TorchTiny().eval()
STATE = NETWORK.state_dict()
ARRAYS = {key: tensor.numpy() for key, tensor in STATE.items()}


def is_read(path="in.pt"):
    arrays = weights.to_torch(weights.load(path, model=TINY))
    assert all(np.array_equal(array, ARRAYS[key]) for key, array in arrays.items())
    assert len(arrays) == len(ARRAYS)


def rezip(name, compression=zipfile.ZIP_STORED, *, cut=None, checksums=True):
    torch.save(STATE, "first.pt")
    with zipfile.ZipFile("first.pt") as old, zipfile.ZipFile(name, "w", compression) as new:
        for entry in old.namelist():
            new.writestr(entry, old.read(entry)[: cut if entry.endswith("data/0") else None])
    content = Path(name).read_bytes()
    if not checksums:  # in the central directory
        content = re.sub(rb"(PK\x01\x02.{12}).{4}", rb"\g<1>\0\0\0\0", content, flags=re.DOTALL)
    Path(name).write_bytes(content)


WRITERS = {
    "module": lambda name: torch.save(nn.DataParallel(NETWORK), name),
    "script": lambda name: torch.jit.trace(NETWORK, torch.zeros(1, 3, 32, 32)).save(name),
    "tuple": lambda name: torch.save((3, STATE), name),
    "deep": lambda name: torch.save({"a": {"b": {"c": {"d": {"e": STATE}}}}}, name),
    "subclass": lambda name: torch.save(
        defaultdict(dict, run=types.SimpleNamespace(w=STATE)), name
    ),
    "protocol 5": lambda name: torch.save(STATE, name, pickle_protocol=5),
    "old": lambda name: torch.save(
        {"w": STATE, "m": NETWORK}, name, _use_new_zipfile_serialization=False
    ),
    "fsdp": lambda name: torch.save(
        {key.replace(".", "._fsdp_wrapped_module."): t for key, t in STATE.items()}, name
    ),
    "deflated": lambda name: rezip(name, zipfile.ZIP_DEFLATED),
    "no checksums": lambda name: rezip(name, checksums=False),
}


@pytest.mark.parametrize("write", WRITERS.values(), ids=WRITERS)
def test_whole_weights_are_read(write):
    write("in.pt")
    is_read()


BESIDE = [
    *(argparse.Namespace(a=1), deque([1]), datetime.now(), Path("a"), Colour.RED, Counter("a")),
    *(functools.partial(int, base=2), len, range(3), slice(1), bytearray(b"a"), ..., "a".join),
    *(torch.device("cpu"), torch.float16, torch.nn.ReLU, KeyError("a"), {Colour.RED: {1: 2}}),
    *(np.float64(1), np.dtype("f4"), np.random.default_rng(0), {torch.zeros(1)}, 10**400),
    *(torch.zeros([1] * 71), torch.zeros(2).to(torch.float8_e5m2), torch.eye(2).to_sparse()),
]


@pytest.mark.parametrize("zipped", [True, False])
def test_what_lies_beside_the_weights_costs_nothing(zipped):
    content = {"model": STATE, "beside": BESIDE, "named": dict(enumerate(BESIDE))}
    content |= {f"option {index}": value for index, value in enumerate(BESIDE)}
    torch.save(content, "in.pt", _use_new_zipfile_serialization=zipped)
    is_read()


def wide(name):
    inner = {}
    for _ in range(4):
        inner = {str(index): inner for index in range(100)}
    torch.save(inner, name)


REFUSED = [
    (lambda name: np.savez(name, **ARRAYS), "is a zip archive of conv0.weight.npy, conv0.bias.npy"),
    (lambda name: Path(name).write_bytes(pickle.dumps(STATE)), "begins with b'\\x80"),
    (lambda name: Path(name).write_bytes(b"\x1f\x8b" + bytes(99)), "begins with b'\\x1f\\x8b"),
    (lambda name: Path(name).write_text("<html>"), "begins with b'<html>': unpack an archive"),
    (os.mkfifo, "is not a regular file"),
    (lambda name: Path(name).symlink_to("/dev/zero"), "is not a regular file"),
    (lambda name: rezip(name, cut=9), "in.npz: conv0.weight is f4 and cannot be read"),
    (lambda name: rezip(name, cut=0), "cannot be read (buffer is too small"),
    (wide, "has too many entries"),
]


@pytest.mark.parametrize(("write", "words"), REFUSED, ids=[words for _, words in REFUSED])
def test_what_is_no_torch_file_is_called_by_its_name(write, words):
    write("in.npz")
    with pytest.raises(UserError) as caught:
        weights.load("in.npz", model=TINY)
    assert words in str(caught.value)


@pytest.mark.parametrize("dtype", ["bfloat16", "float8_e5m2", "float64"])
def test_state_dicts_in_memory_are_taken_as_files_are(dtype):
    tensors = {f"net.{key}": t.to(getattr(torch, dtype)) for key, t in STATE.items()}
    half = {key: t.float().numpy().astype(jnp.dtype(dtype)) for key, t in tensors.items()}
    expected = torch_names.to_torch(torch_names.to_flax({"a": tensors, "epoch": 1}, Tiny()), Tiny())
    actual = torch_names.to_torch(torch_names.to_flax(half, Tiny()), Tiny())
    for key, array in expected.items():
        np.testing.assert_array_equal(array, tensors[f"net.{key}"].float().numpy())
        np.testing.assert_array_equal(array, actual[key])
    for other in (None, [1], NETWORK, types.SimpleNamespace(items=5)):
        with pytest.raises(UserError, match="is no state dict: pass model"):
            torch_names.to_flax(other, Tiny())


@pytest.mark.parametrize("umask", [0o002, 0o077])
def test_files_honour_the_umask(umask):
    loaded, usual = weights.Weights(TINY, 10, torch_names.to_flax(STATE, Tiny())), os.umask(umask)
    try:
        for name in ("a.pt", "a.safetensors", "a"):
            with atomic.replacing(Path(name)) as path:
                weights.write(path, loaded, weights.format_of(Path(name)), {})
            assert all(
                p.stat().st_mode & 0o777 == (0o777 if p.is_dir() else 0o666) & ~umask
                for p in [Path(name), *Path(name).rglob("*")]
            )
    finally:
        os.umask(usual)
