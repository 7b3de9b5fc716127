"""The pages do what they say."""

import dataclasses
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import mkdocs_hooks
import numpy as np
import pytest

import jaxcifar
from jaxcifar import train
from jaxcifar.errors import UserError
from jaxcifar.files import torch_names as torch_port
from jaxcifar.files import weights

ROOT = Path(__file__).parents[2]


def blocks(page: Path) -> Iterator[tuple[int, str, str | None]]:
    """Each Python block's first line and code, and the output that the page shows after it."""
    text = page.read_text()
    block = r"^```python\n(.*?)^```\n(?:\n```text\n(.*?)^```\n)?"
    for found in re.finditer(block, text, re.MULTILINE | re.DOTALL):
        yield text.count("\n", 0, found.start(1)), found[1], found[2]


def run(page: Path, names: dict[str, Any], capsys: pytest.CaptureFixture[str]) -> None:
    """Runs the blocks in turn in one namespace and compares what they print."""
    found = list(blocks(page))
    assert found
    for line, code, output in found:
        capsys.readouterr()
        exec(compile("\n" * line + code, page, "exec"), names)
        assert capsys.readouterr().out == (output or ""), f"{page}:{line}"


@pytest.mark.slow
def test_tutorial(tmp_path, monkeypatch, capsys):
    pytest.importorskip("torch", reason="torch is not installed")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    run(ROOT / "docs/tutorial.md", {}, capsys)


@pytest.mark.slow
def test_readme(monkeypatch, capsys):
    """But for the training, which the example's test does."""
    given = []
    history = train.History(Path("run"), [{"loss": 1.0}], 0.5, state=None)
    monkeypatch.setattr(train, "train_and_evaluate", lambda c: given.append(c) or history)
    names: dict[str, Any] = {}
    [code] = [code for _, code, _ in blocks(ROOT / "README.md") if "train_and_evaluate" in code]
    exec(compile(code, "README.md", "exec"), names)
    assert capsys.readouterr().out == "0.5 {'loss': 1.0}\n"
    assert isinstance(given[0], jaxcifar.TrainConfig)
    assert isinstance(names["state"], jaxcifar.TrainState)


@pytest.mark.slow
def test_coming_from_pytorch(tmp_path, monkeypatch, capsys):
    pytest.importorskip("torch", reason="torch is not installed")
    from jaxcifar.porting import torch_models

    monkeypatch.chdir(tmp_path)
    module = torch_models.VGG16()
    variables = torch_port.to_flax(module.state_dict(), jaxcifar.create_model("vgg16"))
    weights.save(Path("vgg16_flax"), weights.Weights("vgg16", 10, variables), {})
    names = {"module": module, "images": np.zeros((2, 32, 32, 3), np.uint8)}
    run(ROOT / "docs/from_pytorch.md", names, capsys)
    assert names["logits"].shape == (2, 10)
    assert names["state_dict"].keys() == module.state_dict().keys()


@pytest.mark.slow
def test_example(tmp_path, monkeypatch, capsys, few_digits):
    """The head moves, the rest of the network stays as the run left it."""
    monkeypatch.syspath_prepend(ROOT / "examples")
    import train_digits

    tune, tuned = train_digits.tune, []
    monkeypatch.setattr(train_digits, "tune", lambda *a, **k: tuned.append(tune(*a, **k)))
    folder = tmp_path / "run"
    argv = ["--epochs", "1", "--tune-epochs", "1", "--batch-size", "20", "--workdir", str(folder)]
    train_digits.main(argv)
    assert "Tuned for 1/1: loss " in capsys.readouterr().out
    before, [after] = weights.load(folder).variables["params"], tuned
    moved = {
        name
        for name, layers in before.items()
        if not jax.tree.all(jax.tree.map(np.array_equal, layers, after.params[name]))
    }
    assert moved == {"fc"}
    with pytest.raises(UserError, match="--tune-epochs must be at least 1, got 0"):
        train_digits.main(["--tune-epochs", "0"])


def test_every_public_name_is_documented():
    pages = "".join(page.read_text() for page in (ROOT / "docs/api").glob("*.md"))
    for name, module in jaxcifar._HOMES.items():
        assert f"`{name}`][jaxcifar.{module}.{name}]" in pages
        assert f"::: jaxcifar.{module}\n" in pages


def test_every_command_is_documented(capsys):
    page = mkdocs_hooks.options()
    for title, module, config in mkdocs_hooks.COMMANDS:
        with pytest.raises(SystemExit):
            module.main(["--help"])
        shown = set(re.findall(r"--[a-z][a-z-]*", capsys.readouterr().out))
        section = page.split(f"## {title}\n")[1].split("\n## ")[0]
        assert shown <= set(re.findall(r"^`(--[a-z-]+)", section, re.MULTILINE)) | {"--help"}
        assert len(shown) > len(dataclasses.fields(config)) / 2


def test_every_command_module_is_listed():
    """A module that can be run as a command has its section."""
    listed = {Path(module.__file__) for _, module, _ in mkdocs_hooks.COMMANDS}
    files = [*(ROOT / "jaxcifar").glob("*.py"), *(ROOT / "tools").glob("*.py")]
    found = {path for path in files if "cli.run(main" in path.read_text()}
    assert found == {*listed, ROOT / "jaxcifar/__main__.py"}


@pytest.mark.parametrize("name", mkdocs_hooks.ROOT_FILES)
def test_links_of_the_roots_files(name):
    """They lead somewhere on GitHub, and to the same pages in the site."""
    link = r"\]\(([^)#:]+)[^):]*\)"
    given = (ROOT / name).read_text()
    for target in re.findall(link, given):
        assert (ROOT / target).exists()
    docs = ROOT / "docs"
    files = {str(path.relative_to(docs)) for path in docs.rglob("*") if path.is_file()}
    pages = {*mkdocs_hooks.ROOT_FILES.values(), *files}
    assert set(re.findall(link, mkdocs_hooks.from_docs(given))) <= pages
