"""The one exception users are meant to see."""


class InputError(Exception):
    """Something the user gave cannot be used.

    The message is one line: what is wrong, where (file, row, option), and what to do about it.
    The command line prints it to standard error and exits with code 2; library callers catch it.
    """
