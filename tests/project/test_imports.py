"""Who may import whom, and other rules that the source shows."""

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
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
    "runtime.memory": "",
    "runtime": "runtime.memory reporting files data core config errors",
    "cli": "runtime.memory config errors jaxcifar",
    "__main__": "cli",
    "jaxcifar": "train core config errors",  # the public names, lazily
}
BELOW_COMMANDS = "evaluate report runtime.memory runtime reporting porting files data core config"
MAY_IMPORT |= dict.fromkeys(COMMANDS, f"{BELOW_COMMANDS} errors")
MAY_IMPORT_TORCH = ("jaxcifar/files/torch_files.py", "jaxcifar/porting/")


def imported(node: ast.AST) -> list[str]:
    """The full names that a statement imports; a relative one begins with a dot."""
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    if isinstance(node, ast.ImportFrom):
        module = "." * node.level + (node.module or "")
        return [f"{module}.{alias.name}" for alias in node.names]
    return []


def room(name: str) -> str:
    """The key of ``MAY_IMPORT`` for a module of the package, or for a name in one."""
    parts = name.split(".")[1:]
    prefixes = (".".join(parts[:length]) for length in range(len(parts), 0, -1))
    return next((prefix for prefix in prefixes if prefix in MAY_IMPORT), "jaxcifar")


def violations(path: str, tree: ast.Module) -> Iterator[tuple[ast.AST, str]]:
    own = room(path.removesuffix(".py").replace("/", ".").removesuffix(".__init__"))
    functions = (ast.FunctionDef, ast.AsyncFunctionDef)
    late = {n for f in ast.walk(tree) if isinstance(f, functions) for n in ast.walk(f)}
    # What every command needs for python -m.
    doors = (n for n in tree.body if ast.unparse(n).startswith("if __name__ == '__main__':\n"))
    allowed = {id(node) for door in doors for node in ast.walk(door)}
    for node in ast.walk(tree):
        for name in imported(node):
            packages = name.split(".")
            ours = packages[0] in ("jaxcifar", "") and id(node) not in allowed
            if ours and room(name) not in (own, *MAY_IMPORT[own].split()):
                yield node, f"{own} must not import {name}"
            if node in late:
                yield node, f"{name} is imported in a function"
            if packages[0] == "tensorflow":
                yield node, "TensorFlow is imported"
            if "torch" in packages and not path.startswith(MAY_IMPORT_TORCH):
                yield node, "torch is imported"
        word = getattr(node, "id", getattr(node, "attr", None))
        if word in ("TYPE_CHECKING", "import_module", "__import__") and own != "cli":
            yield node, f"{word} is used"
        if own == "core" and re.search(r"(?<![\w-])--[a-z]", str(getattr(node, "value", ""))):
            yield node, f"the core speaks of a flag: {node.value!r}"


def test_modules_keep_to_their_room():
    paths = sorted(ROOT.glob("jaxcifar/**/*.py"))
    assert len(paths) > 30
    lines = [
        f"{path}:{node.lineno}: {message}"
        for path in (str(path.relative_to(ROOT)) for path in paths)
        for node, message in violations(path, ast.parse((ROOT / path).read_text()))
    ]
    assert not lines, "\n".join(lines)


def test_no_file_is_long():
    files = [*ROOT.glob("jaxcifar/**/*.py"), *ROOT.glob("tests/**/*.py")]
    lengths = {path.relative_to(ROOT): len(path.read_text().splitlines()) for path in files}
    long = [f"{path}: {length} lines" for path, length in lengths.items() if length > 250]
    assert not long, "\n".join(long)


@pytest.mark.parametrize("command", [[], *([name] for name in COMMANDS)], ids=" ".join)
def test_help_loads_nothing_heavy(command):
    heavy = ("jax", "numpy", "flax", "optax", "orbax", "torch", "sklearn", "matplotlib")
    code = f"""
import sys
from jaxcifar import cli
try:
    cli.main({[*command, "--help"]})
finally:
    print("loaded:", *(name for name in {heavy} if name in sys.modules))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.startswith(" ".join(["usage: jaxcifar", *command]))
    assert done.stdout.endswith("\nloaded:\n")
