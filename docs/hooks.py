"""Add files from the repository's root and the commands' options to the site."""

import argparse
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from etils import epy

from jaxcifar import cli

with epy.lazy_imports():
    from mkdocs.structure import files as mkdocs_files

PAGES = {"README": "index.md", "CONTRIBUTING": "contributing.md", "CHANGELOG": "changelog.md"}
ROOT_FILES = {f"{name}.md": page for name, page in PAGES.items()}


def on_files(files: Any, config: Any) -> Any:
    """Add the pages of the root; GitHub and the site show the same files."""
    for name, page in ROOT_FILES.items():
        text = (Path(config.docs_dir).parent / name).read_text(encoding="utf-8")
        files.append(mkdocs_files.File.generated(config, page, content=from_docs(text)))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Append the options to the page about the commands."""
    return f"{markdown}\n{options()}" if page.file.src_uri == "commands.md" else markdown


def from_docs(text: str) -> str:
    """Return a root file's text with links relative to docs/."""
    for name, page in ROOT_FILES.items():
        text = text.replace(f"]({name}", f"]({page}")
    return text.replace("](docs/", "](")


def options() -> str:
    """Return the options of all commands as Markdown, read from the parsers themselves."""
    return "\n".join(line for name in cli.COMMANDS for line in _command(name))


def _command(name: str) -> Iterator[str]:
    parser = cli.make_parser(name)
    yield f"## jaxcifar {name}\n\n{parser.description}\n"
    for action in parser._actions:
        if action.dest != "help":
            flag = " ".join([*action.option_strings[-1:], _value(action)]).strip()
            text = re.sub(r"[<*_|]", r"\\\g<0>", (action.help or "").replace("%%", "%"))
            yield f"`{flag}`\n:   {text}\n"


def _value(action: argparse.Action) -> str:
    if action.choices:
        return "{" + ", ".join(action.choices) + "}"
    return str(action.metavar) if action.metavar and action.nargs != 0 else ""
