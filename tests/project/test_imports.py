"""Who may import whom, and other rules that the source shows."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

from jaxcifar.cli import COMMANDS

ROOT = Path(__file__).parents[2]
# What a module may import beside its own room; the longest name that fits a module counts.
MAY_IMPORT = {
    "errors": "",
    "core": "",
    "config": "errors",
    "data": "core config errors",
    "files": "core config errors",
    "reporting": "files data core config errors",
    "porting": "files data core errors",
    "runtime.console": "",
    "runtime": "runtime.console reporting files data core config errors",
    "cli": "runtime.console config errors jaxcifar",
    "__main__": "cli",
    "jaxcifar": "train files core config errors",  # the public names, lazily
}
BELOW_COMMANDS = "evaluate report runtime reporting porting files data core config"
MAY_IMPORT |= dict.fromkeys(COMMANDS, f"{BELOW_COMMANDS} errors")
MAY_IMPORT_TORCH = ("jaxcifar/files/torch_files.py", "jaxcifar/porting/")


def imported(node):
    """The full names that a statement imports; a relative one begins with a dot."""
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    if isinstance(node, ast.ImportFrom):
        module = "." * node.level + (node.module or "")
        return [f"{module}.{alias.name}" for alias in node.names]
    return []


def room(name):
    """The key of ``MAY_IMPORT`` for a module of the package, or for a name in one."""
    parts = name.split(".")[1:]
    prefixes = (".".join(parts[:length]) for length in range(len(parts), 0, -1))
    return next((prefix for prefix in prefixes if prefix in MAY_IMPORT), "jaxcifar")


def violations(path):
    own = room(path.removesuffix(".py").replace("/", ".").removesuffix(".__init__"))
    tree = ast.parse((ROOT / path).read_text())
    # Every command needs this for python -m.
    tree.body = [n for n in tree.body if not ast.unparse(n).startswith("if __name__ == '__main__'")]
    functions = (ast.FunctionDef, ast.AsyncFunctionDef)
    late = {n for f in ast.walk(tree) if isinstance(f, functions) for n in ast.walk(f)}
    foreign = {"tensorflow"} if path.startswith(MAY_IMPORT_TORCH) else {"tensorflow", "torch"}
    for node in ast.walk(tree):
        for name in imported(node):
            packages = name.split(".")
            ours = packages[0] in ("jaxcifar", "")
            if ours and room(name) not in (own, *MAY_IMPORT[own].split()):
                yield node.lineno, f"{own} must not import {name}"
            if node in late:
                yield node.lineno, f"{name} is imported in a function"
            if not foreign.isdisjoint(packages):
                yield node.lineno, f"{name} is imported"
        word = getattr(node, "id", getattr(node, "attr", None))
        late_words = ("TYPE_CHECKING", "import_module", "__import__")
        if word in late_words and path not in ("jaxcifar/cli.py", "jaxcifar/files/networks.py"):
            yield node.lineno, f"{word} is used"
        if own == "core" and re.search(r"(?<![\w-])--[a-z]", str(getattr(node, "value", ""))):
            yield node.lineno, f"the core speaks of a flag: {node.value!r}"


def test_modules_keep_to_their_room():
    paths = sorted(str(path.relative_to(ROOT)) for path in ROOT.glob("jaxcifar/**/*.py"))
    assert len(paths) > 30
    lines = [f"{path}:{line}: {what}" for path in paths for line, what in violations(path)]
    assert not lines, "\n".join(lines)


def test_no_file_is_long():
    files = [*ROOT.glob("jaxcifar/**/*.py"), *ROOT.glob("tests/**/*.py")]
    assert not [path for path in files if len(path.read_text().splitlines()) > 250]


@pytest.mark.parametrize("command", [[], *([name] for name in COMMANDS)], ids=" ".join)
def test_help_loads_nothing_heavy(command):
    python = [sys.executable, "-X", "importtime", "-m", "jaxcifar"]
    done = subprocess.run([*python, *command, "--help"], capture_output=True, text=True, check=True)
    assert done.stdout.startswith(" ".join(["usage: jaxcifar", *command]))
    loaded = {line.split("|")[-1].strip() for line in done.stderr.splitlines()}
    assert "jaxcifar.cli" in loaded
    assert not loaded & {"jax", "numpy", "flax", "optax", "orbax", "torch", "sklearn", "matplotlib"}


def test_imports_load_no_other_framework():
    heavy = {"torch", "tensorflow", "tensorflow_datasets", "sklearn", "requests"}
    code = (
        "import sys, jaxcifar.data, jaxcifar.port; from jaxcifar.files.run import *;"
        "MetricWriter(RunDirectory('.'), 0, silent=True);"
        f"print({heavy} & {{*sys.modules}})"
    )
    assert subprocess.check_output([sys.executable, "-c", code], text=True) == "set()\n"
