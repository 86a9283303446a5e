"""The one error that bad input raises."""


class InputError(ValueError):
    """Bad input from the user: a file, a key, a value or a label.

    The message is one line that names what was wrong, its value, what is allowed and
    what to do. The command line prints it and leaves with status 2.
    """
