"""The one exception that is the user's to mend."""


class UserError(ValueError):
    """Bad input: the message says what was given, what was expected and what mends it.

    Commands print it as one line and exit with code 2; a library call just raises it.
    """

    def __init__(self, message: str) -> None:
        super().__init__(" ".join(message.split()))  # one line, whatever a library put into it
