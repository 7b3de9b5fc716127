"""The report of a run: files, numbers, and a page that a browser shows."""

import dataclasses
import json
import re
import shutil
import subprocess

import numpy as np
import pytest
from PIL import Image

from jaxcifar import UserError, cli, data, report
from jaxcifar.config.train import TrainConfig
from jaxcifar.files.run import RunDirectory
from jaxcifar.reporting import figures, page
from jaxcifar.train import train_and_evaluate
from tests.conftest import run_config, use_few_digits


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run with a report, of forty images."""
    with pytest.MonkeyPatch.context() as patch:
        use_few_digits(patch)
        workdir = tmp_path_factory.mktemp("first") / "run"
        options = {"report": True, "log_every": 1}
        return train_and_evaluate(run_config(workdir, epochs=2, val_fraction=0.2, **options))


@pytest.fixture
def copy(run, tmp_path):
    return RunDirectory(shutil.copytree(run.workdir, tmp_path / "other"))


def texts(path):
    return [text.strip() for text in re.findall(r">([^<]+)<", path.read_text())]


def addresses(path):
    """What a page loads or links to."""
    return re.findall(r'(?:src|href)="([^"]*)"', path.read_text())


def test_a_run_leaves_a_report(run):
    folder = run.workdir / "report"
    assert {path.name for path in folder.iterdir()} == {
        *("index.html", "curves.png", "confusion.png", "mistakes.png", "test.npz")
    }
    for name in ("curves", "confusion", "mistakes"):
        with Image.open(folder / f"{name}.png") as picture:
            assert min(picture.size) > 300
            assert len(picture.convert("RGB").getcolors(2**24)) > 10  # something is drawn
    shown = texts(folder / "index.html")
    assert f"{100 * run.test_accuracy:.2f} %" in shown
    assert f"{run.records[-1]['loss']:.4f}" in shown
    assert "test accuracy, 20 images" in shown
    assert any("--val-fraction 0.2" in text for text in shown)  # the command
    assert all(address.startswith("data:") for address in addresses(folder / "index.html"))


def test_evaluate_agrees_with_the_report(run, few_digits, capsys):
    argv = ["--checkpoint", str(run.workdir), "--no-compile-cache"]
    cli.call("evaluate", [*argv, "--json"])
    document = json.loads(capsys.readouterr().out)
    outputs = page.load_outputs(RunDirectory(run.workdir))
    assert document["accuracy"] == run.test_accuracy
    assert document["loss"] == pytest.approx(run.records[-1]["loss"], rel=1e-6)
    assert np.trace(document["confusion"]) / 20 == run.test_accuracy
    wrong = np.flatnonzero(outputs.logits.argmax(axis=1) != outputs.labels)
    assert sorted(outputs.mistaken) == list(wrong)
    test = data.load("digits").test
    np.testing.assert_array_equal(outputs.images, test.images[outputs.mistaken])
    cli.call("evaluate", argv)
    out = capsys.readouterr().out
    assert f"Accuracy of the model on the test images: {100 * run.test_accuracy:.2f} %" in out
    assert re.search(r"95 % interval \d+\.\d\d to \d+\.\d\d %", out)
    assert len(out.splitlines()) == 6 + 10


def test_a_report_is_made_again_without_the_data(run, copy, monkeypatch, capsys):
    before = (copy.report_dir / "index.html").read_text()
    for path in copy.report_dir.glob("*.*"):
        if path.name != page.OUTPUTS_FILE:
            path.unlink()
    monkeypatch.setattr(data, "load", lambda *args: pytest.fail("the data is not needed"))
    cli.call("report", [str(copy.path)])
    assert capsys.readouterr().out.strip() == str(copy.report_dir / "index.html")
    after = (copy.report_dir / "index.html").read_text()
    assert after.replace(">other<", ">run<") == before


def truncate(path):
    path.write_bytes(path.read_bytes()[:-200])


def forget_an_image(path):
    with np.load(path) as file:
        arrays = dict(file)
    np.savez(path, **{**arrays, "labels": arrays["labels"][1:]})


@pytest.mark.parametrize("damage", [lambda path: path.unlink(), truncate, forget_an_image])
def test_lost_or_corrupt_outputs_are_computed_again(damage, run, copy, few_digits, caplog):
    damage(copy.report_dir / page.OUTPUTS_FILE)
    with caplog.at_level("INFO", "jaxcifar"):
        report.make_report([copy.path])
    assert "evaluating the checkpoint of step 8 on the test images" in caplog.text
    again, first = page.load_outputs(copy), page.load_outputs(RunDirectory(run.workdir))
    np.testing.assert_allclose(again.logits, first.logits, rtol=1e-5, atol=1e-5)


def test_several_runs_are_compared_in_one_page(run, tmp_path):
    other = shutil.copytree(run.workdir, tmp_path / "run")  # of the same name
    path = report.make_report([run.workdir, other], tmp_path / "both")
    shown = texts(path)
    assert "2 runs" in shown
    assert shown.count(f"{100 * run.test_accuracy:.2f} %") == 4
    assert [address for address in addresses(path) if address[0] == "#"] == ["#run-1", "#run-2"]
    assert len({text for text in shown if re.fullmatch(r"[^,/]+/run", text)}) == 2
    assert {path.name for path in (tmp_path / "both").iterdir()} == {
        *("index.html", "curves.png", "confusion-1.png", "confusion-2.png"),
        *("mistakes-1.png", "mistakes-2.png"),
    }
    with pytest.raises(UserError, match="a run was given twice"):
        report.make_report([other, other])


def test_names_cannot_inject(run, tmp_path):
    copy = RunDirectory(shutil.copytree(run.workdir, tmp_path / "<script>alert(1)<"))
    outputs = page.load_outputs(copy)
    names = ("<script>$x", r"$\frac{", "数字", *outputs.class_names[3:])
    page.save_outputs(copy, dataclasses.replace(outputs, class_names=names))
    text = report.make_report([copy.path]).read_text()
    assert "<script>" not in text
    assert "&lt;script&gt;$x" in text


def test_figures_have_room_for_many_classes_with_long_names(tmp_path):
    names = [f"{i} " + 200 * "long " for i in range(100)]
    examples = data.Examples(np.zeros((1, 32, 32, 3), np.uint8), np.array([99]))
    figures.confusion(np.eye(100, dtype=int), names, tmp_path / "confusion.png")
    figures.mistakes(examples, np.zeros((1, 100)), names, tmp_path / "mistakes.png")
    figures.mistakes(data.Examples([], []), np.zeros((0, 100)), names, tmp_path / "none.png")
    assert len(list(tmp_path.iterdir())) == 3


def test_directories_without_a_run_or_a_checkpoint_are_refused(tmp_path):
    with pytest.raises(UserError, match="is not a saved training configuration"):
        report.make_report([tmp_path])
    (tmp_path / "config.json").write_text(json.dumps(TrainConfig().to_dict()))
    with pytest.raises(UserError, match="has no checkpoint; train first"):
        report.make_report([tmp_path])


CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")


def visit(path, profile):
    """The page after the browser has shown it, and the lines of its console."""
    quiet = ["--no-first-run", "--disable-background-networking", "--disable-component-update"]
    log = [f"--user-data-dir={profile}", "--enable-logging=stderr", "--v=0"]
    argv = [CHROMIUM, "--headless", "--no-sandbox", *quiet, *log, "--dump-dom", path.as_uri()]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=120)
    return done.stdout, [line for line in done.stderr.splitlines() if "CONSOLE" in line]


@pytest.mark.browser
@pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not installed")
def test_a_browser_shows_the_page(run, tmp_path):
    shown, errors = visit(run.workdir / "report" / "index.html", tmp_path / "profile")
    assert errors == []
    assert f"<b>{100 * run.test_accuracy:.2f} %</b><span>test accuracy" in shown
    assert shown.count("<img ") == 3

    broken = tmp_path / "broken.html"
    broken.write_text("<script>undefined_function()</script><img src='data:,'>")
    assert visit(broken, tmp_path / "profile")[1]  # so an error would have been seen
