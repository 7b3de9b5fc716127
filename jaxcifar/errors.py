"""The error for bad input."""

from collections.abc import Sequence


class UserError(ValueError):
    """Raised for errors the user can fix; commands print the one line and exit with code 2."""

    def __init__(self, message: str) -> None:
        super().__init__(one_line(message))


def one_line(text: str) -> str:
    """Return the text in one line that a terminal can show."""
    return "".join(c if c.isprintable() else "?" for c in " ".join(text.split()))


def difference(first: Sequence[str], second: Sequence[str], name: str, other: str) -> str:
    """Describe how two lists of names differ; empty if they are equal."""
    parts = []
    for names, others, where in ((first, second, name), (second, first, other)):
        only = [text for text in dict.fromkeys(names) if text not in set(others)]
        if only:
            more = f" and {len(only) - 5} more" if len(only) > 5 else ""
            parts.append(f"only in {where}: {', '.join(only[:5])}{more}")
    if not parts and tuple(first) != tuple(second):
        return "they are in another order"
    return "; ".join(parts)
