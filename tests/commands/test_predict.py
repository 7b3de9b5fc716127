"""Predictions: evaluation's forward pass, whatever the batch; what is no image is told."""

import io
import json
import os
import subprocess
import sys
from types import SimpleNamespace

import jax
import numpy as np
import optax
import pytest
from PIL import Image

from jaxcifar import UserError, cli, predict
from jaxcifar.core.state import state_from
from jaxcifar.data import Examples
from jaxcifar.evaluate import evaluate
from jaxcifar.files import weights

BATCH = "8"


@pytest.fixture(scope="module")
def pixels():
    """Eleven images, so that a batch of 8 is not enough and the next one not full."""
    rng = np.random.default_rng(1)
    colours = rng.integers(0, 256, (11, 1, 1, 3))
    return (colours * rng.uniform(0, 1, (11, 32, 32, 3))).astype(np.uint8)


@pytest.fixture(scope="module")
def folder(tmp_path_factory, pixels):
    folder = tmp_path_factory.mktemp("images")
    for index, image in enumerate(pixels):
        Image.fromarray(image).save(folder / f"{index:02}.png")
    return folder


@pytest.fixture(scope="module")
def state(checkpoint):
    loaded = weights.load(checkpoint)
    return state_from(loaded.variables, loaded.build(), optax.identity())


@pytest.fixture(scope="module")
def expected(state, pixels):
    return predict.predict(state, pixels, batch_size=int(BATCH))


def main(*argv):
    return predict.main([str(arg) for arg in argv])


def test_it_is_the_forward_pass_of_evaluation(state, pixels, expected):
    assert expected.dtype == np.float32
    assert np.ptp(expected.max(axis=1)) > 0.05  # it looks at the images
    np.testing.assert_allclose(expected.sum(axis=1), 1, rtol=1e-5)
    labels = expected.argmax(axis=1).astype(np.int32)
    metrics = evaluate(state, Examples(pixels, labels), batch_size=int(BATCH))
    assert int(metrics.correct) == len(pixels)
    loss = -np.log(expected.max(axis=1)).mean()
    np.testing.assert_allclose(metrics.means()[0], loss, rtol=1e-5)


def test_neighbours_change_no_bit(state, pixels, expected):
    for some in ([3], [10, 3], [9, 8, 7]):
        alone = predict.predict(state, pixels[some], batch_size=int(BATCH))
        np.testing.assert_array_equal(alone, expected[some])


def test_a_folder_and_json(checkpoint, folder, expected, capsys):
    code = main("--checkpoint", checkpoint, "--batch-size", BATCH, "--json", "--top", 2, folder)
    out, error = capsys.readouterr()
    document = json.loads(out)
    assert (code, error) == (0, "")
    assert document["model"] == "resnet50_layer4"
    assert [each["image"] for each in document["images"]] == [
        str(path) for path in sorted(folder.glob("*.png"))
    ]
    for each, row in zip(document["images"], expected, strict=True):
        order = np.argsort(-row)[:2]
        assert [top["index"] for top in each["top"]] == order.tolist()
        assert [top["class"] for top in each["top"]] == ["abcdefghij"[i] for i in order]
        np.testing.assert_allclose([top["probability"] for top in each["top"]], row[order])


def test_what_is_no_image_is_told_and_the_rest_goes_on(checkpoint, folder, tmp_path, capsys):
    bad, big = tmp_path / "bad\n.png", tmp_path / "big.jpg"
    bad.write_text("no image")
    Image.new("L", (300, 200), 90).save(big)
    (tmp_path / "empty").mkdir()
    paths = (bad, big, tmp_path / "missing.png", tmp_path / "empty", folder / "00.png", big)
    code = main("--checkpoint", checkpoint, "--batch-size", BATCH, *paths)
    out, error = capsys.readouterr()
    assert code == 1
    lines = out.splitlines()
    assert [line.rpartition(": ")[0] for line in lines] == [
        *map(str, (big, folder / "00.png", big))
    ]
    assert lines[0] == lines[2]
    assert all(line.count(" %") == 3 for line in lines)
    errors = error.splitlines()
    assert len(errors) == 4
    assert "bad .png is no image" in errors[0]
    assert errors[1] == "images of other sizes or modes are brought to 32x32 RGB"
    assert "missing.png" in errors[2]
    assert errors[3].endswith("empty holds no images")


def test_stdin(checkpoint, folder, monkeypatch, capsys):
    content = (folder / "00.png").read_bytes()
    argv = ("--checkpoint", checkpoint, "--batch-size", BATCH)
    assert main(*argv, folder / "00.png") == 0
    given = capsys.readouterr().out
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=io.BytesIO(content)))
    assert main(*argv, "-") == 0
    assert capsys.readouterr().out.removeprefix("-") == given.removeprefix(str(folder / "00.png"))
    monkeypatch.setattr(sys, "stdin", None)
    assert main(*argv, "-") == 1
    assert "stdin is closed" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("changes", "name", "said"),
    [
        ({}, "a", False),
        ({"class_names": None}, "airplane", True),
        ({"class_names": None, "dataset": "cifar10"}, "airplane", True),
        ({"class_names": None, "dataset": "digits"}, "class 0", False),
        ({"class_names": None, "num_classes": 7}, "class 0", False),
    ],
)
def test_names_of_classes(changes, name, said, checkpoint, capsys):
    loaded = weights.load(checkpoint)._replace(**changes)
    names = predict._class_names("x.ckpt", loaded)
    assert names[0] == name
    assert len(names) == loaded.num_classes
    assert ("taking CIFAR-10's names" in capsys.readouterr().err) == said


def test_weights_that_are_not_finite(checkpoint, folder, monkeypatch, capsys):
    loaded = weights.load(checkpoint)
    nan = jax.tree.map(lambda leaf: leaf * np.float32("nan"), loaded.variables["params"])
    variables = {**loaded.variables, "params": nan}
    broken = loaded._replace(variables=variables)
    monkeypatch.setattr(weights, "load", lambda *args, **options: broken)
    with pytest.raises(UserError, match="not finite"):
        main("--checkpoint", "x", "--batch-size", BATCH, "--json", folder)
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--top", "0", "x.png"], "--top must be at least 1, got 0"),
        (["--batch-size", "0", "x.png"], "--batch-size must be at least 1, got 0"),
        ([], "required: IMAGE"),
    ],
)
def test_wrong_flags(argv, message):
    with pytest.raises(UserError, match=message):
        predict.main(["--checkpoint", "nowhere", *argv])


def test_exit_codes(monkeypatch):
    monkeypatch.setattr(cli.signal, "signal", lambda *args: None)
    for returned, code in ((None, 0), (0, 0), (1, 1)):
        with pytest.raises(SystemExit) as end:
            cli.run(lambda _, returned=returned: returned, prog="x")
        assert end.value.code == code


def test_several_devices_share_a_batch(checkpoint, folder, expected):
    flags = "--xla_force_host_platform_device_count=3"
    out = subprocess.run(
        [
            *(sys.executable, "-m", "jaxcifar.predict", "--checkpoint", checkpoint),
            *("--batch-size", BATCH, "--json", "--top", "1", folder),
        ],
        env={**os.environ, "XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"},
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    tops = [each["top"][0]["probability"] for each in json.loads(out)["images"]]
    np.testing.assert_allclose(tops, expected.max(axis=1), rtol=1e-4)
