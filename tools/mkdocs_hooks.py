"""What the site shows of files outside docs/, and of the commands' own options."""

import argparse
import re
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from jaxcifar import cli, evaluate, export, predict, report, train
from jaxcifar import port as port_torch_ckpt

if TYPE_CHECKING:
    from mkdocs.config.defaults import MkDocsConfig
    from mkdocs.structure.files import Files
    from mkdocs.structure.pages import Page

# A title, the module, and the configuration that its flags are derived from.
COMMANDS = [
    ("jaxcifar.train", train, train.TrainConfig),
    ("jaxcifar.evaluate", evaluate, evaluate.EvaluateConfig),
    ("jaxcifar.predict", predict, predict.PredictConfig),
    ("jaxcifar.export", export, export.ExportConfig),
    ("jaxcifar.report", report, report.ReportConfig),
    ("tools/port_torch_ckpt.py", port_torch_ckpt, port_torch_ckpt.PortConfig),
]
ROOT_FILES = {
    "README.md": "index.md",
    "CONTRIBUTING.md": "contributing.md",
    "CHANGELOG.md": "changelog.md",
}


def on_files(files: "Files", config: "MkDocsConfig") -> "Files":
    """Adds the root's pages; GitHub and the site read the same files."""
    from mkdocs.structure.files import File

    for name, page in ROOT_FILES.items():
        text = (Path(config.docs_dir).parent / name).read_text()
        files.append(File.generated(config, page, content=from_docs(text)))
    return files


def on_page_markdown(markdown: str, page: "Page", **_: Any) -> str:
    """Appends the options to the page of the commands."""
    return f"{markdown}\n{options()}" if page.file.src_uri == "commands.md" else markdown


def from_docs(text: str) -> str:
    """A root file's text with its links as seen from docs/."""
    for name, page in ROOT_FILES.items():
        text = text.replace(f"]({name}", f"]({page}")
    return text.replace("](docs/", "](")


def options() -> str:
    """Markdown of every command's options, read from the parsers that the commands use."""
    return "\n".join(line for command in COMMANDS for line in _command(*command))


def _command(title: str, module: ModuleType, config: type) -> Iterator[str]:
    yield f"## {title}\n\n{module.__doc__}\n"
    for action in cli.make_parser(config, prog=title, description="")._actions:
        if action.dest == "help":
            continue
        name = " ".join([*action.option_strings[-1:], _value(action)]).strip()
        text = re.sub(r"[<*_|]", r"\\\g<0>", (action.help or "").replace("%%", "%"))
        yield f"`{name}`\n:   {text}\n"


def _value(action: argparse.Action) -> str:
    if action.choices:
        return "{" + ", ".join(action.choices) + "}"
    return str(action.metavar) if action.metavar and action.nargs != 0 else ""
