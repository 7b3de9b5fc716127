"""The report of a run: files, numbers, and a page."""

import json
import re
import shutil

import matplotlib
import numpy as np
import pytest
from PIL import Image

from jaxcifar import TrainConfig, UserError, cli, data, report, train_and_evaluate
from jaxcifar.config.commands import ReportConfig
from jaxcifar.files.run import RunDirectory
from jaxcifar.reporting import figures, page
from jaxcifar.reporting.scores import Evaluation, score
from tests.conftest import run_config, use_few_digits, use_small_network

pytestmark = pytest.mark.usefixtures("few_digits", "small_network")
FIGURES = ("curves", "confusion", "mistakes")


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run with a report, of forty images."""
    with pytest.MonkeyPatch.context() as patch:
        use_few_digits(patch)
        use_small_network(patch)
        options = {"epochs": 2, "val_fraction": 0.2, "report": True, "log_every": 1, "seed": 2}
        return train_and_evaluate(run_config(tmp_path_factory.mktemp("first") / "run", **options))


@pytest.fixture
def copy(run, tmp_path):
    return RunDirectory(shutil.copytree(run.workdir, tmp_path / "other"))


def texts(path):
    return [text.strip() for text in re.findall(r">([^<]+)<", path.read_text())]


def addresses(path):
    """What a page loads or links to."""
    return re.findall(r'(?:src|href)="([^"]*)"', path.read_text())


def names(folder):
    return {path.name for path in folder.iterdir()}


def make_report(*paths, **options):
    return report.make_report(ReportConfig(workdirs=paths, **options))


def test_a_run_leaves_a_report(run):
    folder = run.workdir / "report"
    assert names(folder) == {"index.html", *(f"{name}.png" for name in FIGURES)}
    for name in FIGURES:
        with Image.open(folder / f"{name}.png") as picture:
            assert min(picture.size) > 300
            assert len(picture.convert("RGB").getcolors(2**24)) > 10  # something is drawn
    shown = texts(folder / "index.html")
    accuracy, loss = f"{100 * run.test_accuracy:.2f} %", f"{run.records[-1]['loss']:.4f}"
    assert {accuracy, loss, "test accuracy, 20 images"} <= set(shown)
    assert any("--val-fraction 0.2" in text for text in shown)  # the command
    linked = addresses(folder / "index.html")
    assert all(address.startswith("data:") for address in linked)
    assert sum(address.startswith("data:image/png;base64,") for address in linked) == 3
    assert "<script" not in (folder / "index.html").read_text()


def test_evaluate_agrees_with_the_report(run, capsys):
    argv = ["--checkpoint", str(run.workdir), "--no-compile-cache"]
    cli.call("evaluate", [*argv, "--json"])
    document = json.loads(capsys.readouterr().out)
    assert document["accuracy"] == run.test_accuracy
    assert document["loss"] == pytest.approx(run.records[-1]["loss"], rel=1e-6)
    cli.call("evaluate", argv)
    first, second, third, *_ = capsys.readouterr().out.splitlines()
    assert first == "resnet50_layer4 on 20 test images of digits"
    assert second.endswith(f" on the test images: {100 * run.test_accuracy:.2f} %")
    assert re.search(r"95 % interval \d+\.\d\d to \d+\.\d\d %", third)


def test_a_report_is_made_again(copy, capsys):
    index = copy.path / "report" / "index.html"
    before = index.read_text()
    for name in names(copy.path / "report"):
        (copy.path / "report" / name).unlink()
    cli.call("report", [str(copy.path)])
    assert capsys.readouterr().out.strip() == str(index)
    assert index.read_text().replace(">other<", ">run<") == before


def test_only_mistakes_are_shown_as_mistakes():
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (9, 32, 32, 3), np.uint8)
    labels, logits = np.arange(9) % 3, rng.normal(0, 1, (9, 3))
    figure = figures.mistakes(images, labels, logits, "abc")
    wrong = np.flatnonzero(logits.argmax(axis=1) != labels)
    shown = [axes.get_images()[0].get_array() for axes in figure.axes]
    assert 0 < len(shown) == len(wrong)
    assert {image.tobytes() for image in shown} == {images[i].tobytes() for i in wrong}
    shares = [int(axes.get_title().split("(")[1].split(" %")[0]) for axes in figure.axes]
    assert shares == sorted(shares, reverse=True)
    [text] = figures.mistakes(images, logits.argmax(axis=1), logits, "abc").texts
    assert text.get_text() == "no mistakes"


def test_the_users_plots_may_want_latex(copy):
    with matplotlib.rc_context({"text.usetex": True}):
        assert make_report(copy.path).exists()


def test_several_runs_are_compared_in_one_page(run, tmp_path):
    other = shutil.copytree(run.workdir, tmp_path / "run")  # of the same name
    path = make_report(run.workdir, other, output=tmp_path / "both")
    shown = texts(path)
    assert shown.count(f"{100 * run.test_accuracy:.2f} %") == 4
    assert [address for address in addresses(path) if address[0] == "#"] == ["#run-1", "#run-2"]
    assert len({text for text in shown if re.fullmatch(r"[^,/]+/run", text)}) == 2
    figures = [f"{name}-{number}.png" for name in FIGURES[1:] for number in (1, 2)]
    assert names(path.parent) == {"index.html", "curves.png", *figures}
    with pytest.raises(UserError, match="a run was given twice"):
        make_report(other, other)


def test_many_classes_may_have_any_names(run, tmp_path):
    copy = RunDirectory(shutil.copytree(run.workdir, tmp_path / "<script>alert(1)<"))
    names = ["<script>$x", r"$\frac{", "数字", *(f"{i} " + 200 * "long " for i in range(97))]
    examples = data.Examples(np.zeros((100, 32, 32, 3), np.uint8), np.arange(100, dtype=np.int32))
    logits = np.roll(np.eye(100, dtype=np.float32), 1, axis=1)  # all are mistakes
    scores = score(logits, examples.labels, names)
    test = Evaluation("vgg16", "digits", examples, names, logits, scores)
    text = page.write_report([(copy, 8, test)]).read_text()
    assert "<script>" not in text
    assert "&lt;script&gt;$x" in text


def test_a_run_without_a_checkpoint_is_refused(tmp_path):
    RunDirectory(tmp_path).write_config(TrainConfig(), {})
    with pytest.raises(UserError, match="has no checkpoint; train first"):
        make_report(tmp_path)
