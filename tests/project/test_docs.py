"""The documentation is correct: its code runs, and its output, links and options are right."""

import re
from pathlib import Path

import jax
import numpy as np
import pytest

import jaxcifar
from docs import hooks
from examples import train_digits
from jaxcifar import cli, train
from jaxcifar.files import weights
from tests.conftest import random_variables

ROOT = Path(__file__).parents[2]
PYTHON_BLOCK = re.compile(r"^```python\n(.*?)^```\n(?:\n```text\n(.*?)^```\n)?", re.M | re.S)


def run(page, names, capsys):
    """Run the Python blocks of a page in order and compare what they print."""
    text = (ROOT / page).read_text(encoding="utf-8")
    blocks = list(PYTHON_BLOCK.finditer(text))
    assert blocks
    for block in blocks:
        capsys.readouterr()
        line = text.count("\n", 0, block.start(1))
        exec(compile("\n" * line + block[1], page, "exec"), names)
        assert capsys.readouterr().out == (block[2] or ""), f"{page}:{line}"


@pytest.mark.slow
def test_the_tutorial_runs_and_prints_what_it_shows(tmp_path, monkeypatch, capsys):
    pytest.importorskip("torch", reason="torch is not installed")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    run("docs/tutorial.md", {}, capsys)


@pytest.mark.slow
def test_the_readme_uses_the_library_correctly(monkeypatch, capsys):
    """Without the training itself, which the test of the example runs."""
    printed, history = [], train.History(Path("run"), [{"loss": 1.0}], 0.5, state=None)
    monkeypatch.setattr(jaxcifar, "train_and_evaluate", lambda config: history)
    run("README.md", {"print": lambda *values: printed.append(values)}, capsys)
    assert printed == [(0.5, {"loss": 1.0})]


@pytest.mark.slow
def test_a_loss_a_schedule_and_an_optimizer_of_ones_own_train(capsys):
    run("docs/own_training.md", {}, capsys)


def test_the_network_of_the_page_about_porting_is_ported(tmp_path, monkeypatch, capsys):
    torch = pytest.importorskip("torch", reason="torch is not installed")
    monkeypatch.chdir(tmp_path)
    text = (ROOT / "docs/porting.md").read_text(encoding="utf-8")
    theirs, ours = (block[1] for block in PYTHON_BLOCK.finditer(text))
    Path("my_torch.py").write_text(theirs)
    Path("my_net.py").write_text(ours)
    names = {}
    exec(theirs, names)
    torch.save(names["Net"]().state_dict(), "net.pth")
    command = re.search(r"^jaxcifar port (net.pth net_flax .*)$", text, re.M)[1]
    cli.call("port", command.split())
    shown = re.search(r"^net.pth is .*?^(?=layer)", text, re.M | re.S)[0]
    assert capsys.readouterr().out.startswith(shown)


@pytest.mark.slow
def test_the_page_for_pytorch_users_converts_in_both_directions(tmp_path, monkeypatch, capsys):
    models = "jaxcifar.porting.torch_models"
    module = pytest.importorskip(models, reason="torch is not installed").VGG16()
    monkeypatch.chdir(tmp_path)
    loaded = weights.Weights("vgg16", 10, random_variables("vgg16"))
    weights.write(Path("vgg16_flax"), loaded, "orbax", {})
    names = {"module": module, "images": np.zeros((2, 32, 32, 3), np.uint8)}
    run("docs/from_pytorch.md", names, capsys)
    assert names["logits"].shape == (2, 10)
    assert names["state_dict"].keys() == module.state_dict().keys()


@pytest.mark.slow
@pytest.mark.usefixtures("few_digits", "small_network")
def test_the_example_tunes_only_the_head(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(train_digits, "HEADS", ["linear"])
    tune, tuned = train_digits.tune, []
    monkeypatch.setattr(train_digits, "tune", lambda *a, **k: tuned.append(tune(*a, **k)))
    options = f"--model vgg16 --epochs 1 --tune-epochs 1 --batch-size 20 --workdir {tmp_path}/run"
    train_digits.main(options.split())
    assert "Tuned for 1/1: loss " in capsys.readouterr().out
    before, [after] = weights.load(tmp_path / "run").variables["params"], tuned
    same = jax.tree.map(np.array_equal, before, after.params)
    assert {name for name in same if not jax.tree.all(same[name])} == {"linear"}


@pytest.mark.parametrize("name", jaxcifar.__all__)
def test_every_public_name_is_documented(name):
    pages = "".join(page.read_text(encoding="utf-8") for page in (ROOT / "docs/api").glob("*.md"))
    value = getattr(jaxcifar, name)
    module = value.__module__
    assert f"`{name}`][{module}.{value.__name__}]" in pages
    assert f"::: {module}\n" in pages


@pytest.mark.parametrize("name", cli.COMMANDS)
def test_every_option_of_a_command_is_documented(name, monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "1000")  # no option is broken over two lines
    with pytest.raises(SystemExit):
        cli.call(name, ["--help"])
    shown = set(re.findall(r"--[a-z][a-z-]*", capsys.readouterr().out)) - {"--help"}
    section = hooks.options().split(f"## jaxcifar {name}\n")[1].split("\n## ")[0]
    assert set() < shown <= set(re.findall(r"^`(--[a-z-]+)", section, re.MULTILINE))


@pytest.mark.parametrize("name", hooks.ROOT_FILES)
def test_links_in_root_files_work_on_github_and_in_the_site(name):
    link, text = r"\]\(([^)#:]+)[^):]*\)", (ROOT / name).read_text(encoding="utf-8")
    assert all((ROOT / target).exists() for target in re.findall(link, text))
    docs = ROOT / "docs"
    pages = {str(path.relative_to(docs)) for path in docs.rglob("*") if path.is_file()}
    assert set(re.findall(link, hooks.from_docs(text))) <= pages | set(hooks.ROOT_FILES.values())
