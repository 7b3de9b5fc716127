"""Predictions: the forward pass of evaluation, in any batch; what is not an image is skipped."""

import io
import json
import os
import sys

import jax
import numpy as np
import pytest
from PIL import Image

from jaxcifar import cli, predict
from jaxcifar.core import inference
from jaxcifar.files import weights
from tests.conftest import TINY

BATCH = 8


def random_images(count):
    """Images that differ in colour, so that a network tells them apart."""
    rng = np.random.default_rng(1)
    colours = rng.integers(0, 256, (count, 1, 1, 3))
    return (colours * rng.uniform(0, 1, (count, 32, 32, 3))).astype(np.uint8)


PIXELS = random_images(11)  # more than a batch of 8, and a second one that is not full


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("images")
    for index, image in enumerate(PIXELS):
        Image.fromarray(image).save(folder / f"{index:02}.png")
    return folder


@pytest.fixture(scope="module")
def state(checkpoint):
    return weights.load(checkpoint, model=TINY).state()


@pytest.fixture(scope="module")
def expected(state):
    """The probabilities of evaluation, in one batch."""
    probabilities = jax.nn.softmax(inference.logits(state, PIXELS, batch_size=len(PIXELS)))
    assert np.ptp(probabilities.max(axis=1)) > 0.05  # it looks at the images
    return np.asarray(probabilities)


@pytest.fixture
def call(checkpoint):
    """The command on the session's checkpoint."""
    options = ["--checkpoint", str(checkpoint), "--model", TINY, "--batch-size", str(BATCH)]
    return lambda *argv: cli.call("predict", [*options, *map(str, argv)])


@pytest.mark.parametrize("some", [[10, 3, 5, 0, 1], [3], [10, 3], [9, 8, 7]])
def test_probabilities_are_those_of_evaluation_whatever_the_batch(some, state, expected):
    alone = predict.predict(state, PIXELS[some], batch_size=BATCH)
    np.testing.assert_allclose(alone, expected[some], rtol=1e-5)
    if len(some) > BATCH / 2:  # a smaller batch is another program
        together = predict.predict(state, PIXELS, batch_size=BATCH)
        np.testing.assert_array_equal(alone, together[some])


def test_a_folder_as_json(call, folder, expected, capsys):
    assert call("--json", "--top", 2, folder) == 0
    out, error = capsys.readouterr()
    document = json.loads(out)
    assert (error, document["model"]) == ("", TINY)
    paths = map(str, sorted(folder.iterdir()))
    for path, image, row in zip(paths, document["images"], expected, strict=True):
        assert image["image"] == path
        for top, index in zip(image["top"], np.argsort(-row)[:2], strict=True):
            assert (top["class"], top["index"]) == ("abcdefghij"[index], index)
            assert top["probability"] == pytest.approx(row[index], rel=1e-5)


def test_files_that_are_not_images_are_skipped(call, folder, tmp_path, capsys):
    bad, big = tmp_path / "bad\n.png", tmp_path / "big.jpg"
    bad.write_text("no image")
    Image.new("L", (300, 200), 90).save(big)
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "a.heic").touch()
    os.mkfifo(tmp_path / "pipe.png")
    good, missing, empty = folder / "00.png", tmp_path / "missing.png", tmp_path / "empty"
    assert call(bad, big, missing, empty, good, big, tmp_path / "pipe.png") == 1
    out, error = capsys.readouterr()
    lines = out.splitlines()
    assert [line.partition(": ")[0] for line in lines] == [str(big), str(good), str(big)]
    assert lines[0] == lines[2]
    assert all(line.count(" %") == 3 for line in lines)
    reported = ["linked twice): a.heic", "bad .png is not a readable image"]
    reported += ["missing.png", "empty has no images", "is not a regular file"]
    for line, words in zip(error.splitlines(), reported, strict=True):
        assert words in line


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
