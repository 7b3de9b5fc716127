"""The one exception that is the user's to mend."""

from collections.abc import Sequence


class UserError(ValueError):
    """Bad input: the message says what was given, what was expected and what mends it.

    Commands print it as one line and exit with code 2; a library call just raises it.
    """

    def __init__(self, message: str) -> None:
        super().__init__(one_line(message))


def one_line(text: str) -> str:
    """The text in one line that a terminal can show, whatever a library or a file put into it."""
    return "".join(c if c.isprintable() else "?" for c in " ".join(text.split()))


def difference(first: Sequence[str], second: Sequence[str], name: str, other: str) -> str:
    """What two lists of names do not share, in words; empty where they are equal."""
    parts = []
    for ours, theirs, where in ((first, second, name), (second, first, other)):
        only = [text for text in dict.fromkeys(ours) if text not in set(theirs)]
        if only:
            more = f" and {len(only) - 5} more" if len(only) > 5 else ""
            parts.append(f"only in {where}: {', '.join(only[:5])}{more}")
    return "; ".join(parts) or (
        "" if tuple(first) == tuple(second) else "they are in another order"
    )
