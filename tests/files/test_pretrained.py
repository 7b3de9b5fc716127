"""The trained weights: those of the clone, and their download from a server on loopback."""

import hashlib
import http.server
import importlib.metadata
import threading
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from safetensors import safe_open

import jaxcifar
from jaxcifar import UserError, load_weights
from jaxcifar.config.commands import EvaluateConfig
from jaxcifar.evaluate import evaluate
from jaxcifar.files import weights

ROOT = Path(__file__).parents[2]
CIFAR10 = ROOT.parent / "shared" / "data" / "tfds"
MODELS = sorted(weights.SHA256)


@pytest.mark.parametrize("model", MODELS)
def test_the_weights_give_the_logits_of_the_day_they_were_trained(model):
    loaded = load_weights("pretrained", model=model)
    assert loaded.class_names[:2] == ("airplane", "automobile")
    with np.load(ROOT / "weights" / "check.npz") as check:
        logits = jaxcifar.logits(loaded.state(), check["images"], batch_size=4)
        np.testing.assert_allclose(logits, check[model], atol=1e-4)


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.skipif(not CIFAR10.is_dir(), reason="needs CIFAR-10 in ../shared")
def test_the_weights_score_what_their_metadata_says(model):
    path = weights.resolve("pretrained", model)
    scores = evaluate(EvaluateConfig(checkpoint=str(path), data_dir=str(CIFAR10))).scores
    with safe_open(path, "np") as file:
        metadata = file.metadata()
    assert scores.images == int(metadata["test_images"])
    assert scores.accuracy == float(metadata["test_accuracy"])


@pytest.mark.parametrize("model", [None, "vgg16_bn", "my_net.py:Net"])
def test_a_network_without_weights_is_told_which_have_some(model):
    with pytest.raises(UserError, match=r"resnet50_layer4.*--model"):
        load_weights("pretrained", model=model)


@pytest.fixture
def installed(monkeypatch, tmp_path):
    """As in an installed wheel: no clone, and an address that a server on loopback has."""
    served, content = tmp_path / "weights", b"trained weights"
    served.mkdir()
    (served / "tiny.safetensors").write_bytes(content)
    handler = partial(http.server.SimpleHTTPRequestHandler, directory=served)
    monkeypatch.setattr(http.server.SimpleHTTPRequestHandler, "log_message", lambda *_: None)
    monkeypatch.setattr(weights, "IN_CLONE", tmp_path / "none")
    monkeypatch.setattr(weights, "SHA256", {"tiny": hashlib.sha256(content).hexdigest()})
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        address = f"weights, http://127.0.0.1:{server.server_port}"
        fake = type("", (), {"get_all": lambda self, name: [address]})
        monkeypatch.setattr(importlib.metadata, "metadata", lambda name: fake())
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        yield served / "tiny.safetensors"
        server.shutdown()


def test_an_installed_package_downloads_them_once(installed, monkeypatch):
    path = weights.resolve("pretrained", "tiny")
    assert path.read_bytes() == installed.read_bytes()
    monkeypatch.chdir(installed.parents[1])
    assert weights.resolve("pretrained", "tiny") == Path("weights/tiny.safetensors")  # in a clone
    installed.unlink()
    assert weights.resolve("pretrained", "tiny") == path


@pytest.mark.parametrize("damage", [lambda path: path.write_bytes(b"other"), Path.unlink])
def test_a_wrong_or_failed_download_says_where_to_put_the_file(damage, installed, tmp_path):
    damage(installed)
    with pytest.raises(UserError, match=rf"could not download.*put the file into {tmp_path}"):
        weights.resolve("pretrained", "tiny")
    assert not list((tmp_path / "jaxcifar").glob("tiny*"))
