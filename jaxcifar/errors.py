"""The one exception that is the user's to mend."""


class UserError(ValueError):
    """Bad input: the message says what was given, what was expected and what mends it.

    Commands print it as one line and exit with code 2; a library call just raises it.
    """

    def __init__(self, message: str) -> None:
        super().__init__(one_line(message))


def one_line(text: str) -> str:
    """The text in one line that a terminal can show, whatever a library or a file put into it."""
    return "".join(c if c.isprintable() else "?" for c in " ".join(text.split()))
