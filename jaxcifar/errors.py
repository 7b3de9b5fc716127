"""The error for bad input, and the log."""

import difflib
import logging
import re
from collections.abc import Iterable, Sequence
from pathlib import Path

log = logging.getLogger("jaxcifar")
MAX_BYTES = 2**29  # the largest image that Pillow opens, in RGB, and three times any archive


class UserError(ValueError):
    """Raised for errors the user can fix; commands print the one line and exit with code 2."""

    def __init__(self, message: str) -> None:
        super().__init__(one_line(message))


def one_line(text: str) -> str:
    """Return the text in one line that a terminal can show, without the middle of a long one."""
    text = text if len(text) <= 2000 else f"{text[:1500]} ... {text[-400:]}"
    text = re.sub(r"\s*\n\s*", " ", text.strip())
    return "".join(c if c.isprintable() else " " if c.isspace() else "?" for c in text)


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """Return the end of a message about an unknown word; empty if none is like it."""
    return "".join(f"; did you mean {name}?" for name in difflib.get_close_matches(word, known, 1))


def first_few(names: Sequence[str]) -> str:
    """Return the first five names in one line, and how many more there are."""
    more = f" and {len(names) - 5} more" if len(names) > 5 else ""
    return ", ".join(map(one_line, names[:5])) + more


def regular_file(path: Path, limit: int = MAX_BYTES) -> Path:
    """Return the path, or raise ``UserError`` if reading it could wait or fill the memory."""
    if path.is_file() and path.stat().st_size > limit:
        raise UserError(f"{path} has more than {limit} bytes: pass the right file")
    if path.exists() and not path.is_file() and not path.is_dir():
        raise UserError(f"{path} is not a regular file: copy its content to one")
    return path


def difference(first: Sequence[str], second: Sequence[str], name: str, other: str) -> str:
    """Describe how two lists of names differ; empty if they are equal."""
    parts = [
        f"only in {where}: {first_few(only)}"
        for names, others, where in ((first, second, name), (second, first, other))
        if (only := [text for text in dict.fromkeys(names) if text not in others])
    ]
    return "; ".join(parts) or ("they are in another order" if first != second else "")
