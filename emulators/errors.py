"""The one error that bad input raises, and what errors of other libraries say."""


class InputError(ValueError):
    """Bad input from the user: a file, a key, a value or a label.

    The message is one line that names what was wrong, its value, what is allowed and
    what to do. The command line prints it and leaves with status 2.
    """


def one_line(error: Exception) -> str:
    """What an error says, in one line; its kind where it says nothing."""
    return " ".join(str(error).split()) or type(error).__name__
