"""Predictions: the forward pass of evaluation, in any batch; what is not an image is skipped."""

import io
import json
import os
import subprocess
import sys

import jax
import numpy as np
import pytest
from PIL import Image

from jaxcifar import UserError, cli, predict
from jaxcifar.core import inference
from jaxcifar.files import weights

BATCH = 8


def random_images(count):
    """Images that differ in colour, so that a network tells them apart."""
    rng = np.random.default_rng(1)
    colours = rng.integers(0, 256, (count, 1, 1, 3))
    return (colours * rng.uniform(0, 1, (count, 32, 32, 3))).astype(np.uint8)


@pytest.fixture(scope="module")
def pixels():
    return random_images(11)  # more than a batch of 8, and a second one that is not full


@pytest.fixture(scope="module")
def folder(tmp_path_factory, pixels):
    folder = tmp_path_factory.mktemp("images")
    for index, image in enumerate(pixels):
        Image.fromarray(image).save(folder / f"{index:02}.png")
    return folder


@pytest.fixture(scope="module")
def state(checkpoint):
    return weights.load(checkpoint).state()


@pytest.fixture(scope="module")
def expected(state, pixels):
    return predict.predict(state, pixels, batch_size=BATCH)


@pytest.fixture
def call(checkpoint):
    """The command on the session's checkpoint."""
    options = ["--checkpoint", str(checkpoint), "--batch-size", str(BATCH)]
    return lambda *argv: cli.call("predict", [*options, *map(str, argv)])


def test_probabilities_are_those_of_evaluation(state, pixels, expected):
    assert expected.dtype == np.float32
    assert np.ptp(expected.max(axis=1)) > 0.05  # it looks at the images
    np.testing.assert_allclose(expected.sum(axis=1), 1, rtol=1e-5)
    logits = inference.logits(state, pixels, batch_size=len(pixels))
    np.testing.assert_array_equal(logits.argmax(axis=1), expected.argmax(axis=1))
    np.testing.assert_allclose(jax.nn.softmax(logits), expected, rtol=1e-5)


@pytest.mark.parametrize("some", [[10, 3, 5, 0, 1], [3], [10, 3], [9, 8, 7]])
def test_other_images_in_a_batch_change_nothing(some, state, pixels, expected):
    alone = predict.predict(state, pixels[some], batch_size=BATCH)
    if len(some) > BATCH / 2:
        np.testing.assert_array_equal(alone, expected[some])
    else:  # a smaller batch is another program
        np.testing.assert_allclose(alone, expected[some], rtol=1e-5)


def test_a_folder_as_json(call, folder, expected, capsys):
    assert call("--json", "--top", 2, folder) == 0
    out, error = capsys.readouterr()
    document = json.loads(out)
    assert (error, document["model"]) == ("", "resnet50_layer4")
    paths = [str(path) for path in sorted(folder.glob("*.png"))]
    assert [each["image"] for each in document["images"]] == paths
    for each, row in zip(document["images"], expected, strict=True):
        order = np.argsort(-row)[:2].tolist()
        assert each["top"] == [
            {"class": "abcdefghij"[i], "index": i, "probability": pytest.approx(row[i])}
            for i in order
        ]


def test_files_that_are_not_images_are_skipped(call, folder, tmp_path, capsys):
    bad, big = tmp_path / "bad\n.png", tmp_path / "big.jpg"
    bad.write_text("no image")
    Image.new("L", (300, 200), 90).save(big)
    (tmp_path / "empty").mkdir()
    good = folder / "00.png"
    assert call(bad, big, tmp_path / "missing.png", tmp_path / "empty", good, big) == 1
    out, error = capsys.readouterr()
    first, second, third = out.splitlines()
    for line, image in ((first, big), (second, good)):
        assert line.startswith(f"{image}: ")
        assert line.count(" %") == 3
    assert third == first
    not_an_image, converted, missing, empty = error.splitlines()
    assert "bad .png is not an image" in not_an_image
    assert converted == "images of other sizes or modes are converted to 32x32 RGB"
    assert "missing.png" in missing
    assert empty == f"Warning: {tmp_path}/empty has no images; skipped"


def test_an_image_on_stdin(call, folder, monkeypatch, capsys):
    path = folder / "00.png"
    assert call(path) == 0
    from_file = capsys.readouterr().out
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(path.read_bytes())))
    assert call("-") == 0
    assert capsys.readouterr().out.removeprefix("-") == from_file.removeprefix(str(path))
    monkeypatch.setattr(sys, "stdin", None)
    assert call("-") == 1
    assert "stdin is closed" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("changes", "name", "logged"),
    [
        ({}, "a", False),
        ({"class_names": None}, "airplane", True),
        ({"class_names": None, "dataset": "cifar10"}, "airplane", True),
        ({"class_names": None, "dataset": "digits"}, "class 0", False),
        ({"class_names": None, "num_classes": 7}, "class 0", False),
    ],
)
def test_names_of_classes(changes, name, logged, checkpoint, caplog):
    loaded = weights.load(checkpoint)._replace(**changes)
    with caplog.at_level("INFO", "jaxcifar"):
        names = predict._class_names("x.ckpt", loaded)
    assert (names[0], len(names)) == (name, loaded.num_classes)
    assert ("has no class names; using CIFAR-10's" in caplog.text) == logged


def test_weights_that_are_not_finite_are_refused(call, checkpoint, folder, monkeypatch, capsys):
    loaded = weights.load(checkpoint)
    nan = jax.tree.map(lambda leaf: leaf * np.float32("nan"), loaded.variables["params"])
    broken = loaded._replace(variables={**loaded.variables, "params": nan})
    monkeypatch.setattr(weights, "load", lambda *args, **options: broken)
    with pytest.raises(UserError, match="not finite"):
        call("--json", folder)
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("flag", ["--top", "--batch-size"])
def test_counts_below_one_are_refused(flag):
    with pytest.raises(UserError, match=f"{flag} must be at least 1, got 0"):
        cli.call("predict", ["--checkpoint", "nowhere", flag, "0", "x.png"])


def test_several_devices_share_a_batch(checkpoint, folder, expected):
    options = ["--checkpoint", checkpoint, "--batch-size", str(BATCH), "--json", "--top", "1"]
    argv = [sys.executable, "-m", "jaxcifar.predict", *options, folder]
    flags = {"XLA_FLAGS": "--xla_force_host_platform_device_count=3", "JAX_PLATFORMS": "cpu"}
    out = subprocess.run(argv, env=os.environ | flags, capture_output=True, check=True).stdout
    tops = [each["top"][0]["probability"] for each in json.loads(out)["images"]]
    np.testing.assert_allclose(tops, expected.max(axis=1), rtol=1e-4)
