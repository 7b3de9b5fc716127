"""What a run leaves to look at: files, numbers, and a page that a browser shows."""

import dataclasses
import html.parser
import json
import re
import shutil
import subprocess

import numpy as np
import pytest
from PIL import Image

from jaxcifar import cli, data, evaluate, report
from jaxcifar.config import TrainConfig
from jaxcifar.errors import UserError
from jaxcifar.files import run as workdir
from jaxcifar.train import train_and_evaluate
from tests.conftest import load_few_digits


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run with a report, of forty images."""
    with pytest.MonkeyPatch.context() as patch:
        load_few_digits(patch)
        folder = tmp_path_factory.mktemp("first") / "run"
        options = {"model": "resnet50_layer4", "dataset": "digits", "batch_size": 8}
        config = TrainConfig(**options, epochs=2, val_fraction=0.2, log_every=1)
        return train_and_evaluate(dataclasses.replace(config, workdir=str(folder)))


class Texts(html.parser.HTMLParser):
    """The cells of all tables, and the addresses that a page loads."""

    def __init__(self, page):
        super().__init__()
        self.cells, self.sources = [], []
        self.feed(page)

    def handle_starttag(self, tag, attributes):
        self.sources += [value for name, value in attributes if name in ("src", "href")]

    def handle_data(self, text):
        self.cells.append(text.strip())


def test_a_run_leaves_a_report(run):
    folder = run.workdir / "report"
    assert {path.name for path in folder.iterdir()} == {
        *("index.html", "curves.png", "confusion.png", "mistakes.png", "test.npz")
    }
    for name in ("curves", "confusion", "mistakes"):
        with Image.open(folder / f"{name}.png") as picture:
            assert min(picture.size) > 300
            assert len(picture.convert("RGB").getcolors(2**24)) > 10  # something is drawn
    page = Texts((folder / "index.html").read_text())
    assert f"{100 * run.test_accuracy:.2f} %" in page.cells
    assert f"{run.records[-1]['loss']:.4f}" in page.cells
    assert "of 20 test images right" in page.cells
    assert any("--val-fraction 0.2" in text for text in page.cells)  # the command
    assert all(source.startswith("data:") for source in page.sources)


def test_evaluate_agrees_with_the_report(run, few_digits, capsys):
    argv = ["--checkpoint", str(run.workdir), "--json", "--no-compile-cache"]
    evaluate.main(argv)
    found = json.loads(capsys.readouterr().out)
    outputs = report._outputs(run.workdir, None)
    assert found["accuracy"] == run.test_accuracy
    assert found["loss"] == pytest.approx(run.records[-1]["loss"], rel=1e-6)
    assert np.trace(found["confusion"]) / 20 == run.test_accuracy
    predicted = outputs.logits.argmax(axis=1)
    wrong = np.flatnonzero(predicted != outputs.labels)
    assert sorted(outputs.mistaken) == list(wrong)
    test = data.load("digits").test
    np.testing.assert_array_equal(outputs.images, test.images[outputs.mistaken])
    evaluate.main(argv[:2] + argv[3:])
    out = capsys.readouterr().out
    assert f"Accuracy of the model on the test images: {100 * run.test_accuracy:.2f} %" in out
    assert re.search(r"95 % interval \d+\.\d\d to \d+\.\d\d %", out)
    assert len(out.splitlines()) == 6 + 10


def test_a_report_is_made_again_without_the_data(run, tmp_path, monkeypatch, capsys):
    folder = shutil.copytree(run.workdir, tmp_path / "other")
    before = (folder / "report" / "index.html").read_text()
    for path in (folder / "report").glob("*.*"):
        if path.name != report.OUTPUTS_FILE:
            path.unlink()

    def unreachable(*args, **kwargs):
        raise AssertionError("the data is not needed")

    with monkeypatch.context() as patch:
        patch.setattr(data, "load", unreachable)
        report.main([str(folder)])
    assert capsys.readouterr().out.strip() == str(folder / "report" / "index.html")
    after = (folder / "report" / "index.html").read_text()
    assert after.replace(">other<", ">run<") == before


@pytest.mark.parametrize("damage", [lambda p: p.unlink(), lambda p: p.write_bytes(b"PK")])
def test_lost_outputs_are_computed_anew(damage, run, few_digits, tmp_path, capsys):
    folder = shutil.copytree(run.workdir, tmp_path / "other")
    damage(folder / "report" / report.OUTPUTS_FILE)
    report.make_report([folder])
    assert "looking at the test images with the weights of step 8" in capsys.readouterr().err
    ours, theirs = (report._read_outputs(f / "report" / "test.npz") for f in (folder, run.workdir))
    np.testing.assert_allclose(ours.logits, theirs.logits, rtol=1e-5, atol=1e-5)


def test_several_runs_are_drawn_over_each_other(run, tmp_path):
    other = shutil.copytree(run.workdir, tmp_path / "run")  # of the same name
    page = Texts(report.make_report([run.workdir, other], tmp_path / "both").read_text())
    assert "2 runs" in page.cells
    assert sum(text == f"{100 * run.test_accuracy:.2f} %" for text in page.cells) == 4
    names = report._names([run.workdir, other])
    assert len(set(names)) == 2
    assert {path.name for path in (tmp_path / "both").iterdir()} == {
        *("index.html", "curves.png", "confusion-1.png", "confusion-2.png"),
        *("mistakes-1.png", "mistakes-2.png"),
    }
    with pytest.raises(UserError, match="a run is given twice"):
        report.make_report([other, other])


def test_names_cannot_inject(run, tmp_path):
    folder = shutil.copytree(run.workdir, tmp_path / "<script>alert(1)<")
    outputs = report._read_outputs(folder / "report" / "test.npz")
    names = ("<script>$x", r"$\frac{", "数字", *outputs.class_names[3:])
    report.save_outputs(folder, outputs._replace(class_names=names))
    page = report.make_report([folder]).read_text()
    assert "<script>" not in page
    assert "&lt;script&gt;$x" in page


def test_folders_of_no_run(run, tmp_path):
    with pytest.raises(UserError, match="is not a saved training configuration"):
        report.make_report([tmp_path])
    (tmp_path / "config.json").write_text(TrainConfig().to_json())
    with pytest.raises(UserError, match="has no checkpoint yet"):
        report.make_report([tmp_path])


def test_the_command_repeats_the_configuration(run):
    config = workdir.read_config(run.workdir)
    line = cli.command_line(config, "python -m jaxcifar.train")
    argv = line.split()[3:]
    flags = cli.parse(TrainConfig, argv, prog="", description="")
    assert TrainConfig(**flags) == config


CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")


def visit(page, profile):
    """The page's text after the browser has shown it, and what its console said."""
    quiet = ["--no-first-run", "--disable-background-networking", "--disable-component-update"]
    log = [f"--user-data-dir={profile}", "--enable-logging=stderr", "--v=0"]
    done = subprocess.run(
        [CHROMIUM, "--headless", "--no-sandbox", *quiet, *log, "--dump-dom", page.as_uri()],
        capture_output=True,
        text=True,
        timeout=120,
    )
    return done.stdout, [line for line in done.stderr.splitlines() if "CONSOLE" in line]


@pytest.mark.browser
@pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not installed")
def test_a_browser_shows_the_page(run, tmp_path):
    shown, errors = visit(run.workdir / "report" / "index.html", tmp_path / "profile")
    assert errors == []
    assert f'<b class="accuracy">{100 * run.test_accuracy:.2f} %</b>' in shown
    assert shown.count("<img ") == 3

    broken = tmp_path / "broken.html"
    broken.write_text("<script>undefined_function()</script><img src='data:,'>")
    assert visit(broken, tmp_path / "profile")[1]  # so an error would have been seen
